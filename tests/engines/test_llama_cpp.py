"""The embedded llama.cpp, with a real model."""

import asyncio
import builtins
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_service.devices import LlamaCppOptions
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.errors import ContextOverflow, EngineError, EngineUnavailable, ModelNotFound
from llm_service.generation import Delta, Finish
from tests.engines.requests import SECRET, WEATHER, a_request, a_tool_turn, begun, collect, stream
from tests.real_engines import EMBEDDED_WINDOW

OPTIONS = LlamaCppOptions(n_gpu_layers=0, main_gpu=0, n_threads=1)

embedded = [pytest.mark.embedded, pytest.mark.asyncio(loop_scope="session")]


async def seconds_until_idle(engine: LlamaCppEngine) -> float:
    began = time.monotonic()
    async with asyncio.timeout(60):
        while await engine.busy_slots():
            await asyncio.sleep(0.001)
    return time.monotonic() - began


class TestOpening:
    async def test_xllamacpp_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error is the command that installs it."""
        original = builtins.__import__

        def without(
            name: str,
            globals: Mapping[str, object] | None = None,  # noqa: A002
            locals: Mapping[str, object] | None = None,  # noqa: A002
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> object:
            if name == "xllamacpp":
                raise ImportError(name)
            return original(name, globals, locals, fromlist, level)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(EngineUnavailable, match=re.escape("pip install 'fasttalk-llm-service[embedded]'")):
            await LlamaCppEngine.open(tmp_path / "x.gguf", options=OPTIONS, context_window=512)

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        ("content", "words"),
        [(None, "can't be read"), (b"text", "not in the GGUF format"), (b"GGUF", "can't load"), (b"cut", "can't load")],
    )
    async def test_a_broken_file(
        self, tmp_path: Path, embedded_model_path: Path, content: bytes | None, words: str
    ) -> None:
        """A file that is missing, something else, or cut off is an error; the process goes on."""
        path = tmp_path / "broken.gguf"
        if content == b"cut":
            with embedded_model_path.open("rb") as whole:
                content = whole.read(3_000_000)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EngineUnavailable, match=words):
            await LlamaCppEngine.open(path, options=OPTIONS, context_window=512)

    @pytest.mark.embedded
    async def test_the_window_is_the_models_at_most(self, embedded_model_path: Path) -> None:
        """More context than the model was trained for is not given, and not claimed."""
        engine = await LlamaCppEngine.open(embedded_model_path, options=OPTIONS, context_window=100_000, parallel=1)
        assert 8192 == await engine.context_window(engine.model)
        await engine.aclose()

    @pytest.mark.embedded
    async def test_closing_while_it_answers(self, embedded_model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Closing ends what runs, takes moments, may be repeated, and nothing was ever written to the terminal."""
        engine = await LlamaCppEngine.open(embedded_model_path, options=OPTIONS, context_window=512)
        events = stream(engine, a_request(f"Write a long story. {SECRET}", model=engine.model, max_tokens=400))
        await anext(events)
        reading = asyncio.ensure_future(_drain(events))
        await asyncio.sleep(0)
        began = time.monotonic()
        await engine.aclose()
        took = time.monotonic() - began
        with pytest.raises(EngineError):
            await reading
        await engine.aclose()
        captured = capfd.readouterr()
        assert ("", "") == (captured.out, captured.err)
        with capfd.disabled():
            print(f"\nclosed in the middle of an answer in {took:.3f} s")
        assert took < 5


async def _drain(events: AsyncGenerator[Delta | Finish, None]) -> None:
    async for _ in events:
        pass


