"""Permits around an engine: it is asked for no more answers at once than it works on at once.

What it can't work on yet waits here, where the line is fair and has a bound, and one that is cancelled leaves it at
once. An engine's own queue has none of that: Ollama's serves in no order at all.
"""

import asyncio
from collections.abc import Callable, Collection
from time import monotonic

import msgspec

from llm_service.engines.base import Engine
from llm_service.engines.permits import Line, Permits, Waiter
from llm_service.engines.prompt_reading import PromptReading
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineTimeout, FastTalkError, FirstTokenTimeout, Overloaded, ResponseTimeout
from llm_service.generation import Finish, GenerationRequest, Sink

# In seconds: no engine is taken to read on for longer than this after its client has left.
LONGEST_READING = 60.0
# In seconds: who waits is not let wait longer for less than this.
MOMENT = 0.02

_SILENT = "the engine answers nothing, not even pings, so that nobody waits for it; send the message again later"

# How a request ends that the engine may still be reading.
_LEFT = (asyncio.CancelledError, EngineTimeout, FirstTokenTimeout, ResponseTimeout)


class Admission:
    """Lets requests wait for a permit in `line`, at most `timeout` seconds each.

    Time in which the engines are known to read what nobody wants is added to that, by the share of their permits which
    are kept for it, up to LONGEST_READING. `waited` hears how many seconds each of them waited that got one.
    """

    def __init__(self, line: Line, *, timeout: float, waited: Callable[[float], None] = lambda _: None) -> None:
        self.line = line
        self._timeout = timeout
        self._waited = waited
        self._waiting: set[_Wait] = set()

    async def wait(
        self,
        request: GenerationRequest,
        sink: Sink,
        engines: Collection[Permits],
        wants: Callable[[Permits], bool],
        *,
        again: bool = False,
    ) -> Permits:
        """Return whose permit was taken, after waiting for it; `engines` are those it may be of, none of them free.

        `again` says that it had one already, of an engine that failed.

        Raises:
            Overloaded: the line is full, or the time is up.
            EngineTimeout: none of the engines answers anything.
        """
        if all(permits.silent for permits in engines):
            raise EngineTimeout(_SILENT)
        line, loop = self.line, asyncio.get_running_loop()
        handed: asyncio.Future[Permits] = loop.create_future()
        waiter = Waiter(
            request.session_id,
            # One that was cancelled is in line until its task goes on.
            wants=lambda permits: not handed.done() and wants(permits),
            granted=handed.set_result,
            moved=sink.waits,
            rank="background" if request.background else "again" if again else "turn",
        )
        line.join(waiter, engines)
        wait = _Wait(handed, waiter, engines)
        self._waiting.add(wait)
        wait.timer = loop.call_later(self._timeout, self._expire, wait)
        try:
            permits = await handed
        except BaseException:
            line.leave(waiter)
            # Handed over in the same moment: nobody is there to take it.
            if handed.done() and not handed.cancelled() and handed.exception() is None:
                line.give_back(handed.result())
            raise
        finally:
            wait.timer.cancel()
            self._waiting.discard(wait)
        self._waited(monotonic() - wait.began)
        if sink.waits is not None:
            sink.waits(0)
        return permits

    def let_go(self, engines: Collection[Permits]) -> None:
        """End the waiting of those who may get none of these engines' permits but of silent ones; `engines` are all."""
        for wait in tuple(self._waiting):
            wanted = [permits for permits in engines if wait.waiter.wants(permits)]
            if wanted and all(permits.silent for permits in wanted):
                self._end(wait, EngineTimeout(_SILENT))

    def _expire(self, wait: "_Wait") -> None:
        lost = min(wait.lost(), LONGEST_READING)
        left = wait.began + self._timeout + lost - monotonic()
        if left > MOMENT:
            wait.timer = asyncio.get_running_loop().call_later(left, self._expire, wait)
            return
        reading = f" and {lost:.0f} in which it read what nobody wants any more" if lost >= 1 else ""
        error = Overloaded(
            f"no engine was free within {self._timeout:g} seconds (QUEUE_TIMEOUT){reading}; "
            "send the message again later",
            retry_after=self.line.retry_after(wait.engines),
        )
        self._end(wait, error)

    def _end(self, wait: "_Wait", error: FastTalkError) -> None:
        if not wait.handed.done():
            self.line.leave(wait.waiter)
            wait.handed.set_exception(error)


