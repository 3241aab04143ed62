"""espeak-ng: real audio where it is installed, and what becomes of its process."""

import asyncio
import stat
from pathlib import Path

import psutil
import pytest

from llm_service.errors import SpeechRejected, SpeechTimeout, SpeechUnavailable
from llm_service.speech.base import Utterance
from llm_service.speech.espeak import EspeakSynthesizer
from tests.speech.utterances import SENTENCE, rendered, spoken


@pytest.mark.espeak
@pytest.mark.parametrize(("language", "text"), [("en", SENTENCE), ("de", "Guten Tag."), ("fr-FR", "Bonjour à tous.")])
async def test_it_speaks(espeak_program: str, language: str, text: str) -> None:
    """A sentence becomes about as much audio as somebody would take to say it."""
    espeak = EspeakSynthesizer(voice="", silence=10.0, program=espeak_program)

    data, rate = await rendered(espeak, text, format="pcm", language=language)

    assert 22_050 == rate
    assert 0.3 < len(data) / 2 / 22_050 < 5
    assert any(data[44:])


@pytest.mark.espeak
async def test_speed_and_voice_are_passed_on(espeak_program: str) -> None:
    """Twice as fast is about half as long, and a name that it does not know is an error."""
    espeak = EspeakSynthesizer(voice="en-gb", silence=10.0, program=espeak_program)
    slow, _ = await rendered(espeak, format="pcm", speed=1.0)
    fast, _ = await rendered(espeak, format="pcm", speed=2.0)

    assert 0.35 < len(fast) / len(slow) < 0.75
    with pytest.raises(SpeechRejected, match="may not have the voice"):
        await rendered(espeak, voice="zzzz")


@pytest.mark.espeak
async def test_markup_and_options_are_text(espeak_program: str) -> None:
    """What looks like an option or like markup is spoken, and does nothing."""
    espeak = EspeakSynthesizer(voice="", silence=10.0, program=espeak_program)

    data, _ = await rendered(espeak, "--version <speak>&amp;", format="pcm")

    assert len(data) > 10_000


@pytest.mark.espeak
async def test_brackets_hold_no_phonemes(espeak_program: str) -> None:
    """What stands between double brackets is read as it is anywhere else, however many there are."""
    espeak = EspeakSynthesizer(voice="", silence=10.0, program=espeak_program)

    for bracketed, apart in (("[[the end]]", "[ [the end]]"), ("[[[the end]]]", "[ [ [the end]]]")):
        assert await rendered(espeak, apart, format="pcm") == await rendered(espeak, bracketed, format="pcm")


def script(folder: Path, text: str) -> str:
    path = folder / "fake-espeak"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_cancel_kills_its_process(tmp_path: Path) -> None:
    """Nothing runs on, and nothing is left of it, when nobody wants to hear it any more."""
    others = psutil.Process().children()  # of other tests
    espeak = EspeakSynthesizer(voice="", silence=30.0, program=script(tmp_path, "echo ready; exec sleep 60"))
    heard = asyncio.Event()
    task = asyncio.create_task(espeak.synthesize(Utterance(text=SENTENCE), lambda _: heard.set()))
    async with asyncio.timeout(10):
        await heard.wait()
    (process,) = set(psutil.Process().children()) - set(others)

    task.cancel()
    await asyncio.wait([task], timeout=10)

    assert task.cancelled()
    assert not process.is_running()


@pytest.mark.parametrize(("body", "error"), [("exit 1", SpeechRejected), ("exec sleep 60", SpeechTimeout)])
async def test_a_program_that_fails_or_hangs(tmp_path: Path, body: str, error: type[Exception]) -> None:
    """Its status and its silence are errors, and its process is gone."""
    others = psutil.Process().children()  # of other tests
    espeak = EspeakSynthesizer(voice="", silence=0.3, program=script(tmp_path, body))

    with pytest.raises(error):
        await spoken(espeak)

    assert others == psutil.Process().children()


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """It is told how to have it, by the probe and by the first utterance."""
    espeak = EspeakSynthesizer(voice="", silence=1.0, program=str(tmp_path / "none"))

    for work in (espeak.ping(), spoken(espeak)):
        with pytest.raises(SpeechUnavailable, match="apt-get install espeak-ng"):
            await work
