"""The client that docs/speech.md shows, run as it is printed."""

import asyncio
import os
import re
import sys
import wave
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from benchmarks.paced_tts import CHARACTERS_PER_SECOND, RATE, paced_tts
from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, live_service
from tests.processes import PATIENCE, ROOT

ANSWER = "Well, this is what it says. And this is the end of it."


@pytest.fixture
async def speaking() -> AsyncGenerator[Live, None]:
    """A service with a fast TTS."""
    engine = ScriptedEngine(lambda _: re.findall(r"\S+\s*", ANSWER), tokens_per_second=500.0, models=())
    async with (
        paced_tts(0.1) as tts,
        live_service(engine, {"TTS_ENDPOINTS": f"openai=http://127.0.0.1:{tts.port}/v1"}) as live,
    ):
        yield live


async def run(live: Live, folder: Path) -> tuple[int, str]:
    """Run the printed client in a folder, whose programs alone it finds; returns its status and what it printed."""
    page = (ROOT / "docs/speech.md").read_text(encoding="utf-8")
    [client] = re.findall(r"```python\n([^`]*sync\.client[^`]*)```", page)
    assert "localhost:8000" in client
    program = folder / "hear.py"
    program.write_text(client.replace("localhost:8000", f"127.0.0.1:{live.port}"), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", program, "Why?"),
        cwd=folder,
        env={"PATH": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def right(sound_bytes: int) -> bool:
    """Whether so many bytes are the answer's sound, but for the white space between chunks."""
    seconds = len(ANSWER) / CHARACTERS_PER_SECOND
    return 0.9 * seconds <= sound_bytes / 2 / RATE <= seconds


async def test_it_writes_a_file(speaking: Live, tmp_path: Path) -> None:
    """Where there is no player, the answer is read, and its sound is in answer.wav."""
    status, output = await run(speaking, tmp_path)
    assert (0, ANSWER) == (status, output.strip())
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert (1, 2, RATE) == file.getparams()[:3]
        assert right(2 * file.getnframes())


async def test_it_plays(speaking: Live, tmp_path: Path) -> None:
    """A player gets all of the sound, and the client ends when it has played."""
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" >asked\nPATH={os.environ["PATH"]} exec cat >heard\n', encoding="utf-8")
    player.chmod(0o755)
    status, output = await run(speaking, tmp_path)
    assert (0, ANSWER) == (status, output.strip())
    assert f"-q -t raw -f S16_LE -r {RATE}" == (tmp_path / "asked").read_text().strip()
    assert right((tmp_path / "heard").stat().st_size)
    assert not (tmp_path / "answer.wav").exists()


async def test_it_says_what_went_wrong(tmp_path: Path) -> None:
    """An error ends it, with the service's words: here there is no TTS."""
    async with live_service(ScriptedEngine()) as live:
        status, output = await run(live, tmp_path)
    assert 1 == status
    assert "set TTS_ENDPOINTS" in output
