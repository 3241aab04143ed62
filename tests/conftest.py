"""Fixtures for all tests."""

import pytest

from llm_service import log

pytest_plugins = ["tests.real_engines"]


@pytest.fixture(autouse=True, scope="session")
def quiet_log() -> None:
    """Log as the service does, but only what goes wrong."""
    log.configure("WARNING", "console")
