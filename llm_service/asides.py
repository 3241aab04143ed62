"""What one session asks of the engine beside its turns: prompts read ahead, and summaries of what was dropped."""

import asyncio
from collections.abc import Callable, Coroutine

import msgspec
import structlog

from llm_service.effects import Condense
from llm_service.engines.base import Engine, timed
from llm_service.errors import CircuitOpen, FastTalkError, Overloaded
from llm_service.generation import Delta, GenerationRequest
from llm_service.idle_work import IdleWork, Preempted
from llm_service.metrics import AsideKind, AsideOutcome, Metrics

# Times that a summary is begun anew because a turn came in between or the engine failed.
CONDENSE_TRIES = 3

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class Asides:
    """Runs them as tasks in the engine's idle time; `stop` must come last before those end.

    What makes the tasks is given for each: kept here, its owner and this would hold each other.

    `reads_on` says whether the engine goes on reading a prompt that nobody wants any more: what was preempted there has
    cost a turn time, and would do so again.
    """

    __slots__ = (
        "_chores",
        "_engine",
        "_idle_work",
        "_metrics",
        "_reads_on",
        "_stops",
        "_to_warm",
        "_warming",
    )

    def __init__(self, engine: Engine, idle_work: IdleWork, metrics: Metrics, *, reads_on: bool = False) -> None:
        self._engine = engine
        self._idle_work = idle_work
        self._metrics = metrics
        self._reads_on = reads_on
        self._chores: set[asyncio.Task[None]] = set()
        # How often all were stopped: what was begun before the last time does nothing more.
        self._stops = 0
        self._to_warm: GenerationRequest | None = None
        self._warming: asyncio.Task[None] | None = None

    def warm(self, request: GenerationRequest, spawn: Spawn) -> None:
        """Let the engine read this prompt once the one it is reading is done; a newer one takes its place."""
        self._to_warm = request
        if self._warming is None:
            self._warming = self._start(self._warm(), spawn)

    def stop_warming(self) -> None:
        """Drop it: the real message is here."""
        self._to_warm = None
        if self._warming is not None:
            self._warming.cancel()
            self._warming = None

    def condense(self, effect: Condense, done: Callable[[str | None], None], spawn: Spawn) -> None:
        """Have dropped turns condensed.

        `done` gets the engine's text, "" if it failed, or None if it is not to be asked for now.
        """
        self._start(self._condense(effect.request, done), spawn)

    def stop(self) -> None:
        """Stop what runs and forget what waits: no `done` of it is called. What is asked for later is done again."""
        self._stops += 1
        self.stop_warming()
        for chore in self._chores:
            chore.cancel()

    def _start(self, work: Coroutine[None, None, None], spawn: Spawn) -> asyncio.Task[None]:
        task = spawn(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task

    async def _warm(self) -> None:
        stops = self._stops
        while stops == self._stops and (request := self._to_warm) is not None:
            self._to_warm = None
            await self._generate("warm", request)
        if stops == self._stops:
            self._warming = None

    async def _condense(self, request: GenerationRequest, done: Callable[[str | None], None]) -> None:
        stops = self._stops
        text = ""
        for _ in range(CONDENSE_TRIES):
            outcome, text = await self._generate("summary", request)
            if stops != self._stops:
                return
            if outcome == "skipped" or (outcome == "preempted" and self._reads_on):
                done(None)
                return
            if outcome == "finished":
                break
        done(text)

    async def _generate(self, kind: AsideKind, request: GenerationRequest) -> tuple[AsideOutcome, str]:
        """Return what came of it, counted, and what the engine said if it finished."""
        pieces: list[str] = []

        def take(delta: Delta) -> None:
            if not delta.thinking:
                pieces.append(delta.text)

        request = msgspec.structs.replace(request, background=True)
        outcome: AsideOutcome = "failed"
        try:
            await self._idle_work.run(lambda: self._engine.generate(request, timed(take)))
            outcome = "finished"
        except Preempted:
            outcome = "preempted"
        except asyncio.CancelledError:
            outcome = "preempted"
            raise
        except (CircuitOpen, Overloaded):
            outcome = "skipped"
        except FastTalkError as error:
            _log.info("aside_failed", kind=kind, code=error.code, reason=error.message)
        finally:
            self._metrics.count_aside(kind, outcome)
        return outcome, "".join(pieces) if outcome == "finished" else ""
