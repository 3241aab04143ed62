"""The circuit breaker: when an engine is left alone, and how it gets back."""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_service.engines.base import timed
from llm_service.engines.breaker import (
    FIRST_REST,
    LEAST_CALLS,
    LEAST_RETRY,
    LONGEST_REST,
    TRIAL_TIMEOUT,
    WINDOW,
    Breaker,
    BreakerEngine,
)
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import (
    CircuitOpen,
    ContextOverflow,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    InvalidToolCall,
    ModelNotFound,
)
from llm_service.generation import Delta, Finish, GenerationRequest, Sink
from tests.engines.requests import a_request

DOWN = EngineUnreachable("down")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(breaker: Breaker, now: float = 0.0) -> None:
    """Fail until it opens."""
    for _ in range(LEAST_CALLS):
        breaker.failed(breaker.admit(now), now)
    assert "open" == breaker.state


def ignore(_: Delta) -> None:
    """Take a delta."""


def test_few_failures_do_not_open_it() -> None:
    """Below five calls nothing is known; the fifth opens it, and callers learn how long to wait."""
    states: list[str] = []
    breaker = Breaker(states.append)
    for _ in range(LEAST_CALLS - 1):
        breaker.failed(breaker.admit(1.0), 1.0)
    assert "closed" == breaker.state
    breaker.failed(breaker.admit(1.0), 1.0)
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit(4.0)
    assert 7.0 == caught.value.retry_after
    assert "in 7 seconds" in caught.value.message
    assert ["open"] == states
    assert {"state": "open", "recent_calls": 0, "recent_failures": 0, "retry_after": 7.0} == breaker.statistics(4.0)


