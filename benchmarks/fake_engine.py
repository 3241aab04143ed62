"""An engine that costs next to nothing: Ollama's and OpenAI's streams, word by word on an absolute schedule.

A process of its own, so that its CPU is counted apart from that of the system under test:

    python -m benchmarks.fake_engine [--port PORT] [--words N] [--rate R] [--ttft S]

It prints the port it listens on, in one line. When each word was written is kept, on the clock that all
processes of the machine share; `GET /bench/log` hands that out as MessagePack and forgets it. `GET /bench/streams`
says how many answers run, and when those that their reader gave up were given up.
"""

import argparse
import asyncio
import signal
import socket
import struct
from dataclasses import replace
from time import monotonic

import httptools
import msgspec
import uvloop

from benchmarks import wire
from benchmarks.script import VOCABULARY, Script, parse

MODEL = "bench"
# uvloop's timers count whole milliseconds; a shorter wait would spin.
_TICK = 0.001
_DEFAULT = Script(words=100, rate=50.0, ttft=0.05)
# Seconds between two pieces of a word that is sent in pieces.
_PIECE = 0.002
# Closing with this drops what is on its way, and the peer sees a reset.
_AT_ONCE = struct.pack("ii", 1, 0)


class _Message(msgspec.Struct):
    role: str = ""
    content: str = ""


class _Request(msgspec.Struct):
    messages: list[_Message] = []
    stream: bool = True

    @property
    def said(self) -> str:
        """The beginning of an answer that is to be continued; "" where there is none."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else ""

    @property
    def asked(self) -> str:
        """The message that is answered."""
        return self.messages[-2 if self.said else -1].content


_decode = msgspec.json.Decoder(_Request).decode

# By seed: when the request had come, and when each word was written.
Log = dict[int, tuple[float, list[float]]]


class State:
    """What the connections share."""

    def __init__(self, default: Script = _DEFAULT) -> None:
        self.default = default
        self.log: Log = {}
        self.open: set[asyncio.Transport] = set()
        self.running: set[Stream] = set()
        self.given_up: dict[int, float] = {}

    def streams(self) -> bytes:
        """Return how many answers run and, by seed, when others were given up, as JSON; the latter are forgotten."""
        given_up, self.given_up = self.given_up, {}
        return msgspec.json.encode({"running": len(self.running), "given_up": given_up})


class Stream:
    """One answer on its way: writes what is due, then waits for the next word."""

    def __init__(
        self,
        protocol: "EngineProtocol",
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


class EngineProtocol(asyncio.Protocol):
    """One HTTP connection; requests one after the other, as every client of ours sends them."""

    transport: asyncio.Transport

    def __init__(self, state: State) -> None:
        self.state = state
        self._parser = httptools.HttpRequestParser(self)
        self._stream: Stream | None = None
        self._target = b""
        self._body = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.state.open.add(transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.state.open.discard(self.transport)
        if self._stream is not None:
            self.state.given_up[self._stream.seed] = monotonic()
            self._stream.stop()

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.paused = True

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resume()

    def ended(self) -> None:
        """Take note that nothing more of the answer comes."""
        if self._stream is not None:
            self._stream.stop()
            self._stream = None

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._target = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        match self._target.partition(b"?")[0].decode():
            case "/api/chat":
                self._chat(wire.OLLAMA)
            case "/v1/chat/completions":
                self._chat(wire.OPENAI)
            case "/bench/log":
                log, self.state.log = self.state.log, {}
                self.transport.write(wire.document(msgspec.msgpack.encode(log), "application/msgpack"))
            case "/apply-template":
                self.transport.write(wire.rendered(_decode(self._body).messages[-1].content))
            case "/bench/streams":
                self.transport.write(wire.document(self.state.streams()))
            case path:
                self._document(path)

    def _chat(self, dialect: wire.Dialect) -> None:
        received = monotonic()
        request = _decode(self._body)
        if not request.messages:
            self.transport.write(wire.document(wire.LOADED))
            return
        script = parse(request.asked, self.state.default)
        if script.fault == "refuse":
            self.transport.write(wire.document(wire.REFUSED, status="500 Internal Server Error"))
        elif request.stream:
            # An engine's count grows with the conversation: one that did not would look like a prompt cut short.
            tokens = sum(5 + message.content.count(" ") for message in request.messages)
            self._stream = Stream(self, script, dialect, received, tokens, request.said)
        else:
            self.transport.write(wire.document(wire.whole_answer(dialect, script.text())))

    def _document(self, path: str) -> None:
        body = wire.DOCUMENTS.get(path)
        if body is None:
            self.transport.write(wire.document(b'{"error":"not found"}', status="404 Not Found"))
        else:
            self.transport.write(wire.document(body))


async def serve(port: int, state: State) -> asyncio.Server:
    """Listen on loopback."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: EngineProtocol(state), "127.0.0.1", port, backlog=4096)


async def _run(port: int, state: State) -> None:
    server = await serve(port, state)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    server.close()


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="An engine for benchmarks.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--words", type=int, default=_DEFAULT.words)
    parser.add_argument("--rate", type=float, default=_DEFAULT.rate)
    parser.add_argument("--ttft", type=float, default=_DEFAULT.ttft)
    options = parser.parse_args()
    uvloop.run(_run(options.port, State(Script(options.words, options.rate, options.ttft))))


if __name__ == "__main__":
    main()
