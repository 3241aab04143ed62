"""What stands around an engine and is one itself: everything goes through, but for what a subclass does otherwise."""

from llm_service.engines.base import Engine
from llm_service.generation import Finish, GenerationRequest, Sink


class EngineWrapper:
    """An engine in front of another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._engine_name = engine.name  # kept: asked through all wrappers it costs a call each, in every turn

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER."""
        return self._engine_name

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`."""
        return await self._engine.generate(request, sink)

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether it would go on with the request's last message."""
        return await self._engine.continues(request)

    async def load(self, model: str, context_window: int) -> None:
        """Bring the model into memory."""
        await self._engine.load(model, context_window)

    async def ping(self) -> None:
        """Return if the engine answers."""
        await self._engine.ping()

    async def models(self) -> list[str]:
        """Names of the models that can be generated with."""
        return await self._engine.models()

    async def context_window(self, model: str) -> int | None:
        """The largest window, in tokens."""
        return await self._engine.context_window(model)

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone."""
        return await self._engine.count_tokens(model, text)

    async def aclose(self) -> None:
        """Release connections and memory."""
        await self._engine.aclose()
