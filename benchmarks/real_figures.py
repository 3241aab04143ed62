"""Of `python -m benchmarks real`: from pairs of answers to figures, and how they are shown."""

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from benchmarks.figures import percentile
from benchmarks.report import aligned

MAX_TOKENS = 64
GOAL_ADDED_MS = 3.0
GOAL_RATIO = 0.99
_RESAMPLES = 5000

Side = Literal["direct", "service"]


class Answer(msgspec.Struct):
    """One answer as its client saw it. Token counts are the engine's; `cached` is None where it does not tell.

    `engine_ms`: what the engine itself says of it that passed until the prompt was read; None where it does not tell.
    """

    ttft_ms: float
    tokens_per_second: float
    tokens: int
    prompt_tokens: int
    cached: int | None
    finish: str
    characters: int
    engine_ms: float | None = None

    @property
    def beside_ms(self) -> float | None:
        """Of the time to first token what is not the engine's reading: the way, and whoever is on it."""
        return None if self.engine_ms is None else self.ttft_ms - self.engine_ms


class Pair(msgspec.Struct):
    """One answer each way; `first` is who was asked first."""

    first: Side
    direct: Answer
    service: Answer


class Estimate(msgspec.Struct, frozen=True):
    """A median, and the 95 % interval that resampling the pairs gives."""

    value: float
    low: float
    high: float


class Row(msgspec.Struct):
    """One engine. Times in ms, rates in tokens/s; `note` says why there are no figures."""

    name: str
    title: str
    direct_ttft_ms: float | None = None
    service_ttft_ms: float | None = None
    added_ttft_ms: Estimate | None = None
    added_beside_ms: Estimate | None = None
    direct_rate: float | None = None
    service_rate: float | None = None
    rate_ratio: Estimate | None = None
    same_length: int = 0
    pairs: list[Pair] = []
    note: str = ""
    failed: bool = False


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median and its interval; the same seed gives the same."""
    chance = random.Random(seed)
    medians = [median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES)]
    return Estimate(*(round(value, 4) for value in (median(values), *(percentile(medians, p) for p in (0.025, 0.975)))))


def row(name: str, title: str, pairs: list[Pair]) -> Row:
    """Return the figures of an engine's pairs."""
    beside = [
        pair.service.beside_ms - pair.direct.beside_ms
        for pair in pairs
        if pair.service.beside_ms is not None and pair.direct.beside_ms is not None
    ]
    return Row(
        name,
        title,
        direct_ttft_ms=round(median(pair.direct.ttft_ms for pair in pairs), 3),
        service_ttft_ms=round(median(pair.service.ttft_ms for pair in pairs), 3),
        added_ttft_ms=estimate([pair.service.ttft_ms - pair.direct.ttft_ms for pair in pairs]),
        added_beside_ms=estimate(beside) if len(beside) == len(pairs) else None,
        direct_rate=round(median(pair.direct.tokens_per_second for pair in pairs), 2),
        service_rate=round(median(pair.service.tokens_per_second for pair in pairs), 2),
        rate_ratio=estimate([pair.service.tokens_per_second / pair.direct.tokens_per_second for pair in pairs]),
        same_length=sum(pair.direct.tokens == pair.service.tokens for pair in pairs),
        pairs=pairs,
    )


_COLUMNS = (
    "engine", "pairs", "TTFT direct ms", "TTFT service ms", "added ms (95 %)", "beside the engine's ms (95 %)",
    f"goal ≤ {GOAL_ADDED_MS:g} ms",
    "tokens/s direct", "tokens/s service", "ratio (95 %)", f"goal ≥ {GOAL_RATIO:g}",
)  # fmt: skip

_NOTES = """\
Medians of alternating pairs, service and direct, one response at a time; the intervals are from resampling the
pairs. TTFT is from writing the request to the first piece of text, the rate from the first to the last piece, both
on the client's clock. What the engine says that it took of the TTFT, to be ready and to read the prompt, scatters
by tens of milliseconds: "beside the engine's" is what is added without it, and where the engine tells, the goal is
held against that. The prompt is as long either way, and as much of it in the engine's cache. At the same length of
answer the ratio of words/s is that of tokens/s. A goal that lies within the interval is not decided by this run, nor
is one that is missed or met by less than what the control, with nothing in between, shows of chance. llama.cpp's
server closes its connection after each stream: the direct client has the next one open before its clock runs, the
service opens it within. With `--threads`, an engine that is a process of its own has as many cores to itself, and the
others have the rest: without, what wakes for a token runs now and then where the engine computes."""


def table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, which reads well in a terminal, too."""
    text = aligned([_COLUMNS, *map(_cells, rows)])
    text += [f"\n{row.name}: {row.note}" for row in rows if row.note]
    text += [
        f"\n{row.name}: {row.same_length} of {len(row.pairs)} pairs had answers of the same length"
        for row in rows
        if row.same_length < len(row.pairs)
    ]
    return "\n".join(text)


def verdict(estimate: Estimate, goal: float, *, at_most: bool) -> str:
    """Return whether the median meets the goal, and whether the interval leaves that open."""
    met = estimate.value <= goal if at_most else estimate.value >= goal
    sure = estimate.low > goal or estimate.high < goal or (estimate.high if at_most else estimate.low) == goal
    return f"{'met' if met else 'not met'}{'' if sure else ', undecided'}"


def _cells(row: Row) -> tuple[str, ...]:
    added, beside, ratio = row.added_ttft_ms, row.added_beside_ms, row.rate_ratio
    if added is None or ratio is None:
        return (row.title, "failed" if row.failed else "missing", *["-"] * (len(_COLUMNS) - 2))
    return (
        row.title,
        f"{len(row.pairs)}",
        f"{row.direct_ttft_ms:.2f}",
        f"{row.service_ttft_ms:.2f}",
        _interval(added),
        "-" if beside is None else _interval(beside),
        "-" if row.name == "control" else verdict(beside or added, GOAL_ADDED_MS, at_most=True),
        f"{row.direct_rate:.1f}",
        f"{row.service_rate:.1f}",
        f"{ratio.value:.3f} ({ratio.low:.3f}-{ratio.high:.3f})",
        "-" if row.name == "control" else verdict(ratio, GOAL_RATIO, at_most=False),
    )


def _interval(added: Estimate) -> str:
    return f"{added.value:+.2f} ({added.low:+.2f} to {added.high:+.2f})"


def write(folder: Path, rows: Sequence[Row], described: dict[str, str | int], arguments: Sequence[str]) -> list[Path]:
    """Write real.json and real.md; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks", *arguments])
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    goals = {"added_ttft_ms": GOAL_ADDED_MS, "rate_ratio": GOAL_RATIO}
    about = {"command": command, "at": at, "machine": described, "python": sys.version.split()[0]}
    results = {**about, "max_tokens": MAX_TOKENS, "goals": goals, "rows": rows}
    data = folder / "real.json"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    page = folder / "real.md"
    machine_lines = "\n".join(f"- {name}: {value}" for name, value in described.items())
    page.write_text(f"# Real engines\n\n`{command}`, {at}\n\n{machine_lines}\n\n{table(rows)}\n\n{_NOTES}\n")
    return [data, page]
