"""The whole suite: every system under every load, in rounds, so that the machine's drift hits all alike."""

import contextlib
import sys
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Row, Sample, paired_first, paired_ratio
from benchmarks.measure import Cores, cores
from benchmarks.processes import BenchmarkFailed, Child, raise_file_limit
from benchmarks.report import Idle
from benchmarks.runs import LOADS, Running, engine, idle_kib, measure, running, start_seconds
from benchmarks.systems import System

IDLE_SESSIONS = 1000
# LiteLLM's own limit is near: what it takes from more sessions is only longer waits.
_FEWER = {"litellm": 20}
_WITH_SESSIONS = frozenset({"service", "floor", "naive"})


@dataclass(frozen=True)
class Extent:
    """How much is measured. `loads` are those of `runs.LOADS`; `window`, in seconds, in place of their own."""

    rounds: int
    starts: int
    loads: tuple[str, ...] = tuple(LOADS)
    window: float | None = None


QUICK = Extent(rounds=1, starts=1, loads=("100", "1000", "saturated"), window=1.5)
FULL = Extent(rounds=3, starts=5)

Samples = dict[tuple[str, str], list[Sample]]


def run(systems: Sequence[System], extent: Extent) -> tuple[list[Row], Idle]:
    """Measure everything; says on standard error how far it is."""
    raise_file_limit()
    where, notes = cores(), {system.name: system.missing() for system in systems}
    installed = [system for system in systems if not notes[system.name]]
    samples: Samples = {}
    failed: set[tuple[str, str]] = set()
    idle: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fasttalk-bench-") as name:
        folder = Path(name)
        for number in range(extent.rounds):
            due = [system for system in installed if not (number and system.once)]
            with _all_running(due, where, folder / str(number)) as (process, targets):
                _round(targets, process, extent, where, folder, samples, failed)
        with engine(where, folder) as process:
            idle = _idle(installed, process, where, folder)
        ready = None
        if any(system.name == "service" for system in installed):
            _say("start-up")
            ready = start_seconds(where, folder, extent.starts)
    rows = [
        _row(system, load, samples, "failed" if (system.name, load) in failed else notes[system.name])
        for load in extent.loads
        for system in systems
    ]
    shown = [row for row in rows if row.samples or row.note == "failed" or (row.note and row.load == extent.loads[0])]
    return shown, Idle(idle, ready)


@contextlib.contextmanager
def _all_running(
    systems: Sequence[System], where: Cores, folder: Path
) -> Generator[tuple[tuple[Child, int], list[Running]], None, None]:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(engine(where, folder))
        yield process, [stack.enter_context(running(system, process, where, folder)) for system in systems]


def _round(
    targets: Sequence[Running],
    process: tuple[Child, int],
    extent: Extent,
    where: Cores,
    folder: Path,
    samples: Samples,
    failed: set[tuple[str, str]],
) -> None:
    for name in extent.loads:
        for target in targets:
            system = target.system
            if name not in system.loads:
                continue
            load = LOADS[name].of(_FEWER.get(system.name))
            try:
                sample = measure(target, process, load, where, folder, extent.window or load.window)
            except BenchmarkFailed as error:
                # The others' figures are still worth having, and that it failed under this load is one, too.
                failed.add((system.name, name))
                _say(f"{system.name}, {name}: FAILED: {error}")
                continue
            samples.setdefault((system.name, name), []).append(sample)
            _say(f"{system.name}, {name}: {sample.cpu_us_per_word:.1f} µs, {sample.words_per_second:,.0f} words/s")


def _idle(systems: Sequence[System], process: tuple[Child, int], where: Cores, folder: Path) -> dict[str, float]:
    """Measure in processes of their own: memory that a load has left behind would hide what a session takes."""
    found = {}
    for system in systems:
        if system.name in _WITH_SESSIONS:
            _say(f"{system.name}, idle")
            try:
                with running(system, process, where, folder / "idle") as target:
                    found[system.name] = idle_kib(target, IDLE_SESSIONS, where, folder)
            except BenchmarkFailed as error:
                _say(f"{system.name}, idle: FAILED: {error}")
    return found


def _row(system: System, load: str, samples: Samples, note: str) -> Row:
    own = samples.get((system.name, load), [])
    ratio = paired_ratio(own, samples.get(("floor", load), []))
    added = paired_first(own, samples.get(("engine", load), []))
    return Row(system.name, system.title, load, own, ratio, added, note)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
