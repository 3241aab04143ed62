"""What every engine can do."""

from time import monotonic
from typing import Protocol

from llm_service.generation import Delta, Finish, GenerationRequest, Sink, TakeDelta


class Engine(Protocol):
    """Generates text.

    An engine holds no conversation: a request carries all of it. Each method raises a
    `llm_service.errors.EngineError` and nothing else when what stands behind the engine fails.
    """

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER: a label in metrics and logs."""
        ...

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, delta by delta, none of them empty; return once it is over.

        Cancelling the task that waits here is the cancel: it aborts the stream to whatever generates, at once.
        What its `take` raises ends the generation and comes out of it.
        """
        ...

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether `generate` would go on with this request's last message, an assistant's, right behind its end.

        Found out by having the engine render the prompt, never assumed; False where it can't be found out. An engine
        that continues says what comes next and nothing of that message.
        """
        ...

    async def load(self, model: str, context_window: int) -> None:
        """Bring the model into memory as requests with this window will want it.

        The first answer does not wait for it then.
        """
        ...

    async def ping(self) -> None:
        """Return if the engine answers, raise if not; takes at most a few seconds."""
        ...

    async def models(self) -> list[str]:
        """Names of the models that can be generated with."""
        ...

    async def context_window(self, model: str) -> int | None:
        """The largest window, in tokens, that this engine can give the model; None if it does not tell."""
        ...

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone, without any template; None where the engine can't count. Never raises."""
        ...

    async def aclose(self) -> None:
        """Release connections and memory. A second call does nothing."""
        ...


def timed(take: TakeDelta) -> Sink:
    """Return the sink of a `take` that keeps no times itself."""
    times: list[float] = []

    def timing(delta: Delta) -> None:
        times.append(monotonic())
        take(delta)

    return Sink(timing, times)
