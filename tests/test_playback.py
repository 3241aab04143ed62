"""The sound of a chat: played, written, acknowledged, stopped."""

import asyncio
import base64
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_service.chat_client import ChatClient
from llm_service.engines.scripted import ScriptedEngine
from llm_service.playback import Playback, found_player
from llm_service.speech.audio import wav_header
from tests.engines.fake_server import fake_server
from tests.live import live_service
from tests.speech import doubles
from tests.speech.doubles import a_wav, read_wav


class Acks:
    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    async def __call__(self, chunk: int, chars: int) -> None:
        self.heard.append((chunk, chars))


def player(folder: Path, does: str) -> tuple[str, ...]:
    """Make a player that does this with the file that it is given."""
    path = folder / "player"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path),)


def chunk(number: int, text: str = "Hello.") -> dict[str, Any]:
    return {"type": "chunk", "id": number, "text": text, "start": 0, "end": 0}


def audio(number: int, data: bytes, *, last: bool = False) -> dict[str, Any]:
    return {"type": "audio", "chunk": number, "data": base64.b64encode(data).decode(), "last": last}


def hand_over(playback: Playback, *numbers: int, sound: bytes = a_wav()) -> None:
    for number in numbers:
        playback.take(chunk(number))
        playback.take(audio(number, sound[:100]))
        playback.take(audio(number, sound[100:]))
        playback.take({"type": "audio", "chunk": number, "last": True})


async def test_chunks_are_played_in_order_and_acknowledged(tmp_path: Path) -> None:
    """Each file is whole, one plays after the other, and the service hears what was heard."""
    acks = Acks()
    playback = Playback(player(tmp_path, f'cat "$1" >>{tmp_path}/played'), tmp_path, acks)
    playback.begin()
    playback.take(chunk(7, text=""))
    hand_over(playback, 1, 2)
    await playback.finish()

    assert a_wav() * 2 == (tmp_path / "played").read_bytes()
    assert [(1, 6), (2, 6)] == acks.heard
    assert playback.whole


async def test_without_a_player_files_are_written(tmp_path: Path) -> None:
    """Their names are counted on, and told."""
    playback = Playback(None, tmp_path, Acks())
    hand_over(playback, 1)
    playback.begin()
    hand_over(playback, 2)

    assert ["speech-001.wav", "speech-002.wav"] == [path.name for path in playback.written]
    assert (doubles.RATE, doubles.samples()) == read_wav(playback.written[1].read_bytes())


async def test_an_answer_is_whole_with_its_last_sound(tmp_path: Path) -> None:
    """A chunk whose sound is under way keeps it from being so, and a failure makes it so."""
    playback = Playback(None, tmp_path, Acks())
    assert playback.whole
    playback.take(chunk(1))
    playback.take(audio(1, a_wav()))
    unheard = not playback.whole
    playback.take({"type": "error", "error": {"message": "the TTS broke", "category": "speech"}})
    assert (True, True) == (unheard, playback.whole)
    playback.begin()
    assert ("", True) == (playback.failed, playback.whole)


async def test_stopping_is_at_once(tmp_path: Path) -> None:
    """The player is killed, what waits is dropped, and about what was heard of the chunk is acknowledged."""
    acks, others = Acks(), psutil.Process().children()
    playback = Playback(player(tmp_path, "exec sleep 60"), tmp_path, acks)
    hand_over(playback, 1, 2, sound=wav_header(8000, 16_000 * 1000))  # a thousand seconds, it says
    async with asyncio.timeout(10):
        while len(psutil.Process().children()) == len(others):
            await asyncio.sleep(0.001)

    await playback.stop()

    assert others == psutil.Process().children(), "those of other tests"
    assert [(1, 0)] == acks.heard


def test_a_player_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that is installed is taken; with none there is none."""
    monkeypatch.setattr("shutil.which", lambda name: name if name in ("aplay", "play") else None)
    assert ("aplay", "-q") == found_player()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert found_player() is None


async def test_a_chat_that_is_heard(tmp_path: Path) -> None:
    """The client asks for speech, waits for all of the sound, and tells of a TTS that failed."""
    engine = ScriptedEngine(lambda _: ["Good morning. ", "How are you?"], tokens_per_second=1e5, models=())
    async with fake_server() as tts:
        tts.answer = doubles.openai
        async with live_service(engine, {"TTS_ENDPOINTS": f"openai={tts.url}/v1"}) as live:
            client = ChatClient(live.ws_url)
            client.speak(None, tmp_path)
            await client.open()
            first = await client.stream("Hello", lambda _: None)
            assert client.playback is not None
            written = len(client.playback.written)
            tts.answer = doubles.OPEA(backend_fails=True)
            second = await client.stream("Hello", lambda _: None)
            await client.aclose()

    assert "response_complete" == first["type"] == second["type"]
    assert written == len(list(tmp_path.glob("*.wav"))) >= 1
    assert "TTS" in client.playback.failed
