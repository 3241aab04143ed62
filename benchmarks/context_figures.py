"""Of `python -m benchmarks context`: from turns to figures, and how they are shown."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import msgspec

from benchmarks.context_script import MAX_TOKENS, TURNS
from benchmarks.real_engines import WINDOW
from benchmarks.report import aligned, pyplot

GOAL_EVALUATED = 1.3
GOAL_TTFT = 1.5
# Turn 10 and turn 60 are these turns' medians: one turn alone is chance, and either may be one that trims.
EARLY = range(8, 13)
_LATE = 5


class Turn(msgspec.Struct):
    """One turn. Counts are tokens: of the prompt, of what the engine evaluated for it, and of what was new in it.

    Facts are None where the prompt is not known, or no fact was told yet.
    """

    turn: int
    ttft_ms: float
    prompt_tokens: int
    evaluated: int
    new: int
    messages: int | None
    system_fact: bool | None
    recent_fact: bool | None


class Row(msgspec.Struct):
    """One strategy on one engine; `note` says why it has no figures, or not those of all turns."""

    engine: str
    kind: str
    title: str
    turns: list[Turn] = []
    note: str = ""
    failed: bool = False

    @property
    def is_service(self) -> bool:
        """Whether the goals are this row's."""
        return self.kind in {"service", "embedded"}


class Figures(msgspec.Struct):
    """What a row comes to. Ratios are None where the turns they are of were not reached."""

    prompt_tokens: float
    evaluated: float
    new: float
    evaluated_ratio: float
    early_ttft_ms: float | None
    late_ttft_ms: float | None
    ttft_ratio: float | None
    worst_ttft_ms: float
    system_fact: str
    recent_fact: str


def figures(turns: Sequence[Turn], planned: int = TURNS) -> Figures:
    """Return the figures of at least one turn, of so many that were to be."""
    evaluated, new = mean(turn.evaluated for turn in turns), mean(turn.new for turn in turns)
    early = _ttft(turns, EARLY)
    late = _ttft(turns, range(max(1, planned - _LATE + 1), planned + 1))
    return Figures(
        prompt_tokens=mean(turn.prompt_tokens for turn in turns),
        evaluated=evaluated,
        new=new,
        evaluated_ratio=evaluated / new,
        early_ttft_ms=early,
        late_ttft_ms=late,
        ttft_ratio=None if early is None or late is None else late / early,
        # An engine that loads its model at the first question is no matter of the context.
        worst_ttft_ms=max(turn.ttft_ms for turn in turns[1:] or turns),
        system_fact=_kept([turn.system_fact for turn in turns]),
        recent_fact=_kept([turn.recent_fact for turn in turns]),
    )


def _ttft(turns: Sequence[Turn], numbers: range) -> float | None:
    found = [turn.ttft_ms for turn in turns if turn.turn in numbers]
    return median(found) if len(found) == len(numbers) else None


def _kept(facts: Sequence[bool | None]) -> str:
    known = [fact for fact in facts if fact is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def verdict(ratio: float | None, goal: float) -> str:
    """Return whether a goal is met."""
    return "not reached" if ratio is None else "met" if ratio <= goal else "not met"


def _columns(planned: int) -> tuple[str, ...]:
    return (
        "who is asked", "turns", "prompt tokens", "evaluated", "new", "evaluated ÷ new", f"goal ≤ {GOAL_EVALUATED:g}",
        f"TTFT ms, turns {EARLY[0]}-{EARLY[-1]}", f"turns {max(1, planned - _LATE + 1)}-{planned}", "ratio",
        f"goal ≤ {GOAL_TTFT:g}", "worst TTFT ms", "system fact kept", "recent fact kept",
    )  # fmt: skip


def table(rows: Sequence[Row], planned: int = TURNS) -> str:
    """Return the table as Markdown, which reads well in a terminal, too."""
    text = aligned([_columns(planned), *(_cells(row, planned) for row in rows)])
    text += [f"\n{row.engine}, {row.kind}: {row.note}" for row in rows if row.note]
    if planned < TURNS:
        text.append(f"\nA run of {planned} turns: the goals are those of {TURNS}.")
    return "\n".join(text)


def _cells(row: Row, planned: int) -> tuple[str, ...]:
    if not row.turns:
        return (row.title, "failed" if row.failed else "missing", *["-"] * (len(_columns(planned)) - 2))
    found = figures(row.turns, planned)
    return (
        row.title,
        f"{len(row.turns)}",
        f"{found.prompt_tokens:.0f}",
        f"{found.evaluated:.0f}",
        f"{found.new:.0f}",
        f"{found.evaluated_ratio:.2f}",
        verdict(found.evaluated_ratio, GOAL_EVALUATED) if row.is_service else "-",
        _shown(found.early_ttft_ms),
        _shown(found.late_ttft_ms),
        "-" if found.ttft_ratio is None else f"{found.ttft_ratio:.2f}",
        verdict(found.ttft_ratio, GOAL_TTFT) if row.is_service else "-",
        _shown(found.worst_ttft_ms),
        found.system_fact,
        found.recent_fact,
    )


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f}"


