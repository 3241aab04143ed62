"""Deadlines around an engine: for its first token, between two tokens, and for the whole response.

A stream that is opened and then says nothing is a failure as much as one that breaks. What counts is text, or
reasoning: the empty deltas with which some APIs begin never get here (`Engine.generate` hands over none).
"""

import asyncio
from dataclasses import dataclass
from time import monotonic

from llm_service.engines.base import Engine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, FirstTokenTimeout, ResponseTimeout, StreamStalled
from llm_service.generation import Delta, Finish, GenerationRequest, TakeDelta


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds. `first_token` holds from asking the engine on, and so covers a model that it must load first."""

    first_token: float
    between_tokens: float
    response: float

    def due(self, begun: float, last: float | None) -> tuple[float, EngineError]:
        """Return until when the next token must be there, and what it is if it is not."""
        if last is None:
            due = begun + self.first_token
            error: EngineError = FirstTokenTimeout(
                f"the engine said nothing for {self.first_token:g} seconds (FIRST_TOKEN_TIMEOUT); "
                "send the message again"
            )
        else:
            due = last + self.between_tokens
            error = StreamStalled(
                f"the engine stopped within its answer for {self.between_tokens:g} seconds (TOKEN_TIMEOUT); "
                "send the message again"
            )
        if due <= begun + self.response:
            return due, error
        return begun + self.response, ResponseTimeout(
            f"the answer was not whole after {self.response:g} seconds (RESPONSE_TIMEOUT); ask for a shorter one"
        )


class DeadlineEngine(EngineWrapper):
    """An engine whose answers keep their deadlines or fail."""

    def __init__(self, engine: Engine, deadlines: Deadlines) -> None:
        super().__init__(engine)
        self._deadlines = deadlines

    async def generate(self, request: GenerationRequest, take: TakeDelta) -> Finish:
        """Hand the answer to `take`, as the engine does.

        Raises:
            FirstTokenTimeout: nothing came in time.
            StreamStalled: nothing more came in time.
            ResponseTimeout: the answer lasts too long.
        """
        watch = _Watch(self._deadlines, take)
        try:
            async with watch.limit:
                return await self._engine.generate(request, watch.take)
        except TimeoutError:
            if watch.missed is None:
                raise
            raise watch.missed from None
        finally:
            watch.stop()


class _Watch:
    """Looks after one answer, by one timer, which is set anew when it goes off and not at every token."""

    __slots__ = ("_begun", "_deadlines", "_last", "_loop", "_take", "_timer", "limit", "missed")

    def __init__(self, deadlines: Deadlines, take: TakeDelta) -> None:
        self._deadlines = deadlines
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._begun = monotonic()
        self._last: float | None = None
        self.limit = asyncio.timeout(None)
        self.missed: EngineError | None = None
        self._timer = self._loop.call_later(min(deadlines.first_token, deadlines.response), self._look)

    def take(self, delta: Delta) -> None:
        """Pass a delta on."""
        first, self._last = self._last is None, monotonic()
        if first:
            self.stop()  # it may be set for later than the second token is due
            self._look()
        self._take(delta)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        due, error = self._deadlines.due(self._begun, self._last)
        left = due - monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.missed = error
            self.limit.reschedule(self._loop.time())
