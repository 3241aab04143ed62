"""Fails when a word has become dearer: CPU per word ÷ the floor's, measured in pairs, against a committed value."""

import tempfile
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.figures import Sample, ratios
from benchmarks.measure import cores
from benchmarks.processes import raise_file_limit
from benchmarks.runs import LOADS, engine, measure, running
from benchmarks.systems import chosen

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.25
_LOAD = LOADS["100"]
_ROUNDS = 5
_SECONDS = 2.0


class Baseline(msgspec.Struct, frozen=True):
    """The committed ratio, and the load it was measured under."""

    over_floor: float
    sessions: int
    words_per_second: float


def measured(rounds: int = _ROUNDS) -> list[float]:
    """Return the ratios of rounds, in which neither always follows the other."""
    raise_file_limit()
    where = cores()
    samples: dict[str, dict[int, Sample]] = {"service": {}, "floor": {}}
    with tempfile.TemporaryDirectory(prefix="fasttalk-guard-") as name:
        folder = Path(name)
        tested, floor = chosen("service,floor")
        with (
            engine(where, folder) as process,
            running(tested, process, where, folder) as one,
            running(floor, process, where, folder) as other,
        ):
            for number in range(rounds):
                for target in (other, one) if number % 2 else (one, other):
                    sample = measure(target, process, _LOAD, where, folder, _SECONDS)
                    samples[target.system.name][number] = sample
    return ratios(samples["service"], samples["floor"])


def verdict(ratio: float, baseline: Baseline) -> tuple[bool, str]:
    """Return whether the ratio is allowed, and the line that says so."""
    limit = baseline.over_floor * (1 + TOLERANCE)
    passed = ratio <= limit
    word = "ok" if passed else "FAILED"
    return passed, (
        f"{word}: CPU per word is {ratio:.2f} × the floor; committed {baseline.over_floor:.2f}, allowed {limit:.2f}"
    )


def guard(*, write: bool) -> int:
    """Measure and compare, or write the value that later runs are compared with; returns the exit status."""
    found = measured()
    if write:
        found += measured()
        baseline = Baseline(round(median(found), 2), _LOAD.sessions, _LOAD.rate)
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(baseline)) + b"\n")
        print(f"written: CPU per word is {baseline.over_floor:.2f} × the floor")
        return 0
    if not BASELINE.exists():
        print(f"CPU per word is {median(found):.2f} × the floor; no value is committed: run it with --write")
        return 1
    baseline = msgspec.json.decode(BASELINE.read_bytes(), type=Baseline)
    if (baseline.sessions, baseline.words_per_second) != (_LOAD.sessions, _LOAD.rate):
        print("the committed value is of another load; run it with --write")
        return 1
    passed, line = verdict(median(found), baseline)
    if not passed:
        # What else ran on the machine may have hit the service alone; what is dearer is so the second time, too.
        print(f"{line}; measuring again")
        passed, line = verdict(median(found + measured(2 * _ROUNDS)), baseline)
    print(line)
    return 0 if passed else 1
