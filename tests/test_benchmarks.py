"""The benchmark suite itself: an instrument that is wrong is worse than none."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from benchmarks import floor, load, wire
from benchmarks.clients import Plan, Turn
from benchmarks.fake_stream import State
from benchmarks.figures import (
    Sample,
    Spread,
    added_first,
    gaps,
    paired_first,
    paired_ratio,
    percentile,
    words_between,
)
from benchmarks.guard import Baseline, verdict
from benchmarks.measure import cpu_seconds, memory
from benchmarks.script import VOCABULARY, Script, parse
from llm_service.engines.base import Engine
from llm_service.errors import EngineError
from llm_service.generation import Delta, Finish
from tests.bench_engine import ENGINES, bench_engine, request
from tests.engines.requests import stream


@pytest.fixture
async def fake() -> AsyncGenerator[tuple[State, int], None]:
    async with bench_engine() as running:
        yield running


async def answer(engine: Engine, script: Script) -> tuple[str, Finish]:
    """Return the text and the end of one answer."""
    text = ""
    async for event in stream(engine, request(script)):
        if isinstance(event, Delta):
            text += event.text
        else:
            return text, event
    raise AssertionError("no finish")


@pytest.mark.parametrize("kind", ENGINES)
async def test_fake_engine_speaks_to_our_engines(fake: tuple[State, int], kind: str) -> None:
    """Both protocols: the list of models, the window, loading, and a text that is exact to the character."""
    engine = ENGINES[kind](fake[1])
    await engine.ping()
    await engine.load("bench", 8192)
    assert ["bench"] == await engine.models()
    assert 131072 == await engine.context_window("bench")
    for script in (Script(len(VOCABULARY), rate=5000, ttft=0.01, seed=3), Script(50, seed=4)):
        text, finish = await answer(engine, script)
        assert script.text() == text
        assert finish.usage is not None
        assert script.words == finish.usage.completion_tokens
        assert script.words == len(fake[0].log[script.seed][1])
    await engine.aclose()


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("fault", ["cut", "error", "garbage", "refuse"])
async def test_fake_engine_fails_on_demand(fake: tuple[State, int], kind: str, fault: str) -> None:
    """Each fault reaches the service as a typed error."""
    engine = ENGINES[kind](fake[1])
    with pytest.raises(EngineError):
        await answer(engine, Script(20, rate=2000, fault=fault, after=5))
    await engine.aclose()


async def test_fake_engine_keeps_its_schedule(fake: tuple[State, int]) -> None:
    """No word is written early, and lateness does not add up."""
    engine = ENGINES["ollama"](fake[1])
    script = Script(40, rate=400, ttft=0.05, seed=9)
    await answer(engine, script)
    received, sent = fake[0].log[9]
    late = [at - (received + script.ttft + index / script.rate) for index, at in enumerate(sent)]
    assert min(late) >= 0
    assert late[-1] < 0.05
    await engine.aclose()


async def test_floor_serves_exact_texts_to_the_load_generator(fake: tuple[State, int]) -> None:
    """Two sessions, three turns each; the load generator finds nothing wrong and has a time for every word."""
    server = await floor.serve(0, fake[1])
    plan = Plan("websocket", server.sockets[0].getsockname()[1], "/", 2, 30, 2000, 0.001, ramp=0.01, turns=3)
    record = await load.run(plan, asyncio.Event(), asyncio.Event())
    server.close()
    assert [] == record.errors
    assert [30] * 6 == [len(turn.arrivals) for turn in record.turns]


async def test_load_generator_speaks_server_sent_events(fake: tuple[State, int]) -> None:
    """The engine alone, as LiteLLM is measured."""
    plan = Plan("sse", fake[1], "/v1/chat/completions", 2, 30, 2000, 0.001, ramp=0.01, turns=2)
    record = await load.run(plan, asyncio.Event(), asyncio.Event())
    assert [] == record.errors
    assert [True] * 4 == [turn.complete for turn in record.turns]


async def test_load_generator_notices_wrong_text(fake: tuple[State, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One word that is not the script's makes the run worthless."""
    monkeypatch.setattr(Script, "text", lambda _: "another text ")
    plan = Plan("sse", fake[1], "/v1/chat/completions", 1, 5, 0, 0.001, turns=1)
    record = await load.run(plan, asyncio.Event(), asyncio.Event())
    assert 1 == len(record.errors)


