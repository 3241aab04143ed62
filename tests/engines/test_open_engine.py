"""Which engine is opened, what it is told, and why another one was not."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from llm_service import engines
from llm_service.config import Settings
from llm_service.devices import Device
from llm_service.engines import OpenedEngine, open_engine
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.model_files import BUNDLED
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import ConfigurationError, DeviceUnavailable, EngineUnavailable
from tests.engines.fake_engines import ollama, openai
from tests.engines.fake_server import Exchange, FakeServer
from tests.processes import free_port
from tests.real_engines import OllamaServer

GPU = Device("cuda", 1, "a GPU", 2**30)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, Any]]]:
    """In the place of llama.cpp a scripted engine; returns what it was opened with."""
    seen: list[tuple[Path, dict[str, Any]]] = []

    async def opener(path: Path, **options: Any) -> ScriptedEngine:
        seen.append((path, options))
        return ScriptedEngine(models=(), window=2048, name="llama_cpp")

    monkeypatch.setattr(LlamaCppEngine, "open", opener)
    return seen


@asynccontextmanager
async def opening(**environment: str) -> AsyncGenerator[OpenedEngine, None]:
    """Open and close."""
    opened = await open_engine(Settings.load({"COMPUTE_DEVICE": "cpu"} | environment))
    async with aclosing(opened.engine):
        yield opened


async def refused(**environment: str) -> str:
    """Open, which fails, and return why."""
    with pytest.raises(EngineUnavailable) as caught:
        await open_engine(Settings.load({"COMPUTE_DEVICE": "cpu"} | environment))
    return caught.value.message


def loads(fake: FakeServer) -> Sequence[dict[str, Any]]:
    return [exchange.json() for exchange in fake.exchanges if exchange.path == "/api/chat"]


class TestAuto:
    @pytest.mark.parametrize(("has", "named"), [("llama3.2:1b", {}), ("x:latest", {"LLM_MODEL": "x"})])
    async def test_an_ollama_that_has_the_model(self, fake: FakeServer, has: str, named: dict[str, str]) -> None:
        """Then it is Ollama, with the model loaded and the window no larger than the model's."""
        ollama(fake, "other", has)
        async with opening(OLLAMA_BASE_URL=fake.url, **named) as opened:
            assert ("ollama", "it has the model", 4096) == (opened.provider, opened.reason, opened.context_window)
            assert not opened.counts_tokens
        (load,) = loads(fake)
        assert ([], 4096) == (load["messages"], load["options"]["num_ctx"])

    async def test_an_ollama_without_the_model(
        self, fake: FakeServer, embedded: list[tuple[Path, dict[str, Any]]]
    ) -> None:
        """Then it is the embedded engine, and the reason says how to have the model."""
        ollama(fake, "other")
        async with opening(OLLAMA_BASE_URL=fake.url, OPENAI_TIMEOUT="7", NUM_THREADS="1") as opened:
            expected = f"the Ollama at {fake.url} has no model 'llama3.2:1b'; run: ollama pull llama3.2:1b"
            assert ("llama_cpp", BUNDLED, expected) == (opened.provider, opened.model, opened.reason)
            assert 2048 == opened.context_window
        ((path, options),) = embedded
        assert f"{BUNDLED}.gguf" == path.name
        assert (8192, 2, 7.0) == (options["context_window"], options["parallel"], options["read_timeout"])
        assert (0, 1) == (options["options"].n_gpu_layers, options["options"].n_threads)

    async def test_no_ollama(self, embedded: list[tuple[Path, dict[str, Any]]]) -> None:
        """Then it is the embedded engine; a password in the address is in no word of it."""
        port = free_port()
        async with opening(OLLAMA_BASE_URL=f"http://me:canary@127.0.0.1:{port}") as opened:
            expected = f"no Ollama answers at http://127.0.0.1:{port}; start it, or set OLLAMA_BASE_URL"
            assert ("llama_cpp", expected) == (opened.provider, opened.reason)
            assert 0.0 == opened.temperature
        assert 1 == len(embedded)

    async def test_an_ollama_that_cannot_load(
        self, fake: FakeServer, embedded: list[tuple[Path, dict[str, Any]]]
    ) -> None:
        """An Ollama that has the model and fails to load it is as good as none."""
        ollama(fake, "llama3.2:1b", load=500)
        async with opening(OLLAMA_BASE_URL=fake.url) as opened:
            assert "llama_cpp" == opened.provider
            assert "the model 'llama3.2:1b' could not be loaded" in opened.reason
        assert 1 == len(embedded)

    async def test_a_model_by_name(self, fake: FakeServer, embedded: list[tuple[Path, dict[str, Any]]]) -> None:
        """A model that Ollama does not have is not had by asking for it: the embedded engine answers, and says why.

        The log warns of it, since another model answers than the one that was named; without a name nobody is warned.
        """
        ollama(fake, "other")
        why = f"the Ollama at {fake.url} has no model 'x'; run: ollama pull x"
        with structlog.testing.capture_logs() as lines:
            async with opening(OLLAMA_BASE_URL=fake.url, LLM_MODEL="x") as opened:
                assert ("llama_cpp", BUNDLED) == (opened.provider, opened.model)
                assert f"{why}; the embedded engine has its own model instead of x" == opened.reason
            async with opening(OLLAMA_BASE_URL=fake.url):
                pass
        warned = [line for line in lines if line["log_level"] == "warning"]
        assert [{"event": "model_not_there", "model": "x", "reason": why, "log_level": "warning"}] == warned
        assert 2 == len(embedded)

    async def test_a_gguf_file(
        self, fake: FakeServer, embedded: list[tuple[Path, dict[str, Any]]], tmp_path: Path
    ) -> None:
        """A GGUF file can only be the embedded engine's: Ollama is not asked."""
        (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
        async with opening(OLLAMA_BASE_URL=fake.url, LLM_MODEL="tiny.gguf", MODEL_PATH=str(tmp_path)) as opened:
            expected = ("llama_cpp", "tiny", "LLM_MODEL is a GGUF file", frozenset({"tiny"}))
            assert expected == (opened.provider, opened.model, opened.reason, opened.models)
        assert [] == fake.exchanges
        assert tmp_path / "tiny.gguf" == embedded[0][0]

    async def test_neither(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With neither, both reasons are given."""

        async def opener(path: Path, **options: Any) -> ScriptedEngine:
            raise EngineUnavailable("not installed")

        monkeypatch.setattr(LlamaCppEngine, "open", opener)
        why = await refused(OLLAMA_BASE_URL=f"http://127.0.0.1:{free_port()}")
        assert why.startswith("no Ollama answers at ")
        assert why.endswith("; and the embedded engine cannot be had: not installed")


class TestOllama:
    async def test_not_there(self) -> None:
        """An Ollama asked for by name that is not there is an error that says what to do."""
        url = f"http://127.0.0.1:{free_port()}"
        expected = f"no Ollama answers at {url}; start it, or set OLLAMA_BASE_URL"
        assert expected == await refused(LLM_PROVIDER="ollama", OLLAMA_BASE_URL=url)

    async def test_without_the_model(self, fake: FakeServer) -> None:
        """One without the model, too; its connections are closed."""
        ollama(fake)
        why = await refused(LLM_PROVIDER="ollama", OLLAMA_BASE_URL=fake.url)
        assert f"the Ollama at {fake.url} has no model 'llama3.2:1b'; run: ollama pull llama3.2:1b" == why
        await fake.exchanges[0].left.wait()

    async def test_something_else(self, fake: FakeServer) -> None:
        """And something that is no Ollama."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"<html>", 404)

        fake.answer = answer
        why = await refused(LLM_PROVIDER="ollama", OLLAMA_BASE_URL=fake.url)
        assert why.startswith(f"the Ollama at {fake.url} does not list its models: ")

    async def test_a_model_that_cannot_be_loaded(self, fake: FakeServer) -> None:
        """And one that has the model and cannot load it."""
        ollama(fake, "llama3.2:1b", load=500)
        why = await refused(LLM_PROVIDER="ollama", OLLAMA_BASE_URL=fake.url)
        assert why.startswith("the model 'llama3.2:1b' could not be loaded: ")

    @pytest.mark.parametrize(
        ("chosen", "device", "told"),
        [
            ({}, GPU, {}),
            ({"COMPUTE_DEVICE": "auto"}, Device("cpu", 0, "a CPU", None), {}),
            ({"COMPUTE_DEVICE": "cpu"}, Device("cpu", 0, "a CPU", None), {"num_gpu": 0}),
            ({"COMPUTE_DEVICE": "cuda", "GPU_DEVICE_ID": "1"}, GPU, {"main_gpu": 1}),
            ({"NUM_THREADS": "1"}, GPU, {"num_thread": 1}),
        ],
    )
    async def test_what_it_is_told(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], device: Device, told: Any
    ) -> None:
        """It is told of device and threads what somebody chose, and otherwise left to itself."""
        monkeypatch.setattr(engines, "detect", lambda *_: device)
        ollama(fake, "llama3.2:1b")
        environment = {"LLM_PROVIDER": "ollama", "OLLAMA_BASE_URL": fake.url, "OLLAMA_KEEP_ALIVE": "-1", **chosen}
        opened = await open_engine(Settings.load(environment))
        await opened.engine.aclose()
        (load,) = loads(fake)
        assert ({"num_ctx": 4096, **told}, -1) == (load["options"], load["keep_alive"])

    @pytest.mark.ollama
    async def test_a_real_one(self, ollama_server: OllamaServer) -> None:
        """A real Ollama is found by `auto`, and has the model in memory."""
        async with opening(
            OLLAMA_BASE_URL=ollama_server.url, LLM_MODEL=ollama_server.model, DEFAULT_CONTEXT_WINDOW="512"
        ) as opened:
            assert ("ollama", 512) == (opened.provider, opened.context_window)
            assert 512 == (await opened.engine.loaded())[f"{ollama_server.model}:latest"]  # type: ignore[attr-defined]


class TestOpenAI:
    @pytest.mark.parametrize("provider", ["openai", "vllm"])
    async def test_found(self, fake: FakeServer, provider: str) -> None:
        """An API that has the model is opened with the key; of further models those are offered that it has."""
        openai(fake, "m", "other")
        key = {"OPENAI_API_KEY": "canary", "ALLOWED_MODELS": "other,ghost"}
        async with opening(LLM_PROVIDER=provider, OPENAI_BASE_URL=fake.url + "/v1", LLM_MODEL="m", **key) as opened:
            assert (provider, frozenset({"m", "other"})) == (opened.provider, opened.models)
            assert "canary" not in repr(opened)
        assert "Bearer canary" == fake.exchanges[0].headers["authorization"]

    @pytest.mark.parametrize("counts", [True, False])
    async def test_counting(self, fake: FakeServer, counts: bool) -> None:
        """Whether it counts tokens is known from the start."""
        openai(fake, "m", counts=counts)
        async with opening(LLM_PROVIDER="openai", OPENAI_BASE_URL=fake.url + "/v1", LLM_MODEL="m") as opened:
            assert counts == opened.counts_tokens

    async def test_not_there(self) -> None:
        """An API that is not there is an error that says what to do."""
        url = f"http://127.0.0.1:{free_port()}/v1"
        expected = f"no OpenAI-compatible API answers at {url}; start it, or set OPENAI_BASE_URL"
        assert expected == await refused(LLM_PROVIDER="openai", OPENAI_BASE_URL=url)

    async def test_without_the_model(self, fake: FakeServer) -> None:
        """One without the model lists what it has."""
        openai(fake, "a", "b")
        url = fake.url + "/v1"
        why = await refused(LLM_PROVIDER="vllm", OPENAI_BASE_URL=url, LLM_MODEL="c")
        assert f"the API at {url} has no model 'c'; set LLM_MODEL to one it has: a, b" == why

    async def test_the_wrong_key(self, fake: FakeServer) -> None:
        """One that denies access is told, without the key."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"{}", 401)

        fake.answer = answer
        why = await refused(LLM_PROVIDER="openai", OPENAI_BASE_URL=fake.url + "/v1", OPENAI_API_KEY="canary")
        assert "denied access (HTTP 401): check the API key" in why
        assert "canary" not in why


class TestEmbedded:
    async def test_by_name(self, embedded: list[tuple[Path, dict[str, Any]]]) -> None:
        """Without a model it is the one that comes with the package."""
        async with opening(LLM_PROVIDER="llama_cpp", LLAMA_CPP_PARALLEL="3") as opened:
            assert (BUNDLED, "LLM_PROVIDER names it") == (opened.model, opened.reason)
        assert 3 == embedded[0][1]["parallel"]

    async def test_a_model_that_is_no_file(self) -> None:
        """A name that only Ollama understands is an error of configuration."""
        with pytest.raises(ConfigurationError, match=r"LLM_MODEL=llama3\.2:1b: the embedded engine takes a path"):
            await open_engine(Settings.load({"LLM_PROVIDER": "llama_cpp", "LLM_MODEL": "llama3.2:1b"}))

    async def test_a_file_that_is_missing(self) -> None:
        """A file that is not there is named."""
        assert "no model file 'nowhere.gguf'" in await refused(LLM_PROVIDER="llama_cpp", LLM_MODEL="nowhere.gguf")


async def test_scripted() -> None:
    """The scripted engine speaks at the speed that was set."""
    async with opening(LLM_PROVIDER="scripted", SCRIPTED_TOKENS_PER_SECOND="7") as opened:
        assert ("scripted", "scripted", 8192) == (opened.provider, opened.model, opened.context_window)
        assert isinstance(opened.engine, ScriptedEngine)
        assert 7 == opened.engine.tokens_per_second
        assert opened.counts_tokens
        assert [opened.model] == opened.engine.loads


async def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """COMPUTE_DEVICE=cuda without a GPU ends the start, and says what is there; no engine is opened."""
    settings = Settings.load({"LLM_PROVIDER": "scripted", "COMPUTE_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "-1"})
    with pytest.raises(DeviceUnavailable, match="COMPUTE_DEVICE=cuda was asked for, but only cpu:0"):
        await open_engine(settings)


class TestPull:
    async def test_a_missing_model_is_pulled(self, fake: FakeServer) -> None:
        """Under OLLAMA_PULL a model that Ollama does not have is downloaded, then loaded."""
        ollama(fake, "other")
        having = fake.answer

        async def answer(exchange: Exchange) -> None:
            if exchange.path == "/api/pull":
                await exchange.answer(b'{"status":"pulling","completed":1,"total":2}\n{"status":"success"}\n')
            else:
                await having(exchange)

        fake.answer = answer
        async with opening(
            LLM_PROVIDER="ollama", OLLAMA_BASE_URL=fake.url, LLM_MODEL="x", OLLAMA_PULL="true"
        ) as opened:
            assert ("ollama", "x") == (opened.provider, opened.model)
        paths = [exchange.path for exchange in fake.exchanges]
        assert paths.index("/api/tags") < paths.index("/api/pull") < paths.index("/api/chat")

    async def test_a_pull_that_fails(self, fake: FakeServer) -> None:
        """A name that no registry knows ends the start with Ollama's own words."""
        ollama(fake)
        having = fake.answer

        async def answer(exchange: Exchange) -> None:
            if exchange.path == "/api/pull":
                await exchange.answer(b'{"error":"pull model manifest: file does not exist"}\n')
            else:
                await having(exchange)

        fake.answer = answer
        assert "file does not exist" in await refused(
            LLM_PROVIDER="ollama", OLLAMA_BASE_URL=fake.url, LLM_MODEL="x", OLLAMA_PULL="true"
        )
