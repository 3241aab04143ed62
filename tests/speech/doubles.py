"""Doubles of the TTS servers that users run, with their oddities; each answers as the original was seen or read to."""

import asyncio
import contextlib
import io
import json
import math
import struct
import wave
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.engines.fake_server import Exchange

RATE = 24_000


def samples(seconds: float = 0.1, rate: int = RATE) -> bytes:
    """Return a tone, as 16-bit samples."""
    count = round(seconds * rate)
    return struct.pack(f"<{count}h", *(round(8000 * math.sin(number / 9)) for number in range(count)))


def a_wav(seconds: float = 0.1, rate: int = RATE) -> bytes:
    """Return a WAV as the standard library writes one."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples(seconds, rate))
    return file.getvalue()


def read_wav(data: bytes) -> tuple[int, bytes]:
    """Return the rate and the samples of a WAV, as the standard library reads them."""
    with wave.open(io.BytesIO(data), "rb") as reader:
        assert (1, 2) == (reader.getnchannels(), reader.getsampwidth())
        return reader.getframerate(), reader.readframes(reader.getnframes())


async def openai(exchange: Exchange) -> None:
    """OpenAI's /v1/audio/speech: streamed, with a WAV whose header does not know its length."""
    if exchange.path == "/v1/models":
        await exchange.answer(b'{"object": "list", "data": []}', Content_Type="application/json")
        return
    assert ("POST", "/v1/audio/speech") == (exchange.method, exchange.path)
    body = exchange.json()
    if not body.get("input") or not body.get("model") or not body.get("voice"):
        await exchange.answer(b'{"error": {"message": "missing"}}', 400)
        return
    audio = {
        "mp3": b"ID3\x04\0\0\0\0\0\0" + b"m" * 4000,
        "opus": b"OggS" + b"o" * 4000,
        "wav": a_wav()[:40] + b"\xff\xff\xff\xff" + samples(),
    }[str(body.get("response_format", "mp3"))]
    await exchange.answer(audio, size=1000)


@dataclass
class OPEA:
    """The wrapper on 9088: no Content-Type, a WAV for every format, its backend's error as HTTP 200."""

    backend_fails: bool = False

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/health_check":
            await exchange.answer(b'{"Service Title": "opea_service@tts"}', Content_Type="application/json")
            return
        assert ("POST", "/v1/audio/speech") == (exchange.method, exchange.path)
        assert exchange.json()["input"]
        if self.backend_fails:
            await exchange.answer(b'{"code": 400, "message": "unspecified refer audio"}', size=1024)
        else:
            await exchange.answer(a_wav(), size=1024)


@dataclass
class GPTSoVITS:
    """9880: `/` of api.py and `/tts` of api_v2. `reference` is whether the process has a recording of its own.

    The `fork` in OPEA's image has `/v1/audio/speech` and `/health` beside `/`.
    """

    reference: bool = True
    fork: bool = False
    syntheses: int = 0

    async def __call__(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "POST", "/":
                body = exchange.json()
                own = all(body.get(key) for key in ("refer_wav_path", "prompt_text", "prompt_language"))
                await self._first(exchange, body["text"], body.get("speed", 1.0), own=own)
            case "POST", "/v1/audio/speech" if self.fork:
                body = exchange.json()
                # A voice is a recording's path, and without its text no reference: the process's own is taken. The
                # language is mixed Chinese, the format the process's, and what else is asked for is not looked at.
                await self._first(exchange, body["input"], body.get("speed", 1.0), own=False)
            case "GET", "/health" if self.fork:
                await exchange.answer(b"")
            case _, "/":
                await exchange.answer(b"Internal Server Error", 500)  # a GET without text has nothing spoken, with 500
            case _, "/tts":
                await self._second(exchange, exchange.json())
            case _:
                await exchange.answer(b'{"detail": "Not Found"}', 404)

    async def _first(self, exchange: Exchange, text: object, speed: object, *, own: bool) -> None:
        assert text
        assert isinstance(speed, float)
        if not (own or self.reference):
            await exchange.answer('{"code": 400, "message": "未指定参考音频且接口无预设"}'.encode(), 400)
            return
        self.syntheses += 1
        await exchange.answer(a_wav(0.1 / speed, rate=32_000), Content_Type="audio/wav")

    async def _second(self, exchange: Exchange, body: dict[str, object]) -> None:
        if not all(body.get(key) for key in ("text", "text_lang", "ref_audio_path", "prompt_lang")):
            await exchange.answer(b'{"message": "ref_audio_path is required"}', 400)
            return
        self.syntheses += 1
        if body.get("streaming_mode"):
            await exchange.start(Content_Type="audio/wav")
            await exchange.send(a_wav(0, rate=32_000))  # 44 bytes, its length none
            await exchange.send(samples(rate=32_000), size=999)
            await exchange.end()
        else:
            await exchange.answer(a_wav(rate=32_000), Content_Type="audio/wav")


@dataclass
class FastTalkTTS:
    """FastTalk TTS with its Kokoro engine: progress, then a path on its own disk; no cancel, no audio on the wire."""

    folder: Path
    url: str = ""
    busy: bool = False
    stall: bool = False
    path: str | None = None  # answered in the place of the file's own
    requests: list[dict[str, object]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, socket: ServerConnection) -> None:
        if self.busy:
            await socket.close(1013, "Service busy")
            return
        try:
            async for message in socket:
                request = json.loads(message)
                self.requests.append(request)
                await self._answer(socket, request)
        except ConnectionClosed:
            pass
        finally:
            self.left.set()

    async def _answer(self, socket: ServerConnection, request: dict[str, object]) -> None:
        if not request.get("text"):
            await socket.send('{"status": "error", "message": "No text provided"}')
            return
        if request.get("format", "wav") not in ("wav", "mp3"):
            await socket.send('{"status": "error", "message": "Unsupported format"}')
            return
        await socket.send('{"status": "progress", "progress": 0.5}')
        if self.stall:
            await socket.wait_closed()
            return
        name = f"{len(self.requests)}.{request.get('format', 'wav')}"
        audio = a_wav() if name.endswith("wav") else b"ID3\x04\0\0\0\0\0\0" + b"m" * 4000
        (self.folder / name).write_bytes(audio)
        path = f"output/{name}" if self.path is None else self.path
        await socket.send(json.dumps({"status": "ok", "file": path, "format": request.get("format", "wav")}))


@contextlib.asynccontextmanager
async def fasttalk_tts(folder: Path) -> AsyncGenerator[FastTalkTTS, None]:
    """Run a FastTalk TTS that writes into `folder`."""
    double = FastTalkTTS(folder)
    async with serve(double.serve, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        double.url = f"ws://127.0.0.1:{port}"
        yield double
