"""What TTS_ENDPOINTS makes."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llm_service.config import Settings
from llm_service.errors import ConfigurationError
from llm_service.speech import open_speech
from llm_service.speech.endpoints import Endpoints
from llm_service.speech_metrics import SpeechMetrics


def opened(endpoints: str, **environment: str) -> Endpoints:
    settings = Settings.load({"TTS_ENDPOINTS": endpoints} | environment)
    return open_speech(settings, SpeechMetrics(CollectorRegistry()))


async def test_each_kind_in_its_order(tmp_path: Path) -> None:
    """Every kind can be named, and the order is the configuration's."""
    endpoints = opened(
        "openai=http://a:1/v1, opea=http://b:2, gpt_sovits=http://c:3, gpt_sovits_v2=https://d, fasttalk=ws://e:5, "
        "webhook=https://user:password@f/hook, espeak",
        TTS_FILES=str(tmp_path),
        TTS_REFERENCE_AUDIO="/a.wav",
        TTS_REFERENCE_LANGUAGE="en",
    )

    kinds = ["openai", "opea", "gpt_sovits", "gpt_sovits_v2", "fasttalk", "webhook", "espeak"]
    assert kinds == [endpoint.synthesizer.kind for endpoint in endpoints.all]
    assert [f"{number}-{kind}" for number, kind in enumerate(kinds, start=1)] == [each.name for each in endpoints.all]
    assert not any("password" in endpoint.synthesizer.address for endpoint in endpoints.all)
    await endpoints.aclose()


async def test_none() -> None:
    """Without TTS_ENDPOINTS nothing speaks."""
    assert not opened("")


@pytest.mark.parametrize(
    "endpoint",
    [
        "piper=http://a",
        "http://a:9880",
        "openai=ftp://a",
        "openai=",
        "fasttalk=http://a",
        "espeak=x",
        "webhook=http://a?b=c",
    ],
)
def test_what_is_no_tts_is_refused(endpoint: str) -> None:
    """A wrong one stops the start, with what is allowed."""
    with pytest.raises(ConfigurationError, match="KIND=URL"):
        Settings.load({"TTS_ENDPOINTS": endpoint})


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [("gpt_sovits_v2=http://a", "TTS_REFERENCE_AUDIO"), ("fasttalk=ws://a", "mount its output folder")],
)
def test_what_is_missing_is_told_at_the_start(endpoint: str, advice: str) -> None:
    """A TTS that could never be heard stops the start with what to set."""
    with pytest.raises(ConfigurationError, match=advice):
        opened(endpoint)
