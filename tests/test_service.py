"""What one process shares: its start, its end, and what it tells of itself."""

import asyncio
import contextlib
import io
import json
import sys

import httpx
import pytest

from llm_service import log, log_lines
from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnavailable, GenerationFailed
from llm_service.metrics import render
from llm_service.service import Service
from tests.live import ask, live_service, opened, send, start

SECRETS = {
    "API_KEYS": "canary-key,canary-other",
    "OPENAI_API_KEY": "canary-openai",
    "OLLAMA_BASE_URL": "http://me:canary-password@localhost",
    "SYSTEM_PROMPT": "canary-system",
}


class RecordingEngine(ScriptedEngine):
    """Fails to answer pings as the test says."""

    failure: BaseException | None = None

    async def ping(self) -> None:
        if self.failure is not None:
            raise self.failure


def service_of(engine: ScriptedEngine, **environment: str) -> Service:
    async def opener(_: Settings) -> OpenedEngine:
        return opened(engine)

    return Service(Settings.load(environment), opener=opener)


async def test_from_start_to_stop() -> None:
    """It is ready while it is entered; afterwards its engine is closed and none of its tasks is left."""
    engine = ScriptedEngine(models=())
    service = service_of(engine)
    before = asyncio.all_tasks()
    assert ("starting", False) == (service.state, service.ready)
    async with service:
        assert ("ready", True) == (service.state, service.ready)
        # Of the engine's health, of the connections, of the store.
        assert 3 == len(asyncio.all_tasks() - before)
    assert ("stopped", False, True) == (service.state, service.ready, engine.closed)
    assert before == asyncio.all_tasks()


async def test_an_engine_that_does_not_answer() -> None:
    """An engine that is down does not end the start: the service is not ready, until the engine is back."""
    engine = ScriptedEngine(models=())
    engine.down = True
    async with service_of(engine) as service:
        assert ("ready", False) == (service.state, service.ready)
        engine.down = False
        await service.health.check()
        assert service.ready


async def test_no_engine() -> None:
    """Without an engine the start fails with the reason."""

    async def opener(_: Settings) -> OpenedEngine:
        raise EngineUnavailable("there is none")

    with pytest.raises(EngineUnavailable, match="there is none"):
        async with Service(Settings.load({}), opener=opener):
            pass


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), asyncio.CancelledError()], ids=["bug", "cancelled"])
async def test_a_start_that_fails_closes_what_was_opened(failure: BaseException) -> None:
    """Whatever ends the start, the engine that was opened is closed and no task is left."""
    engine = RecordingEngine(models=())
    engine.failure = failure
    before = asyncio.all_tasks()
    with pytest.raises(type(failure)):
        async with service_of(engine):
            pass
    assert engine.closed
    assert before == asyncio.all_tasks()


async def test_a_background_task_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a background task brings the service down, and the engine is closed."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.001)
    engine = RecordingEngine(models=())
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(10), service_of(engine):
            engine.failure = RuntimeError("a bug")
            await asyncio.Event().wait()
    assert caught.group_contains(RuntimeError, match="a bug")
    assert engine.closed


@pytest.mark.parametrize("fails", [False, True])
def test_its_figures_outlast_it(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """What it counted can be read when it is over, however it ended, without its event loop as well."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.001)
    engine = RecordingEngine(models=())
    service = service_of(engine)

    async def run() -> None:
        async with asyncio.timeout(10), service:
            if fails:
                engine.failure = RuntimeError("a bug")
                await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) if fails else contextlib.nullcontext():
        asyncio.run(run())
    assert b"fasttalk_event_loop_tasks " in render(service.registry)


async def test_info() -> None:
    """It tells what runs, and no secret; before the engine is open it tells less."""
    service = service_of(ScriptedEngine(models=()), **SECRETS)
    assert {"service", "version", "uptime_seconds", "state"} == service.info().keys()
    async with service:
        body = service.info()
        assert ("scripted", "test", ["test"], 8192) == (
            body["provider"],
            body["model"],
            body["models"],
            body["context_window"],
        )
        assert "canary" not in json.dumps(body)


@pytest.mark.parametrize("reveal", [False, True])
@pytest.mark.parametrize("form", ["console", "json"])
async def test_canaries(monkeypatch: pytest.MonkeyPatch, reveal: bool, form: log_lines.Format) -> None:
    """Keys are in no log, metric or report; what people say is in none either, but in the log with LOG_PROMPTS."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    log.configure("DEBUG", form, log_prompts=reveal)
    try:
        reports = await _session_with_canaries()
    finally:
        log.configure("WARNING", "console")
    lines = output.getvalue()
    assert lines.count("\n") > 5
    assert "canary" not in reports
    for secret in ("canary-key", "canary-other", "canary-wrong", "canary-openai", "canary-password"):
        assert secret not in lines
    for said in ("canary-said", "canary-answer"):
        assert reveal == (said in lines)
    assert reveal or "canary" not in lines


async def _session_with_canaries() -> str:
    """Say and hear canaries in every way there is; returns what the ports report of it."""
    failure = GenerationFailed("the engine failed")
    faults = [None, Fault(1, failure), None]
    engine = ScriptedEngine(lambda _: ["canary-answer"] * 50, tokens_per_second=500, models=(), faults=faults)
    async with live_service(engine, SECRETS) as live, httpx.AsyncClient(trust_env=False) as http:
        for header in ("canary-key", "canary-wrong"):
            with_key = live.connect(additional_headers={"Authorization": f"Bearer {header}"})
            if header == "canary-wrong":
                with pytest.raises(Exception, match="401"):
                    await with_key
                continue
            async with with_key as socket:
                await start(socket, system_prompt="canary-prompt", stop=["canary-stop"])
                assert "response_complete" == (await ask(socket, "canary-said")).terminal["type"]
                assert "error" == (await ask(socket, "canary-said")).terminal["type"]
                await send(socket, "user_message", text="canary-said")
                await send(socket, "cancel")
                await socket.send('{"type": "canary-type", "canary-field": "canary-value"}')
                await socket.send("canary-nonsense")
                await send(socket, "update_config", config={"canary-option": 1})
                await send(socket, "end_session")
                async with asyncio.timeout(10):
                    while '"session_ended"' not in str(await socket.recv()):
                        pass
        async with live.connect() as socket:
            await send(socket, "start_session", api_key="canary-wrong")
            await socket.wait_closed()
        async with live.connect() as socket:
            await send(socket, "start_session", api_key="canary-other")
            await socket.recv()
            urls = [live.url + path for path in ("/", "/health", "/stats")]
            urls += [live.monitoring_url + path for path in ("/health", "/health/ready", "/metrics", "/info")]
            return "\n".join([(await http.get(url)).text for url in urls])
