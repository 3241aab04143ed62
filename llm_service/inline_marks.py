"""Marks within a line: emphasis, code, links, footnotes, tags, URLs, emoji; left out or made speakable by rule.

One pass, left to right: a piece is given as soon as nothing that can still come changes it. What must wait for more
(a mark whose end isn't there) is bounded by `LOOKAHEAD`, so hostile text costs no more than any other.
"""

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

from llm_service.formulas import FormulaMarks
from llm_service.scanner import LOOKAHEAD
from llm_service.speech_rules import SpeechRules
from llm_service.urls import LONGEST_URL, host_of, trimmed, url_at

_LONGEST_RUN = 40  # of the same mark: what is longer is no emphasis and no code
_SPECIAL = re.compile(
    r"[\n`*_~\[\]!<>&\\$|]|(?<!\w)(?:https?://|www\.)"
    # Emoji, pictographs, flags, their selectors, joiners and skin tones; keycaps keep their digit.
    r"|[\u2600-\u27bf\u2b00-\u2bff\u2300-\u23ff\u20e3\ufe0e\ufe0f\U0001f000-\U0001faff\U000e0020-\U000e007f]\u200d?"
)
_URL_BEGINS = re.compile(r"(?<!\w)(?:h|ht|htt|https?|https?:|https?:/|w|ww|www)$")
_FOOTNOTE = re.compile(r"\[\^[^\]\s]{1,40}\]:?")
_CITATION = re.compile(r"\[\d{1,3}(?:\s?[,–-]\s?\d{1,3}){0,8}\](?![(\[])|\[\d{1,3}\](?=\[)")
_LAST_CITATIONS = re.compile(r"(?:\[\d{1,3}\]){1,4}(?=[.!?…。！？])")
_FOOTNOTE_BEGINS = re.compile(r"(?:\[\d{1,3}\]){0,4}\[(?:\^[^\]\s]{0,40}|[\d,\s–-]{0,40})\]?$")
_IMAGE = re.compile(r"!\[(?!\d{1,3}\](?!\())")
_BANG_BEGINS = re.compile(r"!(?:\[(?:\d{1,3}\]?)?)?")
_REFERENCE = re.compile(r"\[[^\]\n]{0,100}\]")
_REFERENCE_BEGINS = re.compile(r"\[[^\]\n]{0,100}$")
# Tags that format text. Others are more likely what the text is about, or no tags at all: `a<b && c>d`.
_TAG_NAMES = (
    "abbr|article|a|big|blockquote|br|b|caption|center|cite|code|colgroup|col|dd|del|details|dfn|div|dl|dt|em|figcaption"
    "|figure|font|h[1-6]|hr|img|ins|i|kbd|li|mark|ol|pre|p|q|reasoning|samp|section|small|span|strike|strong|sub|summary|sup|s"
    "|table|tbody|td|tfoot|thead|thinking|think|thought|th|tr|tt|ul|u|var"
)
_VALUE = r"""(?:"[^"\n<>]*"|'[^'\n<>]*'|[^\s"'=<>`]+)"""
_ATTRIBUTE = rf"\s{{1,4}}(?:(?:open|reversed|hidden|nowrap)(?=[\s/>])|[\w:-]{{1,40}}\s?=\s?{_VALUE})"
_ATTRIBUTE_BEGINS = r"""\s{1,4}(?:[\w:-]{1,40}\s?(?:=\s?(?:"[^"\n<>]*"?|'[^'\n<>]*'?|[^\s"'=<>`]*))?)?"""
_TAG = re.compile(
    rf"</?(?:{_TAG_NAMES})(?:{_ATTRIBUTE})*\s{{0,4}}/?>|<!--[^>\n]{{0,200}}-->"
    r"|<(?:https?://|mailto:|[^\s<>@]{1,64}@)[^\s<>@]{1,150}>",
)
_TAG_BEGINS = re.compile(
    rf"<(?:[^\s<>]*|/?(?:{_TAG_NAMES})(?:{_ATTRIBUTE})*(?:{_ATTRIBUTE_BEGINS})?\s{{0,4}}/?|!(?:-|--[^>\n]{{0,200}})?)$",
)
_AUTOLINK = re.compile(r"<(?:https?:|mailto:|[^\s<>]+@)")
_BREAK = re.compile(r"</?(?:br|p|div|li|tr|td|th|h[1-6])\b")
_REASONING = re.compile(r"<(think|thinking|reasoning|thought)>")
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&#39;": "'", "&nbsp;": " "}
_ENTITY_BEGINS = re.compile(r"&[a-z#0-9]{0,5}$")


