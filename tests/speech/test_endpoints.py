"""Several TTS servers as one."""

import asyncio
from time import monotonic

import pytest
from prometheus_client import CollectorRegistry

from llm_service.audio_format import AudioFormat
from llm_service.engines.breaker import LEAST_CALLS
from llm_service.errors import SpeechError, SpeechFailed, SpeechRejected, SpeechUnavailable
from llm_service.speech import endpoints as module
from llm_service.speech.base import Kind, TakeAudio, Utterance
from llm_service.speech.endpoints import Endpoints
from llm_service.speech_metrics import SpeechMetrics
from tests.speech.doubles import a_wav

WAV: frozenset[AudioFormat] = frozenset({"pcm", "wav"})


class Fake:
    """A TTS that does what it is told: what it sends, then perhaps an error."""

    def __init__(
        self,
        kind: Kind = "openai",
        parts: tuple[bytes, ...] = (a_wav(),),
        error: SpeechError | None = None,
        formats: frozenset[AudioFormat] = WAV,
    ) -> None:
        self.kind: Kind = kind
        self.address = self.url = f"the {kind}"
        self.formats = formats
        self.parts = parts
        self.error = error
        self.asked: list[Utterance] = []
        self.problem: SpeechError | None = None
        self.hangs = False
        self.aborted = 0

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        self.asked.append(utterance)
        for part in self.parts:
            take(part)
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.aborted += 1
        if self.error is not None:
            raise self.error

    async def ping(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.problem is not None:
            raise self.problem

    async def aclose(self) -> None:
        """Hold nothing."""


def made(*fakes: Fake) -> tuple[Endpoints, CollectorRegistry]:
    registry = CollectorRegistry()
    return Endpoints(fakes, SpeechMetrics(registry)), registry


def failures(registry: CollectorRegistry, kind: str) -> float:
    return registry.get_sample_value("fasttalk_speech_failures_total", {"kind": kind}) or 0.0


async def speak(endpoints: Endpoints, *, audio: bool = True, **fields: object) -> bytes:
    parts: list[bytes] = []
    utterance = Utterance(**({"text": "Hello.", "format": "pcm"} | fields))  # type: ignore[arg-type]
    await endpoints.speak(utterance, lambda data, rate: parts.append(data), audio=audio)
    return b"".join(parts)


async def test_the_first_speaks_and_the_next_where_it_fails() -> None:
    """What fails before its first audio is repeated by the next, and nothing is heard twice."""
    first, second = Fake(error=SpeechUnavailable("gone"), parts=()), Fake("opea")
    endpoints, registry = made(first, second)

    assert a_wav()[44:] == await speak(endpoints)

    assert (1, 1) == (len(first.asked), len(second.asked))
    assert (1, 0) == (failures(registry, "openai"), failures(registry, "opea"))
    assert ("gone", "WORKING") == tuple(each.last_result for each in endpoints.all)


async def test_after_the_first_audio_nobody_repeats_it() -> None:
    """A client that heard half a chunk must not hear it again from its beginning."""
    first, second = Fake(parts=(a_wav()[:1000],), error=SpeechFailed("broke")), Fake()
    endpoints, _ = made(first, second)

    with pytest.raises(SpeechFailed, match="broke"):
        await speak(endpoints)

    assert [] == second.asked


async def test_half_a_wav_that_was_not_given_yet_is_spoken_by_the_next() -> None:
    """A wav is given whole: one that broke off was not heard."""
    endpoints, _ = made(Fake(parts=(a_wav()[:-10],)), Fake())

    assert a_wav() == await speak(endpoints, format="wav")


@pytest.mark.parametrize("garbage", [b"", b'{"code": 400, "message": "no"}', b"noise" * 100, b"<html></html>"])
async def test_garbage_is_a_failure(garbage: bytes) -> None:
    """What is no audio, whatever the HTTP status said, is left to the next."""
    endpoints, registry = made(Fake(parts=(garbage,)), Fake("opea"))

    assert a_wav()[44:] == await speak(endpoints)
    assert 1 == failures(registry, "openai")


async def test_a_breaker_each() -> None:
    """One that keeps failing is left alone, while the next speaks; with all at rest, that is the answer."""
    first, second = Fake(error=SpeechUnavailable("gone"), parts=()), Fake("opea")
    endpoints, _ = made(first, second)
    for _ in range(LEAST_CALLS + 3):
        await speak(endpoints)

    assert LEAST_CALLS == len(first.asked)
    second.error, second.parts = SpeechUnavailable("gone, too"), ()
    for _ in range(LEAST_CALLS + 10):
        with pytest.raises(SpeechUnavailable):
            await speak(endpoints)
    with pytest.raises(SpeechUnavailable, match="left alone") as caught:
        await speak(endpoints)
    assert caught.value.retry_after is not None


async def test_what_a_client_chose_takes_the_tts_from_nobody() -> None:
    """A voice that the TTS does not know is no failure of the TTS, however often it is asked for."""
    fake = Fake(error=SpeechRejected("no such voice"), parts=())
    endpoints, _ = made(fake)
    for error in (SpeechRejected("no such voice"), SpeechFailed("HTTP 500")):
        fake.error = error
        for _ in range(3 * LEAST_CALLS):
            with pytest.raises(type(error)):
                await speak(endpoints, voice="nobody", chosen=True)
    fake.error, fake.parts = None, (a_wav(),)

    assert a_wav()[44:] == await speak(endpoints)


async def test_the_unhealthy_come_last() -> None:
    """One whose probe fails is asked only where no other speaks; it may have come back."""
    first, second = Fake(), Fake("opea")
    endpoints, registry = made(first, second)
    first.problem = SpeechUnavailable("down")
    await endpoints.check()

    await speak(endpoints)
    second.error, second.parts = SpeechFailed("no"), ()
    await speak(endpoints)

    assert ([1, 2]) == [len(first.asked), len(second.asked)]
    assert [(False, "down"), (True, None)] == [(each.healthy, each.problem) for each in endpoints.all]
    healthy = "fasttalk_speech_endpoint_healthy"
    assert [0.0, 1.0] == [registry.get_sample_value(healthy, {"endpoint": name}) for name in ("1-openai", "2-opea")]


async def test_a_probe_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TTS that takes connections and says nothing is not well."""
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.05)
    fake = Fake()
    fake.hangs = True
    endpoints, _ = made(fake)

    await endpoints.check()

    assert not endpoints.all[0].healthy
    assert "no answer within 0.05 seconds" == endpoints.all[0].problem


async def test_a_chunk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TTS that never ends one is given up."""
    monkeypatch.setattr(module, "CHUNK_TIMEOUT", 0.05)
    fake = Fake(parts=())
    fake.hangs = True
    endpoints, _ = made(fake)

    with pytest.raises(SpeechError, match="for a chunk"):
        await speak(endpoints)
    assert 1 == fake.aborted


async def test_cancel_says_nothing_about_the_tts() -> None:
    """A barge-in aborts the synthesis, and counts neither way."""
    fake = Fake()
    fake.hangs = True
    endpoints, registry = made(fake)
    for _ in range(2 * LEAST_CALLS):
        task = asyncio.create_task(speak(endpoints))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    assert 2 * LEAST_CALLS == fake.aborted
    assert 0 == failures(registry, "openai")
    assert "closed" == endpoints.all[0].breaker.state


async def test_a_cancelled_trial_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A barge-in within the one call that tries a TTS again must not leave it alone for ever."""
    fake = Fake(error=SpeechUnavailable("gone"), parts=())
    endpoints, _ = made(fake)
    for _ in range(LEAST_CALLS):
        with pytest.raises(SpeechUnavailable, match="gone"):
            await speak(endpoints)
    later = monotonic() + 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: later)
    fake.hangs = True
    task = asyncio.create_task(speak(endpoints))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert 1 == fake.aborted
    fake.hangs, fake.error, fake.parts = False, None, (a_wav(),)

    assert a_wav()[44:] == await speak(endpoints)


async def test_without_audio_only_a_webhook_is_asked() -> None:
    """Nobody has sound made that goes nowhere, and a client that wants some is not fobbed off with a webhook."""
    voice, hook = Fake(), Fake("webhook", parts=(), formats=frozenset())
    endpoints, _ = made(voice, hook)

    assert b"" == await speak(endpoints, audio=False)

    assert (0, 1) == (len(voice.asked), len(hook.asked))
    assert a_wav()[44:] == await speak(endpoints)
    voice.error, voice.parts = SpeechUnavailable("gone"), ()
    with pytest.raises(SpeechUnavailable, match="gone"):
        await speak(endpoints)
    assert 1 == len(hook.asked)
    assert endpoints.serves(audio=False)
    assert not made(voice)[0].serves(audio=False)
    assert not made()[0].serves(audio=True)
    with pytest.raises(SpeechUnavailable, match="TTS_ENDPOINTS"):
        await speak(made()[0])


@pytest.mark.parametrize(
    ("fakes", "converts", "expected"),
    [
        ([], True, set()),
        ([Fake("webhook", formats=frozenset())], True, set()),
        ([Fake()], True, {"pcm", "wav", "mp3", "opus"}),
        ([Fake()], False, {"pcm", "wav"}),
        ([Fake(formats=WAV | {"mp3"}), Fake("opea", formats=WAV | {"mp3", "opus"})], False, {"pcm", "wav", "mp3"}),
    ],
)
def test_formats_are_those_that_every_tts_can_be_had_in(
    monkeypatch: pytest.MonkeyPatch, fakes: list[Fake], converts: bool, expected: set[str]
) -> None:
    """A failover must not take the format away; what can be converted can be had."""
    monkeypatch.setattr(module, "can_convert", lambda: converts)

    assert expected == made(*fakes)[0].formats


async def test_what_a_tts_lacks_is_asked_for_as_a_wav() -> None:
    """And converted here."""
    fake = Fake()
    endpoints, _ = made(fake)

    data = await speak(endpoints, format="mp3")

    assert "wav" == fake.asked[0].format
    assert data[:3] == b"ID3" or data[0] == 0xFF
