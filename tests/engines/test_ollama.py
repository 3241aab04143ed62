"""Ollama's native API: what is asked, what comes back, and a real one."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import ollama
import psutil
import pytest

from llm_service.engines.base import timed
from llm_service.engines.ollama import OllamaEngine, PullProgress
from llm_service.errors import (
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
from llm_service.generation import Delta, Finish, GenerationRequest, ToolCall, Usage
from tests.engines.fake_server import Exchange, FakeServer
from tests.engines.requests import SECRET, WEATHER, a_request, a_tool_turn, begun, collect, stream
from tests.real_engines import OllamaServer


def lines(*parts: dict[str, object]) -> bytes:
    return b"".join(msgspec.json.encode(part) + b"\n" for part in parts)


def said(text: str, thinking: str = "") -> dict[str, object]:
    return {"model": "small", "message": {"role": "assistant", "content": text, "thinking": thinking}, "done": False}


def calling(*calls: tuple[str, object], **beside: object) -> dict[str, object]:
    tool_calls = [{"function": {"name": name, "arguments": arguments}, **beside} for name, arguments in calls]
    return {"message": {"role": "assistant", "content": "", "tool_calls": tool_calls}, "done": False}


DONE: dict[str, object] = {
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 7,
    "eval_count": 3,
}


@pytest.fixture
async def engine(fake: FakeServer) -> AsyncGenerator[OllamaEngine, None]:
    engine = OllamaEngine(fake.url, keep_alive="5m", options={"num_gpu": 0, "num_thread": 2})
    yield engine
    await engine.aclose()


def answering(fake: FakeServer, data: bytes, status: int = 200, size: int | None = None) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.answer(data, status, size)

    fake.answer = answer


class TestRequests:
    async def test_what_is_asked(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Window, sampling, device and keep_alive are told; nothing may be cut silently."""
        answering(fake, lines(DONE))
        await collect(stream(engine, a_request("hello", max_tokens=9, stop=("END",), seed=5, think=False)))
        (exchange,) = fake.exchanges
        assert ("POST", "/api/chat") == (exchange.method, exchange.path)
        assert exchange.json() == {
            "model": "small",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "truncate": False,
            "shift": False,
            "think": False,
            "keep_alive": "5m",
            "options": {
                "num_ctx": 2048,
                "num_predict": 9,
                "temperature": 0.0,
                "top_p": 0.9,
                "top_k": 40,
                "stop": ["END"],
                "seed": 5,
                "num_gpu": 0,
                "num_thread": 2,
            },
        }

    async def test_what_is_not_given_is_not_sent(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Without seed and think the model's own choice stands."""
        answering(fake, lines(DONE))
        await collect(stream(engine, a_request()))
        body = fake.exchanges[0].json()
        assert "think" not in body
        assert "seed" not in msgspec.convert(body["options"], dict[str, object])

    async def test_tools(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Tools, the calls of an earlier answer and their results go as Ollama wants them; other messages as ever."""
        answering(fake, lines(DONE))
        request = msgspec.structs.replace(a_request(), messages=a_tool_turn(), tools=(WEATHER,))
        await collect(stream(engine, request))
        body = fake.exchanges[0].json()
        function = {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
        assert [{"type": "function", "function": function}] == body["tools"]
        call = {"name": "get_weather", "arguments": {"city": "Paris"}}
        assert [
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            {"role": "tool", "tool_name": "get_weather", "content": "It rains."},
        ] == body["messages"]

    @pytest.mark.parametrize(
        ("setting", "sent"), [("-1", -1), ("300", 300), ("0", 0), ("5m", "5m"), ("1h30m", "1h30m")]
    )
    async def test_keep_alive(self, fake: FakeServer, setting: str, sent: int | str) -> None:
        """A number goes as a number, since Ollama would miss the unit in the string."""
        answering(fake, lines(DONE))
        engine = OllamaEngine(fake.url, keep_alive=setting)
        await collect(stream(engine, a_request()))
        await engine.aclose()
        assert sent == fake.exchanges[0].json()["keep_alive"]

    async def test_load(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Loading is a chat without messages, in the window and with the options of later requests."""
        answering(fake, lines({"done": True, "done_reason": "load"}).rstrip())
        await engine.load("small", 4096)
        body = fake.exchanges[0].json()
        assert ([], "small") == (body["messages"], body["model"])
        assert {"num_ctx": 4096, "num_gpu": 0, "num_thread": 2} == body["options"]


class TestContinuing:
    async def test_what_comes_is_the_rest(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """As it comes: space and tags at its beginning are part of it."""
        answering(fake, lines(said(" is"), said(" <think>wide"), {"done": True, "done_reason": "stop"}))
        answer, thoughts, _ = await collect(stream(engine, begun()))
        assert (" is <think>wide", "") == (answer, thoughts)
        assert {"role": "assistant", "content": "The sea"} == fake.exchanges[0].json()["messages"][-1]  # type: ignore[index]

    @pytest.mark.parametrize(
        ("document", "goes_on"),
        [
            ({"_debug_info": {"rendered_template": "<a>The sea"}}, True),
            ({"_debug_info": {"rendered_template": "<a>The sea</a>"}}, False),
            ({"message": {"role": "assistant", "content": "I do not know this option"}, "done": True}, False),
        ],
    )
    async def test_whether_it_goes_on(
        self, fake: FakeServer, engine: OllamaEngine, document: object, goes_on: bool
    ) -> None:
        """Ollama renders the prompt without running it; one that does not know how says one token at most."""
        answering(fake, msgspec.json.encode(document))
        assert goes_on is await engine.continues(begun())
        body = fake.exchanges[0].json()
        assert (True, False) == (body["_debug_render_only"], body["stream"])
        assert 1 == body["options"]["num_predict"]  # type: ignore[index]

    async def test_nothing_is_assumed(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """One that refuses is taken for one that can't."""
        answering(fake, b'{"error": "no"}', 500)
        assert not await engine.continues(begun())


class TestAnswers:
    @pytest.mark.parametrize("size", [None, 1, 7])
    async def test_a_whole_answer(self, fake: FakeServer, engine: OllamaEngine, size: int | None) -> None:
        """Text and reasoning come out whole and apart, however the bytes are split."""
        answering(fake, lines(said("", "häm"), said("", " hm"), said("Grüße"), said(" 👋🏽"), DONE), size=size)
        answer, thoughts, finish = await collect(stream(engine, a_request()))
        assert ("Grüße 👋🏽", "häm hm", Finish("stop", Usage(7, 3))) == (answer, thoughts, finish)

    @pytest.mark.parametrize(
        ("told", "reason"), [("stop", "stop"), ("length", "length"), ("else", "stop"), ("", "stop")]
    )
    async def test_reasons(self, fake: FakeServer, engine: OllamaEngine, told: str, reason: str) -> None:
        """Ollama's reasons are mapped; where it counted nothing there is no usage."""
        answering(fake, lines(said("a"), {"done": True, "done_reason": told}))
        assert Finish(reason) == (await collect(stream(engine, a_request())))[2]  # type: ignore[arg-type]

    async def test_durations(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Ollama tells in nanoseconds how long it loaded and read the prompt; what it had cached it does not tell."""
        answering(fake, lines({**DONE, "load_duration": 1_500_000_000, "prompt_eval_duration": 250_000_000}))
        assert Usage(7, 3, None, 0.25, 1.5) == (await collect(stream(engine, a_request())))[2].usage

    @pytest.mark.parametrize("size", [None, 1])
    async def test_tags(self, fake: FakeServer, engine: OllamaEngine, size: int | None) -> None:
        """Reasoning between tags is told apart where Ollama does not do it."""
        parts = [said(text) for text in ("<th", "ink>hm", "</think", ">\n", "\nA", "nswer <think>")]
        answering(fake, lines(*parts, DONE), size=size)
        assert ("Answer <think>", "hm", Finish("stop", Usage(7, 3))) == await collect(stream(engine, a_request()))

    async def test_what_begins_like_a_tag(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """It comes out at the end, whether the answer is whole or broken off."""
        answering(fake, lines(said(" <thi"), DONE))
        assert " <thi" == (await collect(stream(engine, a_request())))[0]
        answering(fake, lines(said(" <thi")))
        got: list[Delta] = []
        with pytest.raises(GenerationFailed):
            await engine.generate(a_request(), timed(got.append))
        assert [Delta(" <thi")] == got

    async def test_tool_calls(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Calls leave with the finish, whole, under Ollama's id where it gives one; text may be beside them."""
        parts = [said("Wait."), calling(("a", {"n": [1, "ü"]}), ("b", {})), calling(("a", {}), id="x")]
        answering(fake, lines(*parts, DONE))
        calls = (ToolCall("call_0", "a", '{"n":[1,"ü"]}'), ToolCall("call_1", "b", "{}"), ToolCall("x", "a", "{}"))
        finish = Finish("tool_calls", Usage(7, 3), calls)
        assert ("Wait.", "", finish) == await collect(stream(engine, a_request()))

    async def test_a_call_is_progress_and_no_token(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """An answer of calls alone has begun when the first is there."""
        answering(fake, lines(calling(("a", {})), DONE))
        sink = timed(lambda _: None)
        await engine.generate(a_request(), sink)
        assert sink.progress_at
        assert [] == sink.times

    async def test_no_counting(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Ollama can't count the tokens of a text, and is not asked."""
        assert await engine.count_tokens("small", "hello") is None
        assert [] == fake.exchanges

    async def test_a_last_line_without_its_end(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """The last line counts even when no line end follows."""
        answering(fake, lines({**DONE, "message": {"content": "all"}}).rstrip())
        assert ("all", "", Finish("stop", Usage(7, 3))) == await collect(stream(engine, a_request()))

    async def test_the_connection_serves_again(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """An answer read to its end leaves the connection for the next request."""
        answering(fake, lines(said("a"), DONE))
        for _ in range(3):
            await collect(stream(engine, a_request()))
        assert 1 == fake.connections

    async def test_finish_does_not_wait_for_the_end_of_the_body(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """The finish is out when Ollama says so, even if the body never ends."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(lines(said("a"), DONE))
            await exchange.left.wait()

        fake.answer = answer
        async with asyncio.timeout(5):
            assert "a" == (await collect(stream(engine, a_request())))[0]
            await fake.exchanges[0].left.wait()


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "body", "kind", "words"),
        [
            (400, {"error": "the input length exceeds the context length"}, ContextOverflow, "context window"),
            (404, {"error": "model 'small' not found"}, ModelNotFound, "ollama pull small"),
            (404, "404 page not found", ModelNotFound, "ollama pull NAME"),
            (404, {"error": "model 'a/b:c' not found, try pulling it first"}, ModelNotFound, "ollama pull a/b:c"),
            (404, {"error": "tool 'small' not found"}, ModelNotFound, "ollama pull NAME"),
            (500, {"error": "error loading model: unknown model architecture: 'new'"}, GenerationFailed, ": 'new'"),
            (400, {"error": '"small" does not support thinking'}, EngineRejected, "does not support thinking"),
            (400, {"error": "x/small:latest does not support tools"}, EngineRejected, "tools. Choose a model that can"),
            (500, {"error": "model requires more system memory"}, GenerationFailed, "more system memory"),
            (503, {"error": "server busy"}, EngineUnreachable, "server busy"),
        ],
    )
    async def test_refusals(
        self, fake: FakeServer, engine: OllamaEngine, status: int, body: object, kind: type[FastTalkError], words: str
    ) -> None:
        """What Ollama refuses is an error of the right class, in Ollama's words where those help."""
        answering(fake, msgspec.json.encode(body), status)
        with pytest.raises(kind, match=words):
            await collect(stream(engine, a_request()))
        with pytest.raises(kind):
            await engine.load("small", 4096)

    @pytest.mark.parametrize(
        "data",
        [
            lines(said("a"), {"error": "an error was encountered"}),
            lines(said("a"), {"error": {"odd": 1}}),
            lines(said("a")),
            b"",
            b"<html>\n",
            b'{"message": 5}\n',
            b'{"message": {"content": "\xff"}}\n',
            b"[" * 100_000 + b"\n",
            b"x" * 1_100_000,
            lines({"message": {"tool_calls": [{}]}}, DONE),
        ],
        ids=[
            "error",
            "odd error",
            "cut off",
            "empty",
            "html",
            "wrong type",
            "not utf-8",
            "deep",
            "endless line",
            "no call",
        ],
    )
    async def test_broken_streams(self, fake: FakeServer, engine: OllamaEngine, data: bytes) -> None:
        """An error line, a cut-off stream and rubbish are GenerationFailed."""
        answering(fake, data)
        with pytest.raises(GenerationFailed):
            await collect(stream(engine, a_request()))

    @pytest.mark.parametrize(
        "data",
        [
            lines(calling(("a", "text")), DONE),
            lines(calling(("", {})), DONE),
            lines(*[calling(("a", {}))] * 65, DONE),
            *(
                lines({"message": {"thinking": "hm"}}, {"error": message})
                for message in (
                    "error parsing tool call: raw='{\"a', err=unexpected end of JSON input",
                    "failed to parse JSON: invalid character 'x' looking for beginning of value",
                    "empty function name",
                    "XML syntax error on line 1: unexpected EOF",
                    "invalid character 'x' after object key",
                    "unexpected end of JSON input",
                    "json: cannot unmarshal string into Go value",
                    "expected element type <function> but have <tool>",
                )
            ),
        ],
    )
    async def test_calls_that_the_model_made_a_mess_of(
        self, fake: FakeServer, engine: OllamaEngine, data: bytes
    ) -> None:
        """Say nothing against the engine, whether it hands them on or can't read them itself, at once or in the end."""
        answering(fake, data)
        with pytest.raises(InvalidToolCall, match=r"a tool call that can't be read|without end"):
            await collect(stream(engine, a_request()))
        last = msgspec.json.decode(data.splitlines()[-1])
        if "error" in last:
            answering(fake, msgspec.json.encode(last), 500)
            with pytest.raises(InvalidToolCall):
                await collect(stream(engine, a_request()))
            answering(fake, msgspec.json.encode(last), 400)
            with pytest.raises(EngineRejected):
                await collect(stream(engine, a_request()))

    async def test_messages_hold_no_prompt(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """What the user said is in none of the errors, not even when the engine sends it back as rubbish."""
        answering(fake, SECRET.encode() + b"\n")
        with pytest.raises(EngineError) as caught:
            await collect(stream(engine, a_request(SECRET)))
        assert SECRET not in repr(caught.value)

    @pytest.mark.parametrize(
        ("message", "left"),
        [
            (f'error parsing tool call: raw=\'{{"city": "{SECRET}"\', err=invalid', ": error parsing tool call"),
            (f"error parsing tool call: raw={SECRET}", ": error parsing tool call"),
            (f"error parsing tool call: {SECRET}", ": error parsing tool call"),
            (f"XML syntax error on line 3: element <{SECRET}> closed by </b>", ": XML syntax error"),
            (f"XML syntax error on line 3: invalid XML name: {SECRET}", ": XML syntax error"),
            (f"can't use tool '{SECRET}'", ": can"),
            (f'template: "{SECRET}" is odd', ": template"),
            (f"'{SECRET}' does not support tools", ""),
            (f"tool '{SECRET}' does not support tools", ": tool"),
            (f"“{SECRET}”", ""),
            (f"model 'x' not found: {SECRET}", ": model"),
            (f"bad content {{{SECRET}}}", ": bad content"),
        ],
    )
    async def test_what_was_said_is_not_quoted(
        self, fake: FakeServer, engine: OllamaEngine, message: str, left: str
    ) -> None:
        """An error tells what Ollama says only up to where it may quote the model or the user."""
        answering(fake, lines(said("a"), {"error": message}))
        with pytest.raises(EngineError) as caught:
            await collect(stream(engine, a_request()))
        assert SECRET not in repr(caught.value)
        if isinstance(caught.value, InvalidToolCall):
            assert f"({left.removeprefix(': ')})" in caught.value.message
        else:
            assert f"failed{left}" == caught.value.message[-len(f"failed{left}") :]
        answering(fake, lines({"error": {"message": message}}))
        with pytest.raises(GenerationFailed) as caught:
            await collect(stream(engine, a_request()))
        assert f"can't be read{left}." == caught.value.message[-len(f"can't be read{left}.") :]
        for status in (400, 404, 500, 503):
            answering(fake, msgspec.json.encode({"error": message}), status)
            with pytest.raises(FastTalkError) as refused:
                await collect(stream(engine, a_request()))
            assert SECRET not in repr(refused.value)
            if isinstance(refused.value, InvalidToolCall):
                continue
            told = f"HTTP {status}{left}" if status in (400, 500) else ""
            assert told == refused.value.message[len(refused.value.message) - len(told) :]

    async def test_silence(self, fake: FakeServer) -> None:
        """An Ollama that opens the stream and says nothing is EngineTimeout."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.left.wait()

        fake.answer = answer
        engine = OllamaEngine(fake.url, read_timeout=0.05)
        with pytest.raises(EngineTimeout):
            await collect(stream(engine, a_request()))
        await engine.aclose()

    async def test_nobody_there(self, unused_tcp_port: int) -> None:
        """Every call says that Ollama is not there."""
        engine = OllamaEngine(f"http://127.0.0.1:{unused_tcp_port}")
        calls = [
            collect(stream(engine, a_request())),
            engine.load("small", 4096),
            engine.ping(),
            engine.models(),
            engine.context_window("small"),
            anext(engine.pull("small")),
        ]
        for call in calls:
            with pytest.raises(EngineUnreachable):
                await call
        await engine.aclose()
        await engine.aclose()

    async def test_a_cancel(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Ollama sees its client leave when the generation is cancelled between two deltas."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(lines(said("a")))
            await exchange.left.wait()

        fake.answer = answer
        async with aclosing(stream(engine, a_request())) as events:
            assert Delta("a") == await anext(events)
        async with asyncio.timeout(1):
            await fake.exchanges[0].left.wait()


class TestManagement:
    async def test_models_and_windows(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Names, the trained window and what is loaded are read from tags, show and ps."""
        model = {"name": "small", "model": "small", "context_length": 2048}
        documents: dict[str, object] = {
            "/api/tags": {"models": [model]},
            "/api/ps": {"models": [model]},
            "/api/show": {"model_info": {"general.architecture": "llama", "llama.context_length": 8192}},
        }

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(msgspec.json.encode(documents[exchange.path]))

        fake.answer = answer
        await engine.ping()
        assert (["small"], {"small": 2048}) == (await engine.models(), await engine.loaded())
        assert 8192 == await engine.context_window("small")
        documents["/api/show"] = {"model_info": {}}
        assert await engine.context_window("small") is None

    async def test_pull(self, fake: FakeServer, engine: OllamaEngine) -> None:
        """Progress comes as Ollama tells it; an error line within it is an error."""
        answering(fake, lines({"status": "pulling", "completed": 1, "total": 2}, {"status": "success"}))
        assert [PullProgress("pulling", 1, 2), PullProgress("success")] == [step async for step in engine.pull("small")]
        answering(fake, lines({"status": "pulling"}, {"error": "pull model manifest: file does not exist"}))
        with pytest.raises(GenerationFailed, match="file does not exist"):
            [step async for step in engine.pull("small")]

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (404, b'{"error": "model \'x\' not found"}', ModelNotFound),
            (404, b"<html>", ModelNotFound),
            (400, b'["odd"]', GenerationFailed),
            (500, b'{"error": {"odd": 1}}', GenerationFailed),
            (200, b"<html>", GenerationFailed),
            (200, b"[]", GenerationFailed),
            (200, b'{"models": 5}', GenerationFailed),
            (302, b"", EngineRejected),
        ],
    )
    async def test_errors(
        self, fake: FakeServer, engine: OllamaEngine, status: int, body: bytes, kind: type[FastTalkError]
    ) -> None:
        """Whatever the ollama package makes of an answer, what comes out is one of our errors."""
        answering(fake, body, status)
        with pytest.raises(kind):
            await engine.context_window("x")
        with pytest.raises(FastTalkError):
            await engine.models()

    async def test_the_proxy_of_the_environment_is_not_used(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Management calls go straight to Ollama, too."""
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        answering(fake, b'{"models": []}')
        engine = OllamaEngine(fake.url)
        assert [] == await engine.models()
        await engine.aclose()


TOOLED = """{{ if .Tools }}<|im_start|>system
{{ range .Tools }}{{ .Function }}{{ end }}<|im_end|>
{{ end }}{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls -}}
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


@pytest.mark.ollama
class TestRealOllama:
    @pytest.fixture
    async def real(self, ollama_server: OllamaServer) -> AsyncGenerator[OllamaEngine, None]:
        engine = OllamaEngine(ollama_server.url, options={"num_gpu": 0})
        yield engine
        await engine.aclose()

    @pytest.fixture
    async def tooled(self, ollama_server: OllamaServer) -> AsyncGenerator[str, None]:
        """The model with a template that knows tools."""
        api = ollama.AsyncClient(ollama_server.url, trust_env=False)
        await api.create("tooled", from_=ollama_server.model, template=TOOLED)
        yield "tooled"
        await api.delete("tooled")
        await api.close()  # type: ignore[no-untyped-call]

    async def test_an_answer(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """Words stream and the tokens are counted."""
        await real.load(ollama_server.model, 2048)
        request = a_request("Name three colours.", model=ollama_server.model, max_tokens=12)
        answer, _, finish = await collect(stream(real, request))
        assert answer.strip()
        assert finish.usage is not None
        assert finish.usage.prompt_tokens > 5
        assert 0 < finish.usage.completion_tokens <= 12

    async def test_what_it_tells(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """It answers, has the model and knows the model's window."""
        await real.ping()
        assert [f"{ollama_server.model}:latest"] == await real.models()
        assert 8192 == await real.context_window(ollama_server.model)

    async def test_the_window_is_applied_and_load_spares_a_reload(
        self, real: OllamaEngine, ollama_server: OllamaServer
    ) -> None:
        """After load() the model has the window asked for, and the first request finds it as it needs it."""
        await real.load(ollama_server.model, 2048)
        assert {f"{ollama_server.model}:latest": 2048} == await real.loaded()
        same = a_request("Say hello.", model=ollama_server.model, max_tokens=4, window=2048)
        other = a_request("Say hello.", model=ollama_server.model, max_tokens=4, window=1024)
        before = runners()
        first = await _first_token_seconds(real, same)
        assert before == runners(), "the model was loaded again"
        reloaded = await _first_token_seconds(real, other)
        print(f"\nfirst token after load() {first:.3f} s; with another window, so loaded again, {reloaded:.3f} s")
        # Ollama loads into a process of its own, so this shows that a reload would have been seen.
        assert before != runners()
        assert {f"{ollama_server.model}:latest": 1024} == await real.loaded()

    async def test_a_prompt_over_the_window(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """It is an error and not a silent cut."""
        with pytest.raises(ContextOverflow):
            await collect(stream(real, a_request("word " * 4000, model=ollama_server.model)))

    async def test_an_unknown_model(self, real: OllamaEngine) -> None:
        """The error says what to run."""
        with pytest.raises(ModelNotFound, match="ollama pull nothing-like-that"):
            await collect(stream(real, a_request(model="nothing-like-that")))
        with pytest.raises(ModelNotFound):
            await real.load("nothing-like-that", 4096)
        with pytest.raises(ModelNotFound):
            await real.context_window("nothing-like-that")

    async def test_a_model_without_tools(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """Ollama refuses tools for a model whose template has none, and the error says so; results it takes."""
        request = msgspec.structs.replace(
            a_request(model=ollama_server.model, max_tokens=4), messages=a_tool_turn(), tools=(WEATHER,)
        )
        with pytest.raises(EngineRejected, match=r"smollm2\S* does not support tools\. Choose a model"):
            await collect(stream(real, request))
        answer, _, _ = await collect(stream(real, msgspec.structs.replace(request, tools=())))
        assert answer

    async def test_a_model_with_tools(self, real: OllamaEngine, tooled: str) -> None:
        """Tools, calls and results are taken, and a call comes out; the model repeats the example of its prompt."""
        examples = [message for city in ("Rome", "Oslo", "Bonn") for message in a_tool_turn(city)]
        messages = (*examples, a_tool_turn("Paris")[0])
        request = msgspec.structs.replace(a_request(model=tooled, max_tokens=60), messages=messages, tools=(WEATHER,))
        answer, _, finish = await collect(stream(real, request))
        print(f"\n{answer!r} {finish}")
        assert finish.usage is not None
        assert finish.usage.prompt_tokens > 100
        assert finish.usage.prompt_seconds
        assert finish.usage.load_seconds
        assert "tool_calls" == finish.reason
        (call,) = finish.tool_calls
        assert ("get_weather", {"city": "Paris"}) == (call.name, msgspec.json.decode(call.arguments))

    async def test_a_template_that_closes_the_message(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """That of an imported GGUF does: such a model is not asked to go on."""
        assert not await real.continues(begun(model=ollama_server.model))

    async def test_a_template_that_leaves_it_open(self, real: OllamaEngine, ollama_open: str) -> None:
        """Then both parts together are what the model says in one go."""
        request = a_request("What is the capital of France?", model=ollama_open, max_tokens=12)
        whole, _, _ = await collect(stream(real, request))
        for cut in (4, len(whole) // 2):
            rest = begun(whole[:cut].rstrip(), text="What is the capital of France?", model=ollama_open, max_tokens=12)
            assert await real.continues(rest)
            said, _, _ = await collect(stream(real, rest))
            print(f"\n{whole[:cut]!r} + {said!r}")
            assert said
            assert not said.startswith(whole[:cut])

    async def test_a_cancel_frees_it(self, real: OllamaEngine, ollama_server: OllamaServer) -> None:
        """After a cancel in the middle the next first token comes about as fast as from an idle Ollama."""
        short = a_request("Say hello.", model=ollama_server.model, max_tokens=2)
        await collect(stream(real, short))
        idle = await _first_token_seconds(real, short)
        long = a_request("Write a very long story about the sea.", model=ollama_server.model, max_tokens=1500)
        after = []
        for _ in range(3):
            async with aclosing(stream(real, long)) as events:
                for _ in range(5):
                    await anext(events)
            after.append(await _first_token_seconds(real, short))
        print(f"\nfirst token: idle {idle:.3f} s, after a cancel {', '.join(f'{s:.3f}' for s in after)} s")
        # The rest of the long answer would take many seconds; the short prompt alone takes a fraction of one.
        assert min(after) < idle + 1.0


def runners() -> set[int]:
    """Process ids of the processes in which this session's Ollama holds its models."""
    return {child.pid for child in psutil.Process().children(recursive=True) if "runner" in child.cmdline()}


async def _first_token_seconds(engine: OllamaEngine, request: GenerationRequest) -> float:
    began = time.monotonic()
    async with aclosing(stream(engine, request)) as events:
        await anext(events)
    return time.monotonic() - began