class InlineMarks(FormulaMarks):
    """The part of `SpeakableText` within a line: what is held, what is given, and the marks between words."""

    def __init__(self, rules: SpeechRules) -> None:
        super().__init__(rules)
        self._closing = ""
        self._in_row = False
        self._in_autolink = False
        self._in_code = False
        self._brackets = 0
        self._parentheses = 0

    # ------------------------------------------------------------- words and marks

    def _text(self) -> bool:
        """Within a line: words as they are, up to the next special character."""
        if self._left_out and self._held[0] == " " and self._tail[-1:] == " ":
            return self._give("", 1)
        if self._in_row and self._held[0] in " \t":
            return self._cell_blank()
        found = _SPECIAL.search(self._held)
        if found is None:
            return self._words()
        if found.start():
            return self._as_is(self._before_blank(found.start()))
        first = self._held[0]
        if first == "\n":
            self._state = self._line_start
            return True
        if first in "hw":
            return self._as_is(1) if self._tail[-1:].isalnum() else self._url()
        special = self._MARKS.get(first)
        if special is None:
            return self._emoji(found.end())
        if not self._rules.markdown and first not in "<>":
            return self._as_is(1)
        if self._in_code and first != "`":
            return self._as_is(1)
        return special(self)

    def _emoji(self, length: int) -> bool:
        if length == len(self._held) and not self._last:
            return False  # what joins two may follow
        return self._as_is(length) if self._rules.emoji == "read" else self._give("", length)

    def _words(self) -> bool:
        """No special character is in sight; what may become a URL waits."""
        begun = _URL_BEGINS.search(self._held) if self._held[-1] in "htps:/w" and not self._last else None
        length = begun.start() if begun is not None else len(self._held)
        return self._as_is(self._before_blank(length)) if length else False

    def _before_blank(self, length: int) -> int:
        """Within a row of a table the white space at a cell's end is left for `_cell_blank`."""
        return len(self._held[:length].rstrip(" \t")) if self._in_row else length

    def _cell_blank(self) -> bool:
        after = self._held.lstrip(" \t")
        blank = len(self._held) - len(after)
        if blank >= LOOKAHEAD:
            return self._as_is(LOOKAHEAD)
        if not after and not self._last:
            return False
        return self._give("", blank) if not after or after[0] in "|\n" else self._as_is(blank)

    def _url(self) -> bool:
        url = url_at(self._held)
        if not self._last and (len(self._held) < LONGEST_URL and len(url) == len(self._held)):
            return False
        url = trimmed(url)
        if self._rules.urls == "read" or not url:
            return self._as_is(len(url) or 1)
        return self._give(host_of(url) if self._rules.urls == "host" else "", len(url))

    def _code_mark(self) -> bool:
        run = len(self._held) - len(self._held.lstrip("`"))
        if run >= _LONGEST_RUN:
            return self._give("", _LONGEST_RUN)
        if run == len(self._held) and not self._last:
            return False
        self._in_code = not self._in_code
        self._give("", run)
        if self._in_code and self._rules.inline_code == "omit":
            self._state = self._code_left_out
        return True

    def _code_left_out(self) -> bool:
        end = re.search(r"[`\n]", self._held)
        if end is not None and end.start() == 0:
            self._state = self._text
            return True
        return self._give("", end.start() if end is not None else len(self._held))

    def _emphasis(self) -> bool:
        mark = self._held[0]
        run = len(self._held) - len(self._held.lstrip(mark))
        if run >= _LONGEST_RUN:
            return self._give("", _LONGEST_RUN)
        if run == len(self._held) and not self._last:
            return False
        before, after = self._tail[-1:] or " ", self._held[run : run + 1] or " "
        if mark == "*":
            literal = (before.isspace() and after.isspace()) or (run == 1 and before.isdigit() and after.isdigit())
        elif mark == "_":
            literal = before.isspace() == after.isspace() and (before.isspace() or (before + after).isalnum())
        else:
            literal = run == 1
        return self._as_is(run) if literal else self._give("", run)

    def _open_bracket(self) -> bool:
        note = _FOOTNOTE.match(self._held) or self._citation()
        if not self._last and (note is None or note.end() == len(self._held)) and self._waits_for(_FOOTNOTE_BEGINS):
            return False
        if note is not None and self._rules.footnotes == "omit":
            return self._give("", note.end())
        self._brackets += 1
        # An index, `x[0]`, is a word of its own.
        return self._give(" " if self._tail[-1:].isalnum() and self._held[1:2].isdigit() else "", 1)

    def _citation(self) -> re.Match[str] | None:
        """The mark of a source: glued behind a sentence or a clause, or a single number before a sentence's end.

        Lists and indices stand elsewhere: "is [1, 2, 3].", "x[0]".
        """
        if self._brackets:
            return None
        before, last = self._tail[-2:-1], self._tail[-1:]
        if last == " ":
            return _LAST_CITATIONS.match(self._held)
        glued = last in '.!?…。！？”»"' or (last in ",;，；" and (before.isalpha() or before in '"”»'))
        return _CITATION.match(self._held) if last and glued else None

    def _close_bracket(self) -> bool:
        if len(self._held) == 1 and not self._last:
            return False
        was_open, self._brackets = self._brackets, max(0, self._brackets - 1)
        if was_open and self._held[1:2] == "(":
            self._state, self._parentheses = self._link_target, 0
        elif was_open and self._held[1:2] == "[":
            self._state = self._link_reference
        return self._give("", 1)

    def _link_target(self) -> bool:
        """A link's address and title, up to its closing parenthesis or the line's end."""
        for at, character in enumerate(self._held):
            if character == "\n":
                self._state = self._text
                return self._give("", at) if at else True
            self._parentheses += (character == "(") - (character == ")")
            if self._parentheses == 0:
                self._state = self._text
                return self._give("", at + 1)
        return self._give("", len(self._held))

    def _link_reference(self) -> bool:
        found = _REFERENCE.match(self._held)
        if found is None and self._waits_for(_REFERENCE_BEGINS):
            return False
        self._state = self._text
        return self._give("", found.end()) if found is not None else True

    def _bang(self) -> bool:
        """Before a bracket it makes an image of what would be a link; before a source's mark it ends a sentence."""
        if not self._last and _BANG_BEGINS.fullmatch(self._held):
            return False
        return self._give("", 1) if _IMAGE.match(self._held) else self._as_is(1)

    def _angle(self) -> bool:
        tag = _TAG.match(self._held[:LOOKAHEAD])
        if tag is None:
            return False if self._waits_for(_TAG_BEGINS) else self._as_is(1)
        reasoning = _REASONING.match(self._held)
        if reasoning is not None and self._rules.reasoning == "omit":
            return self._begin_reasoning(f"</{reasoning.group(1)}>")
        if not self._rules.markdown:
            return self._as_is(1)
        if _AUTOLINK.match(tag.group()):
            self._in_autolink = True
            return self._give("", 1)
        return self._give(" " if _BREAK.match(tag.group()) else "", tag.end())

    def _begin_reasoning(self, closing: str) -> bool:
        """At the answer's beginning it goes up to what closes it; later on, what isn't closed soon is text."""
        if not self._tail:
            self._closing = closing
            self._state = self._reasoning
            return True
        end = self._held.find(closing, 0, LOOKAHEAD)
        if end >= 0:
            return self._give("", end + len(closing))
        return False if not self._last and len(self._held) < LOOKAHEAD else self._as_is(1)

    def _close_angle(self) -> bool:
        was_open, self._in_autolink = self._in_autolink, False
        return self._give("", 1) if was_open else self._as_is(1)

    def _reasoning(self) -> bool:
        end = self._held.find(self._closing)
        if end >= 0:
            self._state, self._newlines = self._line_start, 0
            return self._give("", end + len(self._closing))
        kept = 0 if self._last else len(self._closing) - 1
        return self._give("", len(self._held) - kept) if len(self._held) > kept else False

    def _entity(self) -> bool:
        for entity, character in _ENTITIES.items():
            if self._held.startswith(entity):
                return self._give(character, len(entity))
        return False if self._waits_for(_ENTITY_BEGINS) else self._as_is(1)

    def _backslash(self) -> bool:
        if len(self._held) == 1 and not self._last:
            return False
        after = self._held[1:2]
        if after and after in "()[]":
            return self._formula()
        if after and after in "\\`*_{}<>#+-.!|~$&\"'":
            self._give("", 1)
        return self._as_is(1)

    def _money_or_formula(self) -> bool:
        return self._dollar()

    def _bar(self) -> bool:
        """Between the cells of a table."""
        if not self._in_row:
            return self._as_is(1)
        after = self._held[1:LOOKAHEAD].lstrip(" \t")
        if not after and not self._last and len(self._held) < LOOKAHEAD:
            return False
        return self._give("", 1) if not after or after[0] == "\n" else self._give(",", 1)

    _MARKS: ClassVar[Mapping[str, Callable[["InlineMarks"], bool]]] = {
        "`": _code_mark,
        "*": _emphasis,
        "_": _emphasis,
        "~": _emphasis,
        "[": _open_bracket,
        "]": _close_bracket,
        "!": _bang,
        "<": _angle,
        ">": _close_angle,
        "&": _entity,
        "\\": _backslash,
        "$": _money_or_formula,
        "|": _bar,
    }
