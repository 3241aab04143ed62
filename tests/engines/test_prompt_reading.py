"""How long a prompt is reckoned to be read."""

import pytest

from llm_service.engines.prompt_reading import PromptReading
from llm_service.generation import Message

SYSTEM = Message("system", "s" * 100)


def said(*texts: str) -> tuple[Message, ...]:
    """Return a prompt: a system message, then user and assistant by turns."""
    roles = ("user", "assistant")
    return (SYSTEM, *(Message(roles[index % 2], text) for index, text in enumerate(texts)))  # type: ignore[arg-type]


def test_nothing_is_known_at_first() -> None:
    """Neither before the first prompt nor from one of which no time was told."""
    reading = PromptReading(1)
    assert reading.seconds(said("hello")) is None
    reading.read(said("hello"), None)
    assert reading.seconds(said("hello")) is None


def test_only_what_is_new_is_read() -> None:
    """What is in the cache costs nothing: an earlier prompt, and the answer to it."""
    reading = PromptReading(1)
    reading.read(said("a" * 900), 2.0)
    assert 0.0 == reading.seconds(said("a" * 900))
    assert 1.0 == pytest.approx(reading.seconds(said("a" * 900, "an answer" * 99, "b" * 500)))
    assert 2.0 == pytest.approx(reading.seconds(said("c" * 1000)))
    assert 2.2 == pytest.approx(reading.seconds((Message("system", "other"), Message("user", "d" * 1095))))


def test_as_many_prompts_are_in_the_cache_as_there_are_caches() -> None:
    """With one cache another session's prompt drives the first one out; with two it does not."""
    for caches, seconds in ((1, 1.0), (2, 0.0)):
        reading = PromptReading(caches)
        reading.read(said("a" * 1000), 1.1)
        reading.read((Message("user", "b" * 1000),), 1.0)
        assert seconds == pytest.approx(reading.seconds(said("a" * 1000)), abs=0.11)


def test_a_long_prompt_says_more_than_a_short_one() -> None:
    """What every request costs, however short, hardly changes the pace."""
    reading = PromptReading(1)
    reading.read((Message("user", "a" * 10_000),), 10.0)
    reading.read((Message("user", "b" * 10),), 1.0)
    assert 1.14 == pytest.approx(reading.seconds((Message("user", "c" * 1000),)), abs=0.01)
