"""Events on their way to one client: bounded, in order, written by one task.

Putting never waits, so that neither the engine's stream nor the client's next message is held up by a
client that reads slowly. What waits is merged: tokens that follow each other become one token event with
the same text. What passes the bound ends the connection.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic

from llm_service.events import ServerEvent, SessionStarted, Thinking, Token, dump

# Characters of tokens that become one event: clients bound the frames they take, at 1 MiB as a rule.
MAX_MERGED = 65_536
# Bytes an event weighs beside its text while it waits.
_EVENT_OVERHEAD = 64


class Outbox:
    """The one gate for all that is written to a client.

    `send` writes the text of a frame and `close` the closing frame. `max_bytes` bounds what waits; past it
    the outbox is `overfull` and takes nothing more.
    """

    def __init__(
        self,
        send: Callable[[str], Awaitable[None]],
        close: Callable[[int, str], Awaitable[None]],
        *,
        max_bytes: int,
    ) -> None:
        self._send = send
        self._close = close
        self._max_bytes = max_bytes
        self._pending: deque[tuple[ServerEvent, int]] = deque()  # with what it weighs
        self._pending_bytes = 0
        self._wakeup: asyncio.Future[None] | None = None
        self._closing: tuple[int, str] | None = None
        self._writing_since: float | None = None
        self._seq = 0
        self.overfull = False

    def __repr__(self) -> str:
        return f"<Outbox: {len(self._pending)} events, {self._pending_bytes} bytes, {self._seq} sent>"

    @property
    def sent(self) -> int:
        """Events of the session written so far."""
        return self._seq

    @property
    def pending_bytes(self) -> int:
        """About how much waits."""
        return self._pending_bytes

    @property
    def closing(self) -> bool:
        """Whether the connection is being closed: nothing more is taken."""
        return self._closing is not None

    def put(self, event: ServerEvent) -> None:
        """Queue an event. After `close` it is dropped: the client has been told that it was the end."""
        if self._closing is not None or self.overfull:
            return
        weight = _weight(event)
        self._pending.append((event, weight))
        self._pending_bytes += weight
        if self._pending_bytes > self._max_bytes:
            self.overfull = True
        if self._wakeup is not None:
            self._wake()

    def close(self, code: int, reason: str) -> None:
        """Write what waits, then close the connection. Only the first call counts."""
        if self._closing is None:
            self._closing = (code, reason)
            self._wake()

    def cut(self, code: int, reason: str) -> None:
        """Forget what waits and close the connection."""
        self._pending.clear()
        self._pending_bytes = 0
        self.close(code, reason)

    def stalled_seconds(self, now: float) -> float:
        """Return for how long the client has taken nothing of what is being written to it."""
        since = self._writing_since
        return 0.0 if since is None else now - since

    async def run(self) -> None:
        """Write until the connection is closed by `close`."""
        while True:
            while self._pending:
                event = self._next()
                self._seq = 1 if type(event) is SessionStarted else self._seq + 1
                event.seq = self._seq
                self._writing_since = monotonic()
                await self._send(dump(event))
                self._writing_since = None
            if self._closing is not None:
                self._writing_since = monotonic()
                await self._close(*self._closing)
                self._writing_since = None
                return
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
            self._wakeup = None

    def _next(self) -> ServerEvent:
        event = self._pop()
        if type(event) is Token and self._pending and type(self._pending[0][0]) is Token:
            pieces, length = [event.data], len(event.data)
            while self._pending and type(self._pending[0][0]) is Token and length < MAX_MERGED:
                following = self._pop()
                assert isinstance(following, Token)
                pieces.append(following.data)
                length += len(following.data)
            return Token(data="".join(pieces))
        return event

    def _pop(self) -> ServerEvent:
        event, weight = self._pending.popleft()
        self._pending_bytes -= weight
        return event

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def _weight(event: ServerEvent) -> int:
    """Return about how many bytes an event takes; some echo what the client sent, and may be long."""
    if type(event) is Token or type(event) is Thinking:
        return _EVENT_OVERHEAD + (len(event.data) if event.data.isascii() else len(event.data.encode()))
    return _EVENT_OVERHEAD + len(dump(event))
