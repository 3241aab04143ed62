"""A model that is not in memory is loaded first, within a deadline of its own."""

import asyncio

import pytest

from llm_service.engines.base import timed
from llm_service.engines.loading import RETRY_AFTER, LoadingEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnreachable, GenerationFailed, LoadTimeout
from tests.engines.requests import a_request, begun

HOUR = 3600.0


class HangingEngine(ScriptedEngine):
    """Loads no model until it is told to."""

    def __init__(self) -> None:
        super().__init__(models=(), tokens_per_second=1_000_000)
        self.go_on = asyncio.Event()

    async def load(self, model: str, context_window: int) -> None:
        await self.go_on.wait()
        await super().load(model, context_window)


def quick(**options: object) -> ScriptedEngine:
    return ScriptedEngine(models=(), tokens_per_second=1_000_000, **options)  # type: ignore[arg-type]


async def ask(engine: LoadingEngine, model: str = "small", window: int = 2048) -> None:
    """Ask for an answer."""
    await engine.generate(a_request(model=model, window=window), timed(lambda _: None))


async def test_a_model_in_memory_is_not_loaded_again() -> None:
    """Once is enough, and not even that for one that was loaded at the start."""
    inner = quick()
    engine = LoadingEngine(inner, load_timeout=1, kept=HOUR, loaded=("small", 2048))
    await ask(engine)
    assert [] == inner.loads
    for _ in range(3):
        await ask(engine, "other")
    assert ["other"] == inner.loads


async def test_what_makes_it_load_again() -> None:
    """Another window, another model in between, a failure, a ping that failed, a rest of more than `kept` seconds."""
    inner = quick(faults=[None, None, None, Fault(0, GenerationFailed("died"))])
    engine = LoadingEngine(inner, load_timeout=1, kept=HOUR)
    for window in (2048, 4096, 2048):
        await ask(engine, window=window)
    assert 3 == len(inner.loads)
    with pytest.raises(GenerationFailed):
        await ask(engine)
    await ask(engine)
    assert 4 == len(inner.loads)
    inner.down = True
    with pytest.raises(EngineUnreachable):
        await engine.ping()
    inner.down = False
    await ask(engine)
    assert 5 == len(inner.loads)
    engine = LoadingEngine(inner, load_timeout=1, kept=0.0, loaded=("small", 2048))
    await ask(engine)
    assert 6 == len(inner.loads)


async def test_what_renders_a_prompt_has_its_model() -> None:
    """Whether it would go on with an answer is asked of an engine that has loaded the model."""
    inner = quick()
    engine = LoadingEngine(inner, load_timeout=1, kept=HOUR)
    assert await engine.continues(begun(model="small"))
    assert ["small"] == inner.loads


async def test_a_load_that_does_not_end() -> None:
    """The client is told that, and when to come back; the engine was not asked, and the next one loads anew."""
    inner = HangingEngine()
    engine = LoadingEngine(inner, load_timeout=0.01, kept=HOUR)
    with pytest.raises(LoadTimeout, match="LOAD_TIMEOUT") as caught:
        await ask(engine)
    assert (RETRY_AFTER, []) == (caught.value.retry_after, inner.requests)
    inner.go_on.set()
    await ask(engine)
    assert (["small"], 1) == (inner.loads, len(inner.requests))
