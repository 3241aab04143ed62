"""Requests that the tests of engines make."""

from collections.abc import AsyncGenerator

from llm_service.generation import Delta, Finish, GenerationEvent, GenerationRequest, Message, SamplingParams

SECRET = "xyzzy-nobody-may-see-this"


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


async def collect(events: AsyncGenerator[GenerationEvent, None]) -> tuple[str, str, Finish]:
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
