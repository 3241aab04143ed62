"""The chat at a terminal: a pseudo-terminal, keys as a user presses them, and what stands on the screen."""

import asyncio
import contextlib
import itertools
import os
import pty
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from llm_service.engines.scripted import ScriptedEngine
from llm_service.generation import GenerationRequest
from tests.live import Live, live_service
from tests.processes import PATIENCE, ROOT, bare_environment

CTRL_C, CTRL_D = "\x03", "\x04"
# Makes the terminal at standard input the controlling one, so that Ctrl-C is a signal, and becomes the chat.
AT_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._screen = ""
        self._seen = 0

    async def sees(self, text: str) -> None:
        """Wait until the text stands behind what was seen before."""
        try:
            async with asyncio.timeout(PATIENCE):
                while (found := self._screen.find(text, self._seen)) < 0:
                    if not self._read():
                        await asyncio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"{text!r} was not seen; on the screen: {self._screen[self._seen :]!r}")
        self._seen = found + len(text)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    async def enter(self, line: str) -> None:
        """Wait for the prompt and enter a line."""
        await self.sees("> ")
        self.press(line + "\r")
        await self.sees("\n")

    async def ended(self) -> int:
        """Wait for the program's end; returns its exit status."""
        async with asyncio.timeout(PATIENCE):
            while self.process.poll() is None:
                self._read()
                await asyncio.sleep(0.005)
        return self.process.returncode

    @property
    def screen(self) -> str:
        """Everything that was written so far."""
        self._read()
        return self._screen

    def _read(self) -> bool:
        try:
            read = os.read(self._master, 65_536)
        except OSError:  # nothing to read now, or nobody writes any more
            return False
        self._screen += read.decode(errors="replace")
        return bool(read)


@contextlib.contextmanager
def terminal(folder: Path, *arguments: str) -> Iterator[Terminal]:
    """Run `main.py` with these arguments at a terminal."""
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", AT_THE_TERMINAL, sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=folder,
        env=bare_environment(TERM="xterm", HOME=str(folder)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def words(request: GenerationRequest) -> Iterator[str]:
    """Answer `long` without an end, anything else with the conversation's shape and an escape sequence."""
    system = [message.content for message in request.messages if message.role == "system"]
    if request.messages[-1].content == "long":
        yield from itertools.repeat("word ", 1_000_000)
    yield f"messages={len(request.messages)} "
    yield f"system={system}\x1b]0;stolen\x07"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(words, tokens_per_second=100, models=())


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    async with live_service(engine, {"SYSTEM_PROMPT": "Default."}) as running:
        yield running


async def test_a_conversation(tmp_path: Path, live: Live, engine: ScriptedEngine) -> None:
    """Questions are answered, Ctrl-C stops an answer and not the program, and every command does what it says."""
    with terminal(tmp_path, "chat", "--url", live.ws_url) as chat:
        await chat.sees("test · /help for help")
        await chat.enter("/stats")
        await chat.sees("no answer yet")
        await chat.enter("hello")
        await chat.sees("messages=2 system=['Default.']")
        await chat.enter("/system Be brief.")
        await chat.sees("system prompt set")
        await chat.enter("hello again")
        await chat.sees("messages=4 system=['Be brief.']")
        assert "\x1b]0;" not in chat.screen

        await chat.enter("long")
        await chat.sees("word word ")
        chat.press(CTRL_C)
        await chat.sees("stopped")
        async with asyncio.timeout(PATIENCE):
            while engine.running:
                await asyncio.sleep(0.001)

        await chat.enter("/reset")
        await chat.sees("a new conversation")
        await chat.enter("hello")
        await chat.sees("messages=2 system=['Be brief.']")
        await chat.enter("/system")
        await chat.sees("the service's own system prompt")
        await chat.enter("hello")
        await chat.sees("messages=4 system=['Default.']")
        await chat.enter("/stats")
        await chat.sees('"tokens_generated"')
        await chat.enter("/help")
        await chat.sees("/system TEXT")
        await chat.enter("/nonsense [/b]")
        await chat.sees("unknown command /nonsense; /help lists them")
        await chat.enter("")
        await chat.sees("> ")
        chat.press(CTRL_C)
        await chat.sees("/quit leaves")
        await chat.enter("/quit")
        assert 0 == await chat.ended()
        assert "Traceback" not in chat.screen


async def test_a_service_that_closes_and_goes(tmp_path: Path, engine: ScriptedEngine) -> None:
    """A closed connection is made anew at the next question, and that is said; a service that is gone is told of."""
    with terminal(tmp_path, "chat", "--url", "ws://127.0.0.1:1/") as chat:
        assert 1 == await chat.ended()
        assert "no service answers at ws://127.0.0.1:1/" in chat.screen
    async with live_service(engine, {"SESSION_TIMEOUT": "1"}) as live:
        with terminal(tmp_path, "chat", "--url", live.ws_url) as chat:
            await chat.sees("/help for help")
            async with asyncio.timeout(PATIENCE):
                while live.service.connections:
                    await asyncio.sleep(0.01)
            await chat.enter("hello")
            await chat.sees("connected again: a new conversation")
            await chat.sees("messages=2")
            await chat.sees("> ")
            live.server.should_exit = True
            async with asyncio.timeout(PATIENCE):
                while live.service.connections or live.server.servers[0].is_serving():
                    await asyncio.sleep(0.01)
            chat.press("hello\r")
            await chat.sees("no service answers at")
            await chat.sees("> ")
            chat.press(CTRL_D)
            assert 0 == await chat.ended()
            assert "Traceback" not in chat.screen
