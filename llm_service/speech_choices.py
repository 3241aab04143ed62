"""How a session is spoken: its client's choice over the service's defaults, and what cannot be chosen. Pure."""

from dataclasses import dataclass

from llm_service.audio_format import FORMATS, AudioFormat
from llm_service.errors import InvalidConfig
from llm_service.session_config import SessionConfig, SpeechConfig


@dataclass(frozen=True, slots=True)
class SpeechChoices:
    """What holds in a session whose answers are spoken.

    `audio` is whether its client takes the audio itself, in `binary` frames or in events; `chunks` whether it is told
    of each chunk. `chosen` says that voice, language or speed are the client's own. An empty `voice` is the TTS's own,
    an empty `language` the text's, as far as the TTS finds it out.
    """

    voice: str
    language: str
    speed: float
    format: AudioFormat
    binary: bool
    audio: bool
    chunks: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class SpeechDefaults:
    """What is spoken where the client chose nothing; `formats` are those a client may ask for, none without a TTS."""

    enabled: bool = False
    voice: str = ""
    language: str = ""
    speed: float = 1.0
    format: AudioFormat = "wav"
    formats: frozenset[AudioFormat] = frozenset()

    def refusal(self, config: SessionConfig) -> InvalidConfig | None:
        """Return why speech cannot be had as it is asked for, or None if it can."""
        speech = config.speech or SpeechConfig()
        enabled = self.enabled if speech.enabled is None else speech.enabled
        if not (enabled and "audio" in (config.events or ())):
            return None
        if not self.formats:
            if not speech.enabled:
                return None  # the service's wish, not the client's, who may do without
            return InvalidConfig(
                "config.speech: no TTS that gives audio is here: set TTS_ENDPOINTS, or leave audio out of "
                "config.events and speak what the chunk events say"
            )
        if (speech.format or self.format) not in self.formats:
            offered = ", ".join(each for each in FORMATS if each in self.formats)
            return InvalidConfig(
                f"config.speech.format: the TTS does not give {speech.format or self.format}, and PyAV, which converts "
                f"to it, is not installed (pip install av); offered are {offered}"
            )
        return None

    def choices(self, config: SessionConfig) -> SpeechChoices | None:
        """Lay a client's choice over the defaults; None where nothing is to be spoken."""
        speech = config.speech or SpeechConfig()
        if not (self.enabled if speech.enabled is None else speech.enabled):
            return None
        events = config.events or ()
        return SpeechChoices(
            voice=self.voice if speech.voice is None else speech.voice,
            language=speech.language or self.language,
            speed=speech.speed or self.speed,
            format=speech.format or self.format,
            binary=bool(speech.binary),
            audio="audio" in events and bool(self.formats),
            chunks="chunk" in events,
            chosen=(speech.voice, speech.language, speech.speed) != (None, None, None),
        )
