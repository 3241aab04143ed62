"""The whole suite: every system under every load, in rounds, so that the machine's drift hits all alike."""

import contextlib
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Row, Sample, paired_first, ratios
from benchmarks.measure import Cores, cores
from benchmarks.processes import BenchmarkFailed, Child, raise_file_limit
from benchmarks.report import Idle
from benchmarks.runs import LOADS, Load, Running, engine, idle_kib, measure, running, start_seconds
from benchmarks.systems import System

IDLE_SESSIONS = 1000
# Sessions are idle once they stand, and again when they have been answered.
IDLE_ANSWERS = (0, 1)
# LiteLLM's own limit is near: what it takes from more sessions is only longer waits.
_FEWER = {"litellm": 20}
_WITH_SESSIONS = frozenset({"service", "floor", "naive"})
# Those whose ratio the goals are for: measured more often, and after answers, which saturate others.
_COMPARED = frozenset({"service", "floor"})


@dataclass(frozen=True)
class Extent:
    """How much is measured. `loads` are those of `runs.LOADS`; `window`, in seconds, in place of their own.

    `repeats` says how many times in a round, for loads that are measured more than once.
    """

    rounds: int
    starts: int
    loads: tuple[str, ...] = tuple(LOADS)
    window: float | None = None
    repeats: Mapping[str, int] = field(default_factory=dict)


QUICK = Extent(rounds=1, starts=1, loads=("100", "1000", "saturated"), window=1.5)
FULL = Extent(rounds=3, starts=5, repeats={"100": 3})


@dataclass
class _Rounds:
    """What is measured where, and what came of it, by system and load: samples by their number, and failures."""

    extent: Extent
    where: Cores
    samples: dict[tuple[str, str], dict[int, Sample]] = field(default_factory=dict)
    failures: dict[tuple[str, str], int] = field(default_factory=dict)

    def play(self, number: int, targets: Sequence[Running], process: tuple[Child, int], folder: Path) -> None:
        """Put every load on every system that takes it."""
        for name in self.extent.loads:
            times = self.extent.repeats.get(name, 1)
            for time in range(times):
                # Neither always follows the other.
                for target in reversed(targets) if time % 2 else targets:
                    if name in target.system.loads and (time == 0 or target.system.name in _COMPARED):
                        self._measure(number * times + time, target, process, name, folder)

    def _measure(self, number: int, target: Running, process: tuple[Child, int], name: str, folder: Path) -> None:
        system, load = target.system, _load(target.system, name)
        try:
            sample = measure(target, process, load, self.where, folder, self.extent.window or load.window)
        except BenchmarkFailed as error:
            # The others' figures are still worth having, and that it failed under this load is one, too.
            self.failures[system.name, name] = self.failures.get((system.name, name), 0) + 1
            _say(f"{system.name}, {name}: FAILED: {error}")
            return
        self.samples.setdefault((system.name, name), {})[number] = sample
        _say(f"{system.name}, {name}: {sample.cpu_us_per_word:.1f} µs, {sample.words_per_second:,.0f} words/s")

    def row(self, system: System, load: str, note: str) -> Row:
        """Return what there is of one system under one load; `note` says why there is nothing."""
        own = self.samples.get((system.name, load), {})
        failures = self.failures.get((system.name, load), 0)
        return Row(
            system.name,
            system.title,
            load,
            _load(system, load).sessions,
            [own[number] for number in sorted(own)],
            ratios(own, self.samples.get(("floor", load), {})),
            paired_first(own, self.samples.get(("engine", load), {})) if LOADS[load].begins else None,
            f"failed {failures} of {failures + len(own)} times" if failures else note,
            bool(failures),
        )


def run(systems: Sequence[System], extent: Extent) -> tuple[list[Row], Idle]:
    """Measure everything; says on standard error how far it is."""
    raise_file_limit()
    where, notes = cores(), {system.name: system.missing() for system in systems}
    installed = [system for system in systems if not notes[system.name]]
    rounds, ready = _Rounds(extent, where), None
    with tempfile.TemporaryDirectory(prefix="fasttalk-bench-") as name:
        folder = Path(name)
        for number in range(extent.rounds):
            due = [system for system in installed if not (number and system.once)]
            with _all_running(due, where, folder / str(number)) as (process, targets):
                rounds.play(number, targets, process, folder / str(number))
        with engine(where, folder) as process:
            idle = _idle(installed, process, where, folder)
            if any(system.name == "service" for system in installed):
                _say("start-up")
                ready = start_seconds(process[1], where, folder, extent.starts)
    rows = [rounds.row(system, load, notes[system.name]) for load in extent.loads for system in systems]
    shown = [row for row in rows if row.samples or row.failed or (row.note and row.load == extent.loads[0])]
    return shown, Idle(idle, ready)


@contextlib.contextmanager
def _all_running(
    systems: Sequence[System], where: Cores, folder: Path
) -> Generator[tuple[tuple[Child, int], list[Running]], None, None]:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(engine(where, folder))
        yield process, [stack.enter_context(running(system, process, where, folder)) for system in systems]


def _load(system: System, name: str) -> Load:
    return LOADS[name].of(_FEWER.get(system.name))


def _idle(
    systems: Sequence[System], process: tuple[Child, int], where: Cores, folder: Path
) -> dict[str, dict[int, float]]:
    """Measure in processes of their own: memory that a load has left behind would hide what a session takes."""
    found: dict[str, dict[int, float]] = {}
    for system in systems:
        if system.name not in _WITH_SESSIONS:
            continue
        for answers in IDLE_ANSWERS if system.name in _COMPARED else IDLE_ANSWERS[:1]:
            _say(f"{system.name}, idle after {answers} answers")
            try:
                with running(system, process, where, folder / "idle") as target:
                    kib = idle_kib(target, IDLE_SESSIONS, where, folder, answers=answers)
                    found.setdefault(system.name, {})[answers] = kib
            except BenchmarkFailed as error:
                _say(f"{system.name}, idle after {answers} answers: FAILED: {error}")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
