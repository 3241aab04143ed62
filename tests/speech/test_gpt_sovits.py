"""GPT-SoVITS's two APIs on 9880."""

import asyncio
import base64

import pytest

from llm_service.audio_format import AudioFormat
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import ConfigurationError, SpeechRejected
from llm_service.speech.gpt_sovits import GPTSoVITSSynthesizer, GPTSoVITSv2Synthesizer, Reference
from llm_service.speech.openai import OPEASynthesizer, OpenAISynthesizer
from tests.engines.fake_server import FakeServer
from tests.live import live_service, receive, send, start
from tests.speech import doubles
from tests.speech.doubles import read_wav
from tests.speech.utterances import SENTENCE, TIMES, rendered

RECORDING = Reference("/workspace/welcome_cn.wav", "欢迎使用", "zh")


async def test_first_api(tts: FakeServer) -> None:
    """It is asked at `/` in its own language names, with the recording where all of it is given."""
    tts.answer = doubles.GPTSoVITS(reference=False)
    synthesizer = GPTSoVITSSynthesizer(tts.url, reference=RECORDING, **TIMES)

    data, rate = await rendered(synthesizer, format="pcm", language="en-US", speed=1.5)
    await synthesizer.aclose()

    assert (doubles.samples(0.1 / 1.5, rate=32_000), 32_000) == (data, rate)
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


@pytest.mark.parametrize("wanted", ["pcm", "wav"])
async def test_the_forks_speech_path_is_opeas(tts: FakeServer, wanted: AudioFormat) -> None:
    """The fork in OPEA's image has /v1/audio/speech, too, and gives a WAV for whatever is asked: it is an `opea`."""
    tts.answer = doubles.GPTSoVITS(fork=True)
    synthesizer = OPEASynthesizer(tts.url, **TIMES)

    data, rate = await rendered(synthesizer, format=wanted, speed=2.0, language="de")
    await synthesizer.aclose()

    assert (doubles.samples(0.05, rate=32_000), 32_000) == ((data if wanted == "pcm" else read_wav(data)[1]), rate)
    assert {"input": SENTENCE, "response_format": "wav", "speed": 2.0} == tts.exchanges[0].json()


async def test_the_forks_speech_path_by_openais_kind(tts: FakeServer) -> None:
    """As an `openai` it speaks as well, though it knows neither the model nor the voice."""
    tts.answer = doubles.GPTSoVITS(fork=True)
    synthesizer = OpenAISynthesizer(f"{tts.url}/v1", model="tts-1", voice="alloy", **TIMES)

    _, rate = await rendered(synthesizer)
    await synthesizer.aclose()

    assert 32_000 == rate


@pytest.mark.parametrize(
    ("double", "status"),
    [(doubles.GPTSoVITS(fork=True, reference=False), 400), (doubles.GPTSoVITS(), 404)],
    ids=["no recording", "not the fork"],
)
async def test_the_forks_speech_path_refuses(tts: FakeServer, double: doubles.GPTSoVITS, status: int) -> None:
    """It needs a recording of the process's own, and the fork: the error names the status, and what to look at."""
    tts.answer = double
    synthesizer = OPEASynthesizer(tts.url, **TIMES)

    with pytest.raises(SpeechRejected, match=rf"HTTP {status}.*(voice|TTS_ENDPOINTS)"):
        await rendered(synthesizer)
    await synthesizer.aclose()

    assert 0 == double.syntheses


@pytest.mark.parametrize("kind", ["gpt_sovits", "opea"])
async def test_a_session_is_spoken_by_the_fork(tts: FakeServer, kind: str) -> None:
    """By either of its paths, with both probes answered and nothing spoken for them."""
    double = tts.answer = doubles.GPTSoVITS(fork=True)
    answer = ["Well, ", "good ", "morning ", "to ", "you. ", "And ", "good ", "night."]
    scripted = ScriptedEngine(lambda _: answer, tokens_per_second=5000.0, models=())
    async with live_service(scripted, {"TTS_ENDPOINTS": f"{kind}={tts.url}"}) as live, live.connect() as socket:
        await live.service.speech.check()
        await start(socket, speech={"enabled": True, "format": "pcm"}, events=["chunk", "audio"])
        await send(socket, "user_message", text="Hello")
        sound, spoken, over = b"", 0, False
        async with asyncio.timeout(20):
            while spoken or not over:
                event = await receive(socket)
                spoken += event["type"] == "chunk"
                if event["type"] == "audio":
                    sound += base64.b64decode(event.get("data", ""))
                    spoken -= event.get("last", False)
                over = over or event["type"] == "response_complete"
        healthy = [endpoint.healthy for endpoint in live.service.speech.all]

    assert [True] == healthy
    assert doubles.samples(rate=32_000) * double.syntheses == sound
    assert double.syntheses


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
