"""Has a sentence spoken, and collects what comes."""

from typing import Any

from llm_service.speech.base import Synthesizer, Utterance
from llm_service.speech.rendering import Rendering

SENTENCE = "The quick brown fox jumps."
TIMES: Any = {"connect_timeout": 2.0, "silence": 2.0}


async def spoken(synthesizer: Synthesizer, text: str = SENTENCE, **fields: Any) -> bytes:
    """Return what the TTS sends for an utterance."""
    parts: list[bytes] = []
    await synthesizer.synthesize(Utterance(text=text, **fields), parts.append)
    return b"".join(parts)


async def rendered(synthesizer: Synthesizer, text: str = SENTENCE, **fields: Any) -> tuple[bytes, int | None]:
    """Return the audio that a client would get, and its rate."""
    utterance = Utterance(text=text, **fields)
    parts: list[tuple[bytes, int | None]] = []
    rendering = Rendering(utterance.format, lambda data, rate: parts.append((data, rate)))
    await synthesizer.synthesize(utterance, rendering.feed)
    await rendering.finish()
    return b"".join(data for data, _ in parts), parts[-1][1]
