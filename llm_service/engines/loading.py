"""Loading apart from answering: a model that may not be in memory is loaded first, within a deadline of its own.

Otherwise the deadline of the first token would have to be as long as the longest load, and an engine that hangs be
waited for as long.
"""

import asyncio
from time import monotonic

from llm_service.engines.base import Engine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, LoadTimeout
from llm_service.generation import Finish, GenerationRequest, Sink

# In seconds, told to clients: a load that was given up begins anew.
RETRY_AFTER = 10.0


class LoadingEngine(EngineWrapper):
    """An engine that unloads a model which it was not asked for in `kept` seconds, or for another one.

    `load_timeout` is in seconds. `loaded` is a model in memory, with its context window, None if nothing is known.
    """

    def __init__(
        self, engine: Engine, *, load_timeout: float, kept: float, loaded: tuple[str, int] | None = None
    ) -> None:
        super().__init__(engine)
        self._load_timeout = load_timeout
        self._kept = kept
        self._loaded = loaded
        self._loads = 0
        self._used_at = monotonic()

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return self._loads > 0

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does.

        Raises:
            LoadTimeout: the model was not in memory in time.
        """
        await self._load_unless_there(request)
        try:
            return await self._engine.generate(request, sink)
        except EngineError:
            # It may have been started anew.
            self._loaded = None
            raise
        finally:
            self._used_at = monotonic()

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether it would go on with the request's last message; it renders no prompt without the model."""
        await self._load_unless_there(request)
        return await self._engine.continues(request)

    async def _load_unless_there(self, request: GenerationRequest) -> None:
        wanted = (request.model, request.context_window)
        if self._loaded != wanted or monotonic() > self._used_at + self._kept:
            await self.load(*wanted)

    async def load(self, model: str, context_window: int) -> None:
        """Bring the model into memory.

        Raises:
            LoadTimeout: it was not there in time.
        """
        self._loaded = None
        self._loads += 1
        try:
            async with asyncio.timeout(self._load_timeout):
                await self._engine.load(model, context_window)
        except TimeoutError:
            raise LoadTimeout(
                f"the model was not in memory after {self._load_timeout:g} seconds (LOAD_TIMEOUT); "
                "send the message again later",
                retry_after=RETRY_AFTER,
            ) from None
        finally:
            self._loads -= 1
        self._loaded = (model, context_window)
        self._used_at = monotonic()

    async def ping(self) -> None:
        """Return if the engine answers; one that did not has nothing in memory, for all that is known."""
        try:
            await self._engine.ping()
        except EngineError:
            self._loaded = None
            raise
