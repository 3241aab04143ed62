import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from llm_service.asides import CONDENSE_TRIES, Asides, Spawn
from llm_service.effects import Condense
from llm_service.errors import CircuitOpen, EngineTimeout, FastTalkError, Overloaded
from llm_service.generation import Delta, Finish, GenerationRequest, Message, SamplingParams, Sink
from llm_service.idle_work import IdleWork
from llm_service.metrics import Metrics
from llm_service.summary import Condensation


def _request(text: str) -> GenerationRequest:
    sampling = SamplingParams(temperature=0, top_p=1, top_k=1, max_tokens=1)
    return GenerationRequest(model="m", messages=(Message("user", text),), sampling=sampling, context_window=100)


class Engine:
    """Says each prompt back once it is let go; so many `failures` are raised first."""

    def __init__(self, failures: int = 0, error: FastTalkError | None = None) -> None:
        self.asked: list[str] = []
        self.go_on = asyncio.Event()
        self.failures = failures
        self.error = error or EngineTimeout("silent")
        self.stopped = 0

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        self.asked.append(request.messages[0].content)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if self.failures:
            self.failures -= 1
            raise self.error
        sink.take(Delta("hm", thinking=True))
        sink.take(Delta(request.messages[0].content))
        return Finish("stop")


class Bench:
    """Asides with all they need."""

    def __init__(self, tasks: asyncio.TaskGroup, engine: Engine, *, reads_on: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.idle = IdleWork()
        metrics = Metrics(self.registry)
        self.spawn: Spawn = tasks.create_task
        self.asides = Asides(engine, self.idle, metrics, reads_on=reads_on)  # type: ignore[arg-type]

    def warm(self, request: GenerationRequest) -> None:
        self.asides.warm(request, self.spawn)

    def condense(self, effect: Condense, done: Callable[[str | None], None]) -> None:
        self.asides.condense(effect, done, self.spawn)

    def count(self, kind: str, outcome: str) -> float | None:
        return self.registry.get_sample_value("fasttalk_asides_total", {"kind": kind, "outcome": outcome})


async def _soon() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_newest_prompt_is_warmed_next() -> None:
    """While one prompt is read, only the newest of those that come waits."""
    engine = Engine()
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        for text in ("a", "b", "c"):
            bench.warm(_request(text))
            await _soon()
        assert ["a"] == engine.asked
        engine.go_on.set()
        await _soon()
        assert ["a", "c"] == engine.asked
    assert 2 == bench.count("warm", "finished")


async def test_warming_is_dropped_for_the_real_message() -> None:
    """What is being read is stopped, and what waits is forgotten."""
    engine = Engine()
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.warm(_request("a"))
        await _soon()
        bench.warm(_request("b"))
        bench.asides.stop_warming()
        await _soon()
        assert (["a"], 1) == (engine.asked, engine.stopped)
        bench.warm(_request("c"))
        await _soon()
        engine.go_on.set()
    assert ["a", "c"] == engine.asked
    assert (1, 1) == (bench.count("warm", "preempted"), bench.count("warm", "finished"))


async def test_a_summary_that_cost_a_turn_time_is_not_begun_anew() -> None:
    """Where the engine reads on, a turn that stops it ends it: nothing is to be asked for now."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine, reads_on=True)
        bench.condense(_condense("s"), found.append)
        await _soon()
        with bench.idle.turn():
            await _soon()
        engine.go_on.set()
    assert (["s"], [None]) == (engine.asked, found)
    assert 1 == bench.count("summary", "preempted")


@pytest.mark.parametrize("error", [Overloaded("not now"), CircuitOpen("not now")])
async def test_what_the_engine_was_not_asked_for(error: FastTalkError) -> None:
    """It is skipped, and the summary not tried again; the next partial message is a prompt of its own."""
    engine = Engine(failures=2, error=error)
    engine.go_on.set()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.condense(_condense("s"), found.append)
        bench.warm(_request("a"))
        await _soon()
        bench.warm(_request("b"))
    assert (["s", "a", "b"], [None]) == (engine.asked, found)
    assert (1, 1, 1) == tuple(
        bench.count(kind, outcome)
        for kind, outcome in [("summary", "skipped"), ("warm", "skipped"), ("warm", "finished")]
    )


async def test_a_turn_of_another_session_comes_first() -> None:
    """Neither warming nor a summary runs beside a turn; the summary is begun anew after it."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.condense(_condense("s"), found.append)
        await _soon()
        with bench.idle.turn():
            await _soon()
            assert 1 == engine.stopped
            engine.go_on.set()
            await _soon()
            assert ["s"] == engine.asked
    assert (["s", "s"], ["s"]) == (engine.asked, found)
    assert (1, 1) == (bench.count("summary", "preempted"), bench.count("summary", "finished"))


async def test_a_summary_that_fails_is_tried_again_and_then_none() -> None:
    """After the last try the summary is empty."""
    engine = Engine(failures=CONDENSE_TRIES)
    found: list[str | None] = []
    engine.go_on.set()
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.condense(_condense("s"), found.append)
    assert (CONDENSE_TRIES, [""]) == (len(engine.asked), found)
    assert CONDENSE_TRIES == bench.count("summary", "failed")


async def test_all_is_stopped_with_the_session() -> None:
    """No task is left, and nobody is called back."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.condense(_condense("s"), found.append)
        bench.warm(_request("a"))
        await _soon()
        bench.asides.stop()
    assert (1, []) == (engine.stopped, found)
    assert 1 == bench.count("summary", "preempted")
    assert bench.idle.idle


async def test_nothing_is_begun_after_a_stop() -> None:
    """Not even the next try of what a turn has just stopped."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.condense(_condense("s"), found.append)
        await _soon()
        with bench.idle.turn():
            while not engine.stopped:
                await asyncio.sleep(0)
            bench.asides.stop()
        engine.go_on.set()
    assert (["s"], []) == (engine.asked, found)
    assert bench.idle.idle


async def test_a_stop_forgets_what_waits() -> None:
    """Neither the newest prompt nor a second summary is begun."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.warm(_request("a"))
        await _soon()
        bench.warm(_request("b"))
        bench.condense(_condense("s"), found.append)
        await _soon()
        bench.asides.stop()
        engine.go_on.set()
    assert (["a"], []) == (engine.asked, found)


@pytest.mark.parametrize("rests", [True, False])
async def test_the_next_session_begins_anew(rests: bool) -> None:
    """After any number of stops, warming and summaries are done again, whether the old ones are over or not."""
    engine = Engine()
    found: list[str | None] = []
    async with asyncio.TaskGroup() as tasks:
        bench = Bench(tasks, engine)
        bench.asides.stop()
        for text in ("a", "b", "c"):
            bench.warm(_request(text))
            bench.condense(_condense(f"s{text}"), found.append)
            await _soon()
            if text != "c":
                bench.asides.stop()
                bench.asides.stop()
            if rests:
                await _soon()
        engine.go_on.set()
        await _soon()
        bench.warm(_request("d"))
    assert (["a", "b", "c", "sc", "d"], ["sc"]) == (engine.asked, found)
    assert bench.idle.idle


def _condense(text: str) -> Condense:
    return Condense(Condensation((), "", (), 100), _request(text))
