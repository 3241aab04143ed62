"""Several engines as one: who is asked, and what happens when it fails."""

import asyncio
from collections.abc import Callable
from time import monotonic

import msgspec
import pytest

from llm_service import engine_health
from llm_service.engines import pool as pool_module
from llm_service.engines.breaker import LEAST_CALLS
from llm_service.engines.pool import PoolMember
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import (
    CircuitOpen,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    InvalidToolCall,
    ModelNotFound,
    Overloaded,
    ResponseTimeout,
    StreamStalled,
)
from llm_service.generation import GenerationRequest, Message
from tests.engines.pools import Pool
from tests.engines.requests import WEATHER, a_request


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go on until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def hang(pool: Pool, name: str, times: int = 1, after: int = 0) -> None:
    """Let so many answers of an engine stop there for ever."""
    pool.inner[name].faults.extend([Fault(after)] * times)


async def gone(*tasks: "asyncio.Task[object]") -> None:
    """Cancel and wait."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_fewest_running() -> None:
    """Each goes where the least is to do."""
    pool = Pool("a", "b", "c")
    await pool.look()
    for name in "abc":
        hang(pool, name, 3)
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.ask()) for _ in range(7)]
    await until(lambda: sum(pool.taken()) == 7)
    assert [3, 2, 2] == pool.taken()
    await gone(*tasks)
    assert [0, 0, 0] == pool.taken()


async def test_a_session_stays() -> None:
    """With the engine that has its prompt in a cache, though another has less to do; until that is much less."""
    pool = Pool("a", "b")
    await pool.look()
    said, _ = await pool.ask("s")
    assert "a says it." == said
    hang(pool, "a", 6)
    hang(pool, "b")
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.ask("s")) for _ in range(5)]
    await until(lambda: sum(pool.taken()) == 5)
    assert [5, 0] == pool.taken()
    tasks.append(asyncio.create_task(pool.ask("s")))
    await until(lambda: sum(pool.taken()) == 6)
    assert [5, 1] == pool.taken()
    await gone(*tasks)


async def test_only_so_many_sessions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest."""
    monkeypatch.setattr(pool_module, "MOST_SESSIONS", 3)
    pool = Pool("a")
    await pool.look()
    for number in range(10):
        await pool.ask(f"s{number}")
    await pool.ask("")
    inner = pool.set.engine._engine
    assert isinstance(inner, pool_module.PoolEngine)
    assert ["s7", "s8", "s9"] == list(inner._at)


@pytest.mark.parametrize(
    "error",
    [
        EngineUnreachable,
        EngineTimeout,
        StreamStalled,
        GenerationFailed,
        InvalidToolCall,
        EngineRejected,
        ModelNotFound,
        CircuitOpen,
    ],
)
async def test_failover(error: type[EngineError]) -> None:
    """What fails before its first token is asked of another engine, and the client sees nothing of it."""
    pool = Pool("a", "b")
    await pool.look()
    pool.inner["a"].fail(error("it failed"))
    said, _ = await pool.ask()
    assert ("b says it.", [0, 0]) == (said, pool.taken())
    assert 1.0 == pool.count("failovers_total", engine="a", first_token="before")


@pytest.mark.parametrize("error", [ContextOverflow, ResponseTimeout])
async def test_what_no_other_engine_would_do_better(error: type[EngineError]) -> None:
    """A prompt that is too long, an answer that is: the first engine's word is the last."""
    pool = Pool("a", "b")
    await pool.look()
    pool.inner["a"].fail(error("so it is"))
    with pytest.raises(FastTalkError, match="so it is"):
        await pool.ask()
    assert ([], [0, 0]) == (pool.inner["b"].requests, pool.taken())


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_no_failover_after_the_first_token(after: int) -> None:
    """Nothing is said twice; without knowing what was said nobody can go on with it either."""
    pool = Pool("a", "b")
    await pool.look()
    pool.inner["a"].fail(GenerationFailed("it broke"), after=after)
    with pytest.raises(GenerationFailed, match="it broke"):
        await pool.ask()
    assert [] == pool.inner["b"].requests


async def test_when_all_fail() -> None:
    """The first engine's error is told, each was asked once, and all permits are back."""
    pool = Pool("a", "b", "c")
    await pool.look()
    for name, engine in pool.inner.items():
        engine.fail(GenerationFailed(name))
    with pytest.raises(GenerationFailed, match="a"):
        await pool.ask()
    assert [1, 1, 1] == [len(engine.requests) for engine in pool.inner.values()]
    assert [0, 0, 0] == pool.taken()


