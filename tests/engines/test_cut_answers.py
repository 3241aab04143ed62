"""Answers that are cut off at any byte, over HTTP, in either engine's format: another engine says the rest."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from llm_service.engine_set import EngineSet
from llm_service.engines.base import Engine, timed
from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.openai import OpenAIEngine
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.engines.pools import MODEL, engine_set, named
from tests.engines.requests import a_request

WORDS = ["Grüße", " vom", " Meer", ": 海", "  und", "\n", " Wind", "."]
TEXT = "".join(WORDS)


class FakeModel:
    """Says TEXT, or what of it is missing, in the API's format; the next answer ends at byte `cut`, if that is set."""

    def __init__(self, fake: FakeServer) -> None:
        self.cut: int | None = None
        self.length = 0
        fake.answer = self.answer

    async def answer(self, exchange: Exchange) -> None:
        """Answer as the path asks for."""
        messages = exchange.json().get("messages") if exchange.body else None
        last = messages[-1] if isinstance(messages, list) and messages else {}
        said = last["content"] if last.get("role") == "assistant" else ""
        match exchange.path:
            case "/api/tags":
                await exchange.answer(b'{"models": [{"model": "test"}]}', Content_Type="application/json")
            case "/v1/models":
                await exchange.answer(b'{"data": [{"id": "test"}]}')
            case "/apply-template":
                await exchange.answer(msgspec.json.encode({"prompt": f"<assistant>{said}"}))
            case _ if not messages:  # Ollama is to load the model
                await exchange.answer(_lines([]))
            case _ if exchange.json().get("_debug_render_only"):
                await exchange.answer(msgspec.json.encode({"_debug_info": {"rendered_template": f"<a>{said}"}}))
            case _:
                await self._stream(exchange, said)

    async def _stream(self, exchange: Exchange, said: str) -> None:
        assert TEXT.startswith(said)
        rest, left = [], said
        for word in WORDS:
            begin, left = left[: len(word)], left[len(word) :]
            rest.append(word.removeprefix(begin))
        data = (_events if exchange.path.startswith("/v1") else _lines)([word for word in rest if word])
        cut, self.cut = self.cut, None
        if cut is None:
            await exchange.answer(data, size=50)
            return
        self.length = len(data)
        await exchange.start()
        if cut:
            await exchange.send(data[:cut])
        exchange.close() if cut % 2 else exchange.reset()


def _events(words: list[str]) -> bytes:
    parts = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: " + msgspec.json.encode(part) + b"\n\n" for part in parts) + b"data: [DONE]\n\n"


def _lines(words: list[str]) -> bytes:
    parts: list[dict[str, object]] = [{"message": {"role": "assistant", "content": word}} for word in words]
    parts.append({"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"})
    return b"".join(msgspec.json.encode(part) + b"\n" for part in parts)


def _engine(kind: str, fake: FakeServer) -> Engine:
    return OllamaEngine(fake.url) if kind == "ollama" else OpenAIEngine(f"{fake.url}/v1")


@asynccontextmanager
async def two(kind: str, other: str) -> AsyncGenerator[tuple[EngineSet, FakeModel, FakeServer], None]:
    """Run two engines; yields them as one, the first one's model and the second one's server."""
    async with fake_server() as first, fake_server() as second:
        engines = {"one": _engine(kind, first), "other": _engine(other, second)}
        model = FakeModel(first)
        FakeModel(second)
        together, _ = engine_set(engines, named({"one": {}, "other": {}}), CollectorRegistry())
        await together.health.check()
        yield together, model, second
        for engine in engines.values():
            await engine.aclose()


async def answered(engines: EngineSet) -> str:
    """Return what is said."""
    pieces: list[str] = []
    sink = timed(lambda delta: pieces.append(delta.text))
    sink.said = lambda: "".join(pieces)
    for member in engines.members:
        member.protected.breaker._outcomes.clear()
        member.health.reachable = True
    await engines.engine.generate(a_request("hello", model=MODEL, max_tokens=50), sink)
    return "".join(pieces)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("other", ["openai", "ollama"])
async def test_cut_at_every_byte(kind: str, other: str) -> None:
    """By a reset or an orderly end, within a character or an event, before the first and behind the last word."""
    async with two(kind, other) as (engines, model, _):
        cut, seams = 0, 0
        while cut == 0 or cut < model.length:
            model.cut = cut
            assert TEXT == await answered(engines), f"cut at byte {cut} of {model.length}"
            cut += 1 if kind == other else 5
            seams += 1
        assert model.length > 400
        assert [0, 0] == [member.permits.taken for member in engines.members]
    print(f"\n{kind} to {other}: {seams} cuts, each text exact")
