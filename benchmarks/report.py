"""What a run shows: one table, one JSON file, and plots where matplotlib is installed."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from benchmarks.figures import Row, Sample
from benchmarks.processes import ROOT
from benchmarks.runs import LOADS, SATURATED

_COLUMNS = (
    "system", "sessions × words/s", "µs CPU/word", "× floor", "words/s", "busy", "TTFT + p50/p99 ms",
    "… over direct", "gap + p50/p99 ms", "delay p50/p99 ms", "RSS MiB",
)  # fmt: skip


class Idle(msgspec.Struct, frozen=True):
    """Memory of one idle session in KiB, by system and how many answers it had, and the service's seconds to ready."""

    idle_kib: dict[str, dict[int, float]]
    ready_seconds: float | None


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, its columns as wide as they must be; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return text


def table(rows: Sequence[Row], idle: Idle) -> str:
    """Return the table as Markdown, which reads well in a terminal, too."""
    text = aligned([_COLUMNS, *map(_cells, rows)])
    text += [f"\n{row.title}, {_offered(row)}: {row.note}" for row in rows if row.note and row.samples]
    text += _saturation(rows)
    for system, found in idle.idle_kib.items():
        told = ", ".join(f"{kib:g} KiB {_after(answers)}" for answers, kib in found.items())
        text.append(f"\nidle session, {system}: {told}")
    if idle.ready_seconds is not None:
        text.append(f"\nready after start: {idle.ready_seconds:g} s")
    return "\n".join(text)


def _after(answers: int) -> str:
    return f"after {answers} answer{'s' * (answers > 1)} of 100 words" if answers else "before anything was said"


def _saturation(rows: Sequence[Row]) -> list[str]:
    """Tell of whom took all that was offered: what arrived is not what it can do, but its cost says what a core can."""
    return [
        f"\n{row.title}, {_offered(row)}: not saturated, {sample.busy:.0%} busy; at that cost a whole core takes "
        f"{1e6 / sample.cpu_us_per_word:,.0f} words/s"
        for row in rows
        if row.load == "saturated" and (sample := row.middle) is not None and sample.busy < SATURATED
    ]


def _cells(row: Row) -> tuple[str, ...]:
    sample = row.middle
    if sample is None:
        return (row.title, _offered(row), row.note or "-", *["-"] * (len(_COLUMNS) - 3))
    values = sorted(each.cpu_us_per_word for each in row.samples)
    spread = f" ({values[0]:.0f}-{values[-1]:.0f})" if len(values) > 1 else ""
    return (
        row.title,
        _offered(row),
        f"{sample.cpu_us_per_word:.1f}{spread}",
        _ratio(row.over_floor),
        f"{sample.words_per_second:,.0f}",
        f"{sample.busy:.0%}",
        f"{sample.first.p50:.2f} / {sample.first.p99:.2f}" if LOADS[row.load].begins else "-",
        "-" if row.first_over_direct is None else f"{row.first_over_direct.p50:.2f} / {row.first_over_direct.p99:.2f}",
        f"{sample.gap.p50:.2f} / {sample.gap.p99:.2f}",
        f"{sample.delay.p50:.2f} / {sample.delay.p99:.2f}",
        f"{sample.rss / 1024:.0f}",
    )


def _ratio(pairs: Sequence[float]) -> str:
    if not pairs:
        return "-"
    return f"{median(pairs):.2f}" + (f" ({min(pairs):.2f}-{max(pairs):.2f})" if len(pairs) > 1 else "")


def _offered(row: Row) -> str:
    return f"{row.sessions:,} × {LOADS[row.load].rate:,g}"


def write(
    folder: Path, rows: Sequence[Row], idle: Idle, described: dict[str, str | int], arguments: Sequence[str]
) -> list[Path]:
    """Write results.json, table.md and the plots; return what was written. `described` is the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    command = "python -m benchmarks " + " ".join(arguments)
    about = {"command": command, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": described}
    results = {**about, "python": sys.version.split()[0], "rows": rows, "idle": idle}
    data = folder / "results.json"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    page = folder / "table.md"
    lines = "\n".join(f"- {name}: {value}" for name, value in described.items())
    page.write_text(f"# One run\n\n`{command}`, {about['at']}\n\n{lines}\n\n{table(rows, idle)}\n")
    return [data, page, *_plots(folder, rows)]


def _plots(folder: Path, rows: Sequence[Row]) -> list[Path]:
    if pyplot() is None:
        return []
    by_sessions, by_rate = ("1", "10", "100", "1000"), ("100 slow", "100", "100 fast")
    cpu, delay = (
        ("cpu-per-word", "µs CPU per word", lambda sample: sample.cpu_us_per_word),
        ("delay", "ms from engine to client, p99", lambda sample: sample.delay.p99),
    )
    return [
        _plot(folder / f"{name}-by-{what}.svg", rows, loads, label, value)
        for name, label, value in (cpu, delay)
        for what, loads in (("sessions", by_sessions), ("rate", by_rate))
    ]


def _plot(path: Path, rows: Sequence[Row], loads: Sequence[str], label: str, value: Callable[[Sample], float]) -> Path:
    plots = pyplot()
    assert plots is not None
    sessions = len({LOADS[name].sessions for name in loads}) > 1
    figure, axes = plots.subplots(figsize=(8, 4.5))
    for system in dict.fromkeys(row.system for row in rows):
        points = sorted(
            (LOADS[row.load].sessions if sessions else LOADS[row.load].rate, value(row.middle))
            for row in rows
            if row.system == system and row.load in loads and row.middle is not None
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=system)
    axes.set(
        xlabel="sessions" if sessions else "words/s in each of 100 sessions", ylabel=label, xscale="log", yscale="log"
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plots.close(figure)
    return path


def pyplot() -> Any | None:
    """Return matplotlib's pyplot, which is to write SVG files; None, and a word of it, where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("matplotlib is not installed: no plot", file=sys.stderr)
        return None
    mpl.use("svg")
    # The same numbers give the same file.
    mpl.rcParams["svg.hashsalt"] = "fasttalk"
    from matplotlib import pyplot as plots

    return plots


def show(path: Path) -> str:
    """Return a path as a person would write it from the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
