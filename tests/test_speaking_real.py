"""A real model that is spoken by a real voice, from a user's message to the sound of its answer."""

import io
import wave
from array import array
from itertools import groupby

import pytest

from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.speech.espeak import EspeakSynthesizer
from tests.live import live_service, send, start
from tests.real_engines import EMBEDDED_WINDOW, borrowed
from tests.speech.utterances import rendered
from tests.test_speaking import hear

CONFIG = {
    "speech": {"enabled": True, "format": "wav"},
    "events": ["chunk", "audio"],
    "temperature": 0.0,
    "max_tokens": 60,
}
QUESTION = "Describe a day in the life of a lighthouse keeper."
# Seconds: espeak-ng pauses for less between two sentences.
_HOLE = 1.0
# Of 16-bit samples; its silence is zeros.
_SILENT = 16


def samples(wav: bytes) -> "tuple[array[int], int]":
    """Take a WAV of 16-bit mono samples apart; returns them and their rate."""
    with wave.open(io.BytesIO(wav)) as file:
        assert (1, 2) == (file.getnchannels(), file.getsampwidth())
        return array("h", file.readframes(file.getnframes())), file.getframerate()


def longest_silence(sound: "array[int]") -> int:
    """Return the most samples in a row in which nothing is heard."""
    runs = groupby(sound, lambda sample: abs(sample) <= _SILENT)
    return max((sum(1 for _ in run) for silent, run in runs if silent), default=0)


@pytest.mark.embedded
@pytest.mark.espeak
@pytest.mark.asyncio(loop_scope="session")
async def test_an_answer_is_heard_whole(embedded_engine: LlamaCppEngine, espeak_program: str) -> None:
    """Its chunks' WAV files, joined, last as long as the text at once, without a hole; they begin before it is over."""
    model = embedded_engine.model
    # It is spoken as fast as it can be: nobody listens.
    variables = {"TTS_ENDPOINTS": "espeak", "TTS_MAX_AHEAD": "600"}
    async with (
        live_service(borrowed(embedded_engine), variables, model=model, context_window=EMBEDDED_WINDOW) as live,
        live.connect(max_size=None) as socket,
    ):
        await start(socket, **CONFIG)
        await send(socket, "user_message", text=QUESTION)
        heard = await hear(socket)
    assert "response_complete" == heard.terminal["type"]
    assert heard.order.index("audio") < heard.order.index("response_complete")
    assert heard.text == "".join(heard.text[chunk["start"] : chunk["end"]] for chunk in heard.chunks)
    spoken = [chunk for chunk in heard.chunks if chunk["text"]]
    assert len(spoken) > 1

    sound, rates = array("h"), set[int | None]()
    for chunk in spoken:
        part, part_rate = samples(heard.sound(chunk["id"]))
        sound += part
        rates.add(part_rate)
    espeak = EspeakSynthesizer(voice="", silence=10.0, program=espeak_program)
    at_once, rate = await rendered(espeak, " ".join(chunk["text"] for chunk in spoken), format="pcm")
    assert rate is not None
    assert {rate} == rates
    wanted = len(at_once) // 2
    print(f"\n{len(spoken)} chunks, {len(sound) / wanted:.3f} of the text at once, longest {longest_silence(sound)}")
    # What is spoken apart ends with a pause and a melody of its own.
    assert 0.9 * wanted <= len(sound) <= 1.2 * wanted
    assert longest_silence(sound) < _HOLE * rate
