"""Measures an engine: the outermost wrapper, so that what it sees is what a session gets."""

from asyncio import CancelledError
from collections.abc import AsyncGenerator
from time import perf_counter

from llm_service.engines.base import Engine
from llm_service.generation import Delta, GenerationEvent, GenerationRequest, Usage
from llm_service.metrics import Metrics, Outcome, ResponseMetrics


class InstrumentedEngine:
    """An `Engine` that behaves as the one it wraps and feeds `metrics`.

    Per token it reads the clock once and observes once; all else is counted when a response ends.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    @property
    def name(self) -> str:
        return self._engine.name

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yield what the engine yields.

        A response counts as finished once its `Finish` says so, as cancelled if it was closed or its task
        cancelled before, and as failed if it raised or ended without a `Finish`.
        """
        measured = self._metrics.for_engine(self._engine.name, request.model)
        observe, observe_next = measured.observe_first_token, measured.observe_inter_token
        events = self._engine.generate(request)
        outcome: Outcome = "failed"
        complete = False
        deltas = 0
        measured.running.inc()
        started = last = perf_counter()
        try:
            async for event in events:
                if isinstance(event, Delta):
                    now = perf_counter()
                    observe(now - last)
                    observe, last = observe_next, now
                    deltas += 1
                else:
                    outcome, complete = _OUTCOMES[event.reason], True
                    _count(measured, event.usage)
                yield event
        except (CancelledError, GeneratorExit):
            if not complete:
                outcome = "cancelled"
            raise
        finally:
            try:
                await events.aclose()
            finally:
                measured.running.dec()
                if not complete:
                    measured.count_tokens["output"](deltas)  # nobody counted them; about one token each
                measured.observe_duration[outcome](perf_counter() - started)

    async def load(self, model: str, context_window: int) -> None:
        await self._engine.load(model, context_window)

    async def ping(self) -> None:
        """Return if the engine answers, raise if not; the health gauge follows."""
        try:
            await self._engine.ping()
        except BaseException:  # a deadline's cancel says the same as an error
            self._metrics.set_engine_healthy(self._engine.name, False)
            raise
        self._metrics.set_engine_healthy(self._engine.name, True)

    async def models(self) -> list[str]:
        return await self._engine.models()

    async def context_window(self, model: str) -> int | None:
        return await self._engine.context_window(model)

    async def aclose(self) -> None:
        await self._engine.aclose()


_OUTCOMES: dict[str, Outcome] = {
    "stop": "finished",
    "length": "finished",
    "cancelled": "cancelled",
    "error": "failed",
}


def _count(measured: ResponseMetrics, usage: Usage | None) -> None:
    if usage is None:
        return
    measured.count_tokens["input"](usage.prompt_tokens)
    measured.count_tokens["output"](usage.completion_tokens)
    if usage.cached_tokens is not None:
        measured.count_tokens["cached"](usage.cached_tokens)
