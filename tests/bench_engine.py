"""The benchmarks' fake engine in this process, and the engines that ask it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from benchmarks import fake_engine
from benchmarks.fake_stream import State
from benchmarks.script import Script
from llm_service.engines.base import Engine
from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.openai import OpenAIEngine
from llm_service.generation import GenerationRequest, Message, SamplingParams

ENGINES: dict[str, Callable[[int], Engine]] = {
    "ollama": lambda port: OllamaEngine(f"http://127.0.0.1:{port}"),
    "openai": lambda port: OpenAIEngine(f"http://127.0.0.1:{port}/v1"),
}


@asynccontextmanager
async def bench_engine() -> AsyncGenerator[tuple[State, int], None]:
    """Run it until the block is left; gives its state and port."""
    state = State()
    server = await fake_engine.serve(0, state)
    yield state, server.sockets[0].getsockname()[1]
    server.close()
    # Those who left are noticed by the loop, not at once; those who stay are cut off.
    for transport in state.open:
        transport.abort()
    async with asyncio.timeout(5):
        while state.open:
            await asyncio.sleep(0)


def request(script: Script) -> GenerationRequest:
    """Ask for a script's answer."""
    sampling = SamplingParams(temperature=0, top_p=1, top_k=1, max_tokens=100)
    return GenerationRequest("bench", (Message("user", script.prompt),), sampling, context_window=8192)
