"""OpenAI's chat completions over server-sent events: what is asked and what comes back."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest

from llm_service.engines import openai_answer, transport
from llm_service.engines.base import timed
from llm_service.engines.openai import OpenAIEngine
from llm_service.errors import (
    ConfigurationError,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    InvalidToolCall,
    ModelNotFound,
)
from llm_service.generation import Delta, Finish, ToolCall, Usage
from tests.engines.fake_server import Exchange, FakeServer
from tests.engines.requests import SECRET, WEATHER, a_request, a_tool_turn, begun, collect, stream
from tests.processes import free_port

DONE = b"data: [DONE]\n\n"


def events(*parts: dict[str, object]) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(part) + b"\n\n" for part in parts)


MISMATCH = "The model produced output that does not match the expected"


def said(finish_reason: str | None = None, **delta: str | None) -> dict[str, object]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def calling(**part: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}


def counted(**details: int) -> dict[str, object]:
    usage: dict[str, object] = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return {"choices": [], "usage": {**usage, "prompt_tokens_details": details or None}}


@pytest.fixture
async def engine(fake: FakeServer) -> AsyncGenerator[OpenAIEngine, None]:
    engine = OpenAIEngine(f"{fake.url}/v1", api_key="key-1")
    yield engine
    await engine.aclose()


def answering(fake: FakeServer, data: bytes, status: int = 200, size: int | None = None) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.answer(data, status, size)

    fake.answer = answer


WHOLE = events(said(role="assistant", content=None), said(content="a"), said("stop"), counted()) + DONE


class TestRequests:
    async def test_what_is_asked(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """Sampling, usage and the key are sent; top_k and thinking as vLLM and llama-server take them."""
        answering(fake, WHOLE)
        await collect(stream(engine, a_request("hello", max_tokens=9, stop=("END",), seed=5, think=False)))
        (exchange,) = fake.exchanges
        assert ("POST", "/v1/chat/completions") == (exchange.method, exchange.path)
        assert "Bearer key-1" == exchange.headers["authorization"]
        assert exchange.json() == {
            "model": "small",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "top_p": 0.9,
            "top_k": 40,
            "max_tokens": 9,
            "stop": ["END"],
            "seed": 5,
            "chat_template_kwargs": {"enable_thinking": False},
        }

    async def test_a_strict_server(self, fake: FakeServer) -> None:
        """Without extended sampling nothing is sent that OpenAI does not know; without a key no header."""
        answering(fake, WHOLE)
        engine = OpenAIEngine(f"{fake.url}/v1", extended_sampling=False)
        await collect(stream(engine, a_request(think=True)))
        await engine.aclose()
        known = {"model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens"}
        assert known == set(fake.exchanges[0].json())
        assert "authorization" not in fake.exchanges[0].headers

    async def test_tools(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """Tools, the calls of an earlier answer and their results go as OpenAI wants them; other messages as ever."""
        answering(fake, WHOLE)
        request = msgspec.structs.replace(a_request(), messages=a_tool_turn(), tools=(WEATHER,))
        await collect(stream(engine, request))
        body = fake.exchanges[0].json()
        function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
        assert [{"type": "function", "function": function}] == body["tools"]
        call = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        assert [
            {"role": "user", "content": "What is the weather in Paris?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_7", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_7", "content": "It rains."},
        ] == body["messages"]

    @pytest.mark.parametrize("key", ["a\nb", "ü", "\x00"])
    def test_a_key_that_no_header_can_hold(self, key: str) -> None:
        """It is refused at once, and not shown."""
        with pytest.raises(ConfigurationError) as caught:
            OpenAIEngine("http://127.0.0.1/v1", api_key=key)
        assert key not in caught.value.message

    async def test_load_asks_nothing(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """Such a server has loaded its model before it answers."""
        await engine.load("small", 2048)
        assert ([], "openai") == (fake.exchanges, engine.name)


class TestContinuing:
    async def test_what_is_asked(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """The message is to be gone on with, by vLLM's names; what comes is the rest, as it comes."""
        answering(fake, events(said(content=" is"), said(content=" <think>wide"), said("stop")) + DONE)
        answer, thoughts, _ = await collect(stream(engine, begun()))
        assert (" is <think>wide", "") == (answer, thoughts)
        body = fake.exchanges[0].json()
        assert {"role": "assistant", "content": "The sea"} == body["messages"][-1]  # type: ignore[index]
        assert (False, True) == (body["add_generation_prompt"], body["continue_final_message"])

    @pytest.mark.parametrize(
        ("rendered", "goes_on"),
        [("<a>The sea", True), ("<a>The sea</a>", False), ("<a><think>The sea", False)],
    )
    @pytest.mark.parametrize("server", ["llama-server", "vllm"])
    async def test_whether_it_goes_on(
        self, fake: FakeServer, engine: OpenAIEngine, server: str, rendered: str, goes_on: bool
    ) -> None:
        """llama-server renders the prompt, vLLM makes tokens of it and text of them."""
        documents: dict[str, object] = {"/apply-template": {"prompt": rendered}}
        if server == "vllm":
            documents = {"/tokenize": {"count": 2, "tokens": [5, 6]}, "/detokenize": {"prompt": rendered}}

        async def answer(exchange: Exchange) -> None:
            known = exchange.path in documents
            await exchange.answer(msgspec.json.encode(documents.get(exchange.path, {})), 200 if known else 404)

        fake.answer = answer
        assert goes_on is await engine.continues(begun())
        body = fake.exchanges[-1].json()
        if server == "vllm":
            assert {"model": "small", "tokens": [5, 6]} == body
            body = fake.exchanges[-2].json()
            assert {"model", "messages", "add_generation_prompt", "continue_final_message"} == set(body)
        assert server == "vllm" or body["continue_final_message"] is True

    @pytest.mark.parametrize(("status", "data"), [(404, b"{}"), (500, b"{}"), (200, b"{}"), (200, b"no JSON")])
    async def test_nothing_is_assumed(self, fake: FakeServer, engine: OpenAIEngine, status: int, data: bytes) -> None:
        """A server that renders nothing is taken for one that can't."""
        answering(fake, data, status)
        assert not await engine.continues(begun())

    async def test_nobody_there(self) -> None:
        """Nor is one that is gone."""
        engine = OpenAIEngine(f"http://127.0.0.1:{free_port()}/v1")
        assert not await engine.continues(begun())
        await engine.aclose()