class TestAnswers:
    pytestmark = embedded

    async def test_an_answer(self, embedded_engine: LlamaCppEngine) -> None:
        """Words stream, tokens are counted, and a repeated prompt comes from the cache."""
        request = a_request("Name three colours.", model=embedded_engine.model, max_tokens=12)
        answer, _, finish = await collect(stream(embedded_engine, request))
        assert answer.strip()
        assert finish.usage is not None
        assert finish.usage.prompt_tokens > 5
        assert 0 < finish.usage.completion_tokens <= 12
        _, _, again = await collect(stream(embedded_engine, request))
        assert again.usage is not None
        assert again.usage.cached_tokens

    async def test_two_at_once(self, embedded_engine: LlamaCppEngine) -> None:
        """Two answers that run side by side are each what they are alone."""
        requests = [
            a_request(text, model=embedded_engine.model, max_tokens=6) for text in ("Say hello.", "List the seasons.")
        ]
        alone = [(await collect(stream(embedded_engine, request)))[0] for request in requests]
        both = await asyncio.gather(*(collect(stream(embedded_engine, request)) for request in requests))
        assert alone == [answer for answer, _, _ in both]
        assert alone[0] != alone[1]

    async def test_what_it_tells(self, embedded_engine: LlamaCppEngine) -> None:
        """It answers, has one model under the file's name, and knows its window."""
        await embedded_engine.ping()
        await embedded_engine.load(embedded_engine.model, 2048)
        assert ["SmolLM2-135M-Instruct.Q4_1"] == await embedded_engine.models()
        assert EMBEDDED_WINDOW == await embedded_engine.context_window(embedded_engine.model)
        assert await embedded_engine.context_window("other") is None
        assert "llama_cpp" == embedded_engine.name

    @pytest.mark.parametrize(
        "text", ["a", "Name three colours, please.", "Grüße aus Zürich 👋🏽", "1234567890", "日本語"]
    )
    async def test_counting(self, embedded_engine: LlamaCppEngine, text: str) -> None:
        """The tokens counted are those by which a text makes a prompt longer."""
        counts = []
        for said in (".\n", f".\n{text}"):
            request = a_request(said, model=embedded_engine.model, max_tokens=1)
            usage = (await collect(stream(embedded_engine, request)))[2].usage
            assert usage is not None
            counts.append(usage.prompt_tokens)
        assert counts[1] - counts[0] == await embedded_engine.count_tokens(embedded_engine.model, text)
        assert await embedded_engine.count_tokens("other", text) is None

    async def test_tools(self, embedded_engine: LlamaCppEngine) -> None:
        """A request with tools, calls and results is answered, and the results are in the prompt."""
        engine = embedded_engine
        request = msgspec.structs.replace(
            a_request(model=engine.model, max_tokens=8), messages=a_tool_turn(), tools=(WEATHER,)
        )
        answer, _, finish = await collect(stream(engine, request))
        assert answer or finish.tool_calls
        assert finish.usage is not None
        assert finish.usage.prompt_seconds
        longer = msgspec.structs.replace(request, messages=a_tool_turn(text="It rains. " * 10))
        usage = (await collect(stream(engine, longer)))[2].usage
        assert usage is not None
        assert usage.prompt_tokens > finish.usage.prompt_tokens + 20

    async def test_an_unknown_model(self, embedded_engine: LlamaCppEngine) -> None:
        """Only the one model's name is served."""
        with pytest.raises(ModelNotFound):
            await collect(stream(embedded_engine, a_request(model="other")))
        with pytest.raises(ModelNotFound):
            await embedded_engine.load("other", 2048)

    async def test_a_prompt_over_the_window(self, embedded_engine: LlamaCppEngine) -> None:
        """It is an error and not a silent cut."""
        with pytest.raises(ContextOverflow):
            await collect(stream(embedded_engine, a_request("word " * 4000, model=embedded_engine.model)))

    async def test_it_goes_on_with_an_answer(self, embedded_engine: LlamaCppEngine) -> None:
        """Its model's template leaves the message open, and both parts are what it says in one go."""
        asked: dict[str, Any] = {"text": "What is the capital of France?", "model": embedded_engine.model}
        whole, _, _ = await collect(stream(embedded_engine, a_request(**asked, max_tokens=12)))
        for count in (1, 2):
            words = " ".join(whole.split(" ")[:count])
            assert await embedded_engine.continues(begun(words, **asked))
            rest, _, _ = await collect(stream(embedded_engine, begun(words, **asked, max_tokens=12)))
            assert (words + rest).startswith(whole)

    async def test_the_port_is_protected(self, embedded_engine: LlamaCppEngine) -> None:
        """Another user of the machine who finds the port gets nothing from it."""
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
        for path, data in (("/v1/chat/completions", body), ("/slots", None), ("/props", None)):
            assert 401 == await asyncio.to_thread(_status, f"{embedded_engine.address}{path}", data)

    async def test_a_cancel_frees_the_slot(self, embedded_engine: LlamaCppEngine) -> None:
        """llama.cpp is idle again moments after an answer is cancelled in the middle."""
        request = a_request("Write a very long story about the sea.", model=embedded_engine.model, max_tokens=1500)
        times = []
        for _ in range(5):
            async with aclosing(stream(embedded_engine, request)) as events:
                for _ in range(5):
                    assert isinstance(await anext(events), Delta)
            times.append(await seconds_until_idle(embedded_engine))
        print(f"\ncancel to idle, tokens flowing: {', '.join(f'{seconds:.3f}' for seconds in times)} s")
        # On a busy machine a single step of the model may take a second; the rest of the story takes many.
        assert min(times) < 0.5
        assert max(times) < 8

    async def test_a_cancel_in_the_prompt_frees_the_slot(self, embedded_engine: LlamaCppEngine) -> None:
        """It is idle again after a batch or two, too, when it was still reading the prompt."""
        whole = await self._prompt_seconds(embedded_engine, 0, cancel=False)
        cancelled = [await self._prompt_seconds(embedded_engine, number, cancel=True) for number in (1, 2, 3)]
        shown = ", ".join(f"{seconds:.3f}" for seconds in cancelled)
        print(f"\ncancel to idle, within a prompt: {shown} s; the prompt as a whole takes {whole:.3f} s")
        assert min(cancelled) < whole / 2

    async def _prompt_seconds(self, engine: LlamaCppEngine, number: int, *, cancel: bool) -> float:
        """Seconds from the moment llama.cpp works on a prompt it has not seen, or from its cancel, to idle."""
        prompt = f"{number} " + " ".join(str(number * 1000 + word) for word in range(300))
        events = stream(engine, a_request(prompt, model=engine.model, max_tokens=1))
        waiting = asyncio.ensure_future(anext(events))
        while not await engine.busy_slots():
            await asyncio.sleep(0.001)
        if cancel:
            waiting.cancel()
        seconds = await seconds_until_idle(engine)
        await asyncio.wait([waiting])
        await events.aclose()
        return seconds


def _status(url: str, data: bytes | None) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data), timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
