"""Fixtures for the tests of speech."""

from collections.abc import AsyncGenerator

import pytest

from tests.engines.fake_server import FakeServer, fake_server


@pytest.fixture
async def tts() -> AsyncGenerator[FakeServer, None]:
    """An HTTP server that does what the test says."""
    async with fake_server() as server:
        yield server
