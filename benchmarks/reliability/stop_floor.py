"""The floor of a stop: the least that a process can do to pass words and sound on, and to end both at a `cancel`.

What a stop takes behind this is the sockets' and the machine's part in it. It knows one order of messages, as
`benchmarks.floor` does, and drops connections as the service does.

    python -m benchmarks.reliability.stop_floor --port PORT --engine-port PORT [--tts-port PORT]
"""

import argparse
import asyncio
from typing import Literal

import msgspec
import picows
import uvloop

from benchmarks.floor import Client, Upstream
from llm_service.engines.http1 import drop


class _Speech(msgspec.Struct):
    voice: str = ""


class _Config(msgspec.Struct):
    speech: _Speech | None = None


class _Message(msgspec.Struct):
    type: str
    text: str = ""
    config: _Config | None = None


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


class _Words(Upstream):
    """An answer of the engine's."""

    def close(self) -> None:
        if self._transport is not None:
            drop(self._transport)


class _Sound(asyncio.Protocol):
    """One synthesis."""

    def __init__(self, client: "_Client", voice: str) -> None:
        self._client = client
        self._voice = voice
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        body = _encode({"input": "A chunk.", "voice": self._voice})
        transport.write(b"POST /v1/audio/speech HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def data_received(self, _data: bytes) -> None:
        self._client.sound()

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            drop(self._transport)


class _Client(Client):
    """One WebSocket with what runs for it."""

    def __init__(self, engine_port: int, tts_port: int) -> None:
        super().__init__(engine_port)
        self._ports = engine_port, tts_port
        self._voice = ""
        self._chunk = 0
        self._words: _Words | None = None
        self._sound: _Sound | None = None

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self._end()
            super().on_ws_frame(transport, frame)
            return
        message = _decode(frame.get_payload_as_bytes())
        match message.type:
            case "start_session":
                if message.config is not None and message.config.speech is not None:
                    self._voice = message.config.speech.voice
                self.say("session_started")
            case "user_message":
                self._chunk += 1
                self._connecting = asyncio.get_running_loop().create_task(self._begin(message.text))
            case "cancel":
                self._send(type="cancelled", success=self._end())

    async def _begin(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        engine, tts = self._ports
        _, self._words = await loop.create_connection(lambda: _Words(self), "127.0.0.1", engine)
        self._words.ask(text)
        if tts:
            self._send(type="chunk", id=self._chunk)
            _, self._sound = await loop.create_connection(lambda: _Sound(self, self._voice), "127.0.0.1", tts)

    def _end(self) -> bool:
        """Drop what runs; returns whether words were still to come."""
        running = self._words is not None or (self._connecting is not None and not self._connecting.done())
        if self._connecting is not None:
            self._connecting.cancel()
        for each in (self._sound, self._words):
            if each is not None:
                each.close()
        self._sound = self._words = None
        return running

    def say(self, kind: Literal["session_started", "response_complete"]) -> None:
        if kind == "response_complete" and self._words is not None:
            self._words.close()
            self._words = None
        super().say(kind)

    def sound(self) -> None:
        """Pass a piece on."""
        self._send(type="audio", chunk=self._chunk)

    def _send(self, **fields: object) -> None:
        assert self._transport is not None
        self._transport.send(picows.WSMsgType.TEXT, _encode(fields))


async def serve(port: int, engine_port: int, tts_port: int) -> asyncio.Server:
    """Listen on loopback; without a `tts_port` nothing is spoken."""
    return await picows.ws_create_server(lambda _: _Client(engine_port, tts_port), "127.0.0.1", port)


async def _run(port: int, engine_port: int, tts_port: int) -> None:
    await (await serve(port, engine_port, tts_port)).serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The floor of a stop.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine-port", type=int, required=True)
    parser.add_argument("--tts-port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(_run(options.port, options.engine_port, options.tts_port))