def test_half_of_the_last_calls_must_fail() -> None:
    """Twenty calls are looked at: successes that are older than these do not help an engine that fails."""
    breaker = Breaker()
    for _ in range(100):
        breaker.succeeded(breaker.admit(0.0))
    for _ in range(WINDOW // 2 - 1):
        breaker.failed(breaker.admit(0.0), 0.0)
    assert "<Breaker: closed, 9 of 20 failed>" == repr(breaker)
    breaker.failed(breaker.admit(0.0), 0.0)
    assert "open" == breaker.state


def test_it_rests_twice_as_long_after_each_failed_trial() -> None:
    """10, 20, 40, then 60 seconds; one success and it begins anew."""
    breaker, now = Breaker(), 0.0
    opened(breaker)
    for rest in (FIRST_REST, 20.0, 40.0, LONGEST_REST, LONGEST_REST):
        with pytest.raises(CircuitOpen):
            breaker.admit(now + rest - 0.001)
        now += rest
        trial = breaker.admit(now)
        assert breaker.tries(trial)
        breaker.failed(trial, now)
    now += LONGEST_REST
    breaker.succeeded(breaker.admit(now))
    assert "closed" == breaker.state
    opened(breaker, now)
    assert FIRST_REST == breaker.statistics(now)["retry_after"]


def test_what_ends_late_counts_no_more() -> None:
    """A call from before the breaker opened neither closes nor opens it."""
    breaker = Breaker()
    early = [breaker.admit(0.0) for _ in range(2 * LEAST_CALLS)]
    opened(breaker)
    trial = breaker.admit(FIRST_REST)
    breaker.succeeded(early[0])
    assert breaker.tries(trial)
    breaker.succeeded(trial)
    for call in early[1:]:
        breaker.failed(call, FIRST_REST)
    assert "closed" == breaker.state


def test_a_trial_that_is_cancelled_makes_room_for_another() -> None:
    """A cancel says nothing of the engine: the breaker stays half open, and the next caller tries."""
    breaker = Breaker()
    opened(breaker)
    breaker.neutral(breaker.admit(FIRST_REST))
    assert "half_open" == breaker.state
    assert breaker.tries(breaker.admit(FIRST_REST))


def test_others_learn_how_long_a_trial_may_take() -> None:
    """What is left of its time, the engine's reading of what nobody wants included; not a second whatever happens."""
    breaker = Breaker(trial_timeout=8.0)
    opened(breaker)
    trial = breaker.admit(FIRST_REST, patience=5.0)
    for now, left in ((FIRST_REST, 13.0), (FIRST_REST + 9.5, 3.5)):
        for admit in (breaker.admit, breaker.admit_background):
            with pytest.raises(CircuitOpen, match=f"is being tried; .* in {4 if left < 4 else 13} seconds") as caught:
                admit(now)
            assert left == caught.value.retry_after
        assert left == breaker.statistics(now)["retry_after"]
    breaker.neutral(trial)
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit_background(FIRST_REST + 9.5)
    assert LEAST_RETRY == caught.value.retry_after


def test_a_trial_whose_time_is_up() -> None:
    """It has failed, and the engine rests twice as long; another may try then, and whichever answers closes it."""
    breaker = Breaker()
    opened(breaker)
    late = breaker.admit(FIRST_REST)
    now = FIRST_REST + TRIAL_TIMEOUT
    breaker.overdue(late, now)
    assert ("open", 2 * FIRST_REST) == (breaker.state, breaker.statistics(now)["retry_after"])
    breaker.overdue(late, now + 1)
    with pytest.raises(CircuitOpen, match="is left alone"):
        breaker.admit(now + 1)
    now += 2 * FIRST_REST
    trial = breaker.admit(now)
    assert breaker.tries(trial)
    breaker.succeeded(late)
    assert "closed" == breaker.state
    breaker.succeeded(late)
    breaker.failed(trial, now)
    assert ("closed", 1, 1) == (
        breaker.state,
        breaker.statistics(now)["recent_calls"],
        breaker.statistics(now)["recent_failures"],
    )


@pytest.mark.parametrize("end", ["failed", "neutral"])
def test_a_late_trial_that_fails_after_all(end: str) -> None:
    """Says nothing that is not known, and answers no more."""
    breaker = Breaker()
    opened(breaker)
    late = breaker.admit(FIRST_REST)
    breaker.overdue(late, FIRST_REST + TRIAL_TIMEOUT)
    if end == "failed":
        breaker.failed(late, FIRST_REST + 2 * TRIAL_TIMEOUT)
    else:
        breaker.neutral(late)
    assert 2 * FIRST_REST == breaker.statistics(FIRST_REST + TRIAL_TIMEOUT)["retry_after"]
    breaker.succeeded(late)
    assert "open" == breaker.state


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, ends and waits, against a list of what happened since it was last closed."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.running: list[tuple[int, bool]] = []  # number, whether it was the trial
        self.late: set[int] = set()  # trials whose time was up, since it was last closed
        self.open_since: float | None = None

    def trials(self) -> int:
        """How many trials run."""
        return sum(self.breaker.tries(number) for number, _ in self.running)

    @rule(seconds=st.sampled_from([0.5, 9.0, 10.0, 30.0, 60.0]))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.now += seconds

    @rule()
    def call(self) -> None:
        """Somebody asks: always let in while closed, one at a time while half open, never within a rest."""
        before, resting = self.breaker.state, self.breaker.statistics(self.now)["retry_after"]
        trials = self.trials()
        refused: float | None = None
        try:
            number = self.breaker.admit(self.now)
        except CircuitOpen as error:
            refused = error.retry_after
        if refused is not None:
            assert before == "open" or trials == 1
            assert 0 < refused <= LONGEST_REST
            return
        assert resting is None
        assert before == "closed" or self.breaker.tries(number)
        self.running.append((number, self.breaker.tries(number)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["succeeded", "failed", "neutral", "answers"]))
    def end(self, data: st.DataObject, end: str) -> None:
        """A call ends, or a trial says its first word."""
        index = data.draw(st.integers(0, len(self.running) - 1))
        number = self.running[index][0]
        trial = self.breaker.tries(number) or number in self.late
        before = self.breaker.state
        if end != "answers":
            del self.running[index]
        if end in ("succeeded", "answers") and (trial or end == "succeeded"):
            self.breaker.succeeded(number)
            assert not trial or self.breaker.state == "closed"
            if trial:
                self.late.clear()
        elif end == "failed":
            self.breaker.failed(number, self.now)
            assert not trial or self.breaker.state == ("open" if number not in self.late else before)
            self.late.discard(number)
        elif end == "neutral":
            self.breaker.neutral(number)
            self.late.discard(number)
            assert before == self.breaker.state

    @precondition(lambda self: self.trials())
    @rule()
    def trial_is_overdue(self) -> None:
        """Its time is up: the engine rests, and the next after that may try."""
        number = next(number for number, _ in self.running if self.breaker.tries(number))
        self.breaker.overdue(number, self.now)
        self.late.add(number)
        assert self.breaker.state == "open"

    @rule()
    def gets_well(self) -> None:
        """Never stuck: once what runs has ended and time has passed, one success closes it."""
        for number, _ in self.running:
            self.breaker.neutral(number)
        self.running.clear()
        self.late.clear()
        self.now += LONGEST_REST
        self.breaker.succeeded(self.breaker.admit(self.now))
        assert "closed" == self.breaker.state

    @invariant()
    def one_trial(self) -> None:
        """At most one trial runs, and only while half open."""
        assert self.trials() <= 1
        assert not self.trials() or self.breaker.state == "half_open"


TestBreakerMachine = BreakerMachine.TestCase


class Engines:
    """A scripted engine behind a breaker whose clock is ours."""

    def __init__(self, *, trial_timeout: float = 5.0, longest_trial: float = 10.0, **options: object) -> None:
        self.inner = ScriptedEngine(tokens_per_second=1_000_000, **options)  # type: ignore[arg-type]
        self.clock = Clock()
        self.breaker = Breaker(trial_timeout=trial_timeout)
        self.loading = False
        self.engine = BreakerEngine(
            self.inner,
            self.breaker,
            longest_trial=longest_trial,
            loading=lambda: self.loading,
            clock=self.clock,
        )

    async def ask(self, take: Callable[[Delta], None] = ignore, *, background: bool = False) -> None:
        """Ask for an answer."""
        request = msgspec.structs.replace(a_request(model="scripted"), background=background)
        await self.engine.generate(request, timed(take))

    async def open(self) -> None:
        """Fail until the breaker opens, then wait until a trial is due."""
        self.inner.down = True
        for _ in range(LEAST_CALLS):
            with pytest.raises(EngineUnreachable):
                await self.ask()
        self.inner.down = False
        self.clock.now += FIRST_REST


async def test_an_engine_that_is_down_is_not_asked() -> None:
    """Once it has failed five times, callers get their error without a request, until its rest is over."""
    engines = Engines()
    await engines.open()
    engines.clock.now -= 1
    asked = len(engines.inner.requests)
    with pytest.raises(CircuitOpen):
        await engines.ask()
    assert asked == len(engines.inner.requests)
    engines.clock.now += 1
    await engines.ask()
    assert "closed" == engines.breaker.state


async def test_one_of_two_hundred_callers_tries() -> None:
    """Of callers who come while it is half open, one gets through; the others learn that they must wait."""
    engines = Engines()
    await engines.open()
    engines.inner.faults.append(Fault(0, pause=0.01))
    asked = len(engines.inner.requests)
    results = await asyncio.gather(*(engines.ask() for _ in range(200)), return_exceptions=True)
    assert [None] == [result for result in results if not isinstance(result, CircuitOpen)]
    assert asked + 1 == len(engines.inner.requests)
    assert "closed" == engines.breaker.state


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (EngineUnreachable("x"), True),
        (EngineTimeout("x"), True),
        (GenerationFailed("x"), True),
        (EngineRejected("x"), False),
        (InvalidToolCall("x"), False),
        (ModelNotFound("x"), False),
        (ContextOverflow("x"), False),
    ],
)
async def test_which_errors_count(error: FastTalkError, opens: bool) -> None:
    """What says that the engine is unwell opens the breaker; what is about one request never does."""
    engines = Engines()
    for _ in range(2 * LEAST_CALLS):
        engines.inner.faults.append(Fault(0, error))  # type: ignore[arg-type]
        with pytest.raises(FastTalkError):
            await engines.ask()
    assert opens == ("open" == engines.breaker.state)


