"""Cuts a response into chunks for a voice, while it streams: deltas in, speakable chunks out.

The first chunk goes at the first clause, the later ones by sentence; while much audio is ahead, sentences are joined.
A chunk is given as soon as nothing that can still come would change its end. Chunks follow each other without a gap:
the response is the join of their spans. No clock: the caller says how much audio is ahead, and how fast more is made.
"""

import re
from collections import deque
from dataclasses import dataclass, field

from llm_service.boundaries import CANDIDATE, Boundary, count_words, is_speakable, judge
from llm_service.pacing import Pacing, Supply
from llm_service.speakable import SpeakableText
from llm_service.speech_rules import Piece, SpeechRules

_STRIDE = 512  # characters of a delta that are looked at in one go
_MARK_OR_JOINER = re.compile(r"[\u0300-\u036f\u0900-\u0dff\u0e31-\u0e4e\u200c\u200d\ufe0f\udc00-\udfff]")
_SHORT = 32  # characters of mere marks that are no chunk of their own
_USUAL_CLAUSE = 60  # characters
_LONGEST_CLUSTER = 16  # characters that make one on the page


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the voice says next, and the part of the response that it stands for.

    `id` counts from 0 within a response. `text` may be empty: then nothing of [start, end) is for the ear.
    `start` and `end` are characters of the response; the next chunk starts at `end`.
    """

    id: int
    text: str
    start: int
    end: int
    lead: int = field(repr=False, default=0)
    """White space before `text` that was left out: where the pieces begin to be spoken."""
    pieces: tuple[tuple[int, int], ...] = field(repr=False, default=())
    """(characters said, characters of the response) of each piece, in order."""

    def response_chars(self, spoken: int) -> int:
        """Say how many characters of the response were heard once the first `spoken` characters of `text` were.

        Never goes back as `spoken` grows; 0 gives `start`, `len(text)` or more gives `end`.
        What was replaced (a URL by its host) counts once all of it was said.
        """
        if spoken <= 0:
            return self.start
        if spoken >= len(self.text):
            return self.end
        left, position = spoken + self.lead, self.start
        for said, raw in self.pieces:
            if left < said:
                return position + left if said == raw else position
            left -= said
            position += raw
            if left == 0:
                break
        return position


class Chunker:
    """One response's chunks: `feed` each delta, `due` when audio runs low, `finish` at the end.

    `language` is a code such as `de` or `pt-BR`; None goes by the script, and takes as an end what English, German,
    French and Spanish agree on.
    """

    def __init__(
        self, rules: SpeechRules | None = None, *, language: str | None = None, pacing: Pacing | None = None
    ) -> None:
        self._pacing = pacing or Pacing()
        self._language = language.replace("_", "-").split("-")[0].lower() if language else None
        self._speakable = SpeakableText(rules or SpeechRules())
        self._text = ""  # what is said, from the beginning of the sentence that is not over, or of what waits
        self._pieces: deque[tuple[int, int]] = deque()  # of what is not given out, from _given on
        self._given = 0  # positions in _text: given out up to here,
        self._sentence = 0  # the sentence that is not over begins,
        self._scanned = 0  # no end is left before here
        self._hard: deque[int] = deque()  # ends that a line or a paragraph makes
        self._ends: deque[int] = deque()  # of sentences, not yet given out
        self._clauses: deque[int] = deque()  # ends of clauses in the sentence that is not over
        self._next_id = 0
        self._length = 0  # of the last chunk's text
        self._begun = False  # something was given out to be said
        self._ended = 0  # the last end, and whether there's something to say before it
        self._opened = False
        self._position = 0  # in the response
        self._last = False  # nothing more will come

    def feed(self, delta: str, supply: Supply | None = None) -> list[Chunk]:
        """Take what the engine said; give the chunks that are ready.

        `supply`: what the listener has yet to hear; None where nobody knows: then each sentence goes as it ends.
        """
        out: list[Chunk] = []
        for start in range(0, len(delta), _STRIDE):
            self._take(self._speakable.feed(delta[start : start + _STRIDE]))
            self._settle()
            given = self._ready(supply, low=supply is None and not out)
            if supply is not None:
                supply = supply.after(sum(len(chunk.text) for chunk in given))
            out += given
        return out

    def due(self, supply: Supply | None = None) -> list[Chunk]:
        """Give what waits, if there is little enough audio ahead: to be asked now and then while no delta comes."""
        return self._ready(supply, low=supply is None)

    def clause_due(self, supply: Supply) -> float:
        """Say with how many seconds of audio ahead a clause would be given that is held, or comes."""
        held = self._clauses[-1] - self._given if self._clauses else 0
        return supply.ahead - supply.left_after(max(held, _USUAL_CLAUSE)) + self._pacing.short_audio

    def finish(self, supply: Supply | None = None) -> list[Chunk]:
        """Give all the rest, joined as the audio that is ahead allows: the response is over."""
        self._last = True
        self._take(self._speakable.finish())
        self._settle()
        if len(self._text) > (self._ends[-1] if self._ends else self._given):
            self._ends.append(len(self._text))
        out: list[Chunk] = []
        while self._ends:
            chunk = self._give(self._joined(self._most(supply)) if self._begun else self._ends[0])
            supply = supply.after(len(chunk.text)) if supply is not None else None
            out.append(chunk)
        if self._pieces:
            out.append(self._give(len(self._text)))
        return out

    # ------------------------------------------------------------ taking in

    def _take(self, pieces: list[Piece]) -> None:
        said = []
        length = len(self._text)
        for spoken, raw, ends in pieces:
            if ends:
                self._hard.append(length)
            said.append(spoken)
            length += len(spoken)
            last = self._pieces[-1] if self._pieces else (0, 0)
            if (last[0] == last[1] and len(spoken) == raw and last[0]) or (self._pieces and not last[0] and not spoken):
                self._pieces[-1] = (last[0] + len(spoken), last[1] + raw)
            else:
                self._pieces.append((len(spoken), raw))
        self._text += "".join(said)

    def _settle(self) -> None:
        """Find the ends that are certain, in order."""
        while True:
            limit = self._sentence + self._pacing.longest
            found = CANDIDATE.search(self._text, self._scanned)
            hard = self._hard[0] if self._hard else None
            if not self._opened and self._end_long_beginning(found, hard):
                continue
            if hard is not None and (found is None or hard <= found.end()) and hard <= limit:
                self._hard.popleft()
                self._end_sentence(hard)
            elif found is not None and found.end() <= limit:
                if not self._settle_candidate(found):
                    return
            elif len(self._text) > limit:
                self._end_sentence(self._forced_end(self._sentence, limit), forced=True)
            else:
                self._scanned = max(self._scanned, len(self._text) - 2 if found is None else found.start())
                return

    def _settle_candidate(self, found: re.Match[str]) -> bool:
        """Judge one candidate; False where that must wait."""
        boundary = judge(self._text, self._sentence, found, self._language, last=self._last)
        if boundary is Boundary.UNDECIDED:
            self._scanned = found.start()
            return False
        self._scanned = found.end() + (found.start() == found.end())
        if boundary is Boundary.SENTENCE:
            self._end_sentence(found.end())
        elif boundary is Boundary.CLAUSE:
            words = 0 if self._opened else count_words(self._text[self._ended : found.end()])
            if words >= self._pacing.first_words:
                self._end(found.end())
            else:
                self._clauses.append(found.end())
        return True

    def _end_long_beginning(self, found: re.Match[str] | None, hard: int | None) -> bool:
        """Where nothing ends for long, end the first chunk without a clause; False where something does."""
        limit = self._ended + self._pacing.first_longest
        ends = (len(self._text), self._sentence + self._pacing.longest + 1, hard, found and found.end())
        if limit >= min(to for to in ends if to is not None):
            return False
        self._end(self._forced_end(self._ended, limit))
        return True

    def _end_sentence(self, end: int, *, forced: bool = False) -> None:
        self._scanned = max(self._scanned, end)
        if not forced and end - self._sentence <= _SHORT and not is_speakable(self._text[self._sentence : end]):
            return  # a few marks: they go with what follows
        if end > self._ended:
            self._end(end)
        self._sentence = end
        self._clauses.clear()

    def _end(self, end: int) -> None:
        self._opened = self._opened or is_speakable(self._text[self._ended : end])
        self._ended = end
        if end > self._given:
            self._ends.append(end)

    def _forced_end(self, after: int, limit: int) -> int:
        """Where text that has no end in (after, limit] is cut: at a clause, else between words or characters."""
        clauses = [end for end in self._clauses if after < end <= limit]
        if clauses:
            return clauses[-1]
        space = self._text.rfind(" ", after + 1, limit + 1)
        if space > after and not self._text[after:space].isspace():
            return space
        for end in range(limit, max(limit - _LONGEST_CLUSTER, after), -1):
            if not _MARK_OR_JOINER.match(self._text[end]):
                return end
        return limit

    # ----------------------------------------------------------- giving out

    def _ready(self, supply: Supply | None, *, low: bool) -> list[Chunk]:
        """Give what is full, and with `low`, or little audio ahead, what isn't."""
        out: list[Chunk] = []
        while self._ends:
            if self._begun:
                most = self._most(supply)
                end = self._joined(most)
                full = self._ends[-1] != end or self._scanned > self._given + most
                if not (full or low or (supply is not None and supply.ahead < self._pacing.enough_audio)):
                    break
            else:
                end = self._ends[0]
            chunk = self._give(end)
            supply = supply.after(len(chunk.text)) if supply is not None else None
            out.append(chunk)
        if self._clauses and supply is not None and self._begun:
            clause = self._clauses[-1]  # it may have been given out already: then it has no words
            short = supply.left_after(clause - self._given) < self._pacing.short_audio
            if short and count_words(self._text[self._given : clause]) >= self._pacing.clause_words:
                out.append(self._give(clause))
        return out

    def _most(self, supply: Supply | None) -> int:
        """Up to how many characters sentences are joined now."""
        pacing = self._pacing
        if supply is None:
            return pacing.joined
        grown = max(pacing.first_longest, int(pacing.growth * self._length))
        return supply.most(min(pacing.joined, grown))

    def _joined(self, most: int) -> int:
        """The last end that fits into one chunk of so many characters."""
        fitting = [end for end in self._ends if end - self._given <= most]
        return fitting[-1] if fitting else self._ends[0]

    def _give(self, end: int) -> Chunk:
        while self._ends and self._ends[0] <= end:
            self._ends.popleft()
        said = self._text[self._given : end]
        text = said.strip()
        pieces = self._take_pieces(len(said))
        start, self._position = self._position, self._position + sum(raw for _, raw in pieces)
        if not is_speakable(text):
            text = ""
        chunk = Chunk(self._next_id, text, start, self._position, len(said) - len(said.lstrip()), pieces)
        self._next_id += 1
        self._begun, self._length = self._begun or bool(text), len(text)
        self._given = end
        self._forget()
        return chunk

    def _take_pieces(self, said: int) -> tuple[tuple[int, int], ...]:
        """The pieces of the next `said` characters, and what follows them unspoken."""
        taken = []
        while self._pieces:
            spoken, raw = self._pieces[0]
            if spoken > said:
                if said:
                    # What stands for something else can't be cut in two: it counts once all of it is said.
                    part = said if spoken == raw else 0
                    taken.append((said, part))
                    self._pieces[0] = (spoken - said, raw - part)
                break
            taken.append(self._pieces.popleft())
            said -= spoken
        return tuple(taken)

    def _forget(self) -> None:
        """Drop the text that no sentence and no chunk needs any more."""
        by = min(self._given, self._sentence)
        if by:
            self._text = self._text[by:]
            self._given, self._sentence, self._scanned = self._given - by, self._sentence - by, self._scanned - by
            self._ended = max(0, self._ended - by)
            for ends in (self._hard, self._ends, self._clauses):
                for at in range(len(ends)):
                    ends[at] -= by
