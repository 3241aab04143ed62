"""`python main.py test`: what it says of engines that work and of those that do not."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llm_service import self_check as module
from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnavailable, GenerationFailed
from llm_service.self_check import self_check
from tests.engines.fake_server import fake_server
from tests.live import opened
from tests.processes import free_port
from tests.speech import doubles


async def checked(
    engine: ScriptedEngine | EngineUnavailable, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> tuple[bool, list[str]]:
    """Check with this engine, or this failure to open one; returns whether it is fine and the lines."""

    async def opener(_: Settings) -> OpenedEngine:
        if isinstance(engine, EngineUnavailable):
            raise engine
        return opened(engine)

    monkeypatch.setattr(module, "open_engine", opener)
    output = io.StringIO()
    fine = await self_check(Settings.load(environment), Console(file=output, width=40))
    if isinstance(engine, ScriptedEngine):
        assert engine.closed
    return fine, output.getvalue().splitlines()


async def test_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration, device, engine, model, one generation and the store are said, a line each; all is closed."""
    fine, lines = await checked(ScriptedEngine(lambda _: ["Hel", "lo"], models=()), monkeypatch)
    assert fine
    assert ["✓"] * 6 == [line[0] for line in lines]
    subjects = ["configuration", "device", "engine", "model", "generation", "store"]
    assert subjects == [line[2:].partition(":")[0] for line in lines]
    assert "'Hello' (2 tokens, the first after" in lines[-2]


async def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is said as it is, brackets and all, in one line."""
    reason = "no model '[/x]'; run: ollama pull [/x], then come back to this same terminal"
    fine, lines = await checked(EngineUnavailable(reason), monkeypatch, LLM_MODEL="[/x]")
    assert not fine
    assert [f"✗ engine: {reason}"] == lines[1:]


async def test_a_generation_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that opens and then fails is not fine."""
    engine = ScriptedEngine(models=(), faults=[Fault(1, GenerationFailed("it broke"))], tokens_per_second=1e6)
    fine, lines = await checked(engine, monkeypatch)
    assert (False, "✗ generation: it broke") == (fine, lines[-1])


async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that says nothing in time is not fine, and what to do is said."""
    monkeypatch.setattr(module, "TIMEOUT", 0.01)
    fine, lines = await checked(ScriptedEngine(models=(), faults=[Fault()]), monkeypatch)
    assert (False, "✗ generation: no answer within 0.01 seconds; try a smaller model") == (fine, lines[-1])


async def test_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends without a word is not fine."""
    fine, lines = await checked(ScriptedEngine(lambda _: [], models=()), monkeypatch)
    assert (False, "✗ generation: the model said nothing; try another one") == (fine, lines[-2])


async def test_a_store_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What would stop the start is found here, with the same words."""
    broken = tmp_path / "sessions.sqlite3"
    broken.write_text("this is no database, however long it is" * 20)
    fine, lines = await checked(
        ScriptedEngine(lambda _: ["Hello"], models=()), monkeypatch, SESSION_STORE="sqlite", SQLITE_PATH=str(broken)
    )
    assert not fine
    assert lines[-1].startswith("✗ store: ")


async def test_speech_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each TTS is probed and one has a sentence spoken; its length and what it took are said."""
    async with fake_server() as tts:
        tts.answer = doubles.openai
        endpoints = f"opea=http://127.0.0.1:{free_port()},openai={tts.url}/v1"
        fine, lines = await checked(
            ScriptedEngine(lambda _: ["Hello"], models=()), monkeypatch, TTS_ENDPOINTS=endpoints
        )

    assert fine
    assert ["✗ TTS 1-opea", "✓ TTS 2-openai", "✓ speech"] == [line.partition(":")[0] for line in lines[6:]]
    assert "openai made 0.1 s of audio in" in lines[-1]


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ("gpt_sovits_v2=http://localhost:9880", "TTS_REFERENCE_AUDIO"),
        (f"opea=http://127.0.0.1:{free_port()}", "connect"),
    ],
)
async def test_speech_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, endpoints: str, reason: str) -> None:
    """A TTS that lacks a setting, or is not there, is not fine."""
    fine, lines = await checked(ScriptedEngine(lambda _: ["Hello"], models=()), monkeypatch, TTS_ENDPOINTS=endpoints)

    assert not fine
    assert lines[-1].startswith("✗ speech: ")
    assert reason in lines[-1]


@pytest.mark.embedded
async def test_the_embedded_engine() -> None:
    """With the embedded model the check passes for real."""
    output = io.StringIO()
    settings = Settings.load({"LLM_PROVIDER": "llama_cpp", "DEFAULT_CONTEXT_WINDOW": "512", "NUM_THREADS": "1"})
    assert await self_check(settings, Console(file=output))
    assert 6 == output.getvalue().count("✓")
