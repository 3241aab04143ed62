"""Turns the text of a response into what is for the ear, while it streams: here its lines and blocks.

Markdown marks, code, tables, URLs, emoji, footnotes and reasoning are left out or made speakable, each by a rule.
Every piece of the outcome says how much of the response it stands for, so a position in it can be led back.
"""

import re

from llm_service.inline_marks import InlineMarks
from llm_service.scanner import LOOKAHEAD
from llm_service.speech_rules import Piece

_STRIDE = 512  # what is looked at in one go, so that a long delta costs in step with its length

_LINE_MARK = re.compile(
    r"(?P<heading>#{1,6}(?:[ \t]+|(?=\n)))"
    r"|(?P<quote>>[ \t]?)"
    r"|(?P<rule>[-*_=][-*_= \t|:]{1,200}(?=\n))"
    r"|(?P<item>[-*+•‣◦–][ \t]+(?:\[[ xX]\][ \t]+)?)"
    r"|(?P<fence>`{3,100}|~{3,100})"
    r"|(?P<divider>\|[ \t:|-]{0,200}(?=\n))"
    r"|(?P<row>\|[ \t]*)"
    r"|(?P<number>\d{1,3}[.)][ \t])"
    r"|(?P<note>\[\^?[^\]\n]{1,40}\]:[ \t])"
)
# A line's beginning that may yet become one of the marks above.
_LINE_MARK_BEGINS = re.compile(
    r"#{1,6}|[-*_=|][-*_=|: \t]{0,201}|[-*+•‣◦–](?:[ \t]+(?:\[[ xX]?\]?)?)?"
    r"|\d{1,3}[.)]?|`{1,100}|~{1,100}|\[\^?[^\]\n]{0,40}\]?:?"
)
_ENDS_BY_ITSELF = re.compile(r"""[.!?…。！？।॥؟۔።။។:：;；,，、،؛—–][\s"'”’»)\]」』）]*$""")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class SpeakableText(InlineMarks):
    """The response's text in, pieces out: `feed` for each delta, then `finish`."""

    def feed(self, delta: str) -> list[Piece]:
        """Take what the engine said; give the pieces that are certain now. Joined they have no gap."""
        out = []
        for start in range(0, len(delta), _STRIDE):
            self._held += delta[start : start + _STRIDE]
            out += self._drain()
        return out

    def finish(self) -> list[Piece]:
        """Give the rest: nothing more will come."""
        self._last = True
        return self._drain()

    def _line_start(self) -> bool:
        """Between a line's end and the first character of the next."""
        blank = len(self._held) - len(self._held.lstrip(" \t\r\n"))
        if blank:
            self._newlines += self._held.count("\n", 0, blank)
            return self._give("", blank)
        if not self._rules.markdown:
            return self._begin_line("", 0)
        mark = _LINE_MARK.match(self._held if not self._last else self._held + "\n")
        kind = mark.lastgroup if mark is not None else None
        undecided = _LINE_MARK_BEGINS.fullmatch(self._held) is not None and len(self._held) < LOOKAHEAD
        if not self._last and undecided and kind not in ("heading", "quote", "divider", "rule"):
            return False
        return self._begin_line(kind or "", mark.end() if mark is not None else 0)

    def _begin_line(self, kind: str, length: int) -> bool:
        """End the line before as its kind and the next one's ask for, and leave out the next one's mark."""
        length = min(length, len(self._held))
        if kind == "quote":
            return self._give("", length)
        self._end_line(kind)
        self._structured = kind in ("heading", "item", "row", "number")
        self._newlines, self._in_code, self._in_autolink, self._brackets = 0, False, False, 0
        self._in_row = kind == "row"
        self._state = self._after_mark if kind in ("heading", "item", "row") else self._text
        if kind == "number":
            return True
        if kind == "fence":
            self._fence = self._held[:length]
            self._state = self._fence_opening
            if self._rules.code_blocks == "omit" and self._rules.code_block_words:
                self._give(self._rules.code_block_words + " ", 0)
        elif kind in ("divider", "rule"):
            self._state = self._line_start
        elif self._is_left_out(kind):
            self._state = self._line_left_out
        return self._give("", length) if length else True

    def _is_left_out(self, kind: str) -> bool:
        rule = {"note": self._rules.footnotes, "row": self._rules.tables}.get(kind)
        return rule == "omit"

    def _end_line(self, kind: str) -> None:
        if self._ended or not self._newlines:
            return
        plain = not kind and not self._structured
        if plain and self._newlines == 1 and self._held[:1].islower() and not _ENDS_BY_ITSELF.search(self._tail):
            self._give(" ", 0)  # a line that was only wrapped
            return
        if not (plain and self._newlines == 1) and not _ENDS_BY_ITSELF.search(self._tail):
            self._give("。" if _CJK.match(self._tail[-1]) else ".", 0)
        self._give(" ", 0, ends=True)

    def _after_mark(self) -> bool:
        blank = len(self._held) - len(self._held.lstrip(" \t"))
        if blank < len(self._held):
            self._state = self._text
        return self._give("", blank) if blank else True

    def _line_left_out(self) -> bool:
        end = self._held.find("\n")
        if end == 0:
            self._state = self._line_start
            return True
        return self._give("", end if end > 0 else len(self._held))

    # ------------------------------------------------------------ code blocks

    def _fence_line_start(self) -> bool:
        line, newline, _ = self._held.partition("\n")
        stripped = line.strip()
        if not newline and not self._last and len(line) < LOOKAHEAD and not stripped.strip(self._fence[0]):
            return False
        if len(line) < LOOKAHEAD and len(stripped) >= len(self._fence) and not stripped.strip(self._fence[0]):
            self._state = self._line_start
            self._newlines = 2
            return self._give("", len(line))
        self._state = self._fence_line_rest
        return self._fence_line_rest()

    def _fence_opening(self) -> bool:
        """The language's name after the fence is for nobody's ear."""
        line, newline, _ = self._held.partition("\n")
        if newline:
            self._state = self._fence_line_start
        return self._give("", len(line) + len(newline))

    def _fence_line_rest(self) -> bool:
        line, newline, _ = self._held.partition("\n")
        if newline:
            self._state = self._fence_line_start
        length = len(line) + len(newline)
        return self._as_is(length) if self._rules.code_blocks == "read" else self._give("", length)
