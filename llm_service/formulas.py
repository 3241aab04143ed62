"""Formulas in LaTeX: simple ones are said, of the others the marks would be all that is heard."""

import re

from llm_service.scanner import Scanner

_LONGEST = 80  # characters in which it shows whether a formula is simple
_CLOSING = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}
_NOT_SIMPLE = re.compile(r"[\\{}^_&]")
# A dollar sign before a number is money.
_BETWEEN_DOLLARS = re.compile(rf"\$[a-zA-Z\\({{|-][^$\n]{{0,{_LONGEST}}}(?<! )\$")
_DOLLAR_BEGINS = re.compile(rf"\$(?:[a-zA-Z\\({{|-][^$\n]{{0,{_LONGEST}}})?$")


class FormulaMarks(Scanner):
    r"""The marks `\( \)`, `\[ \]`, `$$ $$` and `$ $`, and what is between them."""

    _closing_mark = ""

    def _formula(self) -> bool:
        r"""At a mark of two characters: say a simple formula without its marks, leave out another one."""
        opening = self._held[:2]
        closing = _CLOSING.get(opening)
        if closing is None:
            return self._give("", 2)
        content = self._held[2:]
        end = content.find(closing, 0, _LONGEST + len(closing))
        inside = content[: end if end >= 0 else _LONGEST]
        if end < 0 and not self._last and len(content) <= _LONGEST and inside.endswith(closing[0]):
            inside = inside[:-1]  # it may be the first half of what closes
        within = inside.split("\n" if opening == "\\(" else "\n\n")[0]
        if not self._is_said(within):
            self._closing_mark, self._state = closing, self._formula_left_out
            return self._give("", 2)
        if end < 0 and not self._last and len(content) < _LONGEST + len(closing) and within == inside:
            return False
        self._give("", 2)
        if end < 0 or within != inside:
            return True
        return (not end or self._as_is(end)) and self._give("", 2)

    def _formula_left_out(self) -> bool:
        """Up to what closes the formula, or to the line's end; for one in a paragraph of its own to that one's end."""
        stop = "\n" if self._closing_mark == "\\)" else "\n\n"
        ends = [at for at in (self._held.find(self._closing_mark), self._held.find(stop)) if at >= 0]
        if ends:
            self._state = self._text
            end = min(ends)
            end += 2 if self._held.startswith(self._closing_mark, end) else 0
            return self._give("", end) if end else True
        kept = 0 if self._last else 1
        return self._give("", len(self._held) - kept) if len(self._held) > kept else False

    def _dollar(self) -> bool:
        if len(self._held) == 1 and not self._last:
            return False
        if self._held.startswith("$$"):
            return self._formula()
        found = _BETWEEN_DOLLARS.match(self._held)
        if not self._last and (_DOLLAR_BEGINS.match(self._held) if found is None else found.end() == len(self._held)):
            return False
        if found is None or self._held[found.end() : found.end() + 1].isalnum():
            return self._as_is(1)
        if not self._is_said(found.group()[1:-1]):
            return self._give("", found.end())
        return self._give("", 1) and self._as_is(found.end() - 2) and self._give("", 1)

    def _is_said(self, formula: str) -> bool:
        if self._rules.formulas == "simple":
            return _NOT_SIMPLE.search(formula) is None
        return self._rules.formulas == "read"
