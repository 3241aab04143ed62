"""FastTalk TTS's WebSocket: `{text, lang, voice, speed, format}` in; progress, then the path of a file on its disk out.

No audio comes over its wire and it knows no cancel. The file is read where TTS_FILES says: from a folder that is the
TTS's output folder mounted here, or from a URL that serves it.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from llm_service.audio_format import AudioFormat
from llm_service.engines.http1 import drop
from llm_service.engines.transport import display_name
from llm_service.errors import ConfigurationError, SpeechFailed, SpeechRejected, SpeechTimeout, SpeechUnavailable
from llm_service.speech.base import Kind, TakeAudio, Utterance, without_credentials
from llm_service.speech.client import SpeechClient
from llm_service.speech.reaching import reach

MAX_FILE_BYTES = 16_777_216
_MAX_MESSAGE_BYTES = 65_536
# It reads nothing while it speaks for somebody else, and the sound waits for its goodbye.
_CLOSE_SECONDS = 0.1
# The path is the TTS's word; of it nothing but the last part is used, and that must be a plain name.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


class _Connection(connect):
    """Goes where it was told to: who answers with a redirect must not choose who gets the text."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Follow none."""
        return exc


class FastTalkSynthesizer:
    """A FastTalk TTS at `url`, ws:// or wss://; `files` is a folder or an http URL.

    Raises:
        ConfigurationError: there is no such folder or URL, and so no way to its audio.
    """

    kind: Kind = "fasttalk"
    formats: frozenset[AudioFormat] = frozenset({"pcm", "wav", "mp3"})

    def __init__(self, url: str, *, files: str, voice: str, connect_timeout: float, silence: float) -> None:
        """`voice` is the one for sessions that name none; empty: the TTS's own. Times in seconds."""
        self._url = url
        self._voice = voice
        self._connect_timeout = connect_timeout
        self._silence = silence
        self.address, self.url = display_name("FastTalk TTS", url), without_credentials(url)
        self._folder: Path | None = None
        self._client: SpeechClient | None = None
        if files.startswith(("http://", "https://")):
            self._client = SpeechClient(
                "the files of FastTalk TTS", files, connect_timeout=connect_timeout, silence=silence
            )
        elif files and Path(files).is_dir():
            self._folder = Path(files)
        else:
            there = f"TTS_FILES={files} is no folder here" if files else "TTS_FILES is empty"
            raise ConfigurationError(
                f"FastTalk TTS answers with the path of a file on its own disk, and {there}: mount its output folder "
                "here and name the folder, or serve it by HTTP and name the URL"
            )

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over once it is whole.

        Raises:
            SpeechError: it could not be had.
        """
        take(await self._fetch(await self._ask(utterance)))

    async def ping(self) -> None:
        """Connect, and ask for nothing.

        Raises:
            SpeechUnavailable: nobody listens there.
        """
        await reach(self._url, self.address, timeout=self._connect_timeout)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, utterance: Utterance) -> str:
        """Have it spoken; return the name of the file."""
        request: dict[str, object] = {
            "text": utterance.text,
            "speed": utterance.speed,
            "format": "mp3" if utterance.format == "mp3" else "wav",
        }
        if voice := utterance.voice or self._voice:
            request["voice"] = voice
        if utterance.language:
            request["lang"] = _language(utterance.language)
        try:
            # One connection an utterance: closing it is all the cancel there is.
            async with _Connection(
                self._url,
                open_timeout=self._connect_timeout,
                close_timeout=_CLOSE_SECONDS,
                max_size=_MAX_MESSAGE_BYTES,
                compression=None,
                proxy=None,
            ) as socket:
                try:
                    await socket.send(json.dumps(request))
                    return await self._answer(socket)
                except asyncio.CancelledError:
                    drop(socket.transport)  # a closing handshake would have it speak on
                    raise
        except ConnectionClosed as closed:
            busy = closed.rcvd is not None and closed.rcvd.code == 1013
            raise SpeechUnavailable(f"{self.address} {'is busy' if busy else 'broke the connection'}") from None
        except InvalidStatus as refused:
            status = refused.response.status_code
            raise SpeechUnavailable(
                f"{self.address} redirects elsewhere (HTTP {status}): put the final URL into TTS_ENDPOINTS"
                if 300 <= status < 400
                else f"{self.address} takes no WebSocket (HTTP {status}): check TTS_ENDPOINTS"
            ) from None
        except (OSError, WebSocketException, TimeoutError):
            raise SpeechUnavailable(f"{self.address} can't be connected to; check that it runs") from None

    async def _answer(self, socket: ClientConnection) -> str:
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    message = _decoded(await socket.recv())
            except TimeoutError:
                raise SpeechTimeout(f"{self.address} said nothing for {self._silence:g} seconds") from None
            match message.get("status"):
                case "progress":
                    continue
                case "ok":
                    return str(message.get("file", ""))
                case "error":
                    # Its message is a Python exception's, and may hold the text.
                    raise SpeechRejected(
                        f"{self.address} refused the chunk: see its log; voice and language may be unknown"
                    )
                case _:
                    raise SpeechFailed(f"{self.address} said something that is not its protocol")

    async def _fetch(self, file: str) -> bytes:
        name = file.replace("\\", "/").rpartition("/")[2]
        if not _NAME.fullmatch(name):
            raise SpeechFailed(f"{self.address} answered with no name of a file")
        if self._client is not None:
            try:
                return await self._client.get(f"/{quote(name)}")
            except SpeechRejected:
                raise SpeechFailed(f"the file that {self.address} names is not at TTS_FILES") from None
        assert self._folder is not None
        return await asyncio.to_thread(_read, self._folder / name, self.address)


def _language(tag: str) -> str:
    """Return Kokoro's name of a language: en-us where the region is not told."""
    return "en-us" if tag.lower() == "en" else tag.lower()


def _decoded(message: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path, address: str) -> bytes:
    try:
        # A link in the folder could lead anywhere.
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise SpeechFailed(f"the file that {address} names is not in TTS_FILES, or is no ordinary file")
        return path.read_bytes()
    except OSError as error:
        raise SpeechFailed(f"the file that {address} names cannot be read in TTS_FILES: {error.strerror}") from None
