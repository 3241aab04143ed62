"""A chat in the terminal, over the same WebSocket as every other client."""

import asyncio
import contextlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Collection, Coroutine, Generator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.protocol import State

T = TypeVar("T")
Event = dict[str, Any]

# Seconds for the answer to anything but a question.
REPLY_TIMEOUT = 10.0
MAX_EVENT_BYTES = 16 * 1024 * 1024

HELP = """\
/system TEXT  set the system prompt; without TEXT, back to the service's own
/reset        forget the conversation
/stats        figures of the last answer
/help         this
/quit         leave (Ctrl-D does, too)
Ctrl-C stops an answer."""

# Control characters but newline and tab, bidirectional overrides, halves of surrogate pairs.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return a text that cannot steer the terminal it is shown in, whoever wrote it."""
    return _UNSAFE.sub("", str(text))


class ChatError(Exception):
    """What to tell the user instead of going on."""


class ChatClient:
    """One session with the service, on one connection at a time.

    A cancelled answer ends by the server's word, as any other: `ask` returns its event.
    """

    def __init__(self, url: str, *, api_key: str = "", system_prompt: str | None = None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._system_prompt = system_prompt
        self._numbers = itertools.count(1)
        self._socket: ClientConnection | None = None
        self.model = ""

    async def open(self) -> bool:
        """Connect and start a session, unless there is a connection; returns whether it was made anew."""
        if self._socket is not None and self._socket.state is State.OPEN:
            return False
        try:
            # A proxy of the environment is for the web, not for a service the user named.
            self._socket = await connect(
                self._url, additional_headers=self._headers, max_size=MAX_EVENT_BYTES, compression=None, proxy=None
            )
        except InvalidStatus as error:
            raise ChatError(_refusal(error)) from None
        except InvalidURI:
            raise ChatError(f"{self._url} is no address of a WebSocket, as ws://localhost:8000/ws/llm is") from None
        except (OSError, WebSocketException, TimeoutError):
            raise ChatError(
                f"no service answers at {self._url}; start it with ./run-cpu.sh or 'python main.py websocket', or name "
                "another with --url"
            ) from None
        await self.reset()
        return True

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            await self._socket.close()

    async def reset(self) -> None:
        """Start the session anew."""
        config = {} if self._system_prompt is None else {"system_prompt": self._system_prompt}
        await self._send({"type": "start_session", "config": config})
        # A service that had greeted before this arrived answers that it configured the session.
        started = await self._reply({"session_started", "session_configured"})
        self.model = started.get("model", self.model)

    async def set_system_prompt(self, text: str | None) -> None:
        """Change the system prompt, or take the service's own; the conversation goes on."""
        self._system_prompt = text
        await self._send({"type": "update_config", "config": {"system_prompt": text}})
        await self._reply({"session_configured"})

    async def cancel(self) -> None:
        """Ask the service to stop the running answer."""
        await self._send({"type": "cancel"})

    async def ask(self, text: str, console: Console) -> Event:
        """Send a message, print its answer as it comes and return the event that ended it."""
        number = str(next(self._numbers))
        await self._send({"type": "user_message", "text": text, "id": number})
        printed = ""
        try:
            while True:
                event = await self._receive()
                if event["type"] == "token":
                    printed = printable(event["data"]) or printed
                    console.file.write(printable(event["data"]))
                    console.file.flush()
                elif _ends(event, number):
                    return event
        finally:
            if printed and not printed.endswith("\n"):
                console.file.write("\n")
                console.file.flush()

    async def _reply(self, kinds: Collection[str]) -> Event:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                while True:
                    event = await self._receive()
                    if event["type"] in kinds:
                        return event
                    if event["type"] == "error":
                        raise ChatError(str(event["error"]["message"]))
        except TimeoutError:
            await self.aclose()
            raise ChatError(f"the service said nothing for {REPLY_TIMEOUT:g} seconds") from None

    async def _send(self, message: Mapping[str, object]) -> None:
        if self._socket is None:
            raise ChatError("not connected")
        with _closed_is_told():
            await self._socket.send(json.dumps(message))

    async def _receive(self) -> Event:
        assert self._socket is not None
        with _closed_is_told():
            frame = await self._socket.recv()
        try:
            event: Event = json.loads(frame)
            return event | {"type": str(event["type"])}
        except (ValueError, TypeError, KeyError):
            raise ChatError(f"what {self._url} says is not this protocol; is it the service's /ws/llm?") from None


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
        raise ChatError(f"the service closed the connection ({reason})") from None


def _refusal(error: InvalidStatus) -> str:
    try:
        message = json.loads(error.response.body or b"")["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "is this its /ws/llm?"
    advice = "; put the key into API_KEYS" if error.response.status_code == 401 else ""
    return f"the service refused the connection with HTTP {error.response.status_code}: {message}{advice}"


class Chat:
    """The loop of prompts; the connection lives in a thread of its own, so that pings are answered meanwhile."""

    def __init__(self, client: ChatClient, console: Console) -> None:
        self._client = client
        self._console = console
        self._loop = asyncio.new_event_loop()
        self._last_stats: Event | None = None

    def run(self) -> int:
        """Chat until the user leaves; returns the exit status."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        try:
            self._wait(self._client.open())
            self._note(f"{self._client.model or 'connected'} · /help for help")
            while self._take_line():
                pass
            return 0
        except ChatError as error:
            self._complain(error)
            return 1
        finally:
            with contextlib.suppress(ChatError, TimeoutError):
                self._submit(self._client.aclose()).result(timeout=REPLY_TIMEOUT)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def _take_line(self) -> bool:
        """Read one line and do what it says; returns whether to go on."""
        try:
            line = input(_prompt()).strip()
        except KeyboardInterrupt:
            self._note("\n/quit leaves")
            return True
        except EOFError:
            self._console.print()
            return False
        except UnicodeDecodeError:
            self._complain("that line was no text in UTF-8")
            return True
        if line in ("/quit", "/exit"):
            return False
        try:
            self._obey(line)
        except ChatError as error:
            # The next line connects again.
            self._complain(error)
        except KeyboardInterrupt:
            self._complain("interrupted")
            self._wait(self._client.aclose())
        return True

    def _obey(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        match command:
            case "":
                pass
            case "/help":
                self._note(HELP)
            case "/stats":
                self._show_stats()
            case "/reset":
                if not self._connect():
                    self._wait(self._client.reset())
                    self._note("a new conversation")
            case "/system":
                self._connect()
                self._wait(self._client.set_system_prompt(argument.strip() or None))
                self._note("system prompt set" if argument.strip() else "the service's own system prompt")
            case _ if command.startswith("/"):
                self._complain(f"unknown command {command}; /help lists them")
            case _:
                self._connect()
                self._answer(line)

    def _connect(self) -> bool:
        """Connect again if the connection is gone; returns whether it was."""
        anew = self._wait(self._client.open())
        if anew:
            self._note("connected again: a new conversation")
        return anew

    def _answer(self, text: str) -> None:
        future = self._submit(self._client.ask(text, self._console))
        cancelled = False
        while True:
            try:
                event = _result(future)
                break
            except KeyboardInterrupt:
                # A service that does not even hear the cancel is left by the second one.
                self._submit(self._client.aclose() if cancelled else self._client.cancel())
                cancelled = True
        if event["type"] == "response_complete":
            self._last_stats = event["stats"]
        elif event["type"] == "cancelled":
            self._note("stopped")
        else:
            self._complain(event["error"]["message"])

    def _show_stats(self) -> None:
        if self._last_stats is None:
            self._note("no answer yet")
        else:
            self._console.print_json(data=self._last_stats, ensure_ascii=True)

    def _note(self, text: str) -> None:
        self._console.print(Text(printable(text), style="dim"), soft_wrap=True)

    def _complain(self, message: object) -> None:
        complain(self._console, message)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return _result(self._submit(work))


def complain(console: Console, message: object) -> None:
    """Say what went wrong; nothing in it is markup."""
    console.print(Text(printable(message), style="red"), soft_wrap=True)


def _prompt() -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "> "
    try:
        import readline  # noqa: F401 - line editing and history, where there is such a thing
    except ImportError:
        return "> "
    # readline is told that colours take no room on the line.
    return "\001\x1b[1;36m\002> \001\x1b[0m\002"


def _result(future: "Future[T]") -> T:
    # A wait without a limit cannot be interrupted by Ctrl-C on every platform.
    while True:
        with contextlib.suppress(TimeoutError):
            return future.result(timeout=0.2)
        if future.done():
            return future.result()


async def ask_once(client: ChatClient, text: str, console: Console, errors: Console) -> int:
    """Ask one question, print the answer as it comes; returns the exit status."""
    try:
        await client.open()
        try:
            event = await client.ask(text, console)
        finally:
            await client.aclose()
    except ChatError as error:
        complain(errors, error)
        return 1
    if event["type"] == "response_complete":
        return 0
    complain(errors, event["error"]["message"] if event["type"] == "error" else "the answer was cut off")
    return 1