class TestAnswers:
    @pytest.mark.parametrize("size", [None, 1, 7])
    async def test_a_whole_answer(self, fake: FakeServer, engine: OpenAIEngine, size: int | None) -> None:
        """Text, reasoning in either field, and usage come out whole, however the bytes are split."""
        parts = [
            said(role="assistant", content=""),
            said(reasoning_content="hm"),
            said(reasoning=" hm", content=None),
            said(content="Grüße"),
            said(content=" 👋🏽"),
            said("stop"),
            counted(cached_tokens=6),
        ]
        answering(fake, b": ping\n\n" + events(*parts) + DONE, size=size)
        answer, thoughts, finish = await collect(stream(engine, a_request()))
        assert ("Grüße 👋🏽", "hm hm", Finish("stop", Usage(9, 4, 6))) == (answer, thoughts, finish)

    @pytest.mark.parametrize(("told", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
    async def test_reasons(self, fake: FakeServer, engine: OpenAIEngine, told: str, reason: str) -> None:
        """Reasons are mapped; without counts there is no usage; [DONE] may be missing."""
        answering(fake, events(said(content="a"), said(told)))
        assert Finish(reason) == (await collect(stream(engine, a_request())))[2]  # type: ignore[arg-type]

    @pytest.mark.parametrize("size", [None, 1])
    async def test_tags(self, fake: FakeServer, engine: OpenAIEngine, size: int | None) -> None:
        """Reasoning between tags is told apart where the engine does not do it."""
        parts = [said(content=text) for text in ("<th", "ink>hm", "</think", ">\n", "\nA", "nswer <think>")]
        answering(fake, events(*parts, said("stop")) + DONE, size=size)
        assert ("Answer <think>", "hm", Finish("stop")) == await collect(stream(engine, a_request()))

    async def test_what_begins_like_a_tag(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """It comes out at the end, whether the answer is whole or broken off."""
        answering(fake, events(said(content=" <thi"), said("stop")) + DONE)
        assert (" <thi", "", Finish("stop")) == await collect(stream(engine, a_request()))
        answering(fake, events(said(content=" <thi")))
        got: list[Delta] = []
        with pytest.raises(GenerationFailed):
            await engine.generate(a_request(), timed(got.append))
        assert [Delta(" <thi")] == got

    @pytest.mark.parametrize("told", ["tool_calls", "stop", "length"])
    async def test_tool_calls(self, fake: FakeServer, engine: OpenAIEngine, told: str) -> None:
        """Calls come in pieces and leave with the finish, whole; the answer may have text beside them."""
        parts = [
            said(content="Wait."),
            calling(index=0, id="x", type="function", function={"name": "a", "arguments": ""}),
            calling(index=0, function={"arguments": '{"n": '}),
            calling(index=0, function={"arguments": "1}"}),
            calling(index=1, id="y", function={"name": "b", "arguments": "{}"}),
        ]
        answering(fake, events(*parts, said(told), counted()) + DONE)
        calls = (ToolCall("x", "a", '{"n": 1}'), ToolCall("y", "b", "{}"))
        finish = Finish("tool_calls", Usage(9, 4), calls)
        assert ("Wait.", "", finish) == await collect(stream(engine, a_request()))

    async def test_a_part_of_a_call_is_progress_and_no_token(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """A call that is being written is no silence, though nothing of it is handed over before it is whole."""
        sink = timed(lambda _: None)

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(events(calling(index=0, id="x", function={"name": "a", "arguments": ""})))
            while not sink.progress_at:
                await asyncio.sleep(0)
            first = sink.progress_at
            await exchange.send(events(calling(index=0, function={"arguments": "{}"})))
            while sink.progress_at == first:
                await asyncio.sleep(0)
            await exchange.send(events(said("tool_calls")) + DONE)

        fake.answer = answer
        async with asyncio.timeout(5):
            assert Finish("tool_calls", None, (ToolCall("x", "a", "{}"),)) == await engine.generate(a_request(), sink)
        assert [] == sink.times

    async def test_text_in_the_last_chunk(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """A chunk may bring the last text and the reason together; other choices are not ours."""
        other: dict[str, object] = {"choices": [{"index": 1, "delta": {"content": "no"}}]}
        answering(fake, events(said(content="a"), other, said("stop", content="b")) + DONE)
        assert "ab" == (await collect(stream(engine, a_request())))[0]

    @pytest.mark.parametrize(
        ("part", "usage"),
        [
            (counted(), Usage(9, 4)),
            ({**counted(), "timings": {"cache_n": 5, "prompt_n": 4, "predicted_n": 4}}, Usage(9, 4, 5)),
            ({"timings": {"cache_n": 5, "prompt_n": 4, "predicted_n": 4}}, Usage(9, 4, 5)),
            ({**counted(), "timings": {"prompt_n": 9, "prompt_ms": 250.0}}, Usage(9, 4, 0, 0.25)),
            ({"timings": {"prompt_n": 9, "prompt_ms": 250.0}}, Usage(9, 0, 0, 0.25)),
            ({"usage": None}, None),
        ],
    )
    async def test_usage(
        self, fake: FakeServer, engine: OpenAIEngine, part: dict[str, object], usage: Usage | None
    ) -> None:
        """Counts come from usage, or from llama-server's timings where that is all there is."""
        answering(fake, events(said("stop", content="a"), part) + DONE)
        assert usage == (await collect(stream(engine, a_request())))[2].usage

    async def test_a_server_that_closes_after_each_answer(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """A server that promises keep-alive and closes after each stream, as llama-server does, is no trouble."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(WHOLE, Keep_Alive="timeout=5, max=100")
            exchange.close()

        fake.answer = answer
        for _ in range(20):
            assert "a" == (await collect(stream(engine, a_request())))[0]
        assert (20, 20) == (fake.connections, len(fake.exchanges))

    async def test_the_connection_serves_again(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """An answer read to its [DONE] leaves the connection for the next request."""
        answering(fake, WHOLE)
        for _ in range(3):
            await collect(stream(engine, a_request()))
        assert 1 == fake.connections

    async def test_a_cancel(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """The engine sees its client leave when the generation is cancelled between two deltas."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(events(said(content="a")))
            await exchange.left.wait()

        fake.answer = answer
        async with aclosing(stream(engine, a_request())) as deltas:
            assert Delta("a") == await anext(deltas)
        async with asyncio.timeout(1):
            await fake.exchanges[0].left.wait()


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (400, {"error": {"code": 400, "message": "m", "type": "exceed_context_size_error"}}, ContextOverflow),
            (400, {"error": {"code": "context_length_exceeded", "message": "m", "type": "x y"}}, ContextOverflow),
            (400, {"object": "error", "message": "This model's maximum context length is 5 tokens."}, ContextOverflow),
            (
                400,
                {"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 5. This model's maximum"}},
                ContextOverflow,
            ),
            (404, {"error": {"message": "The model `small` does not exist.", "type": "NotFoundError"}}, ModelNotFound),
            (404, {"error": {"message": "m", "code": "model_not_found"}}, ModelNotFound),
            (404, {"detail": "Not Found"}, EngineRejected),
            (400, {"error": {"message": SECRET, "type": "BadRequestError"}}, EngineRejected),
            (422, {"detail": [{"input": SECRET}]}, EngineRejected),
            (401, {"error": {"message": "Invalid API Key"}}, EngineRejected),
            (429, {"error": {"message": "slow down"}}, EngineUnreachable),
            (500, {"error": {"message": SECRET}}, GenerationFailed),
            (503, {"error": {"message": "Loading model", "type": "unavailable_error"}}, EngineUnreachable),
        ],
    )
    async def test_refusals(
        self, fake: FakeServer, engine: OpenAIEngine, status: int, body: object, kind: type[FastTalkError]
    ) -> None:
        """What an engine refuses is an error of the right class that quotes nothing of the prompt."""
        answering(fake, msgspec.json.encode(body), status)
        with pytest.raises(FastTalkError) as caught:
            await collect(stream(engine, a_request()))
        assert kind is type(caught.value)
        assert SECRET not in caught.value.message
        assert ("API key" in caught.value.message) == (status == 401)

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (events(said(content="a"), {"error": {"message": "died", "type": "server_error"}}), GenerationFailed),
            (events(said(content="a"), {"error": "died"}), GenerationFailed),
            (events({"error": {"code": 500, "message": f"{MISMATCH} peg-native format"}}), InvalidToolCall),
            (events({"error": {"code": 500, "message": "Failed to parse input at pos 57: <t"}}), InvalidToolCall),
            (events({"object": "error", "message": "died", "code": 500}), GenerationFailed),
            (events({"error": {"type": "exceed_context_size_error"}}), ContextOverflow),
            (events(said(content="a")), GenerationFailed),
            (events(said(content="a")) + DONE, GenerationFailed),
            (b"", GenerationFailed),
            (b"data: <html>\n\n", GenerationFailed),
            (b'data: {"choices": 5}\n\n', GenerationFailed),
            (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', GenerationFailed),
            (b"data: " + b"[" * 100_000 + b"\n\n", GenerationFailed),
            (b"data: " + b"x" * 1_100_000, GenerationFailed),
            (events(said(content="a"), said("content_filter")) + DONE, EngineRejected),
            (events(calling(index=0, function={"name": "a", "arguments": '{"n'}), said("length")), InvalidToolCall),
            (events(calling(index=0, function={"arguments": "{}"}), said("stop")), InvalidToolCall),
            (events(*(calling(index=n, function={"name": "a"}) for n in range(65)), said("stop")), InvalidToolCall),
        ],
    )
    async def test_broken_streams(
        self, fake: FakeServer, engine: OpenAIEngine, data: bytes, kind: type[FastTalkError]
    ) -> None:
        """An error event, a cut-off stream, rubbish and a filter's cut are errors, never a short answer."""
        answering(fake, data)
        with pytest.raises(kind):
            await collect(stream(engine, a_request()))

    @pytest.mark.parametrize("end", ["reset", "silence", "rubbish", "error"])
    @pytest.mark.parametrize("usage", [None, Usage(9, 4)])
    async def test_what_comes_behind_the_reason(
        self, fake: FakeServer, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch, end: str, usage: Usage | None
    ) -> None:
        """The answer is whole: no failure of the stream undoes it, and one that falls silent is left before long."""
        monkeypatch.setattr(openai_answer, "USAGE_SECONDS", 0.05)
        behind = {"rubbish": b"data: <html>\n\n", "error": events({"error": {"message": "died"}})}

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            counts = [] if usage is None else [counted()]
            await exchange.send(events(said(content="a"), said("stop"), *counts) + behind.get(end, b""))
            if end == "reset":
                exchange.reset()
            else:
                await exchange.left.wait()

        fake.answer = answer
        async with asyncio.timeout(5):
            assert ("a", "", Finish("stop", usage)) == await collect(stream(engine, a_request()))

    async def test_an_error_that_is_null_is_none(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """Servers that always send the field are understood."""
        answering(fake, events({**said("stop", content="a"), "error": None}) + DONE)
        assert "a" == (await collect(stream(engine, a_request())))[0]

    async def test_silence_and_absence(self, fake: FakeServer, unused_tcp_port: int) -> None:
        """A silent engine is EngineTimeout, an absent one EngineUnreachable, for every call."""

        async def answer(exchange: Exchange) -> None:
            await exchange.left.wait()

        fake.answer = answer
        engine = OpenAIEngine(f"{fake.url}/v1", read_timeout=0.05)
        with pytest.raises(EngineTimeout):
            await collect(stream(engine, a_request()))
        with pytest.raises(EngineTimeout):
            await engine.ping()
        await engine.aclose()
        engine = OpenAIEngine(f"http://127.0.0.1:{unused_tcp_port}/v1")
        calls = [collect(stream(engine, a_request())), engine.ping(), engine.models(), engine.context_window("x")]
        for call in calls:
            with pytest.raises(EngineUnreachable):
                await call
        await engine.aclose()
        await engine.aclose()


class TestManagement:
    @pytest.mark.parametrize(
        ("served", "window"),
        [
            ([{"id": "small", "max_model_len": 4096}, {"id": "other"}], 4096),
            ([{"id": "small", "meta": {"n_ctx": 2048, "n_ctx_train": 8192}}], 2048),
            ([{"id": "/models/x.gguf", "meta": {"n_ctx_train": 8192}}], 8192),
            ([{"id": "x", "aliases": ["small"], "meta": {"n_ctx": 512}}, {"id": "y"}], 512),
            ([{"id": "small"}], None),
            ([{"id": "small", "meta": None}], None),
            ([{"id": "x", "max_model_len": 1}, {"id": "y", "max_model_len": 1}], None),
            ([], None),
        ],
    )
    async def test_windows(
        self, fake: FakeServer, engine: OpenAIEngine, served: list[dict[str, object]], window: int | None
    ) -> None:
        """vLLM's max_model_len and llama-server's meta are read; other engines do not tell."""
        answering(fake, msgspec.json.encode({"object": "list", "data": served}))
        assert window == await engine.context_window("small")
        assert [entry["id"] for entry in served] == await engine.models()
        await engine.ping()
        assert {"/v1/models"} == {exchange.path for exchange in fake.exchanges}

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{}]}', b"\xff"])
    async def test_an_unreadable_list(self, fake: FakeServer, engine: OpenAIEngine, body: bytes) -> None:
        """It is an error of ours."""
        answering(fake, body)
        with pytest.raises(EngineError):
            await engine.models()


class TestCounting:
    @pytest.mark.parametrize(
        "tokenized", [{"tokens": [5, 6, 7]}, {"count": 3, "max_model_len": 9, "tokens": [5, 6, 7]}]
    )
    async def test_a_count(self, fake: FakeServer, engine: OpenAIEngine, tokenized: object) -> None:
        """The answers of llama-server and vLLM are understood; one body, at the server's root, serves both."""
        answering(fake, msgspec.json.encode(tokenized))
        assert 3 == await engine.count_tokens("small", "hello")
        (exchange,) = fake.exchanges
        assert ("POST", "/tokenize", "Bearer key-1") == (
            exchange.method,
            exchange.path,
            exchange.headers["authorization"],
        )
        assert exchange.json() == {
            "content": "hello",
            "add_special": False,
            "model": "small",
            "prompt": "hello",
            "add_special_tokens": False,
        }

    @pytest.mark.parametrize(
        ("status", "body"),
        [(404, b""), (405, b"{}"), (401, b"{}"), (400, b"<html>"), (500, b"{}"), (200, b"<html>"), (200, b"{}")],
    )
    async def test_a_server_that_cannot(self, fake: FakeServer, engine: OpenAIEngine, status: int, body: bytes) -> None:
        """Whatever it answers instead of a count, it is not asked again."""
        answering(fake, body, status)
        assert [None, None] == [await engine.count_tokens("small", "hello") for _ in range(2)]
        assert 1 == len(fake.exchanges)

    async def test_a_failure_now_and_then(self, fake: FakeServer, engine: OpenAIEngine) -> None:
        """A server that is busy or gone is asked again, and so is one that refuses after it has counted."""
        answering(fake, b"{}", 503)
        assert await engine.count_tokens("small", "hello") is None
        for status, body, count in ((200, b'{"count": 2}', 2), (404, b"{}", None), (200, b'{"count": 4}', 4)):
            answering(fake, body, status)
            assert count == await engine.count_tokens("small", "hello")
        await engine.aclose()
        assert await engine.count_tokens("small", "hello") is None

    async def test_silence(self, fake: FakeServer, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A count has as little time as any short question, and none is no error."""

        async def answer(exchange: Exchange) -> None:
            await exchange.left.wait()

        fake.answer = answer
        monkeypatch.setattr(transport, "QUICK_SECONDS", 0.05)
        assert await engine.count_tokens("small", "hello") is None
