"""Events on their way to the client of a session: bounded, numbered and in order.

Putting never waits, so that neither the engine's stream nor the client's next message is held up by a client
that reads slowly. An event is written from within the call that puts it; while the client takes nothing, or is not
there, it waits here, and what waits is merged: tokens that follow each other become one token event with the same
text. What was written is kept for a while, for a client that comes back and missed it.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic

from llm_service.audio_frames import binary_frame
from llm_service.events import Audio, ServerEvent, SessionStarted, Thinking, Token, encode
from llm_service.replay import Replay, ReplayRecord

# Characters of tokens that become one event: clients bound the frames they take, at 1 MiB as a rule.
MAX_MERGED = 65_536
# Bytes an event weighs beside its text while it waits.
_EVENT_OVERHEAD = 64
# What waits, with what each event weighs, before anything has: an empty deque is 0.7 KiB, and most clients keep up.
_NOTHING: deque[tuple[ServerEvent | bytes, int]] = deque()


class Outbox:
    """The one gate for all that is written to the client of a session.

    `attach` gives it a client, `detach` takes it away: without one, everything waits. Past `max_bytes` of what waits
    it is `overfull`: its client is too slow. Past twice as much it is `lost`, and takes nothing more. `replay_bytes`
    bounds what is kept of what was written.
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
        "_replay",
        "_seq",
        "_tokens",
        "_write",
        "_write_binary",
        "_written_before",
        "lost",
        "ready",
    )

    def __init__(self, *, max_bytes: int, replay_bytes: int) -> None:
        self._write: Callable[[bytes], None] = _nowhere
        self._write_binary: Callable[[bytes], None] = _nowhere
        self._flushed: Callable[[], None] = _nothing
        self._max_bytes = max_bytes
        self._replay = Replay(max_bytes=replay_bytes)
        self._tokens = self._replay.tokens
        self._pending = _NOTHING
        self._pending_bytes = 0
        self._paused_since: float | None = None
        self._closing = False
        self._finished = False
        self._direct = False  # there is a client, which takes what is put; nothing waits
        self._seq = 0
        self._written_before = 0  # in earlier sessions
        self.lost = False
        self.ready: Callable[[], None] | None = None  # called when a client that took nothing takes more

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
    def overfull(self) -> bool:
        """Whether more waits than a client may let wait."""
        return self._pending_bytes > self._max_bytes

    @property
    def paused(self) -> bool:
        """Whether the client takes nothing for now."""
        return self._paused_since is not None

    @property
    def flows(self) -> bool:
        """Whether there is a client that takes what is put, at once."""
        return self._direct

    @property
    def closing(self) -> bool:
        """Whether the connection is being closed: nothing more is taken."""
        return self._closing

    @property
    def replay(self) -> Replay:
        """The events that were written, as far as they are kept."""
        return self._replay

    def attach(
        self,
        write: Callable[[bytes], None],
        flushed: Callable[[], None],
        write_binary: Callable[[bytes], None] | None = None,
    ) -> None:
        """Give it a client; `go_on` sends it what waits.

        `write` writes the text of a frame, `write_binary` the data of one; `flushed` is called once, when `close` was
        called and all that was put before is written.
        """
        self._write, self._flushed = write, flushed
        self._write_binary = write_binary or _nowhere
        self._paused_since = None
        self._closing = self._finished = False
        self._direct = not self._pending and not self.lost

    def detach(self) -> None:
        """Take its client away: what is put from now on waits for another."""
        self._write, self._flushed, self._write_binary = _nowhere, _nothing, _nowhere
        self._paused_since = None
        self._closing = self._direct = False
        while self._pending and type(self._pending[0][0]) is bytes:
            self._pop()  # it was missed once, and whoever comes back may have missed it again

    def number_waiting(self) -> None:
        """Give what waits its numbers, as if it had been written: there is no client, and who comes has missed it."""
        self._write = _discard
        while self._pending:
            event = self._next()
            assert not isinstance(event, bytes)
            self._write_numbered(event)
        self._write = _nowhere

    def go_on(self, answer: ServerEvent, missed: list[bytes]) -> None:
        """Send a client that came back the answer, with the number that is set, then what it missed and what waits."""
        if self._pending is _NOTHING:
            self._pending = deque()
        frames = [encode(answer), *missed]
        self._pending.extendleft((frame, len(frame)) for frame in reversed(frames))
        self._pending_bytes += sum(map(len, frames))
        self.resume()

    def forget(self) -> None:
        """Forget what waits, and all that was written: nobody gets it any more. Numbers go on."""
        self._pending.clear()
        self._pending_bytes = 0
        self._replay.restore(ReplayRecord(self._seq, []), events=False)
        self.lost = False
        self._direct = self._write is not _nowhere and not (self._closing or self.paused)

    def restore(self, record: ReplayRecord, *, events: bool) -> None:
        """Take up the numbers where another outbox left and, with `events`, what was written."""
        self._replay.restore(record, events=events)
        self._seq = record.seq
        self._written_before = -record.seq

    def put(self, event: ServerEvent) -> None:
        """Write an event, or queue it while the client takes none or is not there.

        With a `SessionStarted` numbers begin anew. After `close` an event is dropped: the client has been told that it
        was the end.
        """
        if self._direct:
            self._write_numbered(event)
        elif not (self._closing or self.lost):
            weight = _weight(event)
            if self._pending is _NOTHING:
                self._pending = deque()
            self._pending.append((event, weight))
            self._pending_bytes += weight
            self.lost = self._pending_bytes > 2 * self._max_bytes

    def say(self, text: str) -> None:
        """Put a `Token` of this text: what `put` does, in one call, since there is one for every token."""
        if self._direct:
            # Taken out first: to call what an attribute holds costs more than to call what a name does.
            write = self._write
            self._seq = seq = self._seq + 1
            write(encode(Token(seq=seq, data=text)))
            self._tokens.append(text)
        else:
            self.put(Token(data=text))

    def put_audio(self, audio: Audio, *, binary: bool) -> bool:
        """Write audio now, or not at all while the client takes nothing; returns whether it was written.

        It is neither queued nor numbered nor kept: sound is bulky, and of no use to a client that comes back for it.
        """
        if not self._direct:
            return False
        if binary:
            self._write_binary(binary_frame(audio))
        else:
            audio.seq = self._seq
            self._write(encode(audio))
        return True

    def close(self) -> None:
        """Write what waits, and then no more."""
        self._closing = True
        self._direct = False
        if self._paused_since is None:
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
            if type(event) is bytes:
                self._write(event)
            else:
                self._write_numbered(event)  # type: ignore[arg-type]
            if self.paused:  # by what was just written
                return
        if self._closing:
            self._finish()
        else:
            self._direct = not self.lost
            if self.ready is not None:
                self.ready()

    def stalled_seconds(self, now: float) -> float:
        """Return for how long the client has taken nothing of what was written to it."""
        since = self._paused_since
        return 0.0 if since is None else now - since

    def _write_numbered(self, event: ServerEvent) -> None:
        if type(event) is SessionStarted:
            self._restart()
        self._seq = event.seq = self._seq + 1
        frame = encode(event)
        self._write(frame)
        if type(event) is Token:
            self._tokens.append(event.data)
        else:
            self._replay.add(frame)

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._flushed()

    def _restart(self) -> None:
        self._written_before += self._seq
        self._seq = 0
        self._replay.restart()

    def _next(self) -> ServerEvent | bytes:
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

    def _pop(self) -> ServerEvent | bytes:
        event, weight = self._pending.popleft()
        self._pending_bytes -= weight
        return event


def _nowhere(_: bytes) -> None:
    """Stand for a client that is not there; nothing is ever written to it."""
    raise AssertionError("nobody is attached")


def _discard(_: bytes) -> None:
    """Stand for a client that will say that it missed this."""


def _nothing() -> None:
    """Stand for whoever waits for a close."""


def _weight(event: ServerEvent) -> int:
    """Return about how many bytes an event takes; some echo what the client sent, and may be long."""
    if type(event) is Token or type(event) is Thinking:
        return _EVENT_OVERHEAD + (len(event.data) if event.data.isascii() else len(event.data.encode()))
    return _EVENT_OVERHEAD + len(encode(event))