async def test_an_engine_that_is_gone_is_not_asked_again() -> None:
    """From the first failure on, until it answers a ping."""
    pool = Pool("a", "b")
    await pool.look()
    pool.inner["a"].down = True
    for _ in range(4):
        assert "b says it." == (await pool.ask())[0]
    assert 1 == len(pool.inner["a"].requests)
    assert 0.0 == pool.count("engine_healthy", engine="a")
    pool.inner["a"].down = False
    await pool.look()
    assert "a says it." == (await pool.ask())[0]


async def test_an_engine_whose_breaker_is_open() -> None:
    """It answers pings and fails: after five failures the others are asked, until it has been tried."""
    pool = Pool("a", "b")
    await pool.look()
    for _ in range(LEAST_CALLS):
        pool.inner["a"].fail(GenerationFailed("sick"))
    for _ in range(2 * LEAST_CALLS):
        assert "b says it." == (await pool.ask())[0]
    assert LEAST_CALLS == len(pool.inner["a"].requests)
    breaker = pool.set.protected[0].breaker
    assert not pool.set.members[0].due(monotonic())
    breaker._open_until = 0.0
    assert pool.set.members[0].due(monotonic())
    assert "b says it." == (await pool.ask())[0]
    breaker.succeeded(breaker.admit(monotonic()))
    assert "a says it." == (await pool.ask())[0]


async def test_all_breakers_are_open() -> None:
    """Then the client's request is the trial."""
    pool = Pool("a", "b")
    await pool.look()
    for _ in range(LEAST_CALLS):
        for engine in pool.inner.values():
            engine.fail(GenerationFailed("sick"))
        with pytest.raises(GenerationFailed):
            await pool.ask()
    with pytest.raises(CircuitOpen):
        await pool.ask()
    pool.set.protected[1].breaker._open_until = 0.0
    assert "b says it." == (await pool.ask())[0]


async def test_none_is_healthy() -> None:
    """They are asked all the same: a ping may be wrong, and an error is better than silence."""
    pool = Pool("a", "b")
    await pool.look()
    for engine in pool.inner.values():
        engine.down = True
    await pool.look()
    with pytest.raises(EngineUnreachable):
        await pool.ask()
    pool.inner["b"].down = False
    assert "b says it." == (await pool.ask())[0]


async def test_who_waits_gets_the_first_that_is_free() -> None:
    """All are busy: whichever has a permit first is asked, and only those that are well."""
    pool = Pool("a", "b", max_running=1)
    await pool.look()
    hang(pool, "a")
    hang(pool, "b")
    first: asyncio.Task[object] = asyncio.create_task(pool.ask())
    second: asyncio.Task[object] = asyncio.create_task(pool.ask())
    await until(lambda: pool.taken() == [1, 1])
    waiting = asyncio.create_task(pool.ask())
    await until(lambda: pool.set.admission.line.waiting)
    await gone(second)
    assert "b says it." == (await waiting)[0]
    await gone(first)
    assert [0, 0] == pool.taken()


async def test_one_that_comes_back_serves_those_who_wait() -> None:
    """Without waiting for the one that is busy."""
    pool = Pool("a", "b", max_running=1)
    pool.inner["b"].down = True
    await pool.look()
    hang(pool, "a")
    first: asyncio.Task[object] = asyncio.create_task(pool.ask())
    await until(lambda: pool.taken() == [1, 0])
    waiting = asyncio.create_task(pool.ask())
    await until(lambda: pool.set.admission.line.waiting)
    pool.inner["b"].down = False
    await pool.look()
    assert "b says it." == (await waiting)[0]
    await gone(first)


