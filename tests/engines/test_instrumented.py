"""What the measuring wrapper counts, and that it changes nothing of what it wraps."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest
from prometheus_client import CollectorRegistry

from llm_service.engines.base import Engine
from llm_service.engines.instrumented import InstrumentedEngine
from llm_service.errors import EngineTimeout, EngineUnreachable
from llm_service.generation import Delta, Finish, GenerationEvent, GenerationRequest, Message, SamplingParams, Usage
from llm_service.metrics import Metrics

SECOND = 0.02  # the unit of the waits below, in real seconds
REQUEST = GenerationRequest(
    model="small",
    messages=(Message("user", "hello"),),
    sampling=SamplingParams(temperature=0, top_p=1, top_k=1, max_tokens=9),
    context_window=256,
)
ANSWER: tuple[GenerationEvent, ...] = (
    Delta("One", thinking=True),
    Delta(" two"),
    Delta(" three"),
    Finish("stop", Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=4)),
)


class FakeEngine:
    """Plays a script; an exception in it is raised, a number is a pause in `SECOND`s."""

    def __init__(self, *script: GenerationEvent | Exception | float, closing: float = 0) -> None:
        self.script, self.closing = script, closing
        self.closed = 0
        self.failure: Exception | None = None
        self.loaded: list[str] = []

    @property
    def name(self) -> str:
        return "fake"

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        try:
            for part in self.script:
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, (int, float)):
                    await asyncio.sleep(part * SECOND)
                else:
                    yield part
        finally:
            await asyncio.sleep(self.closing * SECOND)
            self.closed += 1

    async def load(self, model: str, context_window: int) -> None:
        self.loaded.append(model)

    async def ping(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def models(self) -> list[str]:
        return ["small"]

    async def context_window(self, model: str) -> int | None:
        return 4096

    async def aclose(self) -> None:
        self.closed += 1


Value = Callable[..., float]


def instrumented(fake: FakeEngine) -> tuple[Engine, Value]:
    """Return the wrapped engine and a way to read the series of its metrics."""
    registry = CollectorRegistry()
    engine: Engine = InstrumentedEngine(fake, Metrics(registry, models=["small"]))

    def value(name: str, **labels: str) -> float:
        pair = {} if name == "engine_healthy" else {"model": "small"}
        return registry.get_sample_value(f"fasttalk_{name}", {"engine": "fake", **pair, **labels}) or 0

    return engine, value


async def collect(engine: Engine) -> list[GenerationEvent]:
    return [event async for event in engine.generate(REQUEST)]


def outcomes(value: Value) -> dict[str, float]:
    return {
        outcome: value("request_duration_seconds_count", outcome=outcome)
        for outcome in ("finished", "cancelled", "failed")
    }


async def test_events_pass_unchanged() -> None:
    """What the engine yields comes out as the very same objects, in order."""
    engine, _ = instrumented(FakeEngine(*ANSWER))
    assert list(map(id, ANSWER)) == list(map(id, await collect(engine)))


async def test_a_finished_response_is_counted() -> None:
    """One first token, a gap for each further delta, the tokens as the engine counted them, and nothing runs."""
    engine, value = instrumented(fake := FakeEngine(*ANSWER))
    await collect(engine)
    assert value("time_to_first_token_seconds_count") == 1
    assert value("inter_token_latency_seconds_count") == 2
    assert outcomes(value) == {"finished": 1, "cancelled": 0, "failed": 0}
    tokens = {kind: value("tokens_total", token_type=kind) for kind in ("input", "output", "cached")}
    assert tokens == {"input": 7, "output": 5, "cached": 4}
    assert value("responses_running") == 0
    assert fake.closed == 1


async def test_times_are_those_that_passed() -> None:
    """The first token's wait, the gaps and the whole are told apart, in seconds."""
    engine, value = instrumented(FakeEngine(3, Delta("a"), 1, Delta("b"), Finish("length")))
    await collect(engine)
    assert 3 * SECOND <= value("time_to_first_token_seconds_sum") < 4 * SECOND + 0.5
    assert 1 * SECOND <= value("inter_token_latency_seconds_sum") < 2 * SECOND + 0.5
    assert 4 * SECOND <= value("request_duration_seconds_sum", outcome="finished") < 6 * SECOND + 0.5


async def test_running_while_it_runs() -> None:
    """The gauge is up from the first event asked for until the generator is closed."""
    engine, value = instrumented(FakeEngine(*ANSWER))
    async with aclosing(engine.generate(REQUEST)) as events:
        assert value("responses_running") == 0
        await anext(events)
        assert value("responses_running") == 1
    assert value("responses_running") == 0


