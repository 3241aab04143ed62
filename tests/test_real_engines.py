"""The whole service with real engines behind it: what a client sees, and that a cancel frees the engine."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

import pytest
from websockets.asyncio.client import ClientConnection

from llm_service.engines.base import Engine
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.ollama import OllamaEngine
from tests.live import Live, ask, collect, live_service, receive, send, start
from tests.real_engines import EMBEDDED_WINDOW, OllamaServer, borrowed

STORY = "Tell me a very long story about a lighthouse keeper and the sea."
LONG = {"max_tokens": 1500, "temperature": 0.0}


@contextlib.asynccontextmanager
async def unclosed(engine: Engine, model: str) -> AsyncGenerator[Live, None]:
    """Run the service around an engine that outlives it."""

    async with live_service(borrowed(engine), model=model, context_window=EMBEDDED_WINDOW) as live:
        yield live


async def capital(live: Live) -> None:
    """Hold the README's conversation and check what came."""
    async with live.connect() as socket:
        await start(socket, temperature=0.0, max_tokens=40)
        answer = await ask(socket, "What is the capital of France?")
        assert "Paris" in answer.text
        stats = answer.terminal["stats"]
        assert "response_complete" == answer.terminal["type"]
        assert stats["prompt_tokens"] > 10
        assert len(answer.tokens) > 3
        # The stop token is counted by engines that saw it, and is no text.
        assert abs(stats["tokens_generated"] - len(answer.tokens)) <= 2
        assert stats["time_to_first_token_ms"] > 0
        second = await ask(socket, "And what is the capital of Italy?")
        assert second.terminal["stats"]["prompt_tokens"] > stats["prompt_tokens"]


async def interrupted(socket: ClientConnection) -> float:
    """Let an answer run for ten tokens, then cancel it; returns the moment of the cancel."""
    await start(socket, **LONG)
    await send(socket, "user_message", text=STORY)
    for _ in range(10):
        assert "token" == (await receive(socket))["type"]
    began = time.monotonic()
    await send(socket, "cancel")
    assert "cancelled" == (await collect(socket)).terminal["type"]
    return began


@pytest.mark.embedded
@pytest.mark.asyncio(loop_scope="session")
class TestEmbedded:
    async def test_it_answers(self, embedded_engine: LlamaCppEngine) -> None:
        """The embedded model answers, streamed, with the engine's own counts."""
        async with unclosed(embedded_engine, embedded_engine.model) as live:
            await capital(live)

    @pytest.mark.parametrize("how", ["cancel", "disconnect", "end_session"])
    async def test_stopping_frees_the_slot(self, embedded_engine: LlamaCppEngine, how: str) -> None:
        """After a cancel, a disconnect or an end_session llama.cpp's slots are idle again; the time is printed."""
        async with unclosed(embedded_engine, embedded_engine.model) as live, live.connect() as socket:
            if how == "cancel":
                began = await interrupted(socket)
            else:
                await start(socket, **LONG)
                await send(socket, "user_message", text=STORY)
                for _ in range(10):
                    await receive(socket)
                assert 1 == await embedded_engine.busy_slots()
                began = time.monotonic()
                await (socket.close() if how == "disconnect" else send(socket, "end_session"))
            async with asyncio.timeout(10):
                while await embedded_engine.busy_slots():
                    await asyncio.sleep(0.005)
            print(f"\nllama.cpp: {how} to idle: {1000 * (time.monotonic() - began):.0f} ms")


@pytest.fixture
def ollama_engine(ollama_server: OllamaServer) -> OllamaEngine:
    return OllamaEngine(ollama_server.url)


def long_prompt() -> str:
    """Return what takes seconds to read, and is in no cache."""
    return " ".join(f"{uuid.uuid4().hex[:6]} is {number}." for number in range(30))


