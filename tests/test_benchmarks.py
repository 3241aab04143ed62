"""The benchmark suite itself: an instrument that is wrong is worse than none."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from benchmarks import floor, load, peers, report, wire
from benchmarks.clients import Plan, Turn
from benchmarks.fake_stream import State
from benchmarks.figures import (
    Row,
    Sample,
    Spread,
    added_first,
    gaps,
    paired_first,
    percentile,
    ratios,
    silent,
    words_between,
)
from benchmarks.guard import Baseline, verdict
from benchmarks.measure import cpu_seconds, memory
from benchmarks.processes import ROOT, free_ports
from benchmarks.report import Idle
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


def test_ratios_are_of_pairs() -> None:
    """A round in which the machine was slow changes nothing, as it was slow for both; one without the other is none."""
    tested = {0: sample(30), 1: sample(60), 2: sample(32)}
    assert [1.5, 1.5, 1.6] == ratios(tested, {0: sample(20), 1: sample(40), 2: sample(20)})
    assert [1.5, 1.6] == ratios(tested, {0: sample(20), 2: sample(20), 3: sample(1)})
    assert [] == ratios(tested, {})


def test_first_word_over_direct_is_the_median_of_differences() -> None:
    """What the way, the client and the engine take in the same round does not count."""

    def samples(*firsts: tuple[float, float]) -> dict[int, Sample]:
        return {number: msgspec.structs.replace(sample(1), first=Spread(*each)) for number, each in enumerate(firsts)}

    through, direct = samples((2, 9), (1.5, 4), (1, 5)), samples((1, 6), (0, 2), (0.5, 1))
    assert Spread(1, 3) == paired_first(through, direct)
    assert Spread(1, 3) == paired_first(through, {0: direct[0]})
    assert paired_first(through, {}) is None


def test_a_session_that_falls_silent_is_counted() -> None:
    """Sessions are told apart by their seeds; what came before the window and behind it does not count."""
    turns = [Turn(1, 0.0, [9.0]), Turn(2, 9.5, [10.5]), Turn(10_001, 0.0, [9.9, 12.0]), Turn(20_001, 0.0)]
    assert 2 == silent(turns, 10.0, 12.0)
    assert 0 == silent(turns[:3], 9.0, 12.0)


def test_a_word_that_is_due_at_the_end_is_a_gap() -> None:
    """A stall that outlasts the window is seen, unless it is the engine's own or there is no more to come."""
    log = {1: (0.0, [10.0, 10.1, 10.2, 10.3])}
    stalled = [Turn(1, 0.0, [10.0, 10.1])]
    seen, own = gaps(stalled, log, 10.0, 11.0)
    assert [pytest.approx(0.1), pytest.approx(0.9)] == seen
    assert [pytest.approx(0.1), pytest.approx(0.1)] == own
    assert 1 == len(gaps(stalled, {1: (0.0, [10.0, 10.1])}, 10.0, 11.0)[0])
    assert 1 == len(gaps(stalled, {1: (0.0, [10.0, 10.1, 11.5])}, 10.0, 11.0)[0])
    late = [Turn(1, 0.0, [10.0, 10.1, 11.2, 11.3])]
    assert [pytest.approx(0.1), pytest.approx(0.9)] == gaps(late, log, 10.0, 11.0)[0]


class TestTable:
    """What is shown of the rows."""

    def cells(self, row: Row) -> list[str]:
        line = report.table([row], Idle({}, None)).splitlines()[2]
        return [cell.strip() for cell in line.strip("|").split("|")]

    def test_a_ratio_has_its_range(self) -> None:
        """The median of the pairs, the least and the most of them."""
        row = Row("service", "the service", "100", 100, [sample(30)], [1.2, 1.5, 1.4])
        assert ["the service", "100 × 50", "30.0", "1.40 (1.20-1.50)"] == self.cells(row)[:4]
        assert "1.20" == self.cells(msgspec.structs.replace(row, over_floor=[1.2]))[3]

    def test_the_load_is_the_one_that_was_put_on(self) -> None:
        """Who is given fewer sessions is not shown with those of others."""
        assert "20 × 1,000" == self.cells(Row("litellm", "a proxy", "saturated", 20, [sample(500)]))[1]

    def test_no_first_word_where_no_answer_begins(self) -> None:
        """Answers that last longer than they are watched have none in the window."""
        assert "-" == self.cells(Row("service", "the service", "saturated", 100, [sample(5)]))[6]

    def test_failures_are_told(self) -> None:
        """Beside the figures of the rounds that did not fail, or in their place."""
        row = Row("service", "the service", "10", 10, [sample(20)], note="failed 1 of 3 times", failed=True)
        assert "the service, 10 × 50: failed 1 of 3 times" in report.table([row], Idle({}, None))
        assert (
            "failed 3 of 3 times" == self.cells(msgspec.structs.replace(row, samples=[], note="failed 3 of 3 times"))[2]
        )

    def test_who_is_not_saturated_is_told(self) -> None:
        """What arrived is what was offered then; the cost says what a core can do."""
        idle = msgspec.structs.replace(sample(8), busy=0.8)
        row = Row("service", "the service", "saturated", 100, [idle])
        assert "80% busy; at that cost a whole core takes 125,000 words/s" in report.table([row], Idle({}, None))
        busy = msgspec.structs.replace(row, samples=[msgspec.structs.replace(idle, busy=0.98)])
        assert "saturated" not in report.table([busy], Idle({}, None))

    def test_idle_sessions(self) -> None:
        """What a session takes before anything was said, and after answers."""
        shown = report.table([], Idle({"service": {0: 38.1, 1: 57.0}}, 0.5))
        assert "service: 38.1 KiB before anything was said, 57 KiB after 1 answer of 100 words" in shown
        assert "ready after start: 0.5 s" in shown


async def test_sessions_stay_when_they_were_answered(fake: tuple[State, int]) -> None:
    """Such a plan is over when it is stopped, and not before; every answer is whole by then, and there is no other."""
    plan = Plan("sse", fake[1], "/v1/chat/completions", 2, 5, 0, 0.001, ramp=0.01, turns=1, stay=True)
    stop, streaming = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(load.run(plan, stop, streaming))
    await streaming.wait()
    async with asyncio.timeout(5):
        while fake[0].running:
            await asyncio.sleep(0.01)
    assert not (await asyncio.wait({running}, timeout=0.2))[0]
    stop.set()
    record = await running
    assert [True] * 2 == [turn.complete for turn in record.turns]
    assert [] == record.errors


def test_the_peer_that_is_installed_is_the_one_that_is_named() -> None:
    """The table's version of LiteLLM is the lock's."""
    lock = (ROOT / "requirements" / "bench-litellm.lock").read_text()
    assert f"\nlitellm=={peers.LITELLM} \\\n" in lock
    assert "--hash=sha256:" in lock


def test_no_two_ports_are_the_same() -> None:
    """Ports that are taken together differ, however often they are."""
    assert all(len(set(free_ports(3))) == 3 for _ in range(200))


def test_a_fault_has_a_name_that_is_known() -> None:
    """A slip of the pen is no engine that stalls."""
    with pytest.raises(ValueError, match="no such fault: stal; there are cut, reset"):
        parse(Script(1, fault="stal").prompt, Script(1))


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
