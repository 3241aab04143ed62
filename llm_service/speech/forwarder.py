"""Chunks in, audio out, in their order, for one session.

    say ──▶ waiting ──▶ one synthesis at a time ──▶ held while the client takes nothing ──▶ client

The next chunk is synthesised while the last one is sent and heard, up to so many seconds ahead. Whoever says a chunk
never waits: chunks are short texts, and past their bound speech is given up for the response, not the response.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Protocol

import structlog

from llm_service.errors import SpeechError, SpeechFailed, SpeechTooSlow
from llm_service.events import Audio
from llm_service.pacing import Supply
from llm_service.speech.base import Utterance, for_clients
from llm_service.speech.endpoints import Endpoints, Spoken
from llm_service.speech_metrics import SpeechMetrics

# Bytes of audio in one event: clients bound the frames they take, and text goes between.
PIECE_BYTES = 32_768

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

_log = structlog.get_logger(__name__)


class Outlet(Protocol):
    """Where audio goes."""

    def give(self, audio: Audio) -> bool:
        """Take a piece now, or refuse it: `ready` is called when more can be given."""
        ...

    def spoken(self) -> None:
        """Take note that a chunk is over."""
        ...

    def failed(self, error: SpeechError) -> None:
        """Take note that no more of this response is spoken."""
        ...


class Forwarder:
    """Has a session's chunks spoken. `max_ahead` is in seconds of audio, `max_waiting` in chunks.

    `spawn` makes the task it works in, which its owner may cancel. `hush` comes before those end.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        outlet: Outlet,
        spawn: Spawn,
        metrics: SpeechMetrics,
        *,
        max_ahead: float,
        max_waiting: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._outlet = outlet
        self._spawn = spawn
        self._metrics = metrics
        self._max_ahead = max_ahead
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: deque[tuple[Utterance, bool]] = deque()
        self._held: deque[Audio] = deque()  # made, and not taken by the client yet
        self._room = asyncio.Event()
        self._unheard = 0  # characters that wait, and those that are being spoken
        self._worker: asyncio.Task[None] | None = None
        # How often all was dropped: what was begun before the last time gives nothing more.
        self._hushes = 0
        self._heard_until = 0.0
        self._tempo = endpoints.tempo.successor()
        self._speaks, self._began = False, 0.0  # a chunk is being made, since then
        self._begun_turn = 0  # of the chunk that was begun last
        self._failed_turn = 0

    def __repr__(self) -> str:
        return f"<Forwarder: {len(self._waiting)} chunks wait, {self.ahead:.1f} s ahead>"

    @property
    def ahead(self) -> float:
        """Seconds of audio that the client has and cannot have heard yet."""
        return max(0.0, self._heard_until - self._clock())

    @property
    def supply(self) -> Supply:
        """What the client has yet to hear, with what is being made and what waits, and how fast that is made."""
        underway = self._clock() - self._began if self._speaks else 0.0
        return self._tempo.supply(self.ahead, self._unheard, underway)

    @property
    def busy(self) -> bool:
        """Whether something is spoken, or waits to be."""
        return self._worker is not None or bool(self._held)

    def say(self, utterance: Utterance, *, audio: bool) -> None:
        """Have a chunk spoken behind those that wait; with `audio` the client gets it. Never waits."""
        if utterance.turn == self._failed_turn:
            self._metrics.unspoken.inc(len(utterance.text))
            return
        self._waiting.append((utterance, audio))
        self._unheard += len(utterance.text)
        if len(self._waiting) > self._max_waiting:
            self._give_up(
                utterance.turn,
                SpeechTooSlow(f"{self._max_waiting} chunks wait for the TTS already; the text goes on alone"),
            )
        elif self._worker is None:
            self._worker = self._spawn(self._work())

    def leave(self) -> None:
        """Let go of where audio goes, which holds this; nothing is said after it."""
        del self._outlet

    def hush(self) -> None:
        """Drop what waits and abort what runs: nothing is given after this."""
        self._hushes += 1
        self._metrics.unspoken.inc(self._unheard)
        self._waiting.clear()
        self._held.clear()
        self._unheard = 0
        self._heard_until = 0.0
        self._speaks = False
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None

    def drop(self, turn: int) -> None:
        """Speak no more of this turn, the newest; what is spoken or waits of those before it stays."""
        if turn == self._begun_turn:
            self.hush()  # nothing but this turn is left
        else:
            self._drop_waiting(turn)

    def ready(self) -> None:
        """Give what was held: the client takes more."""
        while self._held and self._outlet.give(self._held[0]):
            self._held.popleft()
        if not self._held:
            self._room.set()

    async def _work(self) -> None:
        hushes = self._hushes
        while self._waiting:
            await self._wait_for_room()
            if not self._waiting:
                break  # it was given up meanwhile
            utterance, audio = self._waiting.popleft()
            self._speaks, self._began = True, self._clock()
            self._begun_turn = utterance.turn
            await self._speak(utterance, audio)
            if hushes != self._hushes:
                return
            self._speaks = False
            self._unheard -= len(utterance.text)
            self._outlet.spoken()
        if hushes == self._hushes:
            self._worker = None

    async def _wait_for_room(self) -> None:
        """Wait until the client has taken what was made, and is not too far behind."""
        while True:
            if self._held:
                self._room.clear()
                await self._room.wait()  # a client that takes nothing is cut off before long
            elif (early := self.ahead - self._max_ahead) > 0:
                await asyncio.sleep(early)
            else:
                return

    async def _speak(self, utterance: Utterance, audio: bool) -> None:
        hushes, given, heard = self._hushes, False, 0.0

        def give(data: bytes, sample_rate: int | None) -> None:
            nonlocal given, heard
            if hushes != self._hushes:
                return
            given, heard = True, heard or self._clock()
            for start in range(0, len(data), PIECE_BYTES):
                self._put(_piece(utterance, sample_rate, data[start : start + PIECE_BYTES]))

        began = self._clock()
        spoken: Spoken | None = None
        error: SpeechError | None = None
        try:
            spoken = await self._endpoints.speak(utterance, give, audio=audio)
        except SpeechError as failure:
            error = for_clients(failure)
        except Exception:  # noqa: BLE001 - a bug of ours costs the sound, not the text
            _log.exception("speech_crashed")
            error = SpeechFailed("the service failed to speak; the text goes on alone")
        if hushes != self._hushes:
            return
        if given:
            self._put(Audio(chunk=utterance.id, format=utterance.format, last=True))
        if spoken is not None and given:
            self._heard_until = max(self._heard_until, began) + spoken.seconds
            self._tempo.observe(
                len(utterance.text), until_heard=heard - began, took=self._clock() - began, seconds=spoken.seconds
            )
        if error is not None:
            self._metrics.unspoken.inc(len(utterance.text))
            self._give_up(utterance.turn, error)

    def _put(self, audio: Audio) -> None:
        if self._held or not self._outlet.give(audio):
            self._held.append(audio)

    def _give_up(self, turn: int, error: SpeechError) -> None:
        """Speak no more of this turn; what waits of others stays."""
        if turn == self._failed_turn:
            return
        self._failed_turn = turn
        self._drop_waiting(turn)
        self._outlet.failed(error)

    def _drop_waiting(self, turn: int) -> None:
        dropped = sum(len(utterance.text) for utterance, _ in self._waiting if utterance.turn == turn)
        self._metrics.unspoken.inc(dropped)
        self._unheard -= dropped
        self._waiting = deque(each for each in self._waiting if each[0].turn != turn)


def _piece(utterance: Utterance, sample_rate: int | None, data: bytes) -> Audio:
    return Audio(chunk=utterance.id, format=utterance.format, sample_rate=sample_rate, data=data)
