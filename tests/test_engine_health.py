"""Whether the engine answers."""

import asyncio
import contextlib
from functools import partial
from time import monotonic

import pytest
import structlog
from prometheus_client import CollectorRegistry

from llm_service import engine_health
from llm_service.engine_health import EngineHealth
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import EngineError, EngineUnreachable, GenerationFailed
from llm_service.metrics import Metrics


def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


class SilentEngine(ScriptedEngine):
    async def ping(self) -> None:
        await asyncio.Event().wait()


async def test_an_engine_that_answers() -> None:
    """Before the first question nothing is known; afterwards the engine is reachable, and no line is logged."""
    health = EngineHealth(ScriptedEngine(), metrics())
    assert (False, "not asked yet", None) == (health.reachable, health.problem, health.checked_at)
    with structlog.testing.capture_logs() as lines:
        assert await health.check()
    assert (True, None) == (health.reachable, health.problem)
    assert health.checked_at is not None
    assert [] == lines


async def test_changes_are_logged_once() -> None:
    """An engine that goes and comes back is a warning and an all-clear, however often it is asked in between."""
    engine = ScriptedEngine()
    health = EngineHealth(engine, metrics())
    with structlog.testing.capture_logs() as lines:
        await health.check()
        for engine.down in (True, True, False, False):
            await health.check()
    assert ["engine_unreachable", "engine_reachable"] == [line["event"] for line in lines]
    assert ("warning", "The scripted engine was told to be down.") == (lines[0]["log_level"], lines[0]["problem"])


async def test_down_from_the_start_is_logged() -> None:
    """An engine that never answered is told of, too."""
    engine = ScriptedEngine()
    engine.down = True
    health = EngineHealth(engine, metrics())
    with structlog.testing.capture_logs() as lines:
        assert not await health.check()
        assert not await health.check()
    assert ["engine_unreachable"] == [line["event"] for line in lines]
    assert "The scripted engine was told to be down." == health.problem


async def test_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes the question and says nothing counts as not reachable."""
    monkeypatch.setattr(engine_health, "PING_TIMEOUT", 0.01)
    health = EngineHealth(SilentEngine(), metrics())
    assert not await health.check()
    assert "no answer within 0.01 seconds" == health.problem


async def test_two_pings_make_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may fall into a busy moment; the silence lasts from the first of the last two on, until any answer."""
    monkeypatch.setattr(engine_health, "PING_TIMEOUT", 0.01)
    engine = ScriptedEngine()
    health = EngineHealth(engine, metrics())
    ping, silence = engine.ping, SilentEngine().ping
    for answer in (ping, partial(_fail, GenerationFailed("HTTP 500"))):
        since: list[float | None] = []
        for _ in range(3):
            engine.ping = silence if len(since) < 2 else partial(_fail, EngineUnreachable("no route"))  # type: ignore[method-assign]
            began = monotonic()
            await health.check()
            since.append(health.silent_since)
        first, second, third = since
        assert first is None
        assert second is not None
        assert third is not None
        assert second < third < began
        engine.ping = answer  # type: ignore[method-assign]
        await health.check()
        assert health.silent_since is None


async def _fail(error: EngineError) -> None:
    raise error


async def test_watch_follows_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch goes on asking until it is cancelled."""
    monkeypatch.setattr(engine_health, "INTERVAL", 0.001)
    engine = ScriptedEngine()
    health = EngineHealth(engine, metrics())
    task = asyncio.create_task(health.watch())
    async with asyncio.timeout(10):
        for engine.down in (False, True, False):
            while health.reachable is engine.down:
                await asyncio.sleep(0.001)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_the_gauge_follows() -> None:
    """The metrics say whether the engine answered when it was last asked."""
    registry = CollectorRegistry()
    engine = ScriptedEngine()
    health = EngineHealth(engine, Metrics(registry))
    for engine.down in (False, True, False):
        await health.check()
        value = registry.get_sample_value("fasttalk_engine_healthy", {"engine": "scripted"})
        assert value == (0 if engine.down else 1)
