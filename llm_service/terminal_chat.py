"""A chat in the terminal."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from llm_service.chat_client import REPLY_TIMEOUT, ChatClient, ChatError, Event, printable

T = TypeVar("T")

HELP = """\
/system TEXT  set the system prompt; without TEXT, back to the service's own
/reset        forget the conversation
/stats        figures of the last answer
/help         this
/quit         leave (Ctrl-D does, too)
Ctrl-C stops an answer."""


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
        future = self._submit(self._client.ask(text, self._console.file))
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
            self._note_sound()
        elif event["type"] == "cancelled":
            self._note("stopped")
        else:
            self._complain(event["error"]["message"])

    def _note_sound(self) -> None:
        for line in told_of_sound(self._client):
            self._note(line)

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


def told_of_sound(client: ChatClient) -> list[str]:
    """Return what is to be said of how the last answer was spoken."""
    playback = client.playback
    if playback is None:
        return []
    lines = [f"not heard: {playback.failed}"] if playback.failed else []
    if playback.written:
        lines.append(f"no player was found; written: {', '.join(path.name for path in playback.written)}")
        playback.written.clear()
    return lines


async def ask_once(client: ChatClient, text: str, console: Console, errors: Console) -> int:
    """Ask one question, print the answer as it comes; returns the exit status."""
    try:
        await client.open()
        try:
            event = await client.ask(text, console.file)
            if client.playback is not None:
                await client.playback.finish()
        finally:
            await client.aclose()
    except ChatError as error:
        complain(errors, error)
        return 1
    if event["type"] == "response_complete":
        for line in told_of_sound(client):
            complain(errors, line)
        return 0
    complain(errors, event["error"]["message"] if event["type"] == "error" else "the answer was cut off")
    return 1
