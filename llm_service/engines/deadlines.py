"""Deadlines around an engine: for its first token, between two tokens, and for the whole response.

A stream that is opened and then says nothing is a failure as much as one that breaks. What counts is text, reasoning
and parts of a tool call: the empty deltas with which some APIs begin never get here (`Engine.generate` has none).
"""

from dataclasses import dataclass
from time import monotonic

from llm_service.engines.base import Engine
from llm_service.engines.calls import Call
from llm_service.engines.rounds import Rounds
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, FirstTokenTimeout, ResponseTimeout, StreamStalled
from llm_service.generation import Finish, GenerationRequest, Sink

# Seconds between two looks at the answers that run, or less where a deadline is shorter: they are found late by that.
LOOK_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds. `first_token` holds from asking the engine on, and from a request's `patience` later.

    `response` holds for all engines that an answer comes from: what the others took is the request's `spent`.
    """

    first_token: float
    between_tokens: float
    response: float

    @property
    def shortest(self) -> float:
        return min(self.first_token, self.between_tokens, self.response)

    def missed(self, now: float, begun: float, last: float | None, patience: float = 0.0) -> EngineError | None:
        """Return the error of an answer that is late; `last` is when it last went on, None before it did."""
        if now > begun + self.response:
            return ResponseTimeout(
                f"the answer was not whole after {self.response:g} seconds (RESPONSE_TIMEOUT); ask for a shorter one"
            )
        if last is None and now > begun + self.first_token + patience:
            return FirstTokenTimeout(
                f"the engine said nothing for {self.first_token:g} seconds (FIRST_TOKEN_TIMEOUT); "
                "send the message again"
            )
        if last is not None and now > last + self.between_tokens:
            return StreamStalled(
                f"the engine stopped within its answer for {self.between_tokens:g} seconds (TOKEN_TIMEOUT); "
                "send the message again"
            )
        return None


class DeadlineEngine(EngineWrapper):
    """An engine whose answers keep their deadlines or fail."""

    def __init__(self, engine: Engine, deadlines: Deadlines) -> None:
        super().__init__(engine)
        self._deadlines = deadlines
        self._running: set[_Answer] = set()
        self._rounds = Rounds(self._look, every=min(LOOK_EVERY, deadlines.shortest / 4))

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does.

        Raises:
            FirstTokenTimeout: nothing came in time.
            StreamStalled: nothing more came in time.
            ResponseTimeout: the answer lasts too long.
        """
        sink.progress_at = 0.0  # what an attempt before this one did is none of it
        answer = _Answer(sink, request.patience, request.spent)
        self._running.add(answer)
        self._rounds.begin()
        try:
            return await self._engine.generate(request, sink)
        except BaseException as error:
            if answer.taken_back(error):
                raise answer.lateness() from None
            raise
        finally:
            self._running.discard(answer)
            answer.leave()

    def _look(self) -> bool:
        now = monotonic()
        for answer in self._running:
            if answer.missed is None:
                answer.missed = self._deadlines.missed(now, answer.begun, answer.last, answer.patience)
                if answer.missed is not None:
                    answer.give_up()
        return bool(self._running)


class _Answer(Call):
    """One that runs: `missed` is the error of the deadline it missed."""

    __slots__ = ("begun", "missed", "patience", "sink")

    def __init__(self, sink: Sink, patience: float, spent: float) -> None:
        super().__init__()
        self.sink = sink
        # The whole was begun before this engine was asked; its first token need not come earlier for that.
        self.begun = monotonic() - spent
        self.patience = patience + spent
        self.missed: EngineError | None = None

    def lateness(self) -> EngineError:
        """Return the error of the deadline it missed, and hold it no more: its frames hold this."""
        error, self.missed = self.missed, None
        assert error is not None
        return error

    @property
    def last(self) -> float | None:
        times, progress = self.sink.times, self.sink.progress_at
        return max(times[-1] if times else progress, progress) or None
