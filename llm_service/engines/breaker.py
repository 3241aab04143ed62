"""A circuit breaker around an engine: one that keeps failing is left alone for a while, then tried by one call.

    closed ──half of the last calls failed──▶ open ──its rest is over──▶ half-open ──trial answers──▶ closed
                                               ▲                             │
                                               └──trial fails, or its time is up: rests twice as long

A trial whose time is up keeps nobody out any more, but goes on: an engine that is slow, or loads its model, may well
answer late, and closes the breaker then. To cut it off at that would be never to find out.

What a client did says nothing about the engine: cancels, and refusals of one request, count neither way. Nor does work
in the background, which is let in only while the breaker is closed: users are to pay for nothing they did not ask for.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import monotonic

from llm_service.engines.base import Engine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import (
    CircuitOpen,
    EngineTimeout,
    EngineUnreachable,
    FirstTokenTimeout,
    GenerationFailed,
    LoadTimeout,
    StreamStalled,
)
from llm_service.generation import Delta, Finish, GenerationRequest, Sink
from llm_service.metrics import BreakerState

# resilience4j's and Envoy's defaults wait for a hundred calls; a model answers too few a minute for that.
WINDOW = 20
LEAST_CALLS = 5
FAILURE_RATE = 0.5
# In seconds
FIRST_REST = 10.0
LONGEST_REST = 60.0
TRIAL_TIMEOUT = 10.0  # for so long one trial keeps all others out
LONGEST_TRIAL = 60.0  # then it is cut off, unless the engine loads its model
LEAST_RETRY = 1.0

# What says that the engine is unwell. Others of its errors are about one request: a model it lacks, a key, a tool call
# that the model made a mess of.
FAILURES = (EngineUnreachable, EngineTimeout, LoadTimeout, FirstTokenTimeout, StreamStalled, GenerationFailed)


class Breaker:
    """Decides whether an engine may be asked. Pure: the time is told to it, in seconds that never go back.

    Each `admit` that returns is followed by one `succeeded`, `failed` or `neutral` with what it returned, and, if it
    `tries` the engine and says nothing for `trial_timeout` seconds, by `overdue` before that.
    """

    __slots__ = (
        "_changed",
        "_late",
        "_open_until",
        "_outcomes",
        "_rest",
        "_trial",
        "_trial_until",
        "_turn",
        "state",
        "trial_timeout",
    )

    def __init__(
        self, changed: Callable[[BreakerState], None] = lambda _: None, *, trial_timeout: float = TRIAL_TIMEOUT
    ) -> None:
        self._changed = changed
        self.trial_timeout = trial_timeout
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._rest = FIRST_REST
        self._open_until = 0.0
        self._trial = 0  # the running one's number, or 0
        self._trial_until = 0.0
        self._late: set[int] = set()  # trials whose time is up, and that may still answer
        self._turn = 1  # admitted calls have the number of the time they belong to
        self.state: BreakerState = "closed"

    def __repr__(self) -> str:
        return f"<Breaker: {self.state}, {self._outcomes.count(False)} of {len(self._outcomes)} failed>"

    def statistics(self, now: float) -> dict[str, object]:
        """Return how it stands, for `/stats`; `retry_after` is in seconds."""
        left = self._left(now)
        return {
            "state": self.state,
            "recent_calls": len(self._outcomes),
            "recent_failures": self._outcomes.count(False),
            "retry_after": round(left, 3) if left > 0 else None,
        }

    def admit(self, now: float, patience: float = 0.0) -> int:
        """Return the number of a call that may be made; a trial has so many seconds more.

        Raises:
            CircuitOpen: none may be.
        """
        if self.state == "closed":
            return self._turn
        if self.state == "open" and now >= self._open_until:
            self._become("half_open")
        if self.state == "half_open" and not self._trial:
            self._turn += 1
            self._trial = self._turn
            self._trial_until = now + self.trial_timeout + patience
            return self._trial
        raise self._resting(now)

    def admit_background(self, now: float) -> None:
        """Return if work that no user waits for may be done; nothing is to be said of its end.

        Raises:
            CircuitOpen: it may not: the engine is unwell, or one call finds out whether it still is.
        """
        if self.state != "closed":
            raise self._resting(now)

    def refuses(self, now: float) -> bool:
        """Whether `admit` would let nobody in."""
        return (self.state == "open" and now < self._open_until) or (self.state == "half_open" and self._trial > 0)

    def tries(self, call: int) -> bool:
        """Whether this call is the one that finds out whether the engine is well again."""
        return call == self._trial

    def succeeded(self, call: int) -> None:
        """Take note that the engine answered. Of a trial it may be said at its first word, and once more at its end."""
        if call == self._trial or call in self._late:
            self._trial = 0
            self._late.clear()
            self._rest = FIRST_REST
            self._outcomes.clear()
            self._become("closed")
        elif call == self._turn and self.state == "closed":
            self._outcomes.append(True)

    def overdue(self, call: int, now: float) -> None:
        """Take note that a trial says nothing: it has failed, unless it answers after all."""
        if call == self._trial:
            self.failed(call, now)
            self._late.add(call)

    def failed(self, call: int, now: float) -> None:
        """Take note that the engine failed."""
        self._late.discard(call)
        if call == self._trial:
            self._trial = 0
            self._open(now, min(2 * self._rest, LONGEST_REST))
        elif call == self._turn and self.state == "closed":
            # Calls that were begun before it opened say nothing that is not known.
            self._outcomes.append(False)
            failures = self._outcomes.count(False)
            if len(self._outcomes) >= LEAST_CALLS and failures >= FAILURE_RATE * len(self._outcomes):
                self._open(now, self._rest)

    def neutral(self, call: int) -> None:
        """Take note that the call's end says nothing about the engine; another may be the trial."""
        self._late.discard(call)
        if call == self._trial:
            self._trial = 0

    def _open(self, now: float, rest: float) -> None:
        self._rest = rest
        self._open_until = now + rest
        self._turn += 1
        self._outcomes.clear()
        self._become("open")

    def _resting(self, now: float) -> CircuitOpen:
        # The next turn tries the engine if neither its rest nor a trial lasts: that is found out before long.
        seconds = self._left(now) or LEAST_RETRY
        how = "is being tried" if self._trial else "is left alone"
        return CircuitOpen(
            f"the engine failed too often and {how}; send the message again in {math.ceil(seconds)} seconds",
            retry_after=round(seconds, 3),
        )

    def _left(self, now: float) -> float:
        """Return how long its rest lasts, or at most the trial that runs; 0 if neither."""
        if self.state == "closed":
            return 0.0
        return max(0.0, (self._trial_until if self._trial else self._open_until) - now)

    def _become(self, state: BreakerState) -> None:
        self.state = state
        self._changed(state)


