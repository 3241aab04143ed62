"""Opening the engines of ENGINES: one that has the model is enough to start."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_service.config import Settings
from llm_service.engines import OpenedEngine, open_engine
from llm_service.engines.base import timed
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import EngineUnavailable
from tests.engines.fake_engines import ollama, openai
from tests.engines.fake_server import FakeServer
from tests.engines.requests import a_request
from tests.processes import free_port

AWAY = {"name": "away", "provider": "vllm"}


def settings(*specs: dict[str, Any], **environment: str) -> Settings:
    return Settings.load({"ENGINES": json.dumps(specs), "COMPUTE_DEVICE": "cpu", "LLM_MODEL": "m"} | environment)


@asynccontextmanager
async def opening(*specs: dict[str, Any], **environment: str) -> AsyncGenerator[OpenedEngine, None]:
    """Open and close."""
    opened = await open_engine(settings(*specs, **environment))
    async with aclosing(opened.engine):
        yield opened


def away() -> dict[str, Any]:
    """Return an engine that nobody runs."""
    return AWAY | {"url": f"http://127.0.0.1:{free_port()}/v1"}


async def test_the_bundled_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the temperature that it needs, but not beside engines that have models of their own."""

    class Embedded(ScriptedEngine):
        name = "llama_cpp"

    async def opener(path: Path, **_: Any) -> ScriptedEngine:
        return Embedded(models=(path.stem,))

    monkeypatch.setattr(LlamaCppEngine, "open", opener)
    bundled = {"name": "local", "provider": "llama_cpp", "models": ["m"]}
    said = {"name": "said", "provider": "scripted", "models": ["m"]}
    for specs, temperature in (([bundled], 0.0), ([bundled, said], None)):
        async with opening(*specs) as opened:
            assert temperature == opened.temperature


async def test_several_of_different_kinds(fake: FakeServer) -> None:
    """Each is asked for what it has, the window is the smallest, and one that is away is said to be."""
    ollama(fake, "own:latest", "extra", window=4096)
    here = {"name": "here", "provider": "ollama", "url": fake.url, "models": {"m": "own"}}
    said = {"name": "said", "provider": "scripted", "models": ["m", "only"]}
    async with opening(here, said, away()) as opened:
        assert ("pool", "m", 4096) == (opened.provider, opened.model, opened.context_window)
        assert {"m", "only"} == opened.models
        assert "ENGINES names 3, of which 2 can answer" == opened.reason
        assert [{"m": "own"}, {"m": "m", "only": "only"}, {}] == [member.offers for member in opened.members]
        assert ["ollama", "scripted", "vllm"] == [member.provider for member in opened.members]
        assert (True, False) == (opened.counts_tokens, opened.window_enforced)
        # One that is there is loaded, as the window is.
        loads = [exchange.json() for exchange in fake.exchanges if exchange.path == "/api/chat"]
        assert ["own"] == [load["model"] for load in loads]
        assert "m" in await opened.engine.models()


async def test_its_own_key_and_timeouts(fake: FakeServer) -> None:
    """What ENGINES says of one engine is sent to that engine; nothing of it to another."""
    openai(fake, "m")
    keyed = {"name": "keyed", "provider": "openai", "url": f"{fake.url}/v1", "api_key": "sk-1", "timeout": 3}
    bare = {"name": "bare", "provider": "vllm", "url": f"{fake.url}/v1"}
    async with opening(keyed, bare, OPENAI_API_KEY="sk-2"):
        sent = {exchange.headers.get("authorization") for exchange in fake.exchanges}
    assert {"Bearer sk-1", None} == sent


async def test_one_that_comes_later(fake: FakeServer) -> None:
    """Its models are found out when it answers; what it was said to have can be asked for from the start."""
    late = {"name": "late", "provider": "openai", "url": f"{fake.url}/v1", "models": ["m", "big"]}
    openai(fake)
    async with opening({"name": "said", "provider": "scripted"}, late) as opened:
        assert {"m", "big"} == opened.models
        member = opened.members[1]
        assert {} == member.offers
        openai(fake, "m", "big")
        await member.ping()
        assert {"m": "m", "big": "big"} == member.offers


async def test_none_has_the_model(fake: FakeServer) -> None:
    """The start fails, with what is the matter with each; what was opened is closed."""
    ollama(fake, "other")
    with pytest.raises(EngineUnavailable) as caught:
        await open_engine(settings({"name": "here", "provider": "ollama", "url": fake.url}, away()))
    message = caught.value.message
    assert message.startswith(
        "none of the 2 engines of ENGINES has the model 'm': here: it has no model m; it has other"
    )
    assert "away: The engine at" in message


async def test_one_that_cannot_load(fake: FakeServer) -> None:
    """It is left out, and looked at again when it answers."""
    ollama(fake, "m", load=500)
    async with opening(
        {"name": "here", "provider": "ollama", "url": fake.url}, {"name": "said", "provider": "scripted"}
    ) as opened:
        assert [{}, {"m": "m"}] == [member.offers for member in opened.members]
        ollama(fake, "m", window=8192)
        await opened.members[0].ping()
        assert {"m": "m"} == opened.members[0].offers


async def test_the_embedded_one_stands_for_what_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one model, under whatever name sessions ask."""
    inner = ScriptedEngine(models=("SmolLM2",), window=2048, name="llama_cpp", tokens_per_second=1_000_000)

    async def opener(_: Path, **__: Any) -> ScriptedEngine:
        return inner

    monkeypatch.setattr(LlamaCppEngine, "open", opener)
    async with opening({"name": "local", "provider": "llama_cpp"}) as opened:
        assert ({"m": "SmolLM2"}, 2048, True) == (
            opened.members[0].offers,
            opened.context_window,
            opened.window_enforced,
        )
        request = msgspec.structs.replace(a_request(), model="m")
        await opened.engine.generate(request, timed(lambda _: None))
    assert ("SmolLM2", True) == (inner.requests[0].model, inner.closed)


async def test_a_bug_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of an engine ends the start."""

    async def broken(_: ScriptedEngine) -> list[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ScriptedEngine, "models", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await open_engine(settings({"name": "said", "provider": "scripted"}))
