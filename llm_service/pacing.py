"""How large chunks are, and when they go: by what a listener has yet to hear and how fast more of it is made."""

from dataclasses import dataclass
from typing import NamedTuple

_LASTS = 1 / 15  # seconds that a character lasts, until that is measured
_FACTOR = 0.5  # seconds to make one second of audio, until that is measured
_SAFETY = 0.8  # of the audio ahead is taken for a chunk's making
_AGED = 0.5  # of an observation's weight is left with the next one
_BEFORE = 20  # characters that count of what was observed elsewhere, until there is something of one's own


@dataclass(frozen=True, slots=True)
class Pacing:
    """How large chunks are, and when.

    `first_words`: words that a clause must have to be the first chunk; of Chinese three characters are about two;
    without any, it ends by `first_longest` characters.
    `longest`: characters at which a sentence is cut that has no end. `joined`: characters up to which sentences are
    joined; 0 makes each a chunk. `growth`: how many times as long as the one before a joined chunk may be, from
    `first_longest` on. `enough_audio`: seconds of audio ahead above which sentences wait, to be joined.
    `short_audio`: seconds below which a clause of `clause_words` is given without waiting for its sentence's end; the
    time to make it comes on top.
    """

    first_words: int = 3
    first_longest: int = 120
    longest: int = 300
    joined: int = 300
    growth: float = 2.0
    enough_audio: float = 5.0
    short_audio: float = 0.5
    clause_words: int = 6


class Supply(NamedTuple):
    """What a listener has yet to hear, and how fast more is made; the defaults say that making takes no time.

    `ahead`: seconds of audio, what is queued and being made included. `busy`: seconds until that is made.
    `until_heard`: seconds from asking for a chunk to its first sound, a character; `making`: to its last sound.
    `lasts`: seconds of audio, a character.
    """

    ahead: float
    busy: float = 0.0
    until_heard: float = 0.0
    making: float = 0.0
    lasts: float = _LASTS

    def most(self, bound: int) -> int:
        """Say how many characters, up to `bound`, can be made before what is ahead was heard."""
        spare = _SAFETY * (self.ahead - self.busy)
        return bound if spare >= bound * self.until_heard else max(0, int(spare / self.until_heard))

    def left_after(self, characters: int) -> float:
        """Say how many seconds of audio are left when a chunk that is asked for now begins to be heard."""
        return self.ahead - self.busy - characters * self.until_heard

    def after(self, characters: int) -> "Supply":
        """Say what it is once a chunk of so many characters was asked for."""
        return self._replace(
            ahead=self.ahead + characters * self.lasts, busy=self.busy + characters * self.making
        )  # fmt: skip


class Tempo:
    """How fast speech is made and how long it lasts, by the latest chunks.

    Begins with sums of what is known: `characters`, and the seconds until they were heard, that they took and that they
    last. `tells` is told of each chunk as well.
    """

    __slots__ = ("_characters", "_seconds", "_tells", "_took", "_until_heard")

    def __init__(
        self,
        characters: float = 0.0,
        *,
        until_heard: float = 0.0,
        took: float = 0.0,
        seconds: float = 0.0,
        tells: "Tempo | None" = None,
    ) -> None:
        self._characters, self._until_heard, self._took, self._seconds = characters, until_heard, took, seconds
        self._tells = tells

    def successor(self) -> "Tempo":
        """Return one that begins with this until it has found out something itself, and tells this of it."""
        share = _BEFORE / self._characters if self._characters else 0.0
        return Tempo(
            self._characters * share,
            until_heard=self._until_heard * share,
            took=self._took * share,
            seconds=self._seconds * share,
            tells=self,
        )

    def observe(self, characters: int, *, until_heard: float, took: float, seconds: float) -> None:
        """Take note of a chunk: when its first sound came and when its last, and how long it lasts, in seconds."""
        self._characters = self._characters * _AGED + characters
        self._until_heard = self._until_heard * _AGED + until_heard
        self._took = self._took * _AGED + took
        self._seconds = self._seconds * _AGED + seconds
        if self._tells is not None:
            self._tells.observe(characters, until_heard=until_heard, took=took, seconds=seconds)

    def supply(self, ahead: float, characters: int, underway: float) -> Supply:
        """Say what there is with `ahead` seconds of audio made and so many characters to be made yet.

        `underway` is for how many seconds the first of these have been in the making.
        """
        count = self._characters
        lasts = self._seconds / count if count else _LASTS
        making = self._took / count if count else lasts * _FACTOR
        until_heard = self._until_heard / count if count else making
        busy = max(0.0, characters * making - underway)
        return Supply(ahead + characters * lasts, busy, until_heard, making, lasts)
