"""GPT-SoVITS's two APIs on 9880."""

import pytest

from llm_service.errors import ConfigurationError, SpeechRejected
from llm_service.speech.gpt_sovits import GPTSoVITSSynthesizer, GPTSoVITSv2Synthesizer, Reference
from llm_service.speech.openai import OpenAISynthesizer
from tests.engines.fake_server import FakeServer
from tests.speech import doubles
from tests.speech.utterances import SENTENCE, TIMES, rendered

RECORDING = Reference("/workspace/welcome_cn.wav", "欢迎使用", "zh")


async def test_first_api(tts: FakeServer) -> None:
    """It is asked at `/` in its own language names, with the recording where all of it is given."""
    tts.answer = doubles.GPTSoVITS(reference=False)
    synthesizer = GPTSoVITSSynthesizer(tts.url, reference=RECORDING, **TIMES)

    data, rate = await rendered(synthesizer, format="pcm", language="en-US", speed=1.5)
    await synthesizer.aclose()

    assert (doubles.samples(rate=32_000), 32_000) == (data, rate)
    assert {
        "text": SENTENCE,
        "text_language": "en",
        "speed": 1.5,
        "refer_wav_path": RECORDING.path,
        "prompt_text": RECORDING.text,
        "prompt_language": "zh",
    } == tts.exchanges[0].json()


async def test_first_api_without_any_recording(tts: FakeServer) -> None:
    """Where neither side has a recording, its refusal is an error; a part of one is not sent."""
    tts.answer = doubles.GPTSoVITS(reference=False)
    synthesizer = GPTSoVITSSynthesizer(tts.url, reference=Reference(path="x.wav"), **TIMES)

    with pytest.raises(SpeechRejected, match="HTTP 400"):
        await rendered(synthesizer, language="de")
    await synthesizer.aclose()

    assert {"text": SENTENCE, "text_language": "auto", "speed": 1.0} == tts.exchanges[0].json()


async def test_first_api_by_openais_path(tts: FakeServer) -> None:
    """The fork in OPEA's image has /v1/audio/speech, too, and gives a WAV for whatever is asked."""
    tts.answer = doubles.GPTSoVITS()
    synthesizer = OpenAISynthesizer(f"{tts.url}/v1", model="tts-1", voice="alloy", **TIMES)

    _, rate = await rendered(synthesizer)
    await synthesizer.aclose()

    assert 32_000 == rate


async def test_api_v2_streams(tts: FakeServer) -> None:
    """A header of 44 bytes without a length, then raw samples."""
    tts.answer = doubles.GPTSoVITS()
    synthesizer = GPTSoVITSv2Synthesizer(tts.url, reference=RECORDING, **TIMES)

    data, rate = await rendered(synthesizer, format="pcm", language="ja")
    await synthesizer.aclose()

    assert (doubles.samples(rate=32_000), 32_000) == (data, rate)
    body = tts.exchanges[0].json()
    assert (True, "wav", "ja", RECORDING.path) == (
        body["streaming_mode"],
        body["media_type"],
        body["text_lang"],
        body["ref_audio_path"],
    )


def test_api_v2_needs_a_recording() -> None:
    """Its /tts refuses every request without one, so that the service says so at its start."""
    with pytest.raises(ConfigurationError, match="TTS_REFERENCE_AUDIO"):
        GPTSoVITSv2Synthesizer("http://localhost:9880", reference=Reference(), **TIMES)


async def test_probes_have_nothing_spoken(tts: FakeServer) -> None:
    """Neither is asked for `/`, which would have an empty text spoken and be answered by 500."""
    double = tts.answer = doubles.GPTSoVITS()
    for synthesizer in (
        GPTSoVITSSynthesizer(tts.url, reference=RECORDING, **TIMES),
        GPTSoVITSv2Synthesizer(tts.url, reference=RECORDING, **TIMES),
    ):
        await synthesizer.ping()
        await synthesizer.aclose()

    assert ["/health", "/health"] == [exchange.path for exchange in tts.exchanges]
    assert 0 == double.syntheses
