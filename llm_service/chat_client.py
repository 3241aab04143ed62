"""The client of `python main.py chat` and `bench`: one session, over the same WebSocket as every other client's."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Generator, Mapping
from pathlib import Path
from typing import IO, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.protocol import State

from llm_service.config import masked
from llm_service.playback import Playback

Event = dict[str, Any]

# In seconds: for the answer to anything but a question, and for the closing handshake.
REPLY_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
MAX_EVENT_BYTES = 16 * 1024 * 1024

# Control characters but newline and tab, bidirectional overrides, halves of surrogate pairs.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return a text that cannot steer the terminal it is shown in, whoever wrote it."""
    return _UNSAFE.sub("", str(text))


class ChatError(Exception):
    """What to tell the user instead of going on. `code` is the service's own, or what this client calls it."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class ChatClient:
    """One session with the service, on one connection at a time.

    `playback` has the answers' sound, after `speak`. A cancelled answer ends by the server's word, as any other: `ask`
    returns its event.
    """

    def __init__(self, url: str, *, api_key: str = "", config: Mapping[str, object] | None = None) -> None:
        """`config` is what start_session asks for."""
        self._url = url
        self._shown_url = masked(url)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._config = dict(config or {})
        self._numbers = itertools.count(1)
        self._socket: ClientConnection | None = None
        self.playback: Playback | None = None
        self.model = ""

    def speak(self, player: tuple[str, ...] | None, folder: Path) -> None:
        """Have the answers spoken: by a player's command, or as WAV files in `folder`. To be called before `open`."""
        self._config["speech"] = {"enabled": True, "format": "wav"}
        self._config["events"] = ["chunk", "audio"]
        self.playback = Playback(player, folder, self._acknowledge)

    async def open(self) -> bool:
        """Connect and start a session, unless there is a connection; returns whether it was made anew."""
        if self._socket is not None and self._socket.state is State.OPEN:
            return False
        try:
            # A proxy of the environment is for the web, not for a service the user named.
            self._socket = await connect(
                self._url,
                additional_headers=self._headers,
                max_size=MAX_EVENT_BYTES,
                close_timeout=CLOSE_TIMEOUT,
                compression=None,
                proxy=None,
            )
        except InvalidStatus as error:
            raise _refused(error) from None
        except InvalidURI:
            raise ChatError(
                f"{self._shown_url} is no address of a WebSocket, as ws://localhost:8000/ws/llm is", code="no_address"
            ) from None
        except (OSError, WebSocketException, TimeoutError):
            raise ChatError(
                f"no service answers at {self._shown_url}; start it with ./run-cpu.sh or 'python main.py websocket', "
                "or name another with --url",
                code="no_service",
            ) from None
        try:
            await self.reset()
        except ChatError:
            await self.aclose()
            raise
        return True

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            await self._socket.close()

    async def reset(self) -> None:
        """Start the session anew."""
        await self._send({"type": "start_session", "config": self._config})
        # A service that had greeted before this arrived answers that it configured the session.
        started = await self._reply({"session_started", "session_configured"})
        self.model = started.get("model", self.model)

    async def set_system_prompt(self, text: str | None) -> None:
        """Change the system prompt, or take the service's own; the conversation goes on."""
        await self._send({"type": "update_config", "config": {"system_prompt": text}})
        await self._reply({"session_configured"})
        self._config.pop("system_prompt", None)
        if text is not None:
            self._config["system_prompt"] = text

    async def cancel(self) -> None:
        """Ask the service to stop the running answer, and play no more of it."""
        if self.playback is not None:
            await self.playback.stop()
        await self._send({"type": "cancel"})

    async def ask(self, text: str, output: IO[str]) -> Event:
        """Send a message, write its answer as it comes and return the event that ended it."""
        last = "\n"

        def write(data: str) -> None:
            nonlocal last
            if piece := printable(data):
                last = piece
                output.write(piece)
                output.flush()

        try:
            return await self.stream(text, write)
        finally:
            if not last.endswith("\n"):
                output.write("\n")
                output.flush()

    async def stream(self, text: str, take: Callable[[str], None]) -> Event:
        """Send a message, hand over each piece of its answer as it comes and return the event that ended it.

        Of an answer that is spoken the sound is awaited as well, but not that it was heard.
        """
        number = str(next(self._numbers))
        if self.playback is not None:
            self.playback.begin()
        await self._send({"type": "user_message", "text": text, "id": number})
        end: Event | None = None
        while end is None or not self._sound_is_whole(end):
            event = await self._receive()
            if event["type"] == "token":
                take(str(event["data"]))
            elif _of_speech(event):
                if self.playback is not None:
                    self.playback.take(event)
            elif end is not None and event["type"] == "cancelled":
                return end  # of an answer whose text was over
            elif _ends(event, number):
                end = event
        return end

    def _sound_is_whole(self, end: Event) -> bool:
        return self.playback is None or end["type"] != "response_complete" or self.playback.whole

    async def _acknowledge(self, chunk: int, chars: int) -> None:
        await self._send({"type": "played", "chunk": chunk, "chars": chars})

    async def _reply(self, kinds: Collection[str]) -> Event:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                while True:
                    event = await self._receive()
                    if event["type"] in kinds:
                        return event
                    if event["type"] == "error":
                        raise ChatError(str(event["error"]["message"]), code=str(event["error"]["code"]))
        except TimeoutError:
            await self.aclose()
            raise ChatError(f"the service said nothing for {REPLY_TIMEOUT:g} seconds", code="no_reply") from None

    async def _send(self, message: Mapping[str, object]) -> None:
        if self._socket is None:
            raise ChatError("not connected", code="not_connected")
        # Of a connection that was closed meanwhile `_receive` tells, after what the service said before: why it closed.
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(json.dumps(message))

    async def _receive(self) -> Event:
        assert self._socket is not None
        with _closed_is_told():
            frame = await self._socket.recv()
        try:
            event: Event = json.loads(frame)
            return event | {"type": str(event["type"])}
        except (ValueError, TypeError, KeyError):
            raise ChatError(
                f"what {self._shown_url} says is not this protocol; is it the service's /ws/llm?", code="other_protocol"
            ) from None


def _of_speech(event: Event) -> bool:
    """Whether the event is about the sound alone: the text goes on, whatever it says."""
    error = event.get("error")
    return event["type"] in ("chunk", "audio") or (isinstance(error, dict) and error.get("category") == "speech")


def _ends(event: Event, number: str) -> bool:
    """Whether the event ends the answer of this number; what ended an earlier one may still be on its way."""
    if event["type"] == "error":
        # A message that was not understood was not given its number back, either.
        return event.get("id") in (None, number)
    return event["type"] in ("response_complete", "cancelled") and event.get("id") == number


@contextlib.contextmanager
def _closed_is_told() -> Generator[None, None, None]:
    try:
        yield
    except ConnectionClosed as closed:
        frame = closed.rcvd
        reason = f"{frame.code} {frame.reason}".strip() if frame is not None else "the connection broke"
        raise ChatError(f"the service closed the connection ({reason})", code="connection_closed") from None


def _refused(refusal: InvalidStatus) -> ChatError:
    status = refusal.response.status_code
    try:
        error = json.loads(refusal.response.body or b"")["error"]
        code, message = str(error["code"]), error["message"]
    except (ValueError, KeyError, TypeError):
        code, message = f"http_{status}", "is this its /ws/llm?"
    advice = "; give one with --api-key" if status == 401 else ""
    return ChatError(f"the service refused the connection with HTTP {status}: {message}{advice}", code=code)
