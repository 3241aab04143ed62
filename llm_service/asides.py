"""What one session asks of the engine beside its turns: prompts read ahead, and summaries of what was dropped."""

import asyncio
from collections.abc import Callable, Coroutine

import msgspec
import structlog

from llm_service.effects import Condense
from llm_service.engines.base import Engine, timed
from llm_service.errors import FastTalkError
from llm_service.generation import Delta, GenerationRequest
from llm_service.idle_work import IdleWork, Preempted
from llm_service.metrics import AsideKind, Metrics

# Times that a summary is begun anew because a turn came in between or the engine failed.
CONDENSE_TRIES = 3

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class Asides:
    """Runs them as tasks that `spawn` makes, in the engine's idle time; `stop` must come last before those end."""

    __slots__ = ("_chores", "_engine", "_idle_work", "_metrics", "_spawn", "_stops", "_to_warm", "_warming")

    def __init__(self, spawn: Spawn, engine: Engine, idle_work: IdleWork, metrics: Metrics) -> None:
        self._spawn = spawn
        self._engine = engine
        self._idle_work = idle_work
        self._metrics = metrics
        self._chores: set[asyncio.Task[None]] = set()
        # How often all were stopped: what was begun before the last time does nothing more.
        self._stops = 0
        self._to_warm: GenerationRequest | None = None
        self._warming: asyncio.Task[None] | None = None

    def warm(self, request: GenerationRequest) -> None:
        """Let the engine read this prompt once the one it is reading is done; a newer one takes its place."""
        self._to_warm = request
        if self._warming is None:
            self._warming = self._start(self._warm())

    def stop_warming(self) -> None:
        """Drop it: the real message is here."""
        self._to_warm = None
        if self._warming is not None:
            self._warming.cancel()
            self._warming = None

    def condense(self, effect: Condense, done: Callable[[str | None], None]) -> None:
        """Have dropped turns condensed; `done` gets the engine's text, or None if there will be none."""
        self._start(self._condense(effect.request, done))

    def stop(self) -> None:
        """Stop what runs and forget what waits: no `done` of it is called. What is asked for later is done again."""
        self._stops += 1
        self.stop_warming()
        for chore in self._chores:
            chore.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._spawn(work)
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
        text = None
        for _ in range(CONDENSE_TRIES):
            text = await self._generate("summary", request)
            if text is not None or stops != self._stops:
                break
        if stops == self._stops:
            done(text)

    async def _generate(self, kind: AsideKind, request: GenerationRequest) -> str | None:
        """Return what the engine says; None if it failed or a turn came first."""
        pieces: list[str] = []

        def take(delta: Delta) -> None:
            if not delta.thinking:
                pieces.append(delta.text)

        request = msgspec.structs.replace(request, background=True)
        try:
            await self._idle_work.run(lambda: self._engine.generate(request, timed(take)))
        except Preempted:
            self._metrics.count_aside(kind, "preempted")
        except FastTalkError as error:
            self._metrics.count_aside(kind, "failed")
            _log.info("aside_failed", kind=kind, code=error.code, reason=error.message)
        else:
            self._metrics.count_aside(kind, "finished")
            return "".join(pieces)
        return None
