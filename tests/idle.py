"""Turns for the tests of idle work."""

from collections.abc import Generator
from contextlib import contextmanager

from llm_service.idle_work import IdleWork


@contextmanager
def answering(idle: IdleWork) -> Generator[None, None, None]:
    """Answer a turn meanwhile."""
    idle.begin_turn()
    try:
        yield
    finally:
        idle.end_turn()
