"""What reaches the engine: an allowlist, with bounds (vLLM CVE-2026-34756, llama.cpp CVE-2026-21869, OWASP LLM10)."""

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.openai import OpenAIEngine
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.live import Live, ask, live_service, receive, send, start

CHAT = {"model", "messages", "stream", "stream_options", "temperature", "top_p", "top_k", "max_tokens"}
OLLAMA_CHAT = {"model", "messages", "stream", "options", "keep_alive", "truncate", "shift"}
OLLAMA_OPTIONS = {"num_ctx", "num_predict", "temperature", "top_k", "top_p", "stop"}
# What engines understand, and clients may not choose.
UNKNOWN: dict[str, Any] = {
    "n": 100_000,
    "best_of": 100_000,
    "logprobs": 100_000,
    "top_logprobs": 20,
    "logit_bias": {"1": 100},
    "echo": True,
    "suffix": "x",
    "presence_penalty": 2,
    "repeat_penalty": 2,
    "min_p": 1,
    "response_format": {"type": "json_schema", "json_schema": {"pattern": "(a+)+$"}},
    "format": "json",
    "grammar": 'root ::= "a"',
    "json_schema": {"type": "string", "pattern": "(a+)+$"},
    "guided_regex": "(a+)+$",
    "guided_json": {},
    "guided_decoding_backend": "outlines",
    "structured_outputs": {"regex": "(a+)+$"},
    "chat_template": "{{ cycler.__init__.__globals__ }}",
    "chat_template_kwargs": {"tokenize": True},
    "template": "{{ .Prompt }}",
    "raw": True,
    "images": ["http://evil.org/x.png"],
    "options": {"num_ctx": 10**9},
    "num_ctx": 10**9,
    "num_predict": -1,
    "num_gpu": 0,
    "num_thread": 100_000,
    "keep_alive": -1,
    "stream": False,
    "stream_options": {},
    "truncate": True,
    "shift": True,
    "lora": [{"id": 0}],
    "lora_request": {"path": "/etc"},
    "slot_id": 0,
    "cache_prompt": False,
    "n_probs": 100_000,
    "samplers": ["x"],
    "priority": -1,
    "kv_transfer_params": {},
    "extra_body": {"n": 2},
    "user": "x",
    "__class__": "x",
    "api_key": "x",
    "base_url": "http://evil.org",
}


async def _answer(exchange: Exchange) -> None:
    if exchange.path == "/api/chat":
        line = {"message": {"content": "yes"}, "done": True, "done_reason": "stop", "eval_count": 1}
        await exchange.answer(json.dumps(line).encode() + b"\n", Content_Type="application/x-ndjson")
    elif exchange.path.endswith("/chat/completions"):
        chunk = {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]}
        await exchange.answer(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode())
    elif exchange.path.endswith("/models"):
        await exchange.answer(b'{"data": [{"id": "test"}]}')
    else:
        await exchange.answer(b"{}", 200 if exchange.path.startswith("/api/") else 404)


@contextlib.asynccontextmanager
async def engine_and_service(provider: str, **environment: str) -> AsyncGenerator[tuple[FakeServer, Live], None]:
    """Run the service around an engine that notes what it is asked."""
    async with fake_server() as fake:
        fake.answer = _answer
        engine = OllamaEngine(fake.url) if provider == "ollama" else OpenAIEngine(fake.url + "/v1")
        async with live_service(engine, {"GREETING_DELAY_MS": "60000"} | environment) as live:
            yield fake, live


def asked(fake: FakeServer) -> list[dict[str, Any]]:
    """Return the bodies of what the engine was asked to generate; without messages it is only to load the model."""
    bodies = [each.json() for each in fake.exchanges if each.path.endswith(("/api/chat", "/chat/completions"))]
    return [body for body in bodies if body["messages"]]


@pytest.mark.parametrize("provider", ["ollama", "openai"])
async def test_nothing_unknown_is_forwarded(provider: str) -> None:
    """Keys beside those of the protocol reach no engine: in `config` they are an error, in a message they are passed
    over."""
    async with engine_and_service(provider) as (fake, live), live.connect() as socket:
        await start(socket)
        for key, value in UNKNOWN.items():
            if key != "keep_alive":
                await send(socket, "update_config", config={key: value})
                assert "invalid_config" == (await receive(socket))["error"]["code"], key
        await socket.send(json.dumps({"type": "user_message", "text": "hi", "config": UNKNOWN} | UNKNOWN))
        await receive(socket)
        await receive(socket)
        await ask(socket, "hi")
        bodies = asked(fake)
        assert bodies
        for body in bodies:
            if provider == "ollama":
                assert set(body) <= OLLAMA_CHAT, set(body) - OLLAMA_CHAT
                assert OLLAMA_OPTIONS == set(body["options"])
                assert 8192 == body["options"]["num_ctx"]
            else:
                assert CHAT == set(body)
            assert body["stream"] is True
            assert {frozenset({"role", "content"})} == {frozenset(message) for message in body["messages"]}


