"""What the readers of marks are made on: text that is held until it is certain, and pieces that are given."""

import re
from collections.abc import Callable

from llm_service.speech_rules import Piece, SpeechRules

LOOKAHEAD = 240  # characters that wait for a mark's end


class Scanner:
    """Holds text and gives pieces of it, from left to right.

    A state is a method that gives what is certain at the beginning of what is held, or changes the state, and says
    True; or says False where it must wait for more.
    """

    def __init__(self, rules: SpeechRules) -> None:
        self._rules = rules
        self._held = ""  # what came and is not yet given
        self._last = False  # nothing more will come
        self._out: list[Piece] = []
        self._tail = ""  # the last words given
        self._ended = True  # a line's end was said, and no word since
        self._left_out = False  # the last thing given was not said
        self._state: Callable[[], bool] = self._line_start
        self._newlines = 0
        self._structured = False  # the line before was a heading, an item of a list, a row
        self._fence = ""

    def _line_start(self) -> bool:
        """Between two lines, which is `SpeakableText`'s."""
        raise NotImplementedError

    def _text(self) -> bool:
        """Within a line, which is `InlineMarks`'s."""
        raise NotImplementedError

    def _drain(self) -> list[Piece]:
        while self._held and self._state():
            pass
        out, self._out = self._out, []
        return out

    def _give(self, spoken: str, raw: int, *, ends: bool = False) -> bool:
        """Say `spoken` for the next `raw` characters."""
        if spoken:
            self._tail = (self._tail + spoken[-8:])[-8:]
            self._left_out = False
            self._ended = ends or (self._ended and spoken.isspace())
        else:
            self._left_out = True
        self._out.append(Piece(spoken, raw, ends))
        self._held = self._held[raw:]
        return True

    def _as_is(self, raw: int) -> bool:
        return self._give(self._held[:raw], raw)

    def _waits_for(self, beginning: re.Pattern[str]) -> bool:
        """Whether what is held may yet become what `beginning` is the beginning of."""
        return not self._last and len(self._held) < LOOKAHEAD and beginning.match(self._held) is not None
