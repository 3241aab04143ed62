"""OpenAI's `/v1/audio/speech`, as served by Kokoro-FastAPI, openedai-speech, LocalAI, vLLM and others; and OPEA's
TTS wrapper on 9088, which has the same path and its own ways.
"""

from llm_service.audio_format import AudioFormat
from llm_service.speech.base import Kind, TakeAudio, Utterance
from llm_service.speech.client import SpeechClient


class OpenAISynthesizer:
    """A TTS with OpenAI's speech API at `base_url`, which ends with /v1 as OpenAI's own does."""

    kind: Kind = "openai"
    formats: frozenset[AudioFormat] = frozenset({"pcm", "wav", "mp3", "opus"})

    def __init__(
        self, base_url: str, *, model: str, voice: str, connect_timeout: float, silence: float, api_key: str = ""
    ) -> None:
        """`voice` is the one for sessions that name none; `silence` as in `SpeechClient`."""
        self._client = SpeechClient(
            "the TTS", base_url, connect_timeout=connect_timeout, silence=silence, api_key=api_key
        )
        self._model = model
        self._voice = voice
        self.address, self.url = self._client.address, self._client.url

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over as it comes.

        Raises:
            SpeechError: it could not be had.
        """
        body: dict[str, object] = {
            "input": utterance.text,
            "model": self._model,
            "voice": utterance.voice or self._voice,
            # Raw samples do not say their rate, a WAV does.
            "response_format": "wav" if utterance.format == "pcm" else utterance.format,
        }
        if utterance.speed != 1.0:
            body["speed"] = utterance.speed
        await self._client.post("/audio/speech", body, take)

    async def ping(self) -> None:
        """Ask for the list of models: any answer but a failure will do, few of these servers have one.

        Raises:
            SpeechError: nobody answers.
        """
        await self._client.answers("/models")

    async def aclose(self) -> None:
        await self._client.aclose()


class OPEASynthesizer:
    """OPEA's TTS microservice (comps/tts, port 9088) over SpeechT5 or GPT-SoVITS.

    It gives a WAV whatever it is asked for, without a Content-Type, and passes its backend's errors on as HTTP 200:
    what comes is told apart by its first bytes. SpeechT5 knows two voices, and refuses a speed.
    """

    kind: Kind = "opea"
    formats: frozenset[AudioFormat] = frozenset({"pcm", "wav"})

    def __init__(self, base_url: str, *, connect_timeout: float, silence: float) -> None:
        self._client = SpeechClient("the TTS of OPEA", base_url, connect_timeout=connect_timeout, silence=silence)
        self.address, self.url = self._client.address, self._client.url

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over as it comes.

        Raises:
            SpeechError: it could not be had.
        """
        body: dict[str, object] = {"input": utterance.text, "response_format": "wav"}
        if utterance.voice:
            body["voice"] = utterance.voice
        if utterance.speed != 1.0:
            body["speed"] = utterance.speed
        await self._client.post("/v1/audio/speech", body, take)

    async def ping(self) -> None:
        """Ask for the health that every OPEA microservice tells.

        Raises:
            SpeechError: nobody answers.
        """
        await self._client.answers("/v1/health_check")

    async def aclose(self) -> None:
        await self._client.aclose()