_NOTES = f"""\
One conversation, the same user messages for everyone, with a window of {WINDOW:,} tokens and answers of at most
{MAX_TOKENS}; each strategy has an engine of its own that was just started. Token figures are means over all turns,
those that trim included.

- **evaluated**: prompt tokens that were not in the engine's cache. llama.cpp tells them (`timings.prompt_n`; for the
  embedded one `prompt_tokens` less `cached_tokens` of the service's stats), of Ollama they are from its debug log.
  Whatever else the service asks of the engine between turns is counted as well, but for the embedded one.
- **new**: the user's message and the answer before it, with what the model's template puts around them, by the
  model's tokenizer. An answer's own tokens are in the cache from when they were made, unless the prompt before them
  changes: what is evaluated can be less than what is new.
- **TTFT**: from asking to the first piece of text, on the client's clock, medians of the turns named.
  **worst**: of all turns but the first, in which Ollama may load the model.
- **facts kept**: whether the prompt holds what the system prompt told, and what the user told in one of the three turns
  before, as recorded by a proxy before the engine, or for Ollama asked directly as rendered by it
  (`_debug_render_only`). With the embedded engine there is no place for a proxy; the row below it has the same service.
- **naive window**: the oldest single messages are dropped until an estimate of 4 characters a token fits into the
  window less the longest answer; the system prompt is kept.
- **whole history**: Ollama truncates it silently by its default. llama.cpp's server doesn't: it refuses, and the row
  ends at the turn before.
"""


def write(folder: Path, rows: Sequence[Row], described: dict[str, str | int], planned: int, command: str) -> list[Path]:
    """Write context.json, context.md and the plot; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results = {
        "command": command,
        "at": at,
        "machine": described,
        "python": sys.version.split()[0],
        "window": WINDOW,
        "max_tokens": MAX_TOKENS,
        "goals": {"evaluated_ratio": GOAL_EVALUATED, "ttft_ratio": GOAL_TTFT},
        "figures": {f"{row.engine}, {row.kind}": figures(row.turns, planned) for row in rows if row.turns},
        "rows": rows,
    }
    data = folder / "context.json"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    page = folder / "context.md"
    machine = "\n".join(f"- {name}: {value}" for name, value in described.items())
    plot = _plot(folder / "context.svg", rows)
    image = "![Evaluated tokens and time to first token, turn by turn](context.svg)\n\n" if plot else ""
    page.write_text(
        f"# A long conversation\n\n`{command}`, {at}\n\n{machine}\n\n{table(rows, planned)}\n\n{image}{_NOTES}"
    )
    return [data, page, *plot]


def _plot(path: Path, rows: Sequence[Row]) -> list[Path]:
    plots = pyplot()
    if plots is None:
        return []
    engines = list(dict.fromkeys(row.engine for row in rows if row.turns))
    if not engines:
        return []
    figure, grid = plots.subplots(2, len(engines), figsize=(6 * len(engines), 8), sharex=True, squeeze=False)
    for column, engine in enumerate(engines):
        for row in rows:
            if row.engine == engine and row.turns:
                numbers = [turn.turn for turn in row.turns]
                grid[0][column].plot(numbers, [turn.evaluated for turn in row.turns], label=row.kind)
                grid[1][column].plot(numbers, [turn.ttft_ms for turn in row.turns], label=row.kind)
        grid[0][column].set(title=engine, ylabel="prompt tokens evaluated", yscale="log")
        grid[1][column].set(xlabel="turn", ylabel="TTFT ms", yscale="log")
    for axes in grid.flat:
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plots.close(figure)
    return [path]