class TestAFrozenEngine:
    """One that takes what it is asked for and says nothing, be it a ping."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let pings have little time."""
        monkeypatch.setattr(engine_health, "PING_TIMEOUT", 0.02)

    def freeze(self, pool: Pool, *names: str) -> None:
        """Let pings of these hang."""
        for name in names:
            for asked in ("ping", "models"):
                setattr(pool.inner[name], asked, asyncio.Event().wait)

    async def test_who_waits_for_its_first_word_is_moved(self) -> None:
        """After the second ping in a row that it left unanswered, to one that is well; the answer is whole."""
        pool = Pool("a", "b")
        await pool.look()
        hang(pool, "a")
        task = asyncio.create_task(pool.ask())
        await until(lambda: pool.inner["a"].running)
        self.freeze(pool, "a")
        await pool.look()
        assert not task.done()
        await pool.look()
        async with asyncio.timeout(5):
            assert "b says it." == (await task)[0]
        assert ([0, 0], 1.0) == (pool.taken(), pool.count("failovers_total", engine="a", first_token="before"))
        assert 1 == pool.set.protected[0].breaker.statistics(0.0)["recent_failures"]

    async def test_an_answer_that_has_begun_stays(self) -> None:
        """What was said can't be unsaid; its own deadline holds."""
        pool = Pool("a", "b")
        await pool.look()
        hang(pool, "a", after=1)
        task: asyncio.Task[object] = asyncio.create_task(pool.ask())
        await until(lambda: pool.inner["a"].running)
        await asyncio.sleep(0.01)
        self.freeze(pool, "a")
        for _ in range(3):
            await pool.look()
        assert ([1, 0], False) == (pool.taken(), task.done())
        await gone(task)

    async def test_one_that_is_busy_is_not_given_up(self) -> None:
        """It answers no ping in time, but goes on with an answer: whoever waits for its first word goes on waiting."""
        pool = Pool("a", "b")
        await pool.look()
        engine = pool.inner["a"]
        engine._answer = lambda _: ["word "] * 2000
        engine.tokens_per_second = 500
        speaking: asyncio.Task[object] = asyncio.create_task(pool.answer(a_request(model="test", max_tokens=2000)))
        await until(lambda: engine.running)
        pool.set.members[1].permits.taken += 2  # the other has more to do
        hang(pool, "a")
        waiting: asyncio.Task[object] = asyncio.create_task(pool.ask())
        await until(lambda: engine.running == 2)
        pool.set.members[1].permits.taken -= 2
        self.freeze(pool, "a")
        for _ in range(4):
            await pool.look()
        assert ([2, 0], False) == (pool.taken(), waiting.done())
        assert not pool.set.members[0].health.reachable
        await gone(speaking)
        for _ in range(2):
            await pool.look()
        async with asyncio.timeout(5):
            assert ("b says it.", [0, 0]) == ((await waiting)[0], pool.taken())  # type: ignore[index]

    async def test_where_no_other_would_do_better(self) -> None:
        """None is well, or has the model: it is waited for."""
        pool = Pool("a", "b")
        await pool.look()
        pool.members[0].offers["rare"] = "test"
        hang(pool, "a")
        hang(pool, "b")
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.ask(model=model)) for model in ("rare", "test")]
        await until(lambda: pool.inner["a"].running + pool.inner["b"].running == 2)
        self.freeze(pool, "a", "b")
        for _ in range(3):
            await pool.look()
        assert [False, False] == [task.done() for task in tasks]
        await gone(*tasks)

    async def test_nobody_stands_in_line_for_silent_engines(self) -> None:
        """When all are, who waits is told at once, and so is who would have to; while one may be well they wait."""
        pool = Pool("a", "b", max_running=1)
        await pool.look()
        hang(pool, "a")
        hang(pool, "b")
        running: list[asyncio.Task[object]] = [asyncio.create_task(pool.ask()) for _ in range(2)]
        await until(lambda: pool.taken() == [1, 1])
        waiting = asyncio.create_task(pool.ask())
        await until(lambda: pool.set.admission.line.waiting)
        self.freeze(pool, "a")
        for _ in range(3):
            await pool.look()
        # The one that a had waits for b now, before the others.
        await until(lambda: pool.set.admission.line.waiting == 2)
        self.freeze(pool, "b")
        for _ in range(3):
            await pool.look()
        for task in (waiting, running[0]):
            with pytest.raises(EngineTimeout, match="answers nothing"):
                await task
        # One who need not wait is let try: pings may be wrong. Another would have to.
        hang(pool, "a")
        running.append(asyncio.create_task(pool.ask()))
        await until(lambda: pool.taken() == [1, 1])
        with pytest.raises(EngineTimeout, match="answers nothing"):
            await pool.ask()
        await gone(*running[1:])
        assert ([0, 0], 0) == (pool.taken(), pool.set.admission.line.waiting)


