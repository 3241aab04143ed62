"""What the servers of engines answer at a start."""

import msgspec

from tests.engines.fake_server import Exchange, FakeServer


def ollama(fake: FakeServer, *models: str, window: int = 4096, load: int = 200) -> None:
    """Let the server be an Ollama with these models."""
    documents: dict[str, object] = {
        "/api/tags": {"models": [{"model": model} for model in models]},
        "/api/show": {"model_info": {"general.architecture": "llama", "llama.context_length": window}},
        "/api/chat": {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"},
    }

    async def answer(exchange: Exchange) -> None:
        if exchange.path == "/api/chat" and load != 200:
            await exchange.answer(msgspec.json.encode({"error": "no memory"}), load)
        else:
            await exchange.answer(
                msgspec.json.encode(documents[exchange.path]) + b"\n", Content_Type="application/json"
            )

    fake.answer = answer


def openai(fake: FakeServer, *models: str, counts: bool = False) -> None:
    """Let the server be an OpenAI-compatible API with these models."""

    async def answer(exchange: Exchange) -> None:
        if exchange.path == "/tokenize":
            await exchange.answer(b'{"tokens": [1]}' if counts else b"{}", 200 if counts else 404)
            return
        assert ("GET", "/v1/models") == (exchange.method, exchange.path)
        await exchange.answer(msgspec.json.encode({"data": [{"id": model} for model in models]}))

    fake.answer = answer
