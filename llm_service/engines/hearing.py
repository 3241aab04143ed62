"""When an engine was last heard, and the end of waiting for one that says nothing to anybody.

A ping that goes unanswered proves little: an engine may be too busy for it. One that says no word of any answer
meanwhile is frozen, or as good as that.
"""

from collections.abc import Callable
from time import monotonic

from llm_service.engines.base import Engine
from llm_service.engines.calls import Call
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineTimeout
from llm_service.generation import Finish, GenerationRequest, Sink

_SILENT = "the engine answers nothing, not even pings; send the message again later"


class HearingEngine(EngineWrapper):
    """An engine that those who have heard nothing of it can be made to give up, before their deadlines end."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._asked: set[_Asked] = set()
        self._heard_at = 0.0

    @property
    def heard_at(self) -> float:
        """When it last went on with an answer, or ended one (`time.monotonic`); 0 if it never did."""
        return max([self._heard_at, *(asked.heard_at for asked in self._asked)])

    def give_up(self, chosen: Callable[[GenerationRequest], bool]) -> None:
        """End the chosen ones of the requests that it has not begun to answer, loading the model included."""
        for asked in self._asked:
            if not asked.heard_at and chosen(asked.request):
                asked.give_up()

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does.

        Raises:
            EngineTimeout: it was given up.
        """
        asked = _Asked(request, sink)
        self._asked.add(asked)
        try:
            finish = await self._engine.generate(request, sink)
        except BaseException as error:
            self._heard_at = max(self._heard_at, asked.heard_at)
            if asked.taken_back(error):
                raise EngineTimeout(_SILENT) from None
            raise
        else:
            self._heard_at = monotonic()
            return finish
        finally:
            self._asked.discard(asked)
            asked.leave()


class _Asked(Call):
    """A request that runs."""

    __slots__ = ("begun", "request", "sink")

    def __init__(self, request: GenerationRequest, sink: Sink) -> None:
        super().__init__()
        self.request = request
        self.sink = sink
        self.begun = monotonic()

    @property
    def heard_at(self) -> float:
        """When it last went on; 0 before it did."""
        times, progress = self.sink.times, self.sink.progress_at
        last = max(times[-1] if times else 0.0, progress)
        # What an attempt before this one left in its sink is none of it.
        return last if last > self.begun else 0.0
