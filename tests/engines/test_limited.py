"""Permits around an engine: who waits, who gets in, and that every permit comes back."""

import asyncio
from collections.abc import Callable
from time import monotonic

import msgspec
import pytest

from llm_service.engines import limited as limited_module
from llm_service.engines.base import timed
from llm_service.engines.limited import Admission, LimitedEngine
from llm_service.engines.permits import Line, Permits
from llm_service.engines.prompt_reading import PromptReading
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineTimeout, FirstTokenTimeout, GenerationFailed, Overloaded
from llm_service.generation import Finish, Message
from tests.engines.requests import a_request
from tests.engines.telling import TellingEngine


class Limited:
    """A scripted engine with permits; each answer waits at its first token until it is let go."""

    def __init__(
        self,
        permits: int = 1,
        waiting: int = 10,
        timeout: float = 60.0,
        *,
        reads_on: bool = False,
        aside_seconds: float = 1.0,
    ) -> None:
        self.inner = ScriptedEngine(lambda _: ["a ", "b "], models=(), tokens_per_second=1_000_000)
        self.waited: list[float] = []
        self.line = Line(waiting)
        self.permits = Permits(permits)
        self.admission = Admission(self.line, timeout=timeout, waited=self.waited.append)
        self.reading = PromptReading(permits) if reads_on else None
        self.engine = LimitedEngine(
            self.inner, self.permits, self.admission, reading=self.reading, aside_seconds=aside_seconds
        )
        self.told: dict[str, list[int]] = {}

    def ask(self, session: str, *, background: bool = False) -> asyncio.Task[Finish]:
        """Ask in a task."""
        request = msgspec.structs.replace(a_request(session), session_id=session, background=background)
        told = self.told.setdefault(session, [])
        sink = timed(lambda _: None)
        sink.waits = told.append
        return asyncio.create_task(self.engine.generate(request, sink))

    def hang(self, times: int, after: int = 1) -> None:
        """Let so many answers stop before this token for ever."""
        self.inner.faults.extend([Fault(after)] * times)

    @property
    def asked(self) -> list[str]:
        """The sessions that got through to the engine."""
        return [request.session_id for request in self.inner.requests]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go on until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def gone(*tasks: asyncio.Task[Finish]) -> None:
    """Cancel and wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_free_permit_needs_no_wait() -> None:
    """Nobody is told of a position, no future is made, and the permit comes back."""
    limited = Limited()
    assert "stop" == (await limited.ask("a")).reason
    assert ([], [], 0) == (limited.told["a"], limited.waited, limited.permits.taken)


async def test_the_limit_holds_and_sessions_come_by_turns() -> None:
    """Twenty that ask at once never meet at the engine; each hears its position until it is asked, then 0."""
    limited = Limited(permits=2, waiting=20)
    tasks = [limited.ask(f"s{number}") for number in range(20)]
    await asyncio.gather(*tasks)
    assert (2, [f"s{number}" for number in range(20)]) == (limited.inner.most_running, limited.asked)
    assert (0, 0, 18) == (limited.permits.taken, limited.line.waiting, len(limited.waited))
    assert [*range(18, -1, -1)] == limited.told["s19"]


async def test_one_too_many_is_told_at_once() -> None:
    """A full line refuses; those in it are answered."""
    limited = Limited(waiting=1)
    limited.hang(1)
    running = limited.ask("a")
    await until(lambda: limited.asked)
    waiting = limited.ask("b")
    with pytest.raises(Overloaded) as caught:
        await limited.ask("c")
    assert caught.value.retry_after is not None
    await gone(running)
    assert "stop" == (await waiting).reason
    assert ["a", "b"] == limited.asked


async def test_nobody_waits_for_ever() -> None:
    """After its own deadline one is told to come back; the engine never heard of it."""
    limited = Limited(timeout=0.01)
    limited.hang(1)
    running = limited.ask("a")
    await until(lambda: limited.asked)
    with pytest.raises(Overloaded, match=r"0\.01 seconds \(QUEUE_TIMEOUT\)"):
        await limited.ask("b")
    assert (0, ["a"]) == (limited.line.waiting, limited.asked)
    await gone(running)
    assert 0 == limited.permits.taken


async def test_nobody_waits_for_an_engine_that_is_silent() -> None:
    """Those in line are told at once, newcomers, too; whoever finds a permit free may try, and it may be well again."""
    limited = Limited()
    limited.hang(1)
    running = limited.ask("a")
    await until(lambda: limited.asked)
    waiting, cancelled = limited.ask("b"), limited.ask("c")
    await until(lambda: limited.line.waiting == 2)
    limited.admission.let_go([limited.permits])
    assert 2 == limited.line.waiting
    limited.permits.silent = True
    cancelled.cancel()
    limited.admission.let_go([limited.permits])
    limited.admission.let_go([limited.permits])
    with pytest.raises(EngineTimeout, match="nobody waits for it"):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(EngineTimeout, match="nobody waits for it"):
        await limited.ask("d")
    assert (0, 1, False) == (limited.line.waiting, limited.permits.taken, running.done())
    await gone(running)
    assert "stop" == (await limited.ask("e")).reason
    limited.permits.silent = False
    limited.hang(1)
    running = limited.ask("f")
    await until(lambda: limited.permits.taken)
    waiting = limited.ask("g")
    await until(lambda: limited.line.waiting)
    await gone(running, waiting)


async def test_who_is_cancelled_leaves_the_line() -> None:
    """At once, and those behind move up."""
    limited = Limited()
    limited.hang(1)
    running, first, second = limited.ask("a"), limited.ask("b"), limited.ask("c")
    await until(lambda: limited.line.waiting == 2)
    await gone(first)
    assert (1, [2, 1]) == (limited.line.waiting, limited.told["c"])
    await gone(running)
    await second
    assert (["a", "c"], 0) == (limited.asked, limited.permits.taken)


async def test_a_permit_handed_to_one_that_is_cancelled_in_the_same_moment() -> None:
    """It goes on to the next."""
    limited = Limited()
    limited.hang(1)
    running, first, second = limited.ask("a"), limited.ask("b"), limited.ask("c")
    await until(lambda: limited.line.waiting == 2)
    running.cancel()
    await until(lambda: limited.line.waiting == 1)  # it was handed to the first, whose task has not gone on yet
    first.cancel()
    await second
    assert (["a", "c"], True, 0) == (limited.asked, first.cancelled(), limited.permits.taken)


async def test_a_permit_freed_in_the_moment_of_a_cancel() -> None:
    """It is not handed to the one that is cancelled, though that one still stands in line."""
    limited = Limited()
    limited.hang(1)
    running, first, second = limited.ask("a"), limited.ask("b"), limited.ask("c")
    await until(lambda: limited.line.waiting == 2)
    first.cancel()
    limited.line.give_back(limited.permits)
    limited.permits.taken += 1  # the one who runs gives it back itself, in the end
    await until(second.done)
    await gone(running)
    assert (["a", "c"], 0, True) == (limited.asked, limited.permits.taken, first.cancelled())


async def test_a_turn_passes_what_no_user_waits_for() -> None:
    """A summary that waits is asked after every turn."""
    limited = Limited()
    limited.hang(1)
    running, aside, turn = limited.ask("a"), limited.ask("", background=True), limited.ask("b")
    await until(lambda: limited.line.waiting == 2)
    await gone(running)
    await asyncio.gather(aside, turn)
    assert ["a", "b", ""] == limited.asked


async def test_a_failure_gives_the_permit_back() -> None:
    """Whatever the engine raises."""
    limited = Limited()
    limited.inner.fail(GenerationFailed("broke"))
    with pytest.raises(GenerationFailed):
        await limited.ask("a")
    assert 0 == limited.permits.taken


async def test_a_storm_of_cancels_loses_no_permit() -> None:
    """Of a thousand requests, cancelled at any moment, none keeps a permit or a place in the line."""
    limited = Limited(permits=3, waiting=50)
    limited.inner.tokens_per_second = 2000
    tasks: list[asyncio.Task[Finish]] = []
    for number in range(1000):
        tasks.append(limited.ask(f"s{number % 40}"))
        if number % 3:
            tasks[-number % len(tasks)].cancel()
        if number % 7 == 0:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {Finish, asyncio.CancelledError, Overloaded} == {type(result) for result in results}
    assert (0, 0) == (limited.permits.taken, limited.line.waiting)
    assert limited.inner.most_running <= 3


class TestAnEngineThatReadsOn:
    """One that goes on reading a prompt when its client has left, as Ollama does."""

    async def test_its_permit_is_kept_for_as_long_as_it_reads(self) -> None:
        """The next in line is asked when the engine is reckoned to be free, not before."""
        limited = Limited(reads_on=True)
        assert limited.reading is not None
        limited.reading.read((Message("user", "x" * 1000),), 100.0)
        limited.hang(1, after=0)
        cancelled, waiting = limited.ask("a" * 2), limited.ask("b")
        await until(lambda: limited.inner.running)
        await gone(cancelled)
        assert (1, 1, 1) == (limited.permits.taken, limited.line.waiting, limited.permits.unwanted)
        await waiting
        assert (0, 0) == (limited.permits.taken, limited.permits.unwanted)
        assert limited.waited[0] > 0.15  # two characters at 0.1 seconds each

    async def test_its_reading_is_not_the_fault_of_those_in_line(self) -> None:
        """They wait for QUEUE_TIMEOUT beside it: the first is answered, the second has its time behind the first."""
        limited = Limited(reads_on=True, timeout=0.5)
        assert limited.reading is not None
        limited.reading.read((Message("user", "x" * 1000),), 100.0)
        limited.hang(1, after=0)
        limited.inner.faults.append(Fault(1, pause=0.15))
        cancelled = limited.ask("a" * 8)  # eight characters at 0.1 seconds each
        await until(lambda: limited.inner.running)
        first, second = limited.ask("b"), limited.ask("c")
        await until(lambda: limited.line.waiting == 2)
        await gone(cancelled)
        assert ["stop", "stop"] == [(await waiting).reason for waiting in (first, second)]
        assert limited.waited[0] > 0.6
        assert limited.waited[1] > limited.waited[0] + 0.1

    async def test_they_do_not_wait_for_ever_though(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is added to their time has a bound, and is what they lost: one of two permits is half of the time."""
        for limit, bound, least in ((1, 0.2, 0.3), (2, 60.0, 0.2)):
            monkeypatch.setattr(limited_module, "LONGEST_READING", bound)
            limited = Limited(permits=limit, timeout=0.1)
            limited.permits.taken = limit
            limited.permits.keep(1, monotonic())
            began = monotonic()
            async with asyncio.timeout(10):
                with pytest.raises(Overloaded, match=r"0\.1 seconds \(QUEUE_TIMEOUT\); send"):
                    await limited.ask("a")
            assert least - 0.03 < monotonic() - began
            assert 0 == limited.line.waiting

    async def test_who_waits_is_told_what_for(self) -> None:
        """When its time is up after all, and much of it went to that."""
        limited = Limited(timeout=0.01)
        limited.permits.taken = 1
        limited.permits.keep(1, monotonic() - 60)
        waiting = limited.ask("a")
        await until(lambda: limited.line.waiting)
        limited.permits._lost += 1.0
        limited.permits.keep(-1, monotonic())
        with pytest.raises(Overloaded, match="and 1 in which it read what nobody wants any more; send"):
            await waiting

    async def test_an_answer_that_had_begun_frees_it_at_once(self) -> None:
        """While tokens flow, a cancel stops it."""
        limited = Limited(reads_on=True)
        assert limited.reading is not None
        limited.reading.read((Message("user", "x"),), 100.0)
        limited.hang(1)
        task = limited.ask("a")
        await until(lambda: limited.inner.running)
        for _ in range(20):
            await asyncio.sleep(0.001)
        await gone(task)
        assert (0, 0) == (limited.permits.taken, limited.permits.unwanted)

    @pytest.mark.parametrize("error", [FirstTokenTimeout("late"), GenerationFailed("broke")])
    async def test_which_failures_leave_it_reading(self, error: GenerationFailed) -> None:
        """One that was too slow reads on; one that broke does not."""
        limited = Limited(reads_on=True)
        assert limited.reading is not None
        limited.reading.read((Message("user", "x"),), 0.05)
        limited.inner.fail(error)
        with pytest.raises(type(error)):
            await limited.ask("a")
        assert (1 if isinstance(error, FirstTokenTimeout) else 0) == limited.permits.unwanted
        await until(lambda: not limited.permits.taken)

    async def test_who_comes_next_is_given_the_time(self) -> None:
        """A reckoning may be wrong: the next request's first token may take that longer, the one after it may not."""
        limited = Limited(reads_on=True)
        limited.hang(1, after=0)
        task = limited.ask("a")
        await until(lambda: limited.inner.running)
        await gone(task)
        assert 0 == limited.permits.taken  # nothing is known of its pace: nobody is let wait for it
        await limited.ask("b")
        await limited.ask("c")
        first, second = (request.patience for request in limited.inner.requests[1:])
        assert 50 < first <= 60
        assert 0 == second

    @pytest.mark.parametrize(("chars", "begun"), [(10, True), (11, False)])
    async def test_what_no_user_waits_for_must_be_read_soon(self, chars: int, begun: bool) -> None:
        """It is begun where it is reckoned to be read within the bound; a turn always is. The permit comes back."""
        limited = Limited(reads_on=True, aside_seconds=1.0)
        assert limited.reading is not None
        limited.reading.read((Message("user", "x" * 1000),), 100.0)
        if begun:
            await limited.ask("a" * chars, background=True)
        else:
            with pytest.raises(Overloaded, match=r"within 1 seconds \(ASIDE_READ_SECONDS\)"):
                await limited.ask("a" * chars, background=True)
        assert (begun, 0) == (bool(limited.asked), limited.permits.taken)
        await limited.ask("b" * 11)
        assert "b" * 11 == limited.asked[-1]

    async def test_what_no_user_waits_for_is_not_begun_at_an_unknown_pace(self) -> None:
        """Nothing was read yet, and it may take minutes."""
        limited = Limited(reads_on=True, aside_seconds=60.0)
        with pytest.raises(Overloaded):
            await limited.ask("a", background=True)
        assert ([], 0) == (limited.asked, limited.permits.taken)

    async def test_what_no_user_waits_for_is_not_begun_behind_an_unwanted_prompt(self) -> None:
        """While the engine may still be busy with one, its time would come on top."""
        limited = Limited(reads_on=True, aside_seconds=60.0)
        assert limited.reading is not None
        limited.hang(1, after=0)
        cancelled = limited.ask("a" * 10)
        await until(lambda: limited.inner.running)
        await gone(cancelled)  # it may take up to a minute
        limited.reading.read((Message("user", "x" * 1000),), 1.0)
        with pytest.raises(Overloaded):
            await limited.ask("b", background=True)
        await limited.ask("c")
        await limited.ask("b", background=True)
        assert ["a" * 10, "c", "b"] == limited.asked

    async def test_one_that_stops_is_asked_whatever_it_takes(self) -> None:
        """The bound is for engines that read on."""
        limited = Limited(aside_seconds=0.0)
        assert not limited.engine.reads_on
        await limited.ask("a", background=True)
        assert ["a"] == limited.asked


async def test_the_reckoning_learns_from_what_the_engine_tells() -> None:
    """Each answer's prompt and the seconds it took are what later ones are reckoned by."""
    reading = PromptReading(1)
    admission = Admission(Line(1), timeout=1)
    engine = LimitedEngine(TellingEngine(models=(), tokens_per_second=1e6), Permits(1), admission, reading=reading)
    await engine.generate(a_request("x" * 500), timed(lambda _: None))
    assert 0.1 == pytest.approx(reading.seconds((Message("user", "y" * 100),)))