EXTREMES: dict[str, list[Any]] = {
    "temperature": [-1, -0.001, 2.001, 2**31, "0.7", True, [], {}],
    "top_p": [-1, 1.001, 1e308, "1"],
    "top_k": [0, -1, 1001, 2**31, 1.5, "40"],
    "max_tokens": [0, -1, 1_000_001, 2**53, 1.5, "1"],
    "seed": [-1, 2**32, 10**18 - 1, 0.5],
    "context_window": [0, -1, 255, 10_000_001, 10**18 - 1],
    "stop": ["x", [""], ["x" * 101], ["x"] * 17, [1], [None]],
    "system_prompt": ["x" * 32_769, 1, []],
    "model": ["", "x" * 513, 1, ["test"]],
    "think": ["true", 1, 0],
    "on_busy": ["", "wait", 1],
    "events": [["everything"], ["thinking"] * 17, "thinking"],
    "tools": ["x", [{}], [{"type": "function", "function": {"name": "x" * 65}}]],
}


async def test_extremes() -> None:
    """A value out of its bounds, or of another type, is an error that names its key; the engine never sees one."""
    async with engine_and_service("openai") as (fake, live), live.connect() as socket:
        await start(socket)
        count = 0
        for key, values in EXTREMES.items():
            for value in values:
                await send(socket, "update_config", config={key: value})
                error = (await receive(socket))["error"]
                assert "invalid_config" == error["code"], (key, value)
                assert f"config.{key}" in error["message"] or key in error["message"]
                count += 1
        assert "yes" == (await ask(socket, "hi")).text
        (body,) = asked(fake)
        assert (0.7, 0.9, 40) == (body["temperature"], body["top_p"], body["top_k"])
        assert 1 <= body["max_tokens"] <= 2048
        print(f"\n{count} values out of bounds: 0 forwarded")


NOT_NUMBERS = [
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 5000,
    str(2**63),
    str(-(2**63)),
    "0x10",
    "01",
]


@pytest.mark.parametrize("number", NOT_NUMBERS, ids=lambda number: str(number)[:20])
@pytest.mark.parametrize("key", ["temperature", "top_p", "max_tokens", "seed"])
async def test_what_is_no_number(key: str, number: str) -> None:
    """What JSON does not know as a number, or cannot be held, is refused as no JSON or as out of bounds."""
    async with engine_and_service("openai") as (fake, live), live.connect() as socket:
        await start(socket)
        await socket.send('{"type": "update_config", "config": {"%s": %s}}' % (key, number))  # noqa: UP031 - braces
        assert (await receive(socket))["error"]["code"] in ("invalid_json", "invalid_config")
        assert [] == asked(fake)


BOMBS = {
    "depth 33": "[" * 33 + "]" * 33,
    "depth 1000": '{"a":' * 1000 + "1" + "}" * 1000,
    "depth 30000": "[" * 30_000 + "]" * 30_000,
    "unclosed": "[" * 60_000,
    "19 digits": '{"type": "cancel", "a": 1000000000000000000}',
    "5000 digits": '{"type": "cancel", "a": %s}' % ("9" * 5000),
    "long exponent": '{"type": "cancel", "a": 1e%s}' % ("9" * 5000),
    "half a surrogate": '{"type": "user_message", "text": "\\ud800"}',
    "a NUL": '{"type": "cancel"}\x00',
    "two documents": '{"type": "cancel"}{"type": "cancel"}',
    "a comment": '{"type": "cancel"} // x',
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_json_bombs(bomb: str) -> None:
    """JSON deeper than 32 levels, integers of more than 18 digits, and what is none: an error, and the session goes
    on."""
    async with engine_and_service("openai") as (_, live), live.connect() as socket:
        await start(socket)
        await socket.send(BOMBS[bomb])
        assert "invalid_json" == (await receive(socket))["error"]["code"]
        assert "yes" == (await ask(socket, "hi")).text


async def test_what_is_within_the_bounds() -> None:
    """Depth 32 and 18 digits are read."""
    deep = "[" * 31 + "]" * 31
    async with engine_and_service("openai") as (_, live), live.connect() as socket:
        await start(socket)
        await socket.send('{"type": "cancel", "a": 999999999999999999, "b": %s}' % deep)  # noqa: UP031
        assert "cancelled" == (await receive(socket))["type"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "object", "patternProperties": {"(a+)+$": {}}},
        {"properties": {"x": {"type": "string", "pattern": "("}}},
        {"$ref": "http://evil.org/schema.json"},
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"properties": {"$ref": "#"}},
        {"type": "string", "format": "regex"},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "maxLength": 10**9},
        {"anyOf": [{"type": "string", "pattern": "x"}]},
        {"description": "x" * 17_000},
    ],
    ids=lambda schema: json.dumps(schema)[:50],
)
async def test_schemas_that_become_grammars(schema: dict[str, Any]) -> None:
    """Of a tool's schema nothing passes that an engine would compile at great cost (vLLM CVE-2025-48944)."""
    async with engine_and_service("openai") as (fake, live), live.connect() as socket:
        await start(socket)
        await send(socket, "update_config", config={"tools": [{"function": {"name": "x", "parameters": schema}}]})
        assert "invalid_config" == (await receive(socket))["error"]["code"]
        assert "yes" == (await ask(socket, "hi")).text
        assert "tools" not in asked(fake)[0]
