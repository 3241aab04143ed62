"""From what a TTS sends to what a client asked for."""

import importlib.util
import io
from typing import Any

import pytest

from llm_service.audio_format import AudioFormat
from llm_service.errors import SpeechFailed
from llm_service.speech import rendering as module
from llm_service.speech.audio import MAX_AUDIO_BYTES
from llm_service.speech.rendering import Rendering
from tests.speech.doubles import RATE, a_wav, read_wav, samples

HAS_AV = importlib.util.find_spec("av") is not None
MP3 = b"ID3\x04\0\0\0\0\0\0" + b"m" * 400


async def render(wanted: AudioFormat, *parts: bytes) -> list[tuple[bytes, int | None]]:
    given: list[tuple[bytes, int | None]] = []
    rendering = Rendering(wanted, lambda data, rate: given.append((data, rate)))
    for part in parts:
        rendering.feed(part)
    await rendering.finish()
    return given


async def test_samples_are_given_as_they_come() -> None:
    """A client of pcm hears the first part before the TTS has made the last."""
    given: list[bytes] = []
    rendering = Rendering("pcm", lambda data, rate: given.append(data))
    file = a_wav()

    rendering.feed(file[:1000])
    early = b"".join(given)
    rendering.feed(file[1000:])
    await rendering.finish()

    assert samples()[:956] == early
    assert samples() == b"".join(given)
    assert 0.1 == rendering.seconds


async def test_a_wav_is_given_whole_with_its_length() -> None:
    """A TTS that streams does not know the length; the client's file has it."""
    streamed = a_wav()[:40] + b"\xff\xff\xff\xff" + samples()

    ((file, rate),) = await render("wav", streamed[:30], streamed[30:])

    assert (RATE, samples()) == read_wav(file)
    assert RATE == rate


async def test_what_the_tts_has_itself_is_passed_on() -> None:
    """An MP3 that was asked for goes through as it comes, and tells its own rate."""
    assert [(MP3[:100], None), (MP3[100:], None)] == await render("mp3", MP3[:100], MP3[100:])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([b'{"code": 400, "message": "no reference"}'], "error in the place of audio"),
        ([b"<html>busy</html>"], "error in the place of audio"),
        ([b"{}"], "error in the place of audio"),
        ([b"\0\1\2\3" * 100], "no audio"),
        ([], "without audio"),
        ([a_wav(0)], "without audio"),
        ([a_wav()[:-100]], "broke off"),
        ([MP3], "mp3 in the place of wav"),
    ],
)
async def test_what_is_no_audio_is_told(parts: list[bytes], message: str) -> None:
    """An error document under HTTP 200, noise, nothing, half a file, another format: an error with words."""
    with pytest.raises(SpeechFailed, match=message):
        await render("wav", *parts)


async def test_a_tts_that_does_not_stop_is_stopped() -> None:
    """What one chunk may be is bounded."""
    with pytest.raises(SpeechFailed, match="more than"):
        await render("wav", a_wav(0), *[bytes(1_048_576)] * (MAX_AUDIO_BYTES // 1_048_576 + 1))


async def test_without_the_library_nothing_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WAV in the place of an MP3 is an error where PyAV is not installed."""
    monkeypatch.setattr(module, "can_convert", lambda: False)

    with pytest.raises(SpeechFailed, match="PyAV"):
        await render("mp3", a_wav())


@pytest.mark.skipif(not HAS_AV, reason="PyAV is not installed")
@pytest.mark.parametrize(("wanted", "begins"), [("mp3", (b"ID3", b"\xff")), ("opus", (b"OggS",))])
async def test_a_wav_is_converted(wanted: AudioFormat, begins: tuple[bytes, ...]) -> None:
    """A WAV becomes what was asked for, as long as it was."""
    import av

    ((file, rate),) = await render(wanted, a_wav(1.0))

    assert file.startswith(begins)
    assert rate is None
    opened: Any
    with av.open(io.BytesIO(file)) as opened:
        seconds = sum(frame.samples / frame.sample_rate for frame in opened.decode(audio=0))
    assert 0.95 < seconds < 1.1