class _Wait:
    """One that waits for a permit of one of these engines to be `handed` over."""

    __slots__ = ("_lost", "began", "engines", "handed", "timer", "waiter")

    def __init__(self, handed: asyncio.Future[Permits], waiter: Waiter, engines: Collection[Permits]) -> None:
        self.handed = handed
        self.waiter = waiter
        self.engines = engines
        self.began = monotonic()
        self._lost = sum(permits.lost(self.began) for permits in engines)
        self.timer: asyncio.TimerHandle

    def lost(self) -> float:
        """Return how many seconds of its wait went to what nobody wants, as a share of the engines' permits."""
        now = monotonic()
        lost = sum(permits.lost(now) for permits in self.engines) - self._lost
        return lost / sum(permits.limit for permits in self.engines)


class LimitedEngine(EngineWrapper):
    """An engine that is asked by those alone who have one of its permits.

    With `reading` it is one that goes on reading a prompt after its client has left: the permit is kept until it is
    reckoned to have finished, and who comes next is given that time if the reckoning was wrong. What no user waits for
    is begun only where it is reckoned to be read within `aside_seconds`: a turn may come at any moment.
    """

    def __init__(
        self,
        engine: Engine,
        permits: Permits,
        admission: Admission,
        *,
        reading: PromptReading | None = None,
        aside_seconds: float = 0.0,
    ) -> None:
        super().__init__(engine)
        self.permits = permits
        self._admission = admission
        self._line = admission.line
        self._reading = reading
        self._aside_seconds = aside_seconds
        self._unsure_until = 0.0

    @property
    def reads_on(self) -> bool:
        """Whether it goes on reading a prompt that nobody wants any more."""
        return self._reading is not None

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does, once there is a permit.

        Raises:
            Overloaded: there was none, and `retry_after` says when to come back; or no user waits for it and it would
                be in the way of those who may come.
        """
        permits = self.permits
        if permits.taken < permits.limit:
            permits.taken += 1
        else:
            await self._admission.wait(request, sink, (permits,), permits.__eq__)
        return await self.admitted(request, sink)

    async def admitted(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Do the same with a permit that was taken for it, and give it back."""
        began = monotonic()
        reading, keep = self._reading, 0.0
        if reading is not None and request.background and not self._read_soon(reading, request, began):
            self._line.give_back(self.permits)
            raise Overloaded(
                "the engine can't be stopped while it reads this prompt, and would not have read it within "
                f"{self._aside_seconds:g} seconds (ASIDE_READ_SECONDS), while no user waits for it"
            )
        if reading is not None and began < self._unsure_until:
            request = msgspec.structs.replace(request, patience=self._unsure_until - began)
        try:
            finish = await self._engine.generate(request, sink)
            if reading is not None:
                self._unsure_until = 0.0
                reading.read(request.messages, finish.usage.prompt_seconds if finish.usage is not None else None)
            return finish
        except _LEFT:
            if reading is not None and not sink.times:
                keep = self._keep(reading, request, monotonic() - began)
            raise
        finally:
            self.permits.held(monotonic() - began)
            if keep > 0:
                self.permits.keep(1, monotonic())
                asyncio.get_running_loop().call_later(keep, self._finished_reading)
            else:
                self._line.give_back(self.permits)

    def _read_soon(self, reading: PromptReading, request: GenerationRequest, now: float) -> bool:
        needs = reading.seconds(request.messages)
        return needs is not None and needs <= self._aside_seconds and now >= self._unsure_until

    def _keep(self, reading: PromptReading, request: GenerationRequest, since: float) -> float:
        """Return for how many seconds more the engine is reckoned to read a prompt it was asked `since` seconds ago."""
        needs = reading.seconds(request.messages)
        reading.read(request.messages, None)
        # Reckoned without what else the machine does: it may well take twice as long.
        most = LONGEST_READING if needs is None else min(2 * needs, LONGEST_READING)
        self._unsure_until = max(self._unsure_until, monotonic() + most - since)
        return 0.0 if needs is None else min(needs - since, LONGEST_READING)

    def _finished_reading(self) -> None:
        self.permits.keep(-1, monotonic())
        self._line.give_back(self.permits)
