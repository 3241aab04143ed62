"""A chat in the terminal, over the same WebSocket as every other client."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from rich.console import Console
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

T = TypeVar("T")

HELP = """[bold]/system TEXT[/]  set the system prompt
[bold]/reset[/]        forget the conversation
[bold]/stats[/]        figures of the last answer
[bold]/quit[/]         leave (Ctrl-D does, too)
Ctrl-C stops an answer."""

TERMINAL_EVENTS = frozenset({"response_complete", "cancelled", "error"})


class ChatError(Exception):
    """What to tell the user instead of going on."""


class ChatClient:
    """One session with the service.

    A cancelled answer ends by the server's word, as any other: `ask` returns its event.
    """

    def __init__(self, url: str, *, api_key: str = "", system_prompt: str | None = None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.system_prompt = system_prompt
        self.model = ""
        self._socket: ClientConnection | None = None

    async def open(self) -> None:
        """Connect, or connect again, and start a session."""
        try:
            # A proxy of the environment is for the web, not for a service the user named.
            self._socket = await connect(self._url, additional_headers=self._headers, max_size=None, proxy=None)
        except InvalidStatus as error:
            raise ChatError(_refusal(error)) from None
        except (OSError, InvalidHandshake, TimeoutError):
            raise ChatError(
                f"no service answers at {self._url}; start it with ./run-cpu.sh or 'python main.py websocket', or name "
                "another with --url"
            ) from None
        await self.reset()

    async def aclose(self) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def reset(self) -> None:
        """Start the session anew."""
        config = {} if self.system_prompt is None else {"system_prompt": self.system_prompt}
        await self._send({"type": "start_session", "config": config})
        started = await self._receive()
        if started["type"] == "error":
            raise ChatError(str(started["error"]["message"]))
        self.model = started.get("model", self.model)

    async def set_system_prompt(self, text: str) -> None:
        """Change the system prompt; the conversation goes on."""
        self.system_prompt = text
        await self._send({"type": "update_config", "config": {"system_prompt": text}})
        answer = await self._receive()
        if answer["type"] == "error":
            raise ChatError(str(answer["error"]["message"]))

    async def cancel(self) -> None:
        """Ask the service to stop the running answer."""
        await self._send({"type": "cancel"})

    async def ask(self, text: str, console: Console) -> dict[str, Any]:
        """Send a message, print its answer as it comes and return the event that ended it."""
        await self._send({"type": "user_message", "text": text})
        while True:
            event = await self._receive()
            if event["type"] == "token":
                console.print(event["data"], end="", markup=False, highlight=False, soft_wrap=True)
            elif event["type"] in TERMINAL_EVENTS:
                console.print()
                return event

    async def _send(self, message: Mapping[str, object]) -> None:
        if self._socket is None:
            raise ChatError("not connected")
        with _closed_is_told():
            await self._socket.send(json.dumps(message))

    async def _receive(self) -> dict[str, Any]:
        assert self._socket is not None
        with _closed_is_told():
            event: dict[str, Any] = json.loads(await self._socket.recv())
        return event


@contextlib.contextmanager
def _closed_is_told() -> Any:
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
    return f"the service refused the connection with HTTP {error.response.status_code}: {message}"


class Chat:
    """The loop of prompts; the connection lives in a thread of its own, so that pings are answered meanwhile."""

    def __init__(self, client: ChatClient, console: Console) -> None:
        self._client = client
        self._console = console
        self._loop = asyncio.new_event_loop()
        self._last_stats: dict[str, Any] | None = None

    def run(self) -> int:
        """Chat until the user leaves; returns the exit status."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        try:
            self._wait(self._client.open())
            self._console.print(f"[dim]{self._client.model or 'connected'} · /help for help[/]")
            while self._prompt():
                pass
            return 0
        except ChatError as error:
            self._console.print(f"[red]{error}[/]", highlight=False)
            return 1
        finally:
            with contextlib.suppress(ChatError, TimeoutError):
                self._wait(self._client.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def _prompt(self) -> bool:
        """Take one line; returns whether to go on."""
        try:
            line = self._console.input("[bold cyan]> [/]").strip()
        except KeyboardInterrupt:
            self._console.print("\n[dim]/quit leaves[/]")
            return True
        except EOFError:
            self._console.print()
            return False
        command, _, argument = line.partition(" ")
        match command:
            case "":
                pass
            case "/quit" | "/exit":
                return False
            case "/help":
                self._console.print(HELP)
            case "/reset":
                self._wait(self._client.reset())
                self._console.print("[dim]a new conversation[/]")
            case "/system":
                self._wait(self._client.set_system_prompt(argument.strip()))
                self._console.print("[dim]system prompt set[/]")
            case "/stats":
                self._show_stats()
            case _ if command.startswith("/"):
                self._console.print(f"[red]unknown command {command}[/]; /help lists them", highlight=False)
            case _:
                self._answer(line)
        return True

    def _answer(self, text: str) -> None:
        future = self._submit(self._client.ask(text, self._console))
        while True:
            try:
                event = _result(future)
                break
            except KeyboardInterrupt:
                self._submit(self._client.cancel())
        if event["type"] == "response_complete":
            self._last_stats = event["stats"]
        elif event["type"] == "cancelled":
            self._console.print("[dim]stopped[/]")
        else:
            self._console.print(f"[red]{event['error']['message']}[/]", highlight=False)

    def _show_stats(self) -> None:
        if self._last_stats is None:
            self._console.print("[dim]no answer yet[/]")
        else:
            self._console.print_json(data=self._last_stats)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return _result(self._submit(work))


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
        errors.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
        return 1
    if event["type"] == "error":
        errors.print(f"[red]{event['error']['message']}[/]", highlight=False, soft_wrap=True)
        return 1
    return 0
