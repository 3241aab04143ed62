"""The floor: the least a CPython process can do to relay Ollama's words to WebSockets.

picows on one side, a raw protocol with httptools on the other, msgspec between them, uvloop below. It knows
one order of messages and no errors: no session, no history, no limits, no metrics. What the service costs
above this is what its promises cost.

    python -m benchmarks.floor --port PORT --engine-port PORT
"""

import argparse
import asyncio
import signal
from typing import Literal

import httptools
import msgspec
import picows
import uvloop


class _ClientMessage(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    content: str = ""


class _Line(msgspec.Struct, gc=False):
    message: _Message | None = None
    done: bool = False


class _Token(msgspec.Struct, gc=False, tag_field="type", tag="token"):
    seq: int
    data: str


class _Event(msgspec.Struct, gc=False):
    seq: int
    type: Literal["session_started", "response_complete"]


_decode_message = msgspec.json.Decoder(_ClientMessage).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode
_TEXT = picows.WSMsgType.TEXT


class Upstream(asyncio.Protocol):
    """One connection to the engine, kept by its client: decodes lines and writes each word as a frame."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def ask(self, text: str) -> None:
        """Send the request."""
        body = _encode({"model": "bench", "messages": [{"role": "user", "content": text}], "stream": True})
        head = (
            b"POST /api/chat HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(head % len(body) + body)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body if self._rest else body).split(b"\n")
        for line in lines:
            part = _decode_line(line)
            if part.done:
                self._client.say("response_complete")
            elif part.message is not None:
                self._client.token(part.message.content)


class Client(picows.WSListener):
    """One WebSocket and its upstream."""

    def __init__(self, engine_port: int) -> None:
        self._engine_port = engine_port
        self._transport: picows.WSTransport | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._seq = 0

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        if self._upstream is not None:
            self._upstream.close()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        message = _decode_message(frame.get_payload_as_bytes())
        if message.type == "start_session":
            self.say("session_started")
        elif self._upstream is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(message.text))
        else:
            self._upstream.ask(message.text)

    async def _connect(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        _, self._upstream = await loop.create_connection(lambda: Upstream(self), "127.0.0.1", self._engine_port)
        self._upstream.ask(text)

    def say(self, kind: Literal["session_started", "response_complete"]) -> None:
        """Write an event that is not a word."""
        self._seq += 1
        assert self._transport is not None
        self._transport.send(_TEXT, _encode(_Event(self._seq, kind)))

    def token(self, text: str) -> None:
        """Write a word."""
        self._seq += 1
        assert self._transport is not None
        self._transport.send(_TEXT, _encode(_Token(self._seq, text)))


async def serve(port: int, engine_port: int) -> asyncio.Server:
    """Listen on loopback."""
    return await picows.ws_create_server(lambda _: Client(engine_port), "127.0.0.1", port, backlog=4096)


async def _run(port: int, engine_port: int) -> None:
    server = await serve(port, engine_port)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    server.close()


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="The floor of the benchmarks.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine-port", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(_run(options.port, options.engine_port))


if __name__ == "__main__":
    main()
