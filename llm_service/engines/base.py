"""What every engine and every wrapper around one can do."""

from collections.abc import AsyncGenerator
from typing import Protocol

from llm_service.generation import GenerationEvent, GenerationRequest


class Engine(Protocol):
    """Generates text.

    An engine holds no conversation: a request carries all of it. Each method raises a
    `llm_service.errors.EngineError` and nothing else when what stands behind the engine fails.
    """

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER: a label in metrics and logs."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yield the answer as `Delta`s, none of them empty, then exactly one `Finish`.

        Closing the generator (`contextlib.aclosing`) is the cancel: it aborts the stream to whatever
        generates, at once.
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

    async def aclose(self) -> None:
        """Release connections and memory. A second call does nothing."""
        ...
