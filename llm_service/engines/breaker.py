"""A circuit breaker around an engine: one that keeps failing is left alone for a while, then tried by one call.

    closed ──half of the last calls failed──▶ open ──its rest is over──▶ half-open ──trial answers──▶ closed
                                               ▲                             │
                                               └──trial fails: rests twice as long

What a client did says nothing about the engine: cancels, and refusals of one request, count neither way. Nor does work
in the background, which is let in only while the breaker is closed: users are to pay for nothing they did not ask for.
"""

import asyncio
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
TRIAL_TIMEOUT = 60.0  # a restarted engine loads its model first

# What says that the engine is unwell. Others of its errors are about one request: a model it lacks, a key.
FAILURES = (EngineUnreachable, EngineTimeout, LoadTimeout, FirstTokenTimeout, StreamStalled, GenerationFailed)


class Breaker:
    """Decides whether an engine may be asked. Pure: the time is told to it, in seconds that never go back.

    Each `admit` that returns is followed by one `succeeded`, `failed` or `neutral` with what it returned.
    """

    __slots__ = ("_changed", "_open_until", "_outcomes", "_rest", "_trial", "_turn", "state")

    def __init__(self, changed: Callable[[BreakerState], None] = lambda _: None) -> None:
        self._changed = changed
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._rest = FIRST_REST
        self._open_until = 0.0
        self._trial = 0  # the running one's number, or 0
        self._turn = 1  # admitted calls have the number of the time they belong to
        self.state: BreakerState = "closed"

    def __repr__(self) -> str:
        return f"<Breaker: {self.state}, {self._outcomes.count(False)} of {len(self._outcomes)} failed>"

    def statistics(self, now: float) -> dict[str, object]:
        """Return how it stands, for `/stats`; `retry_after` is in seconds."""
        resting = self.state == "open" and self._open_until > now
        return {
            "state": self.state,
            "recent_calls": len(self._outcomes),
            "recent_failures": self._outcomes.count(False),
            "retry_after": round(self._open_until - now, 3) if resting else None,
        }

    def admit(self, now: float) -> int:
        """Return the number of a call that may be made.

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
        if call == self._trial:
            self._trial = 0
            self._rest = FIRST_REST
            self._outcomes.clear()
            self._become("closed")
        elif call == self._turn and self.state == "closed":
            self._outcomes.append(True)

    def failed(self, call: int, now: float) -> None:
        """Take note that the engine failed."""
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
        if call == self._trial:
            self._trial = 0

    def _open(self, now: float, rest: float) -> None:
        self._rest = rest
        self._open_until = now + rest
        self._turn += 1
        self._outcomes.clear()
        self._become("open")

    def _resting(self, now: float) -> CircuitOpen:
        left = self._open_until - now
        # The next call tries the engine, or one does: that is over, or the engine rests again, before long.
        seconds = left if left > 0 else 1.0
        return CircuitOpen(
            f"the engine failed too often and is left alone; send the message again in {seconds:.0f} seconds",
            retry_after=round(seconds, 3),
        )

    def _become(self, state: BreakerState) -> None:
        self.state = state
        self._changed(state)


class BreakerEngine(EngineWrapper):
    """An engine that is asked only while its breaker lets it be.

    A trial that has said nothing after `trial_timeout` seconds, nor begun to call a tool, has failed.
    """

    def __init__(
        self,
        engine: Engine,
        breaker: Breaker,
        *,
        trial_timeout: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(engine)
        self._breaker = breaker
        self._trial_timeout = trial_timeout
        self._clock = clock

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does.

        Raises:
            CircuitOpen: the engine failed too often, and is not asked.
        """
        breaker = self._breaker
        if request.background:
            breaker.admit_background(self._clock())
            return await self._engine.generate(request, sink)
        call = breaker.admit(self._clock())
        try:
            if breaker.tries(call):
                finish = await self._try(call, request, sink)
            else:
                finish = await self._engine.generate(request, sink)
        except FAILURES:
            breaker.failed(call, self._clock())
            raise
        except BaseException:
            breaker.neutral(call)
            raise
        breaker.succeeded(call)
        return finish

    async def _try(self, call: int, request: GenerationRequest, sink: Sink) -> Finish:
        loop = asyncio.get_running_loop()
        silent = True

        def first(delta: Delta) -> None:
            nonlocal silent
            if silent:
                silent = False
                self._breaker.succeeded(call)
            sink.take(delta)

        trial = Sink(first, sink.times)

        def look() -> None:
            if silent and not trial.progress_at:
                limit.reschedule(loop.time())

        timer = loop.call_later(self._trial_timeout + request.patience, look)
        try:
            async with asyncio.timeout(None) as limit:
                return await self._engine.generate(request, trial)
        except TimeoutError:
            raise EngineTimeout(
                f"the engine was tried again and said nothing for {self._trial_timeout:g} seconds"
            ) from None
        finally:
            timer.cancel()