async def test_all_are_busy() -> None:
    """A full line is told at once; but one that was let in, and whose engine failed, waits before all others."""
    pool = Pool("a", "b", max_running=1, environment={"MAX_WAITING": "0"})
    await pool.look()
    hang(pool, "a")
    running: asyncio.Task[object] = asyncio.create_task(pool.ask())
    await until(lambda: pool.taken() == [1, 0])
    pool.inner["b"].fail(GenerationFailed("sick"))
    again = asyncio.create_task(pool.ask())
    await until(lambda: pool.set.admission.line.waiting)
    hang(pool, "b")
    other: asyncio.Task[object] = asyncio.create_task(pool.ask())
    await until(lambda: pool.taken() == [1, 1])
    with pytest.raises(Overloaded):
        await pool.ask()
    await gone(running)
    assert "a says it." == (await again)[0]
    await gone(other)
    assert [0, 0] == pool.taken()


async def test_models() -> None:
    """An engine is asked only for what it has; a name that none has is an error, of those that are away if any is."""
    pool = Pool("a", "b")
    await pool.look()
    pool.members[1].offers["other"] = "test"
    assert "b says it." == (await pool.ask(model="other"))[0]
    with pytest.raises(ModelNotFound, match="no engine has the model 'none'"):
        await pool.ask(model="none")
    pool.members[0].offers.clear()
    pool.set.members[0].health.note("it is away")
    with pytest.raises(EngineUnreachable, match="a: it is away"):
        await pool.ask(model="none")


async def test_one_that_comes_back_without_its_model() -> None:
    """It fails one request at most, which another answers, and is asked again when it has the model again."""
    pool = Pool("a", "b")
    await pool.look()
    pool.inner["a"]._models = ["quite another"]
    for _ in range(3):
        assert "b says it." == (await pool.ask())[0]
    assert 1 == len(pool.inner["a"].requests)
    await pool.look()
    assert "it has no model test; it has quite another" == pool.set.members[0].health.problem
    pool.inner["a"]._models = ["test"]
    await pool.look()
    assert "a says it." == (await pool.ask())[0]


async def test_the_last_one_that_has_the_model() -> None:
    """Lacks it: the client is told so, and from then on that none has it."""
    pool = Pool("a")
    await pool.look()
    pool.inner["a"]._models = ["quite another"]
    with pytest.raises(ModelNotFound, match="The scripted engine has no model 'test'"):
        await pool.ask()
    with pytest.raises(EngineUnreachable, match="a: it has none of its models any more"):
        await pool.ask()


async def test_a_storm() -> None:
    """Five hundred requests, cancelled, failing, refused at any moment: every permit comes back, no text is mixed."""
    pool = Pool("a", "b", "c", max_running=2, environment={"MAX_WAITING": "500", "ENGINE_RETRIES": "2"})
    await pool.look()
    for number in range(200):
        engine = pool.inner["abc"[number % 3]]
        engine.faults.append(
            [Fault(number % 4, GenerationFailed("broke")), None, Fault(0, EngineUnreachable("x"))][number % 3]
        )
    tasks = []
    for number in range(500):
        tasks.append(asyncio.create_task(pool.ask(f"s{number % 50}")))
        if number % 5 == 0:
            tasks[-1 - number % 7 if number > 7 else 0].cancel()
        if number % 11 == 0:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, tuple):
            assert result[0] in {"a says it.", "b says it.", "c says it."}
        else:
            assert isinstance(result, EngineError | asyncio.CancelledError)
    assert ([0, 0, 0], 0) == (pool.taken(), pool.set.admission.line.waiting)
    assert all(engine.most_running <= 2 for engine in pool.inner.values())


async def test_statistics() -> None:
    """What /stats says of an engine."""
    pool = Pool("a")
    await pool.look()
    (member,) = pool.set.members
    assert isinstance(member, PoolMember)
    assert {
        "running": 0,
        "max_running": 1024,
        "unwanted": 0,
        "breaker": "closed",
        "provider": "scripted",
        "healthy": True,
        "problem": None,
        "models": ["test"],
    } == member.statistics(0.0)


WORDS = ["one ", "two ", " ", "three ", "fünf ", "六 ", "7, ", "and ", "on ", "it ", "goes ", "to the end."]
TEXT = "".join(WORDS)


