"""`python main.py test`: is everything there that the service needs to answer?"""

import asyncio
import contextlib
from time import monotonic

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.text import Text

from llm_service.config import Settings
from llm_service.engines import OpenedEngine, open_engine
from llm_service.engines.base import timed
from llm_service.errors import FastTalkError
from llm_service.generation import Delta, GenerationRequest, Message, SamplingParams
from llm_service.speech import open_speech
from llm_service.speech.base import Utterance
from llm_service.speech_metrics import SpeechMetrics
from llm_service.stores import open_store

QUESTION = "Say hello in one short sentence."
MAX_TOKENS = 24
SENTENCE = "The quick brown fox jumps over the lazy dog."
# A large model may have to be read from a disk first.
TIMEOUT = 300.0


async def self_check(settings: Settings, console: Console) -> bool:
    """Open the engine, load the model and generate once, saying what works; returns whether all of it does."""
    several = ", ".join(spec.name for spec in settings.engines)
    provider = f"engines {several}" if several else f"provider {settings.llm_provider}"
    _say(console, True, f"configuration: {provider}, model {settings.llm_model}")
    try:
        opened = await open_engine(settings)
    except FastTalkError as error:
        _say(console, False, f"engine: {error.message}")
        return False
    async with contextlib.aclosing(opened.engine):
        _say(console, True, f"device: {opened.device}")
        _say(console, True, f"engine: {opened.provider} ({opened.reason})")
        _say(console, True, f"model: {opened.model}, window {opened.context_window} tokens")
        try:
            async with asyncio.timeout(TIMEOUT):
                for member in opened.members:
                    there = opened.model in member.offers
                    _say(
                        console, there, f"{member.name}: {'has the model' if there else 'is away, or lacks the model'}"
                    )
                said = await _generate(opened)
        except FastTalkError as error:
            _say(console, False, f"generation: {error.message}")
            return False
        except TimeoutError:
            _say(console, False, f"generation: no answer within {TIMEOUT:g} seconds; try a smaller model")
            return False
    _say(console, said is not None, f"generation: {said or 'the model said nothing; try another one'}")
    fine = [said is not None, await _store_is_fine(settings, console), await _speech_is_fine(settings, console)]
    return all(fine)


async def _store_is_fine(settings: Settings, console: Console) -> bool:
    """Open the store of SESSION_STORE; returns whether it can be had."""
    try:
        store = await open_store(settings)
    except FastTalkError as error:
        _say(console, False, f"store: {error.message}")
        return False
    await store.aclose()
    _say(console, True, f"store: {settings.session_store}")
    return True


async def _speech_is_fine(settings: Settings, console: Console) -> bool:
    """Probe each TTS of TTS_ENDPOINTS and have one sentence spoken; returns whether one of them spoke."""
    if not settings.tts_endpoints:
        return True
    try:
        speech = open_speech(settings, SpeechMetrics(CollectorRegistry()))
    except FastTalkError as error:
        _say(console, False, f"speech: {error.message}")
        return False
    async with contextlib.aclosing(speech):
        await speech.check()
        for endpoint in speech.all:
            _say(console, endpoint.healthy, f"TTS {endpoint.name}: {endpoint.problem or endpoint.synthesizer.address}")
        sentence = Utterance(text=SENTENCE, voice=settings.tts_voice, language=settings.tts_language, final=True)
        try:
            spoken = await speech.speak(sentence, lambda _, __: None, audio=bool(speech.formats))
        except FastTalkError as error:
            _say(console, False, f"speech: {error.message}")
            return False
    _say(console, True, f"speech: {spoken.kind} made {spoken.seconds:.1f} s of audio in {spoken.took:.2f} s")
    return True


def _say(console: Console, fine: bool, text: str) -> None:
    # Text, not markup: names of models may hold brackets.
    line = Text.assemble(("✓ ", "green") if fine else ("✗ ", "red"), (text, "" if fine else "red"))
    console.print(line, soft_wrap=True)


async def _generate(opened: OpenedEngine) -> str | None:
    """Generate once; returns what was said and how fast, or None if it was nothing."""
    request = GenerationRequest(
        model=opened.model,
        messages=(Message("user", QUESTION),),
        sampling=SamplingParams(temperature=0.0, top_p=1.0, top_k=1, max_tokens=MAX_TOKENS),
        context_window=opened.context_window,
    )
    started = monotonic()
    deltas: list[Delta] = []
    sink = timed(deltas.append)
    usage = (await opened.engine.generate(request, sink)).usage
    if not deltas:
        return None
    text = "".join(delta.text for delta in deltas).strip()
    tokens = 0 if usage is None else usage.completion_tokens
    return f"{text!r} ({tokens} tokens, the first after {sink.times[0] - started:.2f} s)"
