"""How often clients may speak."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.events import (
    CLIENT_EVENTS,
    Cancel,
    EndSession,
    PartialMessage,
    Played,
    StartSession,
    ToolResult,
    UpdateConfig,
    UserMessage,
)
from llm_service.message_rate import LIGHT, MessageRates, TokenBucket, cost


def test_burst_then_rate() -> None:
    """At once the burst passes, then one for every interval of the rate; who is refused learns when."""
    bucket = TokenBucket(2.0, 3)
    assert [0, 0, 0, 0.5] == [bucket.take(1, 100.0) for _ in range(4)]
    assert 0.25 == pytest.approx(bucket.take(1, 100.25))
    assert [0, 0.5] == [bucket.take(1, 100.5) for _ in range(2)]
    assert [0, 0, 0, 0.5] == [bucket.take(1, 1_000.0) for _ in range(4)]


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    steps=st.lists(st.tuples(st.floats(0, 60), st.sampled_from([LIGHT, 1.0])), max_size=200),
)
def test_no_more_than_allowed(rate: float, burst: int, steps: list[tuple[float, float]]) -> None:
    """Whatever comes when, never more is taken than the burst and what the rate brought since; and a refused one passes
    after the wait it was told."""
    bucket = TokenBucket(rate, burst)
    now = taken = 0.0
    for pause, wanted in steps:
        now += pause
        wait = bucket.take(wanted, now)
        if wait:
            now += wait * 1.000001 + 1e-9
            assert bucket.take(wanted, now) == pytest.approx(0, abs=1e-6)
        taken += wanted
        assert taken <= burst + rate * now + 1e-3


def test_costs() -> None:
    """What asks something of the engine or the store costs one; every message of the protocol has its cost."""
    dear = {StartSession, UserMessage, UpdateConfig}
    light = {Cancel, EndSession, PartialMessage, Played, ToolResult}
    assert dear | light == set(CLIENT_EVENTS)
    messages: dict[Any, Any] = {each: each.model_construct() for each in CLIENT_EVENTS}
    assert dear == {each for each, message in messages.items() if cost(message) == 1.0}
    assert light == {each for each, message in messages.items() if cost(message) == LIGHT}


def test_keys_share() -> None:
    """Connections of one key draw on the same allowance, those without a key each on their own."""
    rates = MessageRates(60, 2)
    one, again, other, none, nobody = (rates.bucket(key) for key in ("a", "a", "b", "", ""))
    assert one is again
    assert 5 - 1 == len({id(each) for each in (one, again, other, none, nobody)})
    rates.forget(lambda key: key == "a")
    assert rates.bucket("a") is not one
    assert rates.bucket("b") is other


def test_no_limit() -> None:
    """A rate of 0 is no limit."""
    assert MessageRates(0, 20).bucket("a") is None