class BreakerEngine(EngineWrapper):
    """An engine that is asked only while its breaker lets it be.

    A trial that has said nothing after `longest_trial` seconds, nor begun to call a tool, is cut off, unless the engine
    is `loading` its model: that has a deadline of its own.
    """

    def __init__(
        self,
        engine: Engine,
        breaker: Breaker,
        *,
        longest_trial: float = LONGEST_TRIAL,
        loading: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(engine)
        self.breaker = breaker
        self.longest_trial = longest_trial
        self.loading = loading
        self.clock = clock

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does.

        Raises:
            CircuitOpen: the engine failed too often, and is not asked.
        """
        breaker = self.breaker
        if request.background:
            breaker.admit_background(self.clock())
            return await self._engine.generate(request, sink)
        call = breaker.admit(self.clock(), request.patience)
        try:
            if breaker.tries(call):
                finish = await self._try(call, request, sink)
            else:
                finish = await self._engine.generate(request, sink)
        except FAILURES:
            breaker.failed(call, self.clock())
            raise
        except BaseException:
            breaker.neutral(call)
            raise
        breaker.succeeded(call)
        return finish

    async def _try(self, call: int, request: GenerationRequest, sink: Sink) -> Finish:
        trial = _Trial(self, call, sink)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.breaker.trial_timeout + request.patience, trial.overdue)
        trial.end_in(self.longest_trial + request.patience)
        try:
            async with trial.limit:
                return await self._engine.generate(request, trial.sink)
        except TimeoutError:
            raise EngineTimeout(
                f"the engine was tried again and said nothing for {self.longest_trial:g} seconds"
            ) from None
        finally:
            timer.cancel()
            trial.timer.cancel()


class _Trial:
    """One that runs; its deltas go through its own `sink`, and the first closes the breaker."""

    __slots__ = ("_call", "_engine", "_take", "limit", "silent", "sink", "timer")

    def __init__(self, engine: BreakerEngine, call: int, sink: Sink) -> None:
        self._engine = engine
        self._call = call
        self._take = sink.take
        self.silent = True
        self.sink = Sink(self._first, sink.times)
        self.limit = asyncio.timeout(None)
        self.timer: asyncio.TimerHandle

    def _first(self, delta: Delta) -> None:
        if self.silent:
            self.silent = False
            self._engine.breaker.succeeded(self._call)
        self._take(delta)

    def overdue(self) -> None:
        """Let others in, unless it calls a tool."""
        if self.sink.progress_at:
            self._engine.breaker.succeeded(self._call)
        else:
            self._engine.breaker.overdue(self._call, self._engine.clock())

    def end_in(self, seconds: float) -> None:
        """Cut it off then, if it has said nothing."""
        self.timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _end(self) -> None:
        if self._engine.loading():
            self.end_in(self._engine.longest_trial)
        elif self.silent and not self.sink.progress_at:
            self.limit.reschedule(asyncio.get_running_loop().time())
