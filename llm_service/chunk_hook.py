"""The `on_chunk` hook of `create_app`: the caller's own function gets every chunk, and can hurt no response."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from llm_service.speech.base import Utterance
from llm_service.speech_metrics import SpeechMetrics

OnChunk = Callable[[Utterance], Awaitable[None] | None]
"""Gets a chunk: its text, span, session, turn and whether it is the last of its response. May be `async`."""

# Seconds that one call may take, if it is asynchronous; one that is not must not wait for anything.
HOOK_TIMEOUT = 5.0
# Chunks that wait for the calls before them, of all sessions; past that they are not offered.
MAX_OFFERED = 1024

_log = structlog.get_logger(__name__)


class ChunkHook:
    """Calls the hook with one chunk after the other, in their order, beside everything else.

    What it raises, or is too slow for, is logged and counted, and nothing else.
    """

    def __init__(self, on_chunk: OnChunk, metrics: SpeechMetrics) -> None:
        self._on_chunk = on_chunk
        self._metrics = metrics
        self._offered: deque[Utterance] = deque()
        self._calling: asyncio.Task[None] | None = None

    def offer(self, chunk: Utterance) -> None:
        """Have the hook called with a chunk, soon; never waits."""
        if len(self._offered) >= MAX_OFFERED:
            self._metrics.count_hook_drop()
            return
        self._offered.append(chunk)
        if self._calling is None:
            self._calling = asyncio.get_running_loop().create_task(self._call_all())

    async def aclose(self) -> None:
        """Stop calling it."""
        self._offered.clear()
        if self._calling is not None:
            self._calling.cancel()
            await asyncio.gather(self._calling, return_exceptions=True)

    async def _call_all(self) -> None:
        while self._offered:
            await self._call(self._offered.popleft())
        self._calling = None

    async def _call(self, chunk: Utterance) -> None:
        try:
            returned = self._on_chunk(chunk)
            if inspect.isawaitable(returned):
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await returned
        except Exception as error:  # noqa: BLE001 - whatever a stranger's function raises
            # Its words may hold the text.
            _log.warning("on_chunk_failed", error=type(error).__name__)
            self._metrics.count_hook_drop()
