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
# Chunks of a session that wait for the calls before them; past that they are not offered.
MAX_OFFERED = 256
# Seconds that calls have to end in when the service does.
CLOSE_TIMEOUT = 2.0

_log = structlog.get_logger(__name__)


class ChunkHook:
    """Calls the hook with a session's chunks, one after the other in their order, beside everything else.

    What it raises, or is too slow for, is logged and counted, and nothing else. Sessions do not wait for each other.
    """

    def __init__(self, on_chunk: OnChunk, metrics: SpeechMetrics) -> None:
        self._on_chunk = on_chunk
        self._metrics = metrics
        # Of the sessions that it is being called for: what waits, and what calls it.
        self._waiting: dict[str, deque[Utterance]] = {}
        self._calling: set[asyncio.Task[None]] = set()

    def offer(self, chunk: Utterance) -> None:
        """Have the hook called with a chunk, soon; never waits."""
        waiting = self._waiting.get(chunk.session_id)
        if waiting is None:
            waiting = self._waiting[chunk.session_id] = deque()
            task = asyncio.get_running_loop().create_task(self._call_all(chunk.session_id, waiting))
            self._calling.add(task)
            task.add_done_callback(self._calling.discard)
        if len(waiting) >= MAX_OFFERED:
            self._metrics.count_hook_drop()
        else:
            waiting.append(chunk)

    def drop(self, session_id: str, *, turn: int | None = None) -> None:
        """Forget what waits of a session, or of one turn: nobody listens to it any more. A call that runs goes on."""
        if (waiting := self._waiting.get(session_id)) is not None:
            kept = [] if turn is None else [chunk for chunk in waiting if chunk.turn != turn]
            waiting.clear()
            waiting.extend(kept)

    async def aclose(self) -> None:
        """Stop calling it; a call that refuses to be cancelled is left behind after CLOSE_TIMEOUT."""
        for waiting in self._waiting.values():
            waiting.clear()
        for task in self._calling:
            task.cancel()
        if self._calling:
            _, left = await asyncio.wait(self._calling, timeout=CLOSE_TIMEOUT)
            if left:
                _log.warning("on_chunk_does_not_end", calls=len(left))

    async def _call_all(self, session_id: str, waiting: deque[Utterance]) -> None:
        try:
            while waiting:
                await self._call(waiting.popleft())
        finally:
            del self._waiting[session_id]

    async def _call(self, chunk: Utterance) -> None:
        try:
            returned = self._on_chunk(chunk)
            if inspect.isawaitable(returned):
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await returned
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(error)  # it waited for something that somebody else cancelled
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's function raises
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        # Its words may hold the text.
        _log.warning("on_chunk_failed", error=type(error).__name__)
        self._metrics.count_hook_drop()
