"""How a session is spoken, and what cannot be had."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from llm_service.session_config import SessionConfig, SpeechConfig
from llm_service.speech_choices import SpeechChoices, SpeechDefaults

DEFAULTS = SpeechDefaults(voice="af", language="de", speed=1.25, format="wav", formats=frozenset({"pcm", "wav"}))


def test_nothing_is_spoken_unless_asked_for() -> None:
    """A session that does not choose is silent, unless the service speaks by default."""
    assert DEFAULTS.choices(SessionConfig(events=["audio", "chunk"])) is None
    assert DEFAULTS.choices(SessionConfig(speech=SpeechConfig(enabled=False))) is None
    eager = replace(DEFAULTS, enabled=True)
    assert eager.choices(SessionConfig(speech=SpeechConfig(enabled=False))) is None
    assert SpeechChoices("af", "de", 1.25, "wav", False, False, False, False) == eager.choices(SessionConfig())


def test_what_was_chosen_is_had() -> None:
    """Each choice of a client stands in the place of the default."""
    speech = SpeechConfig(enabled=True, voice="bm", language="fr", format="pcm", speed=0.5, binary=True)
    config = SessionConfig(speech=speech, events=["audio"])

    assert DEFAULTS.refusal(config) is None
    assert SpeechChoices("bm", "fr", 0.5, "pcm", True, True, False, True) == DEFAULTS.choices(config)


def test_audio_without_a_tts_is_refused() -> None:
    """Who asks for audio is told at once that there is none; chunks alone can be had without any TTS."""
    silent = SpeechDefaults()
    speech = SpeechConfig(enabled=True)

    refusal = silent.refusal(SessionConfig(speech=speech, events=["audio"]))

    assert refusal is not None
    assert "TTS_ENDPOINTS" in refusal.message
    assert silent.refusal(SessionConfig(speech=speech, events=["chunk"])) is None
    assert silent.refusal(SessionConfig(events=["audio"])) is None
    by_default = replace(silent, enabled=True).choices(SessionConfig(events=["audio"]))
    assert by_default is not None
    assert not by_default.audio


def test_a_format_that_cannot_be_made_is_refused() -> None:
    """The client hears of it at the session's start, not at the first chunk, with what it can have instead."""
    config = SessionConfig(speech=SpeechConfig(enabled=True, format="opus"), events=["audio"])

    refusal = DEFAULTS.refusal(config)

    assert refusal is not None
    assert "opus" in refusal.message
    assert refusal.message.endswith("offered are pcm, wav")
    assert DEFAULTS.refusal(SessionConfig(speech=SpeechConfig(enabled=True, format="opus"))) is None
    eager = replace(DEFAULTS, enabled=True)
    by_default = SessionConfig(speech=SpeechConfig(format="opus"), events=["audio"])
    assert DEFAULTS.refusal(by_default) is None
    for asked in (eager.refusal(by_default), replace(eager, format="opus").refusal(SessionConfig(events=["audio"]))):
        assert asked is not None
        assert refusal.message == asked.message


@pytest.mark.parametrize("voice", ["", "../../etc/passwd", "-v", "a/b", "x" * 129, "a\nb", "ä"])
def test_a_voice_is_a_plain_name(voice: str) -> None:
    """No path, option or line can be smuggled to the TTS."""
    with pytest.raises(ValidationError):
        SpeechConfig(voice=voice)


@pytest.mark.parametrize("language", ["", "e", "en_US", "en-", "en;x", "-en"])
def test_a_language_is_a_tag(language: str) -> None:
    """Nothing else goes to the TTS as a language."""
    with pytest.raises(ValidationError):
        SpeechConfig(language=language)
