"""Turns the text of a response into what is for the ear, while it streams: here its lines and blocks.

Markdown marks, code, tables, URLs, emoji, footnotes and reasoning are left out or made speakable, each by a rule.
Every piece of the outcome says how much of the response it stands for, so a position in it can be led back.
"""

import re

from llm_service.inline_marks import InlineMarks
from llm_service.scanner import LOOKAHEAD
from llm_service.speech_rules import Piece, SpeechRules

_STRIDE = 512  # what is looked at in one go, so that a long delta costs in step with its length

# A link's definition, alone on its line: all bounds together stay below LOOKAHEAD.
_DEFINITION = (
    r"\[[^\]\n^][^\]\n]{0,39}\]:[ \t]{1,4}(?:<[^<>\s]{1,110}>|(?:https?://|mailto:|www\.|[/#]|\.{1,2}/)[^\s<]{1,110})"
    r"""(?:[ \t]{1,4}(?:"[^"\n]{0,60}"|'[^'\n]{0,60}'|\([^)\n]{0,60}\)))?[ \t]{0,4}(?=\n)"""
)
_DEFINITION_BEGINS = (
    r"\[[^\]\n^][^\]\n]{0,39}(?:\](?::(?:[ \t]{1,4}(?:[<hmw/#.]\S{0,119}(?:[ \t]{1,4}(?:[\"'(][^\n]{0,66})?)?)?)?)?)?"
)
_LINE_MARK = re.compile(
    r"(?P<heading>#{1,6}(?:[ \t]+|(?=\n)))"
    r"|(?P<quote>>[ \t]?)"
    r"|(?P<rule>[-*_=][-*_= \t|:]{1,200}(?=\n))"
    r"|(?P<item>[-*+•‣◦–][ \t]+(?:\[[ xX]\][ \t]+)?)"
    # What stands behind a fence holds no backtick: else it is code within a line.
    r"|(?P<fence>`{3,100}(?=[^`\n]{0,100}\n)|~{3,100})"
    r"|(?P<divider>\|[ \t:|-]{0,200}(?=\n))"
    r"|(?P<row>\|[ \t]*)"
    r"|(?P<number>\d{1,3}[.)][ \t])"
    rf"|(?P<note>\[\^[^\]\n]{{1,40}}\]:[ \t]|{_DEFINITION})"
)
# A line's beginning that may yet become one of the marks above.
_LINE_MARK_BEGINS = re.compile(
    r"#{1,6}|[-*_=|][-*_=|: \t]{0,201}|[-*+•‣◦–](?:[ \t]+(?:\[[ xX]?\]?)?)?"
    rf"|\d{{1,3}}[.)]?|`{{1,2}}|`{{3,100}}[^`\n]{{0,100}}|~{{1,100}}|\[|\[\^[^\]\n]{{0,40}}\]?:?|{_DEFINITION_BEGINS}"
)
# A row is a table's first one if a row of dashes follows.
_TABLE = re.compile(r"\|[^\n]{1,180}\n[ \t]{0,3}\|[ \t]{0,8}:?-{1,30}:?[ \t]{0,8}(?=[-|\n])")
_TABLE_BEGINS = re.compile(r"\|[^\n]{0,180}(?:\n[ \t]{0,3}(?:\|[ \t]{0,8}(?::?-{0,30}:?[ \t]{0,8})?)?)?")
_INDENTED = 4  # columns from which a line is code, unless it is part of a list
_LOOKS_LIKE_CODE = re.compile(r"[{}\[\]=;<>_$\\|]|\w\(|^[^\w\s\"'“„«(¿¡–—…]")
_ENDS_BY_ITSELF = re.compile(r"""[.!?…。！？।॥؟۔።။។:：;；,，、،؛—–][\s"'”’»)\]」』）]*$""")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class SpeakableText(InlineMarks):
    """The response's text in, pieces out: `feed` for each delta, then `finish`."""

    def __init__(self, rules: SpeechRules) -> None:
        super().__init__(rules)
        self._indent = 0  # columns before the line's first character
        self._in_list = False
        self._in_table = False
        self._in_indented = False  # the line before was code, by its indentation

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
        blank = self._held[: len(self._held) - len(self._held.lstrip(" \t\r\n"))]
        if blank:
            self._newlines += blank.count("\n")
            if "\n" in blank:
                self._indent = 0
            self._indent += len(blank.rpartition("\n")[2].expandtabs(_INDENTED))
            return self._give("", len(blank))
        if not self._rules.markdown:
            return self._begin_line("", 0)
        mark = _LINE_MARK.match(self._held if not self._last else self._held + "\n")
        kind = (mark.lastgroup or "") if mark is not None else ""
        undecided = _LINE_MARK_BEGINS.fullmatch(self._held) is not None and len(self._held) < LOOKAHEAD
        if not self._last and undecided and kind not in ("heading", "quote", "divider", "rule", "note"):
            return False
        if kind == "row" and not self._is_row():
            if self._may_be_table():
                return False
            kind, mark = "", None
        if kind in ("", "heading") and self._indent >= _INDENTED and not self._in_list:
            code = self._is_indented_code()
            if code is None:
                return False
            kind, mark = ("indented", None) if code else (kind, mark)
        return self._begin_line(kind, mark.end() if mark is not None else 0)

    def _is_row(self) -> bool:
        return (self._in_table and self._newlines < 2) or _TABLE.match(self._text_to_judge()) is not None

    def _may_be_table(self) -> bool:
        return not self._last and len(self._held) < LOOKAHEAD and _TABLE_BEGINS.fullmatch(self._held) is not None

    def _text_to_judge(self) -> str:
        return self._held + "\n" if self._last else self._held

    def _is_indented_code(self) -> bool | None:
        """Whether the line, indented and in no list, is code; None where that must wait for its end.

        Behind a paragraph's line it is none, and what reads like prose is said.
        """
        if self._in_indented:
            return True
        if self._newlines < 2 and self._tail:
            return False
        line = self._held[:LOOKAHEAD].partition("\n")
        if not line[1] and not self._last and len(self._held) < LOOKAHEAD:
            return None
        return _LOOKS_LIKE_CODE.search(line[0]) is not None

    def _begin_line(self, kind: str, length: int) -> bool:
        """End the line before as its kind and the next one's ask for, and leave out the next one's mark."""
        length = min(length, len(self._held))
        if kind == "quote":
            self._indent = 0
            return self._give("", length)
        self._end_line(kind)
        code_begins = kind == "fence" or (kind == "indented" and not self._in_indented)
        self._remember(kind)
        self._state = self._after_mark if kind in ("heading", "item", "row") else self._text
        if kind == "number":
            return True
        if code_begins and self._rules.code_blocks == "omit" and self._rules.code_block_words:
            self._give(self._rules.code_block_words + " ", 0)
        if kind == "fence":
            self._fence = self._held[:length]
            self._state = self._fence_opening
        elif kind in ("divider", "rule"):
            self._state = self._line_start
        elif self._is_left_out(kind):
            self._state = self._line_left_out
        return self._give("", length) if length else True

    def _remember(self, kind: str) -> None:
        """Note what kind of line begins; what was open in the line before is over."""
        self._structured = kind in ("heading", "item", "row", "number", "indented")
        self._in_list = kind in ("item", "number") or (self._in_list and self._indent > 0)
        self._in_table = kind in ("row", "divider")
        self._in_indented = kind == "indented"
        self._newlines, self._indent = 0, 0
        self._in_code, self._in_autolink, self._brackets = kind == "indented", False, 0
        self._in_row = kind == "row"

    def _is_left_out(self, kind: str) -> bool:
        rules = self._rules
        rule = {"note": rules.footnotes, "row": rules.tables, "indented": rules.code_blocks}.get(kind)
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
