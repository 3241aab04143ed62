"""A promise: what is done to the service, how often, what came of it, and the table of the last results."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import ROOT

PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"


@dataclass
class Outcome:
    """What was seen: `figures` in their order, and the promises that were `broken`, with how.

    `wrong` says that something happened that must not: on no machine, and not once.
    """

    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: bool = False

    def figure(self, text: str) -> None:
        """Add a figure that promises nothing by itself."""
        self.figures.append(text)

    def none(self, count: int, what: str) -> None:
        """Add a count that is promised to be 0."""
        self.most(count, 0, f"{count} {what}")
        self.wrong |= count > 0

    def most(self, value: float, limit: float, text: str) -> None:
        """Add a figure whose `value` is promised to be `limit` at most."""
        self.figures.append(text)
        if value > limit:
            self.broken.append(f"{text}, promised: at most {limit:g}")

    def least(self, value: float, limit: float, text: str) -> None:
        """Add a figure whose `value` is promised to be `limit` at least."""
        self.figures.append(text)
        if value < limit:
            self.broken.append(f"{text}, promised: at least {limit:g}")

    def note(self, problem: str) -> None:
        """Take note of something that must not happen; the first ten are told."""
        self.wrong = True
        if len(self.broken) < 10:
            self.broken.append(problem)


@dataclass(frozen=True)
class Part:
    """One promise. `count` of `unit` is the whole of it, `short` what CI does; `run` gets the count and a folder."""

    name: str
    promise: str
    unit: str
    count: int
    short: int
    run: Callable[[int, Path], Awaitable[Outcome]]


def line(part: Part, outcome: Outcome, seconds: float) -> str:
    """Return the part's line."""
    word = "BROKEN" if outcome.broken else "ok"
    return f"{word} {part.name}: {'; '.join(outcome.figures)} ({seconds:.0f} s)"


def write(part: Part, outcome: Outcome, options: str, page: Path = PAGE) -> None:
    """Put the part's row into the table of the page, in the place of its last one."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    table, _, after = rest.partition(_END)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    figures = "; ".join([*outcome.figures, *(f"**broken**: {problem}" for problem in outcome.broken)])
    row = f"| {part.promise} | {figures} | {day} | `python -m benchmarks reliability {part.name}{options}` |\n"
    own = f"`python -m benchmarks reliability {part.name}"
    rows = table.splitlines(keepends=True)
    kept = [row if own in other else other for other in rows]
    if row not in kept:
        kept.append(row)
    page.write_text(before + _BEGIN + "".join(kept) + _END + after, encoding="utf-8")