def test_script_survives_its_prompt() -> None:
    """What is parsed is what was asked for; the words are those of the vocabulary, each with one space."""
    script = Script(12, 50, 0.25, 77, "stall", 3)
    assert script == parse(script.prompt, Script(1))
    assert {1} == {word.count(" ") for word in VOCABULARY}
    assert set(VOCABULARY) == set(Script(len(VOCABULARY), seed=5).text().replace(" ", " \0").split("\0")[:-1])


def test_percentile_lies_between_values() -> None:
    """Linear between neighbours; nothing for nothing."""
    assert [1, 2.5, 4] == [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 1)]
    assert 0 == percentile([], 0.5)


def test_engines_own_time_is_taken_off() -> None:
    """Time to first token and gaps count from what the engine did, not from what was asked for."""
    turns = [Turn(1, asked=10.0, arrivals=[10.53, 10.60])]
    log = {1: (10.01, [10.51, 10.55])}
    assert [pytest.approx(0.03)] == added_first(turns, log, 10.0)
    seen, own = gaps(turns, log, 10.0, 11.0)
    assert [pytest.approx(0.07)] == seen
    assert [pytest.approx(0.04)] == own
    assert 1 == words_between(turns, 10.0, 10.55)


def sample(cpu: float) -> Sample:
    """Return a sample of which only the CPU matters."""
    nothing = Spread(0, 0)
    return Sample(cpu, 0, 0, 0, 0, nothing, nothing, nothing, 1, 0, 0, 0)


def test_ratio_is_the_median_of_pairs() -> None:
    """A round in which the machine was slow changes nothing, as it was slow for both."""
    tested, base = [sample(30), sample(60), sample(32)], [sample(20), sample(40), sample(20)]
    assert 1.5 == paired_ratio(tested, base)
    assert paired_ratio(tested, []) is None


def test_first_word_over_direct_is_the_median_of_differences() -> None:
    """What the way, the client and the engine take in the same round does not count."""
    through = [msgspec.structs.replace(sample(1), first=Spread(p50, p99)) for p50, p99 in ((2, 9), (1.5, 4), (1, 5))]
    direct = [msgspec.structs.replace(sample(1), first=Spread(p50, p99)) for p50, p99 in ((1, 6), (0, 2), (0.5, 1))]
    assert Spread(1, 3) == paired_first(through, direct)
    assert paired_first(through, []) is None


@pytest.mark.parametrize(("ratio", "passed"), [(1.0, True), (2.5, True), (2.51, False)])
def test_guard_allows_a_quarter_more(ratio: float, passed: bool) -> None:
    """Up to 25 % over the committed value."""
    assert passed is verdict(ratio, Baseline(2.0, 100, 50))[0]


def test_counters_of_a_process_are_read(tmp_path: Path) -> None:
    """Nanoseconds of all threads where the kernel gives them, else clock ticks; memory from its sums."""
    process = tmp_path / "7"
    for thread in ("7", "8"):
        (process / "task" / thread).mkdir(parents=True)
        (process / "task" / thread / "schedstat").write_text("1500000000 1 1\n")
    (process / "smaps_rollup").write_text("0-1 ---p 0 00:00 0 [rollup]\nRss:  2048 kB\nPss:  1024 kB\n")
    assert 3.0 == cpu_seconds(7, tmp_path)
    assert (2048, 1024) == (memory(7, tmp_path).rss, memory(7, tmp_path).pss)
    for thread in ("7", "8"):
        (process / "task" / thread / "schedstat").write_text("0 0 0\n")
    (process / "stat").write_text("7 (a b) S " + " ".join(["0"] * 10) + " 150 50 0\n")
    assert 2.0 == cpu_seconds(7, tmp_path)


def test_fixed_documents_are_json() -> None:
    """Every document the fake engine hands out can be read."""
    for path, body in wire.DOCUMENTS.items():
        if path != "/":
            json.loads(body)