class Never:
    """A method that does not return."""

    def __init__(self) -> None:
        self.asked = self.cancelled = 0

    async def __call__(self, *_: object) -> None:
        self.asked += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def answers_later(engine: ScriptedEngine) -> None:
    """Let it take a little longer than others to say whether it would go on."""
    method = engine.continues

    async def delayed(request: GenerationRequest) -> bool:
        await asyncio.sleep(0.02)
        return await method(request)

    engine.continues = delayed  # type: ignore[method-assign]


class TestGoingOn:
    """An engine that fails in the middle of its answer, and another that goes on with it."""

    @pytest.mark.parametrize("after", range(len(WORDS) + 1))
    @pytest.mark.parametrize("error", [EngineUnreachable, StreamStalled, GenerationFailed, EngineTimeout])
    async def test_the_text_is_exact(self, after: int, error: type[EngineError]) -> None:
        """Wherever it breaks: not a word is lost or said twice, and the end counts both parts."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["a"].fail(error("it broke"), after=after)
        text, finish = await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)
        assert TEXT == text
        assert "stop" == finish.reason
        assert finish.usage is not None
        # The space at a seam may be a token of both.
        assert finish.usage.completion_tokens - len(WORDS) in range(3)
        assert [0, 0] == pool.taken()
        moment = "after" if after else "before"
        assert 1.0 == pool.count("failovers_total", engine="a", first_token=moment)

    async def test_the_other_counts_what_was_said(self) -> None:
        """Of an engine that hands over several tokens at once: the limit holds for both parts together."""
        pool = Pool("a", "b", words=["one two three ", "four five six ", "seven"])
        await pool.look()
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)
        (asked,) = pool.inner["b"].requests
        assert 50 - 6 == asked.sampling.max_tokens

    async def test_what_the_other_is_asked(self) -> None:
        """The conversation, and what was said as the last message, without the space at its end."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["a"].fail(GenerationFailed("it broke"), after=3)
        request = a_request(model="test", max_tokens=50)
        await pool.answer(request, goes_on=True)
        (asked,) = pool.inner["b"].requests
        assert (*request.messages, Message("assistant", "one two")) == asked.messages
        assert 47 == asked.sampling.max_tokens

    async def test_one_deadline_for_the_whole(self) -> None:
        """The second engine has what the first one left of it."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["a"].faults.append(Fault(1, GenerationFailed("it broke")))
        await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)
        (asked,) = pool.inner["b"].requests
        assert 0 < asked.spent < 10

    async def test_three_engines_for_one_answer(self) -> None:
        """The second breaks, too: the third goes on behind both."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        pool.inner["b"].fail(EngineUnreachable("it broke"), after=4)
        text, finish = await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)
        assert TEXT == text
        assert finish.usage is not None
        assert finish.usage.completion_tokens - len(WORDS) in range(5)
        assert "one two  three fünf" == pool.inner["c"].requests[0].messages[-1].content

    async def test_one_that_fails_before_it_goes_on(self) -> None:
        """Then the next one does."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        pool.inner["b"].fail(EngineRejected("no"), after=0)
        assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]

    async def test_only_those_that_can(self) -> None:
        """One whose template closes the message is not asked; if there is no other, the first error is told."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        pool.inner["b"]._continues = False
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        request = a_request(model="test", max_tokens=50)
        assert TEXT == (await pool.answer(request, goes_on=True))[0]
        assert [] == pool.inner["b"].requests
        pool.inner["c"]._continues = False
        pool.inner["a"].fail(GenerationFailed("it broke again"), after=2)
        with pytest.raises(GenerationFailed, match="it broke again"):
            await pool.answer(request, goes_on=True)
        assert [0, 0, 0] == pool.taken()

    async def test_the_first_that_can_goes_on_at_once(self) -> None:
        """Whatever the others may say in the end, or never: the client is waiting."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        pool.inner["b"].continues = never = Never()  # type: ignore[method-assign, assignment]
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        async with asyncio.timeout(5):
            assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]
        assert ([], 1, 1, [0, 0, 0]) == (pool.inner["b"].requests, never.asked, never.cancelled, pool.taken())

    async def test_one_that_says_later_that_it_can(self) -> None:
        """Is waited for while none has been found."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        pool.inner["b"]._continues = False
        answers_later(pool.inner["c"])
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]
        assert ([], 1) == (pool.inner["b"].requests, len(pool.inner["c"].requests))

    async def test_who_is_free_is_worth_a_moment(self) -> None:
        """The first that can go on is busy: the other, found a little later, need not be waited for."""
        pool = Pool("a", "b", "c", words=WORDS, max_running=1)
        await pool.look()
        pool.set.members[1].permits.taken += 1
        answers_later(pool.inner["c"])
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        async with asyncio.timeout(5):
            assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]
        assert (0, [0, 1, 0]) == (len(pool.inner["b"].requests), pool.taken())

    async def test_who_is_busy_is_waited_for_in_the_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When nobody else is found within a moment."""
        monkeypatch.setattr(pool_module, "LOOK_LONGER", 0.01)
        pool = Pool("a", "b", "c", words=WORDS, max_running=1)
        await pool.look()
        busy = pool.set.members[1].permits
        busy.taken += 1
        pool.inner["c"].continues = Never()  # type: ignore[method-assign, assignment]
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        going = asyncio.create_task(pool.answer(a_request(model="test", max_tokens=50), goes_on=True))
        await until(lambda: pool.set.admission.line.waiting)
        pool.set.admission.line.give_back(busy)
        async with asyncio.timeout(5):
            assert (TEXT, 1) == ((await going)[0], len(pool.inner["b"].requests))

    async def test_one_that_was_passed_over_is_looked_at_again(self) -> None:
        """If the one that was found first fails before it says a word."""
        pool = Pool("a", "b", "c", words=WORDS)
        await pool.look()
        answers_later(pool.inner["c"])
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        pool.inner["b"].fail(EngineRejected("no"))
        assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]
        assert [1, 1, 1] == [len(engine.requests) for engine in pool.inner.values()]

    async def test_a_count_that_does_not_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Is done without."""
        monkeypatch.setattr(pool_module, "COUNT_SECONDS", 0.01)
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["b"].count_tokens = Never()  # type: ignore[method-assign, assignment]
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        async with asyncio.timeout(5):
            assert TEXT == (await pool.answer(a_request(model="test", max_tokens=50), goes_on=True))[0]

    async def test_a_client_that_leaves_in_the_seam(self) -> None:
        """Nobody is looked at for nobody."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["b"].continues = never = Never()  # type: ignore[method-assign, assignment]
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        going: asyncio.Task[object] = asyncio.create_task(
            pool.answer(a_request(model="test", max_tokens=50), goes_on=True)
        )
        await until(lambda: never.asked)
        await gone(going)
        assert (1, [0, 0]) == (never.cancelled, pool.taken())

    async def test_one_that_is_away_is_not_asked(self) -> None:
        """It can't say whether it would go on."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["b"].down = True
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        with pytest.raises(GenerationFailed, match="it broke"):
            await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)

    async def test_what_nobody_goes_on_with(self) -> None:
        """An answer that was withheld or took too long, and one with tools, since a call may have been begun."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        plain = a_request(model="test", max_tokens=50)
        tooled = msgspec.structs.replace(plain, tools=(WEATHER,))
        for error, request in (
            (EngineRejected("so it is"), plain),
            (ResponseTimeout("so it is"), plain),
            (GenerationFailed("so it is"), tooled),
        ):
            pool.inner["a"].fail(error, after=2)
            with pytest.raises(EngineError, match="so it is"):
                await pool.answer(request, goes_on=True)
        assert [] == pool.inner["b"].requests

    async def test_a_rest_that_has_no_room(self) -> None:
        """The client's message had: the first error is told."""
        pool = Pool("a", "b", words=WORDS)
        await pool.look()
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        pool.inner["b"].fail(ContextOverflow("too long"))  # type: ignore[arg-type]
        with pytest.raises(GenerationFailed, match="it broke"):
            await pool.answer(a_request(model="test", max_tokens=50), goes_on=True)

    async def test_it_waits_for_a_permit(self) -> None:
        """The others are busy: it goes on when one of them is free."""
        pool = Pool("a", "b", words=WORDS, max_running=1)
        await pool.look()
        hang(pool, "b")
        pool.set.members[0].permits.taken += 1
        busy: asyncio.Task[object] = asyncio.create_task(pool.ask())
        await until(lambda: pool.taken() == [1, 1])
        pool.set.admission.line.give_back(pool.set.members[0].permits)
        pool.inner["a"].fail(GenerationFailed("it broke"), after=2)
        going = asyncio.create_task(pool.answer(a_request(model="test", max_tokens=50), goes_on=True))
        await until(lambda: pool.set.admission.line.waiting)
        await gone(busy)
        assert TEXT == (await going)[0]
        assert [0, 0] == pool.taken()
