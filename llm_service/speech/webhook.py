"""A plain webhook: each chunk is POSTed to a URL, whose owner speaks it or does with it what it likes.

The body is a JSON object: `id` of the chunk, `text`, its span `start` and `end` in the response in characters,
`session`, `turn`, `language`, `voice`, `speed`, and `final`, true for the last chunk of a response. Any answer of 2xx
takes it; its body is read to its end, and not looked at. With a secret each request carries
`X-FastTalk-Signature: sha256=HEX`, the HMAC-SHA256 of `TIMESTAMP.BODY`, and `X-FastTalk-Timestamp: TIMESTAMP`, in
seconds since the epoch.
"""

import hashlib
import hmac
from time import time

import httpx
import msgspec

from llm_service.audio_format import AudioFormat
from llm_service.speech.base import Kind, TakeAudio, Utterance
from llm_service.speech.client import SpeechClient
from llm_service.speech.reaching import reach

SIGNATURE = "X-FastTalk-Signature"
TIMESTAMP = "X-FastTalk-Timestamp"

_encode = msgspec.json.Encoder().encode


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return what the signature's header holds for a body of this time."""
    signed = timestamp.encode() + b"." + body
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


class WebhookSynthesizer:
    """Hands chunks on to `url`; no audio comes back."""

    kind: Kind = "webhook"
    formats: frozenset[AudioFormat] = frozenset()

    def __init__(self, url: str, *, secret: str, connect_timeout: float, silence: float) -> None:
        self._client = SpeechClient("the webhook", url, connect_timeout=connect_timeout, silence=silence)
        self._path = "" if httpx.URL(url).path.strip("/") else "/"
        self._secret = secret
        self._connect_timeout = connect_timeout
        self.address = self._client.address
        parts = httpx.URL(url)
        # Whoever knows the path of a webhook can often call it.
        self.url = f"{parts.scheme}://{parts.netloc.decode()}"

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:  # noqa: ARG002 - none comes
        """Hand the chunk on.

        Raises:
            SpeechError: it was not taken.
        """
        body = _encode(
            {
                "id": utterance.id,
                "text": utterance.text,
                "start": utterance.start,
                "end": utterance.end,
                "session": utterance.session_id,
                "turn": utterance.turn,
                "language": utterance.language,
                "voice": utterance.voice,
                "speed": utterance.speed,
                "final": utterance.final,
            }
        )
        headers = {}
        if self._secret:
            now = str(int(time()))
            headers = {TIMESTAMP: now, SIGNATURE: signature(self._secret, now, body)}
        await self._client.post(self._path, body, lambda _: None, headers=headers)

    async def ping(self) -> None:
        """Connect, and ask for nothing: a webhook has no path that does nothing.

        Raises:
            SpeechUnavailable: nobody listens there.
        """
        await reach(self.url, self.address, timeout=self._connect_timeout)

    async def aclose(self) -> None:
        await self._client.aclose()
