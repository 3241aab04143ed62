"""Fixtures for the tests of speech."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.engines.fake_server import FakeServer, fake_server
from tests.processes import found_program


@pytest.fixture
async def tts() -> AsyncGenerator[FakeServer, None]:
    """An HTTP server that does what the test says."""
    async with fake_server() as server:
        yield server


@pytest.fixture(scope="session")
def espeak_program() -> str:
    """The espeak-ng to test with."""
    return found_program(
        "espeak-ng", brought=Path("/nonexistent"), variable="ESPEAK", how="apt-get install espeak-ng brings one"
    )