async def test_closing_is_a_cancel() -> None:
    """Closing between two tokens closes the engine's stream and counts as cancelled."""
    engine, value = instrumented(fake := FakeEngine(Delta("a"), Delta("b"), closing=2))
    async with aclosing(engine.generate(REQUEST)) as events:
        await anext(events)
        assert fake.closed == 0
    assert fake.closed == 1
    assert outcomes(value) == {"finished": 0, "cancelled": 1, "failed": 0}


@pytest.mark.parametrize("before", [(), (Delta("a"),)])
async def test_cancelling_the_task_is_a_cancel(before: tuple[GenerationEvent, ...]) -> None:
    """A task that is cancelled while it waits for a token has closed the engine's stream when it ends."""
    engine, value = instrumented(fake := FakeEngine(*before, 1000, closing=2))
    task = asyncio.create_task(collect(engine))
    await asyncio.sleep(SECOND)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.closed == 1
    assert outcomes(value) == {"finished": 0, "cancelled": 1, "failed": 0}
    assert value("responses_running") == 0


async def test_a_timeout_inside_the_engine_is_no_cancel() -> None:
    """A deadline that the engine keeps for itself makes the response failed, not cancelled."""

    class Deadline(FakeEngine):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
            try:
                async with asyncio.timeout(0):
                    await asyncio.sleep(1)
            except TimeoutError:
                raise EngineTimeout("The model said nothing for 0 s.") from None
            yield Delta("never")

    engine, value = instrumented(Deadline())
    with pytest.raises(EngineTimeout):
        await collect(engine)
    assert outcomes(value) == {"finished": 0, "cancelled": 0, "failed": 1}


async def test_closing_after_the_end_is_no_cancel() -> None:
    """A consumer that stops at the `Finish` and closes has a finished response."""
    engine, value = instrumented(FakeEngine(*ANSWER))
    async with aclosing(engine.generate(REQUEST)) as events:
        async for event in events:
            if isinstance(event, Finish):
                break
    assert outcomes(value) == {"finished": 1, "cancelled": 0, "failed": 0}


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ((Delta("a"), EngineTimeout("The model fell silent.")), "failed"),
        ((EngineUnreachable("Nobody answers."),), "failed"),
        ((Delta("a"), Finish("error")), "failed"),
        ((Delta("a"), Finish("cancelled")), "cancelled"),
        ((Delta("a"), Finish("length")), "finished"),
        ((Delta("a"),), "failed"),
    ],
)
async def test_outcome(script: tuple[GenerationEvent | Exception, ...], outcome: str) -> None:
    """Errors pass and count as failed, so does an end without `Finish`; else the finish reason decides."""
    engine, value = instrumented(FakeEngine(*script))
    error = next((part for part in script if isinstance(part, Exception)), None)
    if error is None:
        await collect(engine)
    else:
        with pytest.raises(type(error)) as raised:
            await collect(engine)
        assert raised.value is error
    assert outcomes(value) == {"finished": 0, "cancelled": 0, "failed": 0, outcome: 1}
    assert value("responses_running") == 0


async def test_nothing_is_measured_of_what_never_began() -> None:
    """A generator that is closed before it was asked for an event leaves no trace."""
    engine, value = instrumented(fake := FakeEngine(*ANSWER))
    await engine.generate(REQUEST).aclose()
    assert sum(outcomes(value).values()) == 0
    assert fake.closed == 0


async def test_an_engine_that_does_not_count_adds_no_tokens() -> None:
    """Without usage, or without the cached part of it, nothing is guessed."""
    engine, value = instrumented(FakeEngine(Delta("a"), Finish("stop")))
    await collect(engine)
    assert value("tokens_total", token_type="output") == 0
    engine, value = instrumented(FakeEngine(Delta("a"), Finish("stop", Usage(3, 1))))
    await collect(engine)
    assert (value("tokens_total", token_type="input"), value("tokens_total", token_type="cached")) == (3, 0)


async def test_ping_sets_the_health() -> None:
    """The gauge says whether the last ping was answered, and the error passes."""
    engine, value = instrumented(fake := FakeEngine())
    await engine.ping()
    assert value("engine_healthy") == 1
    fake.failure = EngineUnreachable("Nobody answers.")
    with pytest.raises(EngineUnreachable):
        await engine.ping()
    assert value("engine_healthy") == 0


async def test_the_rest_passes_through() -> None:
    """Name, load, models, context window and close are the engine's."""
    engine, _ = instrumented(fake := FakeEngine())
    await engine.load("small", 2048)
    assert (engine.name, fake.loaded) == ("fake", ["small"])
    assert (await engine.models(), await engine.context_window("small")) == (["small"], 4096)
    await engine.aclose()
    assert fake.closed == 1
