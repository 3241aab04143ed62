"""Events on their way to one client: bounded and in order.

Putting never waits, so that neither the engine's stream nor the client's next message is held up by a client
that reads slowly. An event is written from within the call that puts it; while the client takes nothing it
waits here, and what waits is merged: tokens that follow each other become one token event with the same text.
What passes the bound ends the connection.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic

from llm_service.events import ServerEvent, SessionStarted, Thinking, Token, encode

# Characters of tokens that become one event: clients bound the frames they take, at 1 MiB as a rule.
MAX_MERGED = 65_536
# Bytes an event weighs beside its text while it waits.
_EVENT_OVERHEAD = 64
# What waits, with what each event weighs, before anything has: an empty deque is 0.7 KiB, and most clients keep up.
_NOTHING: deque[tuple[ServerEvent, int]] = deque()


class Outbox:
    """The one gate for all that is written to a client.

    `write` writes the text of a frame; `flushed` is called once, when `close` was called and all that was put
    before is written. `max_bytes` bounds what waits; past it the outbox is `overfull` and takes nothing more.
    """

    __slots__ = (
        "_closing",
        "_direct",
        "_finished",
        "_flushed",
        "_max_bytes",
        "_paused_since",
        "_pending",
        "_pending_bytes",
        "_seq",
        "_write",
        "_written_before",
        "overfull",
    )

    def __init__(self, write: Callable[[bytes], None], flushed: Callable[[], None], *, max_bytes: int) -> None:
        self._write = write
        self._flushed = flushed
        self._max_bytes = max_bytes
        self._pending = _NOTHING
        self._pending_bytes = 0
        self._paused_since: float | None = None
        self._closing = False
        self._finished = False
        self._direct = True  # not paused, not closing, nothing lost: what is put is written at once
        self._seq = 0
        self._written_before = 0  # in earlier sessions
        self.overfull = False

    def __repr__(self) -> str:
        return f"<Outbox: {len(self._pending)} events, {self._pending_bytes} bytes, {self._seq} sent>"

    @property
    def sent(self) -> int:
        """Events of the session written so far."""
        return self._seq

    @property
    def written(self) -> int:
        """Events written so far, of all sessions."""
        return self._written_before + self._seq

    @property
    def pending_bytes(self) -> int:
        """About how much waits."""
        return self._pending_bytes

    @property
    def paused(self) -> bool:
        """Whether the client takes nothing for now."""
        return self._paused_since is not None

    @property
    def closing(self) -> bool:
        """Whether the connection is being closed: nothing more is taken."""
        return self._closing

    def begin(self, event: SessionStarted) -> None:
        """Put the first event of a session: numbers begin anew with it."""
        if self._direct:
            self._restart()
        self.put(event)

    def put(self, event: ServerEvent) -> None:
        """Write an event, or queue it while the client takes none.

        After `close` it is dropped: the client has been told that it was the end.
        """
        if self._direct:
            self._seq = event.seq = self._seq + 1
            self._write(encode(event))
        elif not (self._closing or self.overfull):
            weight = _weight(event)
            if self._pending is _NOTHING:
                self._pending = deque()
            self._pending.append((event, weight))
            self._pending_bytes += weight
            self.overfull = self._pending_bytes > self._max_bytes

    def close(self) -> None:
        """Write what waits, and then no more."""
        self._closing = True
        self._direct = False
        if self._paused_since is None:
            self._finish()

    def cut(self) -> None:
        """Forget what waits and write no more."""
        self._pending.clear()
        self._pending_bytes = 0
        self._closing = True
        self._direct = False
        self._finish()

    def pause(self) -> None:
        """Take note that the client takes nothing for now."""
        if self._paused_since is None:
            self._paused_since = monotonic()
            self._direct = False

    def resume(self) -> None:
        """Write what waits: the client takes more."""
        self._paused_since = None
        while self._pending:
            event = self._next()
            if type(event) is SessionStarted:
                self._restart()
            self._seq = event.seq = self._seq + 1
            self._write(encode(event))
            if self.paused:  # by what was just written
                return
        if self._closing:
            self._finish()
        else:
            self._direct = not self.overfull

    def stalled_seconds(self, now: float) -> float:
        """Return for how long the client has taken nothing of what was written to it."""
        since = self._paused_since
        return 0.0 if since is None else now - since

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._flushed()

    def _restart(self) -> None:
        self._written_before += self._seq
        self._seq = 0

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


def _weight(event: ServerEvent) -> int:
    """Return about how many bytes an event takes; some echo what the client sent, and may be long."""
    if type(event) is Token or type(event) is Thinking:
        return _EVENT_OVERHEAD + (len(event.data) if event.data.isascii() else len(event.data.encode()))
    return _EVENT_OVERHEAD + len(encode(event))
