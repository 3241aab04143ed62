"""The fake engine's answers on their way: words when they are due, and what goes wrong with them."""

import asyncio
import socket
import struct
from dataclasses import replace
from time import monotonic
from typing import Protocol

import msgspec

from benchmarks import wire
from benchmarks.script import VOCABULARY, Script

DEFAULT = Script(words=100, rate=50.0, ttft=0.05)
# uvloop's timers count whole milliseconds; a shorter wait would spin.
_TICK = 0.001
# Seconds between two pieces of a word that is sent in pieces.
_PIECE = 0.002
# Closing with this drops what is on its way, and the peer sees a reset.
_AT_ONCE = struct.pack("ii", 1, 0)

# By seed: when the request had come, and when each word was written.
Log = dict[int, tuple[float, list[float]]]


class State:
    """What the connections share."""

    def __init__(self, default: Script = DEFAULT) -> None:
        self.default = default
        self.log: Log = {}
        self.open: set[asyncio.Transport] = set()
        self.running: set[Stream] = set()
        self.given_up: dict[int, float] = {}

    def streams(self) -> bytes:
        """Return how many answers run and, by seed, when others were given up, as JSON; the latter are forgotten."""
        given_up, self.given_up = self.given_up, {}
        return msgspec.json.encode({"running": len(self.running), "given_up": given_up})


class Connection(Protocol):
    """Whose answer a stream is."""

    transport: asyncio.Transport
    state: State

    def ended(self) -> None:
        """Take note that nothing more of the answer comes."""
        ...


class Stream:
    """One answer on its way: writes what is due, then waits for the next word."""

    def __init__(
        self,
        protocol: Connection,
        script: Script,
        dialect: wire.Dialect,
        received: float,
        prompt_tokens: int,
        said: str = "",
    ) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._dialect = dialect
        self._prompt_tokens = prompt_tokens
        words = [dialect.words[index % len(VOCABULARY)] for index in script.indices()]
        self._chunks = wire.rest(dialect, words, said)
        self._script = script = replace(script, words=len(self._chunks))
        self._first_at = received + script.ttft
        self._times: list[float] = []
        self._failed = False
        protocol.state.log[script.seed] = (received, self._times)
        protocol.state.running.add(self)
        self.paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport.write(wire.stream_head(dialect))
        self._wait()

    @property
    def seed(self) -> int:
        """The answer's name."""
        return self._script.seed

    def stop(self) -> None:
        """Write nothing more."""
        self._protocol.state.running.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        """Go on after the reader has caught up: what had become due meanwhile goes out at once."""
        self.paused = False
        if self._timer is None:
            self._write_due()

    def _wait(self) -> None:
        sent, rate = len(self._times), self._script.rate
        due = self._first_at + (sent / rate if rate else 0.0)
        self._timer = asyncio.get_running_loop().call_later(max(due - monotonic(), _TICK), self._write_due)

    def _write_due(self) -> None:
        self._timer = None
        if self.paused:
            return
        script, sent = self._script, len(self._times)
        now = monotonic()
        if now >= self._first_at:
            due = int((now - self._first_at) * script.rate) + 1 if script.rate else script.words
            due = min(due, script.words)
            if script.fault and not self._failed and due >= script.after:
                self._failed = True
                self._send(sent, script.after, now)
                self._fail()
                return
            self._send(sent, due, now)
        if len(self._times) >= script.words:
            self._transport.write(wire.stream_tail(self._dialect, script.words, self._prompt_tokens))
            self._protocol.ended()
        else:
            self._wait()

    def _send(self, first: int, end: int, now: float) -> None:
        if end == first + 1:
            self._times.append(now)
            self._transport.write(self._chunks[first])
        elif end > first:
            self._times.extend([now] * (end - first))
            self._transport.write(b"".join(self._chunks[first:end]))

    def _fail(self) -> None:
        match self._script.fault:
            case "cut":
                self._transport.abort()
            case "reset":
                peer: socket.socket = self._transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                self._transport.abort()
            case "pieces":
                self._write_pieces(wire.pieces(self._chunks[len(self._times)]) if self._left else [])
            case "error" | "garbage" | "end":
                self._transport.write(self._dialect.faults[self._script.fault])
                self._protocol.ended()
            case _:  # "stall": the connection stays open and nothing comes.
                pass

    @property
    def _left(self) -> int:
        return self._script.words - len(self._times)

    def _write_pieces(self, pieces: list[bytes]) -> None:
        """Write one word in pieces, each in a segment of its own, and go on."""
        if not pieces:
            self._write_due()
            return
        self._transport.write(pieces[0])
        if len(pieces) == 1:
            self._times.append(monotonic())
        self._timer = asyncio.get_running_loop().call_later(_PIECE, self._write_pieces, pieces[1:])
