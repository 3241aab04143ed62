"""A TTS with OpenAI's shape that speaks slowly, and notes when its reader leaves."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from time import monotonic

import msgspec

RATE = 24_000
# A WAV whose length nobody knows: the header that streaming servers send.
_HEADER = struct.pack(
    "<4sI4s4sIHHIIHH4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 0xFFFFFFFF
)
_PIECE = bytes(2 * RATE // 50)
_PIECES, _PAUSE = 100, 0.01


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the head and the body of the next request of a connection.

    Raises:
        asyncio.IncompleteReadError: there is none.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head, await reader.readexactly(length)


class SlowTTS:
    """What it was asked: requests that are `running`, and when readers `left` in the midst of one, by their voices."""

    def __init__(self) -> None:
        self.port = 0
        self.running = 0
        self.left: dict[str, list[float]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, body = await request(reader)
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                else:
                    await self._speak(msgspec.json.decode(body)["voice"], reader, writer)
        writer.close()

    async def _speak(self, voice: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        # No client sends a second request before it has the answer: what can be read is the end.
        end = asyncio.ensure_future(reader.read(1))
        try:
            for piece in (_HEADER, *[_PIECE] * _PIECES):
                if end.done() or writer.transport.is_closing():
                    self.left.setdefault(voice, []).append(monotonic())
                    raise ConnectionResetError
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await asyncio.wait([end], timeout=_PAUSE)
            writer.write(b"0\r\n\r\n")
        finally:
            self.running -= 1
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)


@contextlib.asynccontextmanager
async def slow_tts() -> AsyncGenerator[SlowTTS, None]:
    """Run one on a free port of loopback, in this process."""
    tts = SlowTTS()
    server = await asyncio.start_server(tts.serve, "127.0.0.1", 0)
    async with server:
        tts.port = server.sockets[0].getsockname()[1]
        yield tts
