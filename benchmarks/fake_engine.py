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
from time import monotonic

import httptools
import msgspec
import uvloop

from benchmarks import wire
from benchmarks.fake_stream import DEFAULT, State, Stream
from benchmarks.script import Script, parse

MODEL = "bench"


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
    parser.add_argument("--words", type=int, default=DEFAULT.words)
    parser.add_argument("--rate", type=float, default=DEFAULT.rate)
    parser.add_argument("--ttft", type=float, default=DEFAULT.ttft)
    options = parser.parse_args()
    uvloop.run(_run(options.port, State(Script(options.words, options.rate, options.ttft))))


if __name__ == "__main__":
    main()
