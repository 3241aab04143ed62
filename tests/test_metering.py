"""What is counted of a response."""

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from llm_service.errors import EngineTimeout
from llm_service.generation import Usage
from llm_service.metering import ResponseMeter
from llm_service.metrics import Metrics

Value = Callable[..., float]


def metered() -> tuple[ResponseMeter, Value]:
    """Return a meter and a way to read the series it feeds."""
    registry = CollectorRegistry()
    meter = ResponseMeter(Metrics(registry, models=["small"]).for_engine("fake", "small"))

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"fasttalk_{name}", {"engine": "fake", "model": "small", **labels}) or 0

    return meter, value


def outcomes(value: Value) -> dict[str, float]:
    return {
        outcome: value("request_duration_seconds_count", outcome=outcome)
        for outcome in ("finished", "cancelled", "failed")
    }


def tokens(value: Value) -> dict[str, float]:
    return {kind: value("tokens_total", token_type=kind) for kind in ("input", "output", "cached")}


def test_a_finished_response() -> None:
    """One first token, a gap for each further delta, the tokens as the engine counted them, and nothing runs."""
    meter, value = metered()
    with meter:
        assert value("responses_running") == 1
        begin = meter._started
        meter.times += [begin + 0.3, begin + 0.3, begin + 0.307, begin + 3.307]
        meter.finished(Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=4))
    assert value("responses_running") == 0
    assert outcomes(value) == {"finished": 1, "cancelled": 0, "failed": 0}
    assert tokens(value) == {"input": 7, "output": 5, "cached": 4}
    assert value("time_to_first_token_seconds_count") == 1
    assert value("time_to_first_token_seconds_sum") == pytest.approx(0.3)
    assert value("inter_token_latency_seconds_count") == 3
    assert value("inter_token_latency_seconds_sum") == pytest.approx(3.007)
    buckets = {bound: value("inter_token_latency_seconds_bucket", le=bound) for bound in ("0.001", "0.01", "2.5")}
    assert buckets == {"0.001": 1, "0.01": 2, "2.5": 2}


def test_one_that_waits_for_the_engine() -> None:
    """It does not run meanwhile, and is timed from when the engine is asked; one that leaves the line never ran."""
    meter, value = metered()
    with meter:
        begin = meter._started
        meter.waits()
        meter.waits()
        assert value("responses_running") == 0
        meter.asked()
        assert value("responses_running") == 1
        assert meter._started > begin
    assert value("responses_running") == 0
    with meter:
        meter.waits()
    assert value("responses_running") == 0


def test_one_of_several_engines() -> None:
    """A response that goes on to another engine runs there, is timed from then on, and is counted there."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, models=["small"])
    one, other = metrics.for_engine("one", "small"), metrics.for_engine("other", "small")
    with ResponseMeter(one) as meter:
        began = meter._started
        meter.asks(other)
        assert (0, 1) == (one.running, other.running)
        meter.times.append(began + 1.0)
        started = meter._started
        meter.asks(one)
        assert (1, 0) == (one.running, other.running)
        assert began < started == meter._started
    metrics.settle()
    assert (0, 0) == (one.running, other.running)
    name = "fasttalk_request_duration_seconds_count"
    labels = [{"engine": engine, "model": "small", "outcome": "finished"} for engine in ("one", "other")]
    assert [1, 0] == [registry.get_sample_value(name, each) for each in labels]


def test_an_engine_that_does_not_count() -> None:
    """Without usage, or without the cached part of it, nothing is guessed."""
    meter, value = metered()
    with meter:
        meter.times.append(meter._started)
        meter.finished(None)
    assert tokens(value) == {"input": 0, "output": 0, "cached": 0}
    meter, value = metered()
    with meter:
        meter.finished(Usage(3, 1))
    assert tokens(value) == {"input": 3, "output": 1, "cached": 0}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "cancelled"),
        (EngineTimeout("The model fell silent."), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_a_response_that_does_not_finish(error: BaseException, outcome: str) -> None:
    """A cancel is told from a failure; of either, the deltas that came are the tokens."""
    meter, value = metered()
    with pytest.raises(type(error)), meter:
        meter.times += [meter._started] * 3
        raise error
    assert outcomes(value) == {"finished": 0, "cancelled": 0, "failed": 0, outcome: 1}
    assert tokens(value) == {"input": 0, "output": 3, "cached": 0}
    assert value("responses_running") == 0


def test_a_response_that_says_nothing() -> None:
    """Without a delta there is no first token and no gap."""
    meter, value = metered()
    with pytest.raises(EngineTimeout), meter:
        raise EngineTimeout("The model said nothing.")
    assert value("time_to_first_token_seconds_count") == value("inter_token_latency_seconds_count") == 0
    assert outcomes(value)["failed"] == 1


def test_how_long_a_stop_takes() -> None:
    """From the stop until the stream is closed; a response that nobody stopped counts none."""
    meter, value = metered()
    with pytest.raises(asyncio.CancelledError), meter:
        meter.stopped()
        meter.stopped()  # of a response that waits for this one's end
        assert value("cancel_to_idle_seconds_count") == 0
        raise asyncio.CancelledError
    assert value("cancel_to_idle_seconds_count") == 1
    assert 0 <= value("cancel_to_idle_seconds_sum") < 0.5
    meter, value = metered()
    with meter:
        meter.finished(None)
    assert value("cancel_to_idle_seconds_count") == 0
