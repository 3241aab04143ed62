"""What everything that speaks can do."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import msgspec

from llm_service.audio_format import AudioFormat
from llm_service.errors import (
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    SpeechError,
    SpeechFailed,
    SpeechRejected,
    SpeechTimeout,
    SpeechUnavailable,
)

TakeAudio = Callable[[bytes], None]
"""Gets a part of an audio file. What it raises ends the synthesis."""

Kind = Literal["openai", "opea", "gpt_sovits", "gpt_sovits_v2", "fasttalk", "webhook", "espeak"]
KINDS: tuple[str, ...] = get_args(Kind)


class Utterance(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk to speak, and how.

    `text` is what is to be heard, without markup; `start` and `end` are what it stands for in the response, in
    characters. `speed` is a factor, 1 for the voice's own. `final` marks the last chunk of the response, where that is
    known. `language` is a BCP 47 tag, or empty: nobody said; an empty `voice` is the endpoint's own. `chosen` says that
    a client chose voice, language or speed: a TTS that cannot serve them may be well all the same.
    """

    text: str
    voice: str = ""
    language: str = ""
    speed: float = 1.0
    format: AudioFormat = "wav"
    id: int = 0
    start: int = 0
    end: int = 0
    session_id: str = ""
    turn: int = 0
    final: bool = False
    chosen: bool = False


class Synthesizer(Protocol):
    """Speaks. Each method raises a `llm_service.errors.SpeechError` and nothing else when the TTS fails."""

    @property
    def kind(self) -> Kind:
        """Which wire it is: a label in metrics and logs."""
        ...

    @property
    def address(self) -> str:
        """Where the TTS is, for people; without credentials."""
        ...

    @property
    def url(self) -> str:
        """The same for machines: its URL, without what may be secret; a program's name where it has none."""
        ...

    @property
    def formats(self) -> frozenset[AudioFormat]:
        """What the TTS can be asked for; none: its audio goes elsewhere, and `take` gets nothing."""
        ...

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio of one utterance to `take` as it comes; return once it is over.

        For the formats pcm and wav it is a WAV file, else a file of the format; a TTS that gives something else than
        it is asked for is not found out here. Cancelling the task that waits here aborts what runs, at once.
        """
        ...

    async def ping(self) -> None:
        """Return if the TTS answers, raise if not; takes at most a few seconds, and has nothing spoken."""
        ...

    async def aclose(self) -> None:
        """Release connections. A second call does nothing."""
        ...


_TOLD = {
    SpeechUnavailable: "no TTS can be reached now; the text goes on alone",
    SpeechTimeout: "the TTS took too long; the text goes on alone",
    SpeechRejected: "the TTS refused the chunk: it may not know the voice or the language; the text goes on alone",
    SpeechFailed: "the TTS failed; the text goes on alone",
}


def for_clients(error: SpeechError) -> SpeechError:
    """Return the error without what is for the log alone: where the TTS is, and how it is set up."""
    told = _TOLD.get(type(error))
    return error if told is None else type(error)(told, retry_after=error.retry_after)


def without_credentials(url: str) -> str:
    """Return a URL without the name and the password that it may carry."""
    return re.sub(r"//[^/]*@", "//", url)


@contextmanager
def speech_errors() -> Iterator[None]:
    """Make a failure of HTTP to an engine one of speech."""
    try:
        yield
    except EngineTimeout as error:
        raise SpeechTimeout(error.message) from None
    except EngineUnreachable as error:
        raise SpeechUnavailable(error.message, retry_after=error.retry_after) from None
    except EngineError as error:
        raise SpeechFailed(error.message) from None
