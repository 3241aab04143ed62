"""Lets a terminal's user hear the answers: through a player of this machine, or else as WAV files."""

import asyncio
import base64
import contextlib
import io
import shutil
import tempfile
import wave
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

# Each is given the path of a WAV file, plays it and ends.
PLAYERS = (
    ("afplay",),
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet"),
    ("play", "-q"),
)

Acknowledge = Callable[[int, int], Awaitable[None]]
"""Gets a chunk's id and how many of its characters were heard."""


def found_player() -> tuple[str, ...] | None:
    """Return the command of a player that is installed here; None if there is none."""
    return next((command for command in PLAYERS if shutil.which(command[0])), None)


class Playback:
    """Plays an answer's chunks one after the other, or writes them into `folder` where there is no `player`.

    `take` gets the events; `acknowledge` hears of each chunk that was played. `failed` is why an answer is not heard.
    """

    def __init__(self, player: tuple[str, ...] | None, folder: Path, acknowledge: Acknowledge) -> None:
        self._player = player
        self._folder = folder
        self._acknowledge = acknowledge
        self._texts: dict[int, str] = {}  # of chunks whose sound is not whole yet
        self._parts: dict[int, bytearray] = {}
        self._queue: deque[tuple[int, str, bytes]] = deque()
        self._playing: asyncio.Task[None] | None = None
        self._heard: Callable[[], tuple[int, int]] | None = None  # of the chunk that is being played
        self._files = 0
        self.written: list[Path] = []  # since whoever told of them cleared it
        self.failed = ""

    @property
    def whole(self) -> bool:
        """Whether the sound of every chunk so far has come, or will not."""
        return not self._texts or bool(self.failed)

    def begin(self) -> None:
        """Take note that the next answer comes."""
        self._texts.clear()
        self._parts.clear()
        self.failed = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Take a chunk, a part of its sound, or the failure of it."""
        match event["type"]:
            case "chunk" if event["text"]:
                self._texts[event["id"]] = event["text"]
            case "audio":
                part = self._parts.setdefault(event["chunk"], bytearray())
                part += base64.b64decode(event.get("data", ""))
                if event.get("last"):
                    self._play_soon(event["chunk"])
            case "error":
                self.failed = str(event["error"]["message"])

    async def stop(self) -> None:
        """Play no more; what was heard of the chunk that plays is acknowledged."""
        self._queue.clear()
        heard = self._heard
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)
            self._playing = None
        if heard is not None:
            await self._acknowledge(*heard())

    async def finish(self) -> None:
        """Wait until all that came was played."""
        if self._playing is not None:
            await self._playing

    def _play_soon(self, chunk: int) -> None:
        sound, text = bytes(self._parts.pop(chunk)), self._texts.pop(chunk, "")
        if not sound:
            return
        if self._player is None:
            self._files += 1
            path = self._folder / f"speech-{self._files:03d}.wav"
            path.write_bytes(sound)
            self.written.append(path)
            return
        self._queue.append((chunk, text, sound))
        if self._playing is None or self._playing.done():
            self._playing = asyncio.get_running_loop().create_task(self._play_all())

    async def _play_all(self) -> None:
        assert self._player is not None
        while self._queue:
            chunk, text, sound = self._queue.popleft()
            self._heard = partial(_heard, chunk, len(text), monotonic(), _seconds(sound))
            try:
                await _run(self._player, sound)
            finally:
                self._heard = None
            await self._acknowledge(chunk, len(text))


async def _run(player: tuple[str, ...], sound: bytes) -> None:
    """Play a WAV file to its end; cancelling stops it at once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunk.wav"
        path.write_bytes(sound)
        process = await asyncio.create_subprocess_exec(
            *player,
            str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def _heard(chunk: int, length: int, began: float, seconds: float) -> tuple[int, int]:
    """Return the chunk and about how many of its characters have been played since it began."""
    share = (monotonic() - began) / seconds if seconds else 1.0
    return chunk, min(length, int(length * share))


def _seconds(sound: bytes) -> float:
    try:
        with wave.open(io.BytesIO(sound)) as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError):
        return 0.0
