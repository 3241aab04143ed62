"""Speech: from the chunks of a response to audio. `open_speech` is the one place that names the TTS wires."""

from llm_service.config import TTS_ENDPOINT, Settings
from llm_service.errors import ConfigurationError, SpeechError
from llm_service.speech.base import Synthesizer
from llm_service.speech.endpoints import Endpoints
from llm_service.speech.gpt_sovits import GPTSoVITSSynthesizer, GPTSoVITSv2Synthesizer, Reference
from llm_service.speech.openai import OPEASynthesizer, OpenAISynthesizer
from llm_service.speech_metrics import SpeechMetrics

# OpenAI's API has no voice of its own.
OPENAI_VOICE = "alloy"


def open_speech(settings: Settings, metrics: SpeechMetrics) -> Endpoints:
    """Make what TTS_ENDPOINTS names; nobody is asked for anything yet.

    Raises:
        ConfigurationError: one of them cannot be had with these settings; the message says what to do.
    """
    return Endpoints([_synthesizer(each, settings) for each in settings.tts_endpoints], metrics)


def _synthesizer(endpoint: str, settings: Settings) -> Synthesizer:
    found = TTS_ENDPOINT.fullmatch(endpoint)
    assert found is not None  # the settings are checked
    kind = found["kind"] or found["http"] or found["ws"]
    url = found["url"] or found["ws_url"] or ""
    try:
        return _made(kind, url, settings)
    except SpeechError as error:
        raise ConfigurationError(f"TTS_ENDPOINTS: {error.message}") from None


def _made(kind: str, url: str, settings: Settings) -> Synthesizer:
    connect_timeout, silence, voice = settings.connect_timeout, settings.tts_timeout, settings.tts_voice
    reference = Reference(settings.tts_reference_audio, settings.tts_reference_text, settings.tts_reference_language)
    match kind:
        case "espeak":
            from llm_service.speech.espeak import EspeakSynthesizer

            return EspeakSynthesizer(voice=voice, silence=silence)
        case "fasttalk":
            from llm_service.speech.fasttalk_tts import FastTalkSynthesizer

            return FastTalkSynthesizer(
                url, files=settings.tts_files, voice=voice, connect_timeout=connect_timeout, silence=silence
            )
        case "webhook":
            from llm_service.speech.webhook import WebhookSynthesizer

            secret = settings.tts_webhook_secret.get_secret_value()
            return WebhookSynthesizer(url, secret=secret, connect_timeout=connect_timeout, silence=silence)
        case "gpt_sovits":
            return GPTSoVITSSynthesizer(url, reference=reference, connect_timeout=connect_timeout, silence=silence)
        case "gpt_sovits_v2":
            return GPTSoVITSv2Synthesizer(url, reference=reference, connect_timeout=connect_timeout, silence=silence)
        case "opea":
            return OPEASynthesizer(url, connect_timeout=connect_timeout, silence=silence)
        case _:
            return OpenAISynthesizer(
                url,
                model=settings.tts_model,
                voice=voice or OPENAI_VOICE,
                connect_timeout=connect_timeout,
                silence=silence,
                api_key=settings.tts_api_key.get_secret_value(),
            )
