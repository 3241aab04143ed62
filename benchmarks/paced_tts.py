"""A TTS with OpenAI's shape whose synthesis takes a given share of the time that its sound lasts."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

import msgspec

from benchmarks.reliability.slow_tts import request
from llm_service.speech.audio import SAMPLE_BYTES, wav_header

RATE = 24_000
# About 150 words a minute.
CHARACTERS_PER_SECOND = 14.0
# Seconds of sound that are sent at once.
PIECE = 0.25
_UNTOLD_BYTES = 0x7FFF0000


def schedule(text: str, factor: float) -> Iterator[tuple[float, float]]:
    """Yield for each piece of a text's sound when it is made and how long it lasts, in seconds.

    `factor` is the real-time factor: seconds of synthesis for a second of sound.
    """
    seconds, made = len(text) / CHARACTERS_PER_SECOND, 0.0
    while made < seconds:
        piece = min(PIECE, seconds - made)
        made += piece
        yield factor * made, piece


class PacedTTS:
    """Sends silence as it would be made. `factor` as in `schedule`; `port` is on loopback."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.port = 0
        self._answering: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cut off whoever listens, and wait until nothing runs any more."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        task = asyncio.create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, body = await request(reader)
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                else:
                    await self._speak(msgspec.json.decode(body)["input"], writer)

    async def _speak(self, text: str, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        _write(writer, wav_header(RATE, _UNTOLD_BYTES))
        for made, seconds in schedule(text, self.factor):
            await asyncio.sleep(max(0.0, began + made - clock()))
            _write(writer, bytes(SAMPLE_BYTES * round(seconds * RATE)))
            await writer.drain()
        writer.write(b"0\r\n\r\n")


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if data:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


@contextlib.asynccontextmanager
async def paced_tts(factor: float) -> AsyncGenerator[PacedTTS, None]:
    """Run one on a free port of loopback, in this process."""
    tts = PacedTTS(factor)
    server = await asyncio.start_server(tts.accept, "127.0.0.1", 0)
    async with server:
        tts.port = server.sockets[0].getsockname()[1]
        try:
            yield tts
        finally:
            await tts.close()
