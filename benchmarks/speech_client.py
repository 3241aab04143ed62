"""Of `python -m benchmarks speech`: a client that takes an answer's text and its sound, and notes when each came."""

import asyncio
import json
from collections.abc import Mapping
from time import monotonic
from typing import Any

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from benchmarks.processes import BenchmarkFailed
from llm_service.audio_frames import read_frame
from llm_service.speech.audio import SAMPLE_BYTES

# Seconds of silence on the wire after which an answer is given up.
PATIENCE = 60.0


class Cut(msgspec.Struct):
    """A chunk as it was told of: `at` in seconds since asking, [start, end) in characters of the answer."""

    at: float
    id: int
    start: int
    end: int
    text: str


class Sound(msgspec.Struct):
    """A piece of a chunk's sound, which lasts so many `seconds`; `at` in seconds since asking."""

    at: float
    chunk: int
    seconds: float


class Heard(msgspec.Struct):
    """One answer. `written` are moments and the characters there were by then; the text was over at `over`."""

    text: str = ""
    written: list[tuple[float, int]] = []
    cuts: list[Cut] = []
    sounds: list[Sound] = []
    over: float | None = None
    ended: list[int] = []  # chunks whose sound is whole

    @property
    def whole(self) -> bool:
        """Whether the text is over, and the sound of every chunk that has some."""
        return self.over is not None and {cut.id for cut in self.cuts if cut.text} <= set(self.ended)

    def take(self, frame: str | bytes, at: float) -> None:
        """Take what came at this moment.

        Raises:
            BenchmarkFailed: it is an error.
        """
        if isinstance(frame, bytes):
            self._take_sound(frame, at)
            return
        event = json.loads(frame)
        match event["type"]:
            case "token":
                self.text += event["data"]
                self.written.append((at, len(self.text)))
            case "chunk":
                self.cuts.append(Cut(at, event["id"], event["start"], event["end"], event["text"]))
            case "response_complete":
                self.over = at
            case "session_started" | "session_configured":
                pass  # a service that is busy greets first, and answers then
            case _:
                raise BenchmarkFailed(f"instead of an answer there came {frame[:300]}")

    def _take_sound(self, frame: bytes, at: float) -> None:
        audio = read_frame(frame)
        if audio.last:
            self.ended.append(audio.chunk)
        elif audio.sample_rate:
            self.sounds.append(Sound(at, audio.chunk, len(audio.data) / SAMPLE_BYTES / audio.sample_rate))

    def check(self) -> None:
        """See that the chunks are the answer, and that their sound came in their order.

        Raises:
            BenchmarkFailed: it is not so.
        """
        ends = [0, *(cut.end for cut in self.cuts)]
        if [cut.start for cut in self.cuts] != ends[:-1] or ends[-1] != len(self.text):
            raise BenchmarkFailed("the chunks are not the answer")
        if self.ended != [cut.id for cut in self.cuts if cut.text]:
            raise BenchmarkFailed("the sound of some chunk is missing, doubled or out of order")


async def hear(port: int, prompt: str, config: Mapping[str, Any]) -> Heard:
    """Ask the service on this port of loopback, in a session that is spoken, and listen to the end.

    Raises:
        BenchmarkFailed: what came is no whole answer.
    """
    spoken = {"speech": {"enabled": True, "format": "pcm", "binary": True}, "events": ["chunk", "audio"]}
    heard = Heard()
    url = f"ws://127.0.0.1:{port}/ws/llm"
    try:
        async with connect(url, compression=None, proxy=None, open_timeout=PATIENCE) as socket:
            await socket.send(json.dumps({"type": "start_session", "config": {**config, **spoken}}))
            async with asyncio.timeout(PATIENCE):
                heard.take(await socket.recv(), 0.0)
            asked = monotonic()
            await socket.send(json.dumps({"type": "user_message", "text": prompt}))
            while not heard.whole:
                async with asyncio.timeout(PATIENCE):
                    frame = await socket.recv()
                heard.take(frame, monotonic() - asked)
    except (ConnectionClosed, TimeoutError) as error:
        raise BenchmarkFailed(f"the answer broke off: {error!r}") from error
    heard.check()
    return heard
