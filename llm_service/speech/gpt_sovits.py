"""GPT-SoVITS on 9880: its first API (`api.py`, also the fork in OPEA's image) and `api_v2.py`."""

from dataclasses import dataclass

from llm_service.audio_format import AudioFormat
from llm_service.errors import ConfigurationError
from llm_service.speech.base import Kind, TakeAudio, Utterance
from llm_service.speech.client import SpeechClient

_LANGUAGES = frozenset({"zh", "en", "ja", "ko", "yue"})


@dataclass(frozen=True, slots=True)
class Reference:
    """The recording whose voice is imitated: a path on the TTS's machine, what is said in it, and in which language.

    The first API has one of its own, which it takes if any part of these is missing; api_v2 needs path and language.
    """

    path: str = ""
    text: str = ""
    language: str = ""


class _GPTSoVITS:
    """What both APIs have in common."""

    formats: frozenset[AudioFormat] = frozenset({"pcm", "wav"})

    def __init__(self, base_url: str, *, reference: Reference, connect_timeout: float, silence: float) -> None:
        self._client = SpeechClient("GPT-SoVITS", base_url, connect_timeout=connect_timeout, silence=silence)
        self._reference = reference
        self.address, self.url = self._client.address, self._client.url

    async def ping(self) -> None:
        """Ask for /health, which OPEA's fork has; elsewhere 404 is an answer, too. `/` would be a synthesis: HTTP 500.

        Raises:
            SpeechError: nobody answers.
        """
        await self._client.answers("/health")

    async def aclose(self) -> None:
        await self._client.aclose()


class GPTSoVITSSynthesizer(_GPTSoVITS):
    """The first API: everything at `/`, and one WAV at the end unless the process streams."""

    kind: Kind = "gpt_sovits"

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over as it comes.

        Raises:
            SpeechError: it could not be had.
        """
        body: dict[str, object] = {
            "text": utterance.text,
            "text_language": _language(utterance.language),
            "speed": utterance.speed,
        }
        given = self._reference
        if given.path and given.text and given.language:
            body |= {"refer_wav_path": given.path, "prompt_text": given.text, "prompt_language": given.language}
        await self._client.post("/", body, take)


class GPTSoVITSv2Synthesizer(_GPTSoVITS):
    """api_v2: `/tts`, streamed as a WAV header of no length and then raw samples.

    Raises:
        ConfigurationError: there is no reference recording, which each of its requests must name.
    """

    kind: Kind = "gpt_sovits_v2"

    def __init__(self, base_url: str, *, reference: Reference, connect_timeout: float, silence: float) -> None:
        if not (reference.path and reference.language):
            raise ConfigurationError(
                "TTS_ENDPOINTS names a gpt_sovits_v2: set TTS_REFERENCE_AUDIO (a path on its machine) and "
                "TTS_REFERENCE_LANGUAGE, which its /tts cannot do without"
            )
        super().__init__(base_url, reference=reference, connect_timeout=connect_timeout, silence=silence)

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over as it comes.

        Raises:
            SpeechError: it could not be had.
        """
        body: dict[str, object] = {
            "text": utterance.text,
            "text_lang": _language(utterance.language),
            "ref_audio_path": self._reference.path,
            "prompt_text": self._reference.text,
            "prompt_lang": self._reference.language,
            "speed_factor": utterance.speed,
            # It is a chunk already; cut again, each part would end with a pause.
            "text_split_method": "cut0",
            "media_type": "wav",
            "streaming_mode": True,
        }
        await self._client.post("/tts", body, take)


def _language(tag: str) -> str:
    """Return GPT-SoVITS's name of a language: of those it does not know it is to make the best itself."""
    primary = tag.partition("-")[0].lower()
    return primary if primary in _LANGUAGES else "auto"
