"""The espeak-ng of this machine, for tests that have it speak."""

from pathlib import Path

import pytest

from tests.processes import found_program

_UNPACKED = Path("/usr/bin/espeak-ng")


@pytest.fixture(scope="session")
def espeak_program() -> str:
    """The espeak-ng to test with."""
    return found_program("espeak-ng", brought=_UNPACKED, variable="ESPEAK", how="apt-get install espeak-ng brings one")
