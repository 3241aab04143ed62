"""OpenAI's speech API, and OPEA's on 9088."""

import asyncio

import pytest

from llm_service.audio_format import AudioFormat
from llm_service.errors import SpeechFailed, SpeechRejected, SpeechTimeout, SpeechUnavailable
from llm_service.speech.base import Utterance
from llm_service.speech.openai import OPEASynthesizer, OpenAISynthesizer
from tests.engines.fake_server import Exchange, FakeServer
from tests.processes import free_port
from tests.speech import doubles
from tests.speech.utterances import SENTENCE, TIMES, rendered, spoken


def openai(url: str) -> OpenAISynthesizer:
    return OpenAISynthesizer(f"{url}/v1", model="tts-1", voice="alloy", api_key="secret-key", **TIMES)


async def test_the_request_is_the_stock_clients(tts: FakeServer) -> None:
    """OpenAI's own Python client asks for the same: method, path, key and body."""
    sdk = pytest.importorskip("openai")
    tts.answer = doubles.openai
    async with (
        sdk.AsyncOpenAI(base_url=f"{tts.url}/v1", api_key="secret-key", max_retries=0) as client,
        client.audio.speech.with_streaming_response.create(
            input=SENTENCE, model="tts-1", voice="alloy", response_format="wav", speed=1.5
        ) as response,
    ):
        theirs = b"".join([part async for part in response.iter_bytes()])
    synthesizer = openai(tts.url)

    ours = await spoken(synthesizer, speed=1.5)
    await synthesizer.aclose()

    first, second = tts.exchanges
    assert theirs == ours
    assert (first.method, first.path, first.json()) == (second.method, second.path, second.json())
    assert first.headers["authorization"] == second.headers["authorization"]


@pytest.mark.parametrize(("wanted", "asked"), [("pcm", "wav"), ("wav", "wav"), ("mp3", "mp3"), ("opus", "opus")])
async def test_formats(tts: FakeServer, wanted: AudioFormat, asked: str) -> None:
    """Each format is asked for by its name, but raw samples: a WAV says their rate."""
    tts.answer = doubles.openai
    synthesizer = openai(tts.url)

    data, rate = await rendered(synthesizer, format=wanted, voice="nova")
    await synthesizer.aclose()

    body = tts.exchanges[0].json()
    assert (SENTENCE, "nova", asked) == (body["input"], body["voice"], body["response_format"])
    assert (doubles.RATE if asked == "wav" else None) == rate
    if wanted == "pcm":
        assert doubles.samples() == data


async def test_closing_reaches_the_wire(tts: FakeServer) -> None:
    """Cancelling a synthesis closes its connection while the TTS still sends."""

    async def endless(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(doubles.a_wav())
        await exchange.left.wait()

    tts.answer = endless
    synthesizer = openai(tts.url)
    heard = asyncio.Event()
    task = asyncio.create_task(synthesizer.synthesize(Utterance(text=SENTENCE), lambda _: heard.set()))
    await heard.wait()

    task.cancel()
    await asyncio.wait([task])

    async with asyncio.timeout(5):
        await tts.exchanges[0].left.wait()
    await synthesizer.aclose()


async def test_refusals_do_not_quote_what_was_said(tts: FakeServer) -> None:
    """An error status is an error with the status and no text of the TTS, which may hold the user's."""

    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(b'{"error": {"message": "cannot say: %s"}}' % SENTENCE.encode(), 400)

    tts.answer = refuse
    synthesizer = openai(tts.url)

    with pytest.raises(SpeechRejected, match="HTTP 400") as caught:
        await spoken(synthesizer)
    await synthesizer.aclose()

    assert SENTENCE not in caught.value.message


async def test_a_wrong_key_is_told(tts: FakeServer) -> None:
    """401 names the setting."""

    async def deny(exchange: Exchange) -> None:
        await exchange.answer(b"", 401)

    tts.answer = deny
    synthesizer = openai(tts.url)

    with pytest.raises(SpeechFailed, match="TTS_API_KEY"):
        await spoken(synthesizer)
    await synthesizer.aclose()


async def test_silence_and_absence_are_told_apart(tts: FakeServer) -> None:
    """A TTS that says nothing is late; one that is not there is unavailable."""

    async def stall(exchange: Exchange) -> None:
        await exchange.left.wait()

    tts.answer = stall
    silent = OpenAISynthesizer(f"{tts.url}/v1", model="m", voice="v", connect_timeout=1.0, silence=0.1)
    absent = openai(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(SpeechTimeout):
        await spoken(silent)
    with pytest.raises(SpeechUnavailable):
        await spoken(absent)
    with pytest.raises(SpeechUnavailable):
        await absent.ping()
    await silent.aclose()


@pytest.mark.parametrize(("status", "well"), [(200, True), (404, True), (405, True), (500, False), (503, False)])
async def test_a_probe_has_nothing_spoken(tts: FakeServer, status: int, well: bool) -> None:
    """Any answer to a harmless GET will do, but one that says that the server is unwell."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(b"{}", status)

    tts.answer = answer
    synthesizer = openai(tts.url)

    if well:
        await synthesizer.ping()
    else:
        with pytest.raises(SpeechFailed):
            await synthesizer.ping()
    await synthesizer.aclose()

    assert [("GET", "/v1/models")] == [(each.method, each.path) for each in tts.exchanges]


@pytest.mark.parametrize("wanted", ["pcm", "wav"])
async def test_opea_is_read_by_its_bytes(tts: FakeServer, wanted: AudioFormat) -> None:
    """The wrapper's WAV is taken without a Content-Type."""
    tts.answer = doubles.OPEA()
    synthesizer = OPEASynthesizer(tts.url, **TIMES)

    data, rate = await rendered(synthesizer, format=wanted)
    await synthesizer.ping()
    await synthesizer.aclose()

    assert doubles.RATE == rate
    assert doubles.samples() == (data if wanted == "pcm" else doubles.read_wav(data)[1])
    assert {"input": SENTENCE, "response_format": "wav"} == tts.exchanges[0].json()


async def test_opeas_error_under_200_is_an_error(tts: FakeServer) -> None:
    """A JSON error of the backend arrives as HTTP 200, and is no audio."""
    tts.answer = doubles.OPEA(backend_fails=True)
    synthesizer = OPEASynthesizer(tts.url, **TIMES)

    with pytest.raises(SpeechFailed, match="error in the place of audio"):
        await rendered(synthesizer, voice="male", speed=1.25)
    await synthesizer.aclose()

    assert {"input": SENTENCE, "response_format": "wav", "voice": "male", "speed": 1.25} == tts.exchanges[0].json()
