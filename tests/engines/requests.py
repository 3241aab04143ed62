"""Requests that the tests of engines make."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import msgspec

from llm_service.engines.base import Engine, timed
from llm_service.generation import Delta, Finish, GenerationRequest, Message, SamplingParams, Tool, ToolCall

SECRET = "xyzzy-nobody-may-see-this"
WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def a_tool_turn(city: str = "Paris", text: str = "It rains.") -> tuple[Message, ...]:
    """Return a question, the call it led to and the tool's answer."""
    call = ToolCall("call_7", WEATHER.name, f'{{"city": "{city}"}}')
    return (
        Message("user", f"What is the weather in {city}?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", text, tool_call_id=call.id, tool_name=call.name),
    )


def a_request(
    text: str = SECRET,
    *,
    model: str = "small",
    max_tokens: int = 16,
    window: int = 2048,
    stop: tuple[str, ...] = (),
    seed: int | None = None,
    think: bool | None = None,
) -> GenerationRequest:
    """Return a request with one user message, to be answered the likeliest way."""
    sampling = SamplingParams(0.0, 0.9, 40, max_tokens, stop, seed)
    return GenerationRequest(model, (Message("user", text),), sampling, window, think)


def begun(said: str = "The sea", *, text: str = "Tell me of the sea.", **options: Any) -> GenerationRequest:
    """Return a request for the rest of an answer."""
    request = a_request(text, **options)
    return msgspec.structs.replace(request, messages=(*request.messages, Message("assistant", said)))


async def stream(engine: Engine, request: GenerationRequest) -> AsyncGenerator[Delta | Finish, None]:
    """Yield what the engine generates; closing the generator cancels it and waits until it has ended."""
    said: asyncio.Queue[Delta | Finish | Exception] = asyncio.Queue()

    async def generate() -> None:
        try:
            said.put_nowait(await engine.generate(request, timed(said.put_nowait)))
        except Exception as error:  # noqa: BLE001
            said.put_nowait(error)

    task = asyncio.create_task(generate())
    try:
        while True:
            event = await said.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Finish):
                return
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def collect(events: AsyncGenerator[Delta | Finish, None]) -> tuple[str, str, Finish]:
    """Read a generation to its end; return the answer, the reasoning and the finish."""
    answer, thoughts, finishes = "", "", []
    async for event in events:
        if isinstance(event, Finish):
            finishes.append(event)
        elif event.thinking:
            thoughts += event.text
        else:
            answer += event.text
        assert not (isinstance(event, Delta) and not event.text), "an empty delta"
    (finish,) = finishes
    return answer, thoughts, finish
