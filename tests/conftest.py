"""Fixtures for all tests."""

import gc
import signal
from pathlib import Path

import pytest

from llm_service import log

pytest_plugins = ["tests.espeak", "tests.real_engines", "tests.redis_server"]

# The tests of modules that know no event loop, socket or clock; together they take less than a second.
PURE = frozenset(
    {
        "test_access",
        "test_admission",
        "test_audio",
        "test_boundaries",
        "test_audio_frames",
        "test_config",
        "test_conversation",
        "test_errors",
        "test_events",
        "test_message_rate",
        "test_ndjson",
        "test_parsing",
        "test_sentences",
        "test_session",
        "test_session_defaults",
        "test_session_machine",
        "test_session_manager",
        "test_speakable",
        "test_speech_rules",
        "test_speech_choices",
        "test_sse",
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --pure, which does not even import the other tests: -m pure would, and that takes longer than they do."""
    parser.addoption("--pure", action="store_true", help="run the tests of the pure core alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the other files under --pure."""
    others = collection_path.is_file() and collection_path.stem not in PURE
    return True if others and config.getoption("--pure") else None


def pytest_configure() -> None:
    """Let the programs that tests start hear Ctrl-C: what a shell runs in the background is made deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the pure core."""
    for item in items:
        if item.path.stem in PURE:
            item.add_marker("pure")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the collector what was imported: pytest runs it several times, and that is most of it."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quiet_log() -> None:
    """Log as the service does, but only what goes wrong."""
    log.configure("WARNING", "console")
