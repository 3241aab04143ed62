"""The webhook: chunks handed on, signed."""

import hashlib
import hmac
import time

import pytest

from llm_service.errors import SpeechError, SpeechUnavailable
from llm_service.speech.webhook import WebhookSynthesizer, signature
from tests.engines.fake_server import Exchange, FakeServer
from tests.processes import free_port
from tests.speech.utterances import SENTENCE, TIMES, spoken

SECRET = "a secret that both sides know"


async def _take(exchange: Exchange) -> None:
    await exchange.answer(b"thanks, whatever this says is not read", 202)


@pytest.mark.parametrize(("path", "asked"), [("/hook/chunks", "/hook/chunks"), ("", "/")])
async def test_a_chunk_is_posted_with_all_that_is_known(tts: FakeServer, path: str, asked: str) -> None:
    """Id, span, session, turn and whether it is the last go with the text; nothing comes back."""
    tts.answer = _take
    webhook = WebhookSynthesizer(tts.url + path, secret="", **TIMES)

    data = await spoken(webhook, id=7, start=3, end=30, session_id="s", turn=2, final=True)
    await webhook.aclose()

    (exchange,) = tts.exchanges
    assert b"" == data
    assert ("POST", asked) == (exchange.method, exchange.path)
    assert "x-fasttalk-signature" not in exchange.headers
    assert {
        "id": 7,
        "text": SENTENCE,
        "start": 3,
        "end": 30,
        "session": "s",
        "turn": 2,
        "language": "",
        "voice": "",
        "speed": 1.0,
        "final": True,
    } == exchange.json()


async def test_the_signature_covers_body_and_time(tts: FakeServer) -> None:
    """A receiver with the secret computes the same from what it got, and can refuse what is old."""
    tts.answer = _take
    webhook = WebhookSynthesizer(tts.url, secret=SECRET, **TIMES)

    await spoken(webhook)
    await spoken(webhook, text="Another one.")
    await webhook.aclose()

    for exchange in tts.exchanges:
        timestamp = exchange.headers["x-fasttalk-timestamp"]
        signed = timestamp.encode() + b"." + exchange.body
        expected = "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert expected == exchange.headers["x-fasttalk-signature"]
        assert abs(time.time() - int(timestamp)) < 60
    assert signature(SECRET, "1", b"{}") != signature(SECRET, "2", b"{}")


@pytest.mark.parametrize("status", [302, 400, 410, 500])
async def test_what_is_not_taken_is_an_error(tts: FakeServer, status: int) -> None:
    """Anything but 2xx means that nobody has the chunk; a redirect is not followed."""

    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(b"", status, Location=f"{tts.url}/elsewhere")

    tts.answer = refuse
    webhook = WebhookSynthesizer(tts.url, secret=SECRET, **TIMES)

    with pytest.raises(SpeechError):
        await spoken(webhook)
    await webhook.aclose()

    assert 1 == len(tts.exchanges)


async def test_a_probe_connects_and_asks_nothing(tts: FakeServer) -> None:
    """A webhook has no request that does nothing."""
    webhook = WebhookSynthesizer(tts.url, secret="", **TIMES)

    await webhook.ping()
    with pytest.raises(SpeechUnavailable):
        await WebhookSynthesizer(f"http://127.0.0.1:{free_port()}", secret="", **TIMES).ping()
    await webhook.aclose()

    assert [] == tts.exchanges