async def test_cancels_count_neither_way() -> None:
    """A hundred clients that change their minds are not a failing engine; nor is a cancelled trial."""
    engines = Engines()
    for trial in (False, True):
        if trial:
            await engines.open()
        for _ in range(100):
            engines.inner.faults.append(Fault(1))
            task = asyncio.create_task(engines.ask())
            while not engines.inner.running:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ("half_open" if trial else "closed") == engines.breaker.state


async def test_background_work_counts_neither_way() -> None:
    """However often it fails, turns are answered; and its successes do not make up for a turn's failures."""
    engines = Engines()
    for _ in range(2 * WINDOW):
        engines.inner.fail(GenerationFailed("CUDA out of memory"))
        with pytest.raises(GenerationFailed):
            await engines.ask(background=True)
        await engines.ask(background=True)
    assert {"state": "closed", "recent_calls": 0, "recent_failures": 0, "retry_after": None} == (
        engines.breaker.statistics(engines.clock.now)
    )
    await engines.ask()


async def test_background_work_is_never_the_trial() -> None:
    """It is refused from the opening of the breaker to its closing; the first turn after the rest is the trial."""
    engines = Engines()
    await engines.open()
    asked = len(engines.inner.requests)
    for before in (1.0, 0.0):
        engines.clock.now -= before
        with pytest.raises(CircuitOpen) as refused:
            await engines.ask(background=True)
        assert 1.0 == refused.value.retry_after
        engines.clock.now += before
    assert asked == len(engines.inner.requests)
    engines.inner.faults.append(Fault(0))
    trial = asyncio.create_task(engines.ask())
    while not engines.inner.running:
        await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await engines.ask(background=True)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    await engines.ask()
    assert "closed" == engines.breaker.state
    await engines.ask(background=True)