@pytest.mark.ollama
class TestOllama:
    async def test_it_answers(self, ollama_server: OllamaServer, ollama_engine: OllamaEngine) -> None:
        """A real Ollama answers, streamed, with its own counts."""
        async with live_service(ollama_engine, model=ollama_server.model, context_window=EMBEDDED_WINDOW) as live:
            await capital(live)

    async def test_cancel_frees_it(self, ollama_server: OllamaServer, ollama_engine: OllamaEngine) -> None:
        """After a cancel the next request's first token comes as fast as on an idle Ollama; both are printed."""
        async with live_service(ollama_engine, model=ollama_server.model, context_window=EMBEDDED_WINDOW) as live:

            async def first_token() -> float:
                async with live.connect() as socket:
                    await start(socket, max_tokens=1, temperature=0.0)
                    stats = (await ask(socket, "Say yes.")).terminal["stats"]
                    return float(stats["time_to_first_token_ms"])

            await first_token()
            idle = await first_token()
            async with live.connect() as socket:
                await interrupted(socket)
            after = await first_token()
            whole = time.monotonic()
            async with live.connect() as socket:
                await start(socket, **LONG)
                await send(socket, "user_message", text=STORY)
                await receive(socket)
                uncancelled = 1000 * (time.monotonic() - whole)
        print(f"\nOllama: first token idle {idle:.0f} ms, right after a cancel {after:.0f} ms")
        # The cancelled answer had well over a thousand tokens to go: many seconds on any machine.
        assert after < 5 * max(idle, uncancelled) + 500

    async def test_its_line_is_ours(self, ollama_server: OllamaServer, ollama_engine: OllamaEngine) -> None:
        """Who asks first is answered first, whatever Ollama's own would do; it never has more than one of ours."""
        answered: list[int] = []
        model = ollama_server.model
        await ollama_engine.load(model, EMBEDDED_WINDOW)
        async with (
            live_service(ollama_engine, model=model, context_window=EMBEDDED_WINDOW) as live,
            contextlib.AsyncExitStack() as stack,
        ):
            sockets = [await stack.enter_async_context(live.connect()) for _ in range(5)]

            async def wait(number: int) -> None:
                assert "response_complete" == (await collect(sockets[number])).terminal["type"]
                answered.append(number)

            async with asyncio.TaskGroup() as waiting:
                for number, socket in enumerate(sockets):
                    await start(socket, max_tokens=2, temperature=0.0, events=["queued"])
                    await send(socket, "user_message", text=f"Say the number {number}.")
                    permits = live.service.engines.protected[0].engine.permits
                    line = live.service.engines.admission.line
                    async with asyncio.timeout(10):
                        while permits.taken + line.waiting + len(answered) <= number:
                            await asyncio.sleep(0.005)
                    assert permits.taken <= 1
                    waiting.create_task(wait(number))
        assert [*range(5)] == answered

    async def test_a_prompt_that_nobody_wants_any_more(
        self, ollama_server: OllamaServer, ollama_engine: OllamaEngine
    ) -> None:
        """Ollama reads on after a cancel: its permit is kept, who comes next waits in our line and is answered.

        However short QUEUE_TIMEOUT is.
        """
        short = {"max_tokens": 4, "temperature": 0.0, "events": ["queued"]}
        impatient = {"QUEUE_TIMEOUT": "0.2"}
        async with (
            live_service(ollama_engine, impatient, model=ollama_server.model, context_window=EMBEDDED_WINDOW) as live,
            live.connect() as first,
            live.connect() as second,
        ):
            await start(first, **short)
            await start(second, **short)
            # How fast it reads is learnt from this one.
            learnt = (await ask(first, long_prompt())).terminal["stats"]["prompt_ms"]
            await send(first, "user_message", text=long_prompt())
            engine = live.service.engines.protected[0].engine
            async with asyncio.timeout(20):
                while not engine.permits.taken:
                    await asyncio.sleep(0.01)
            await send(first, "cancel")
            assert "cancelled" == (await collect(first)).terminal["type"]
            assert (1, 1) == (engine.permits.taken, engine.permits.unwanted)
            began = time.monotonic()
            answer = await ask(second, "Say hello.")
            waited = time.monotonic() - began
            assert ["queued"] == [event["type"] for event in answer.others]
            assert "response_complete" == answer.terminal["type"]
            assert (0, 0) == (engine.permits.taken, engine.permits.unwanted)
        print(f"\na prompt takes {learnt:.0f} ms to read; after its cancel the next answer took {waited * 1000:.0f} ms")
