"""What one session has spoken: its responses cut into chunks, chunks told of, and their sound sent to its client."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import structlog

from llm_service import events
from llm_service.chunk_hook import ChunkHook
from llm_service.errors import SpeechError, SpeechFailed
from llm_service.events import Audio
from llm_service.outbox import Outbox
from llm_service.pacing import Pacing, Supply
from llm_service.sentences import Chunk, Chunker
from llm_service.session import Session
from llm_service.speech.base import Utterance
from llm_service.speech.endpoints import Endpoints
from llm_service.speech.forwarder import Forwarder, Spawn
from llm_service.speech_choices import SpeechChoices
from llm_service.speech_metrics import SpeechMetrics
from llm_service.speech_rules import SpeechRules

_PACING = Pacing()
_log = structlog.get_logger(__name__)
# Seconds behind a mark at which the chunker is asked, so that it is passed.
_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class SpeechDesk:
    """What all sessions of a process speak with; `max_ahead` in seconds of audio, `max_waiting` in chunks."""

    endpoints: Endpoints
    metrics: SpeechMetrics
    hook: ChunkHook | None
    rules: SpeechRules
    max_ahead: float
    max_waiting: int


class Speaking:
    """Speaks the responses of one session, one after the other.

    `begin` and `finish` enclose a generation; `hush` ends all at once, `mute` the sound alone, `drop` one response that
    failed. `tell` is told of a failure that costs the response its sound. Tasks are made by `spawn`.
    """

    __slots__ = (
        "_chunker",
        "_desk",
        "_due",
        "_first",
        "_forwarder",
        "_heard",
        "_how",
        "_muted",
        "_number",
        "_outbox",
        "_session",
        "_session_id",
        "_started",
        "_tell",
    )

    def __init__(
        self, session: Session, outbox: Outbox, desk: SpeechDesk, spawn: Spawn, tell: Callable[[SpeechError], None]
    ) -> None:
        self._session = session
        self._session_id = session.id  # of the response that is spoken; the session may have begun anew since
        self._outbox = outbox
        self._desk = desk
        self._tell = tell
        self._forwarder = Forwarder(
            desk.endpoints, self, spawn, desk.metrics, max_ahead=desk.max_ahead, max_waiting=desk.max_waiting
        )
        outbox.ready = self._forwarder.ready
        self._chunker: Chunker | None = None
        self._how: SpeechChoices | None = None
        self._number = 0
        self._started = 0.0
        self._first = 0  # the id of the response's first chunk that is for the ear; 0: it has none yet
        self._heard = True  # sound of it has been sent
        self._muted = False  # its client was away: it is told of the chunks, and nothing is spoken
        self._due: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Speaking: {self._forwarder!r}>"

    @property
    def busy(self) -> bool:
        """Whether something is spoken, or waits to be."""
        return self._forwarder.busy

    @property
    def sounds(self) -> bool:
        """Whether the client still hears something, or will, as far as can be told from here."""
        return self._forwarder.busy or self._forwarder.ahead > 0

    def begin(self, number: int, how: SpeechChoices, *, muted: bool = False) -> Callable[[str], None]:
        """Speak this response, or only cut it; returns what sends its text on meanwhile."""
        self._muted = muted
        if number != self._number:
            self._number, self._started = number, monotonic()
            self._first, self._heard = 0, False
        self._how, self._session_id = how, self._session.id
        chunker = self._chunker = Chunker(self._desk.rules, language=how.language, pacing=_PACING)
        write = self._outbox.say

        def say(text: str) -> None:
            write(text)
            if self._chunker is chunker:
                try:
                    chunks = chunker.feed(text, self._supply())
                    if chunks:
                        self._take(chunks)
                except Exception:  # noqa: BLE001 - see `_crashed`
                    self._crashed()

        return say

    def finish(self, *, final: bool) -> None:
        """Give out the rest of the text; `final` says that the response is over, and no tools are asked for."""
        chunker, self._chunker = self._chunker, None
        self._cancel_due()
        if chunker is not None:
            try:
                self._take(chunker.finish(self._supply()), final=final)
            except Exception:  # noqa: BLE001 - see `_crashed`
                self._crashed()

    def hush(self) -> None:
        """Drop what waits, abort what runs, and cut no more of this response."""
        self._chunker = None
        self._cancel_due()
        self._forwarder.hush()
        if self._desk.hook is not None:
            self._desk.hook.drop(self._session_id)

    def mute(self) -> None:
        """Do as `hush` does for a client that is gone, but cut on: it may come back to be told of the chunks."""
        chunker = self._chunker
        self.hush()
        if self._how is not None and self._how.chunks:
            self._chunker, self._muted = chunker, True

    def drop(self, number: int) -> None:
        """Speak no more of this response, the newest; those before it are heard on."""
        self._chunker = None
        self._cancel_due()
        self._forwarder.drop(number)
        if self._desk.hook is not None:
            self._desk.hook.drop(self._session_id, turn=number)

    def leave(self) -> None:
        """Let go of what holds this, after the last `hush`; nothing is spoken after it."""
        self._outbox.ready = None
        self._forwarder.leave()

    # Of the forwarder

    def give(self, audio: Audio) -> bool:
        """Write a piece of sound to the client, if it takes one now."""
        assert self._how is not None
        written = self._outbox.put_audio(audio, binary=self._how.binary)
        # What is sent may still be of the response before.
        if written and not self._heard and 0 < self._first <= audio.chunk:
            self._heard = True
            self._desk.metrics.first_audio.observe(monotonic() - self._started)
        return written

    def spoken(self) -> None:
        """See to it that what the chunker holds back is given out before the client has heard all."""
        self._cancel_due()
        self._give_due()

    def failed(self, error: SpeechError) -> None:
        """Tell the client that the rest of the response is text alone."""
        self._tell(error)

    # Chunks

    def _supply(self) -> Supply | None:
        """What the client has yet to hear; None where it hears nothing from here."""
        heard_here = self._how is not None and self._how.audio and not self._muted
        return self._forwarder.supply if heard_here else None

    def _give_due(self) -> None:
        self._due = None
        if self._chunker is None:
            return
        try:
            self._take(self._chunker.due(self._supply()))
            self._set_due()
        except Exception:  # noqa: BLE001 - see `_crashed`
            self._crashed()

    def _set_due(self) -> None:
        """The chunker may want to give what it holds when there is less audio, and no delta may come by then."""
        supply = self._supply()
        if supply is None or self._chunker is None:
            return
        marks = sorted((_PACING.enough_audio, self._chunker.clause_due(supply)), reverse=True)
        later = next((supply.ahead - mark for mark in marks if supply.ahead > mark), None)
        if later is not None:
            self._due = asyncio.get_running_loop().call_later(later + _MARGIN, self._give_due)

    def _crashed(self) -> None:
        """End the response's speech by a bug of ours: it must cost the sound, not the text."""
        _log.exception("speech_crashed")
        self.hush()
        self._tell(SpeechFailed("the service failed to speak; the text goes on alone"))

    def _cancel_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _take(self, chunks: list[Chunk], *, final: bool = False) -> None:
        """Tell of chunks, and have them spoken."""
        how, desk = self._how, self._desk
        assert how is not None
        for chunk in chunks:
            told = self._session.cut(self._number, chunk)
            if told is None:
                return
            if not self._first and told.text:
                self._first = told.id
                desk.metrics.first_chunk.observe(monotonic() - self._started)
            desk.metrics.chunks.inc()
            if how.chunks:
                self._outbox.put(told)
            self._say(self._utterance(told, how, final=final and chunk is chunks[-1]))
        if final and not chunks:
            end = events.Chunk(id=0, text="", start=0, end=0)
            self._say(self._utterance(end, how, final=True))

    def _say(self, utterance: Utterance) -> None:
        how, desk = self._how, self._desk
        assert how is not None
        if self._muted:
            return
        if desk.hook is not None and utterance.id:
            desk.hook.offer(utterance)
        # What has no text is of interest to a webhook alone, and only if it is the end.
        worth = bool(utterance.text) or (utterance.final and not how.audio)
        if worth and desk.endpoints.serves(audio=how.audio):
            self._forwarder.say(utterance, audio=how.audio)

    def _utterance(self, chunk: events.Chunk, how: SpeechChoices, *, final: bool) -> Utterance:
        return Utterance(
            text=chunk.text,
            voice=how.voice,
            language=how.language,
            speed=how.speed,
            format=how.format,
            id=chunk.id,
            start=chunk.start,
            end=chunk.end,
            session_id=self._session_id,
            turn=self._number,
            final=final,
            chosen=how.chosen,
        )