async def test_a_trial_that_says_nothing_has_failed() -> None:
    """Its timeout ends it with an error of its own, and the engine rests twice as long."""
    engines = Engines(longest_trial=0.01)
    await engines.open()
    engines.inner.faults.append(Fault(0))
    with pytest.raises(EngineTimeout, match="said nothing"):
        await engines.ask()
    assert 2 * FIRST_REST == engines.breaker.statistics(engines.clock.now)["retry_after"]


async def test_a_hung_trial_keeps_others_out_for_its_own_time_only() -> None:
    """After that another one tries; the one that hangs is cut off in the end, and says nothing new by that."""
    engines = Engines(trial_timeout=0.01, longest_trial=0.2)
    await engines.open()
    engines.inner.faults.append(Fault(0))
    hung = asyncio.create_task(engines.ask())
    async with asyncio.timeout(5):
        while engines.breaker.state != "open" or not engines.inner.running:
            await asyncio.sleep(0.001)
    with pytest.raises(CircuitOpen) as refused:
        await engines.ask()
    assert 2 * FIRST_REST == refused.value.retry_after
    engines.clock.now += 2 * FIRST_REST
    await engines.ask()
    assert ("closed", False) == (engines.breaker.state, hung.done())
    with pytest.raises(EngineTimeout, match="said nothing"):
        await hung
    assert ("closed", 0) == (engines.breaker.state, engines.breaker.statistics(0.0)["recent_failures"])


async def test_a_slow_trial_is_answered_and_closes_it_late() -> None:
    """An engine that is slower than the trial's time is not shut out for ever."""
    engines = Engines(trial_timeout=0.01)
    await engines.open()
    engines.inner.faults.append(Fault(0, pause=0.1))
    states: list[str] = []
    engines.breaker._changed = states.append
    await engines.ask()
    assert ["half_open", "open", "closed"] == states


async def test_a_trial_that_loads_its_model_is_not_cut_off() -> None:
    """Loading has a deadline of its own; what is cut off in its middle would begin anew at every trial."""
    engines = Engines(trial_timeout=0.01, longest_trial=0.02)
    await engines.open()
    engines.loading = True
    engines.inner.faults.append(Fault(0, pause=0.15))
    await engines.ask()
    assert "closed" == engines.breaker.state


async def test_a_trial_closes_it_at_the_first_word() -> None:
    """Others need not wait for the end of a long answer, and the trial's timeout does not cut it."""
    engines = Engines(trial_timeout=0.05, longest_trial=0.06)
    await engines.open()
    engines.inner.faults.append(Fault(1, pause=0.1))
    states: list[str] = []
    await engines.ask(lambda _: states.append(engines.breaker.state))
    assert {"closed"} == set(states)
    assert "closed" == engines.breaker.state


def _say(words: list[str], _: GenerationRequest) -> list[str]:
    return words


class CallingEngine(EngineWrapper):
    """One that begins to write a tool call, says a word after its trial's time, and goes on."""

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        sink.progress_at = monotonic()
        await asyncio.sleep(0.1)
        return await super().generate(request, sink)


async def test_a_trial_that_calls_a_tool_goes_on() -> None:
    """A call that is being written is an answer that has begun: the breaker closes when the trial's time is up."""
    answers: tuple[list[str], ...] = (["a "], [])
    for words in answers:
        engines = Engines(trial_timeout=0.02, answer=partial(_say, words))
        await engines.open()
        states: list[str] = []
        engines.breaker._changed = states.append
        calling = BreakerEngine(CallingEngine(engines.inner), engines.breaker, longest_trial=0.03, clock=engines.clock)
        await calling.generate(a_request(model="scripted"), timed(ignore))
        assert ["half_open", "closed"] == states


async def test_the_rest_goes_through() -> None:
    """Whatever else an engine can do, it does behind the breaker, open or not."""
    engines = Engines(window=77, models=["scripted", "other"])
    await engines.open()
    engine = engines.engine
    await engine.load("scripted", 77)
    await engine.ping()
    assert ("scripted", ["scripted", "other"], 77) == (
        engine.name,
        await engine.models(),
        await engine.context_window("other"),
    )
    assert 2 == await engine.count_tokens("scripted", "two words")
    await engine.aclose()
    assert engines.inner.closed
