"""HTTP to a TTS: the engines' transport, with the errors of speech."""

import contextlib
from collections.abc import Mapping

import msgspec

from llm_service.engines.refusals import Refusal
from llm_service.engines.transport import EngineClient, display_name
from llm_service.errors import SpeechError, SpeechFailed, SpeechRejected
from llm_service.speech.base import TakeAudio, speech_errors, without_credentials

_encode = msgspec.json.Encoder().encode


class SpeechClient:
    """One TTS by HTTP. Times in seconds; `silence` is the longest one within an answer."""

    def __init__(
        self, product: str, base_url: str, *, connect_timeout: float, silence: float, api_key: str = ""
    ) -> None:
        self.address = display_name(product, base_url)
        self.url = without_credentials(base_url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with speech_errors():
            self._client = EngineClient(
                base_url,
                engine=self.address,
                connect_timeout=connect_timeout,
                read_timeout=silence,
                refuse=self._refuse,
                headers=headers,
            )

    async def post(
        self,
        path: str,
        body: Mapping[str, object] | bytes,
        take: TakeAudio,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """POST JSON; `take` gets the body of the answer as it comes.

        Raises:
            SpeechError: the TTS cannot be reached, refused, or broke off.
        """

        def part(data: bytes) -> bool:
            take(data)
            return False

        with speech_errors():
            encoded = body if isinstance(body, bytes) else _encode(body)
            await self._client.stream(path, encoded, part, headers=headers)

    async def get(self, path: str) -> bytes:
        """Return a document, or a file of audio, below the base URL.

        Raises:
            SpeechError: it cannot be had.
        """
        with speech_errors():
            return await self._client.get(path)

    async def answers(self, path: str, *, below_base: bool = True) -> None:
        """Return if the TTS answers whatever it likes, but for an error of its own, to a GET that has nothing spoken.

        Raises:
            SpeechError: it does not.
        """
        with contextlib.suppress(SpeechRejected), speech_errors():
            await self._client.get(path, below_base=below_base)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    def _refuse(self, refusal: Refusal) -> SpeechError:
        # What the TTS says of it may hold the text that was to be spoken.
        status = refusal.status
        if status in (401, 403):
            return SpeechFailed(f"{self.address} denied access (HTTP {status}): check TTS_API_KEY")
        if status < 400:
            return SpeechFailed(
                f"{self.address} redirects elsewhere (HTTP {status}): put the final URL into TTS_ENDPOINTS"
            )
        if status >= 500 or status == 429:
            return SpeechFailed(f"{self.address} answered HTTP {status}")
        if status in (404, 405):
            return SpeechRejected(
                f"{self.address} has no such path, model or voice (HTTP {status}): check TTS_ENDPOINTS, kind and URL"
            )
        return SpeechRejected(f"{self.address} refused (HTTP {status}): it may not know the voice or the language")
