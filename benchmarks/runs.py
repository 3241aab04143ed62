"""One measurement: a load on a system, between two looks at the kernel's counters."""

import contextlib
import http.client
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import msgspec

from benchmarks import peers
from benchmarks.clients import Plan
from benchmarks.figures import (
    EngineLog,
    Sample,
    added_first,
    delays,
    gaps,
    over,
    silent,
    spread,
    words_between,
)
from benchmarks.load import Record
from benchmarks.measure import Cores, cpu_seconds, memory
from benchmarks.processes import BenchmarkFailed, Child, child, module
from benchmarks.systems import System, service

_decode_log = msgspec.msgpack.Decoder(EngineLog).decode
_decode_record = msgspec.msgpack.Decoder(Record).decode
# Seconds between "all stream" and the window, for the last handshakes' work to be over.
_SETTLE = 0.3
# Of sessions that are idle when they have had an answer: words a second until then, seconds over which they come in,
# and seconds that they are left in peace.
_IDLE_RATE, _IDLE_RAMP, _IDLE_REST = 50.0, 6.0, 2.0
# Of its core; a system that is busier is late because it can't do more.
SATURATED = 0.95


@dataclass(frozen=True)
class Load:
    """So many sessions; the engine makes `rate` words a second for each, answers of `words` words.

    `window` is the seconds it is measured for: those of an answer at least, so that the beginnings of all are
    in it alike, and longer where the 99th percentile of the first words is asked for: it needs many. `begins`: False
    where no answer begins in it.
    """

    name: str
    sessions: int
    rate: float
    words: int = 100
    ttft: float = 0.05
    longest_ramp: float = 5.0
    window: float = 3.0
    begins: bool = True

    @property
    def ramp(self) -> float:
        """Seconds over which the sessions come in: one answer long, so that later the turns do not end together."""
        return min(self.longest_ramp, self.words / self.rate) if self.sessions > 1 else 0.0

    def of(self, sessions: int | None) -> "Load":
        """Return the same with at most so many sessions."""
        return replace(self, sessions=min(self.sessions, sessions)) if sessions else self


# "saturated" offers more than most systems here take: of one that is busy all the time, what arrives is what it can
# do. All its sessions are in before the first word comes, since a saturated peer accepts nobody.
LOADS = {
    load.name: load
    for load in (
        Load("1", 1, 50),
        Load("10", 10, 50),
        Load("100", 100, 50, window=10.0),
        Load("100 slow", 100, 10, window=12.0),
        Load("100 fast", 100, 150),
        Load("1000", 1000, 20, window=6.0),
        Load("saturated", 100, 1000, words=20_000, ttft=1.0, longest_ramp=0.4, begins=False),
    )
}


@dataclass(frozen=True)
class Running:
    """A system that can be measured."""

    system: System
    process: Child
    port: int


@contextlib.contextmanager
def engine(cores: Cores, folder: Path) -> Generator[tuple[Child, int], None, None]:
    """Run the fake engine; gives its process and port."""
    with child("fake_engine", module("fake_engine"), folder=folder, cores=cores.rest) as process:
        yield process, int(process.line())


@contextlib.contextmanager
def running(system: System, engine_: tuple[Child, int], cores: Cores, folder: Path) -> Generator[Running, None, None]:
    """Run a system on the engine until the block is left."""
    process, engine_port = engine_
    if system.start is None:
        yield Running(system, process, engine_port)
        return
    started = system.start(engine_port, folder)
    with child(system.name, started.command, folder=folder, cores=cores.tested, variables=started.variables) as process:
        process.wait_until(started.ready)
        yield Running(system, process, started.port)


def measure(
    target: Running, engine_: tuple[Child, int], load: Load, cores: Cores, folder: Path, seconds: float
) -> Sample:
    """Put the load on the system and measure for so many seconds.

    Raises:
        BenchmarkFailed: a session was lost or fell silent, or a text was not exact.
    """
    _log(engine_[1])
    plan = Plan(target.system.kind, target.port, target.system.path, load.sessions, load.words, load.rate)
    plan = msgspec.structs.replace(plan, key=peers.KEY, ttft=load.ttft, ramp=load.ramp)
    with _load(plan, cores, folder) as (loader, out):
        time.sleep(_SETTLE)
        pids = (target.process.pid, engine_[0].pid, loader.pid)
        begin, before = time.monotonic(), [cpu_seconds(pid) for pid in pids]
        time.sleep(seconds)
        end, after = time.monotonic(), [cpu_seconds(pid) for pid in pids]
        used = memory(target.process.pid)
        record = _stop(loader, out)
    if record.errors:
        raise BenchmarkFailed(f"{target.system.name} under {load.name}: {'; '.join(record.errors[:5])}")
    log, words = _log(engine_[1]), words_between(record.turns, begin, end)
    if not words:
        raise BenchmarkFailed(f"{target.system.name} under {load.name}: no word arrived")
    busy = [(late - early) / (end - begin) for early, late in zip(before, after, strict=True)]
    if (lost := silent(record.turns, begin, end)) and busy[0] < SATURATED:
        raise BenchmarkFailed(f"{target.system.name} under {load.name}: {lost} of {load.sessions} sessions got no word")
    frames = sum(turn.frames for turn in record.turns)
    return Sample(
        cpu_us_per_word=round((after[0] - before[0]) * 1e6 / words, 2),
        words_per_second=round(words / (end - begin), 1),
        busy=round(busy[0], 3),
        engine_busy=round(busy[1], 3),
        load_busy=round(busy[2], 3),
        first=spread(added_first(record.turns, log, begin)),
        gap=over(*gaps(record.turns, log, begin, end)),
        delay=spread(delays(record.turns, log, begin, end)),
        words_per_frame=round(sum(len(turn.arrivals) for turn in record.turns) / max(frames, 1), 2),
        turns=sum(turn.complete for turn in record.turns),
        rss=used.rss,
        pss=used.pss,
    )


def idle_kib(target: Running, sessions: int, cores: Cores, folder: Path, *, answers: int = 0) -> float:
    """Return what one idle session costs in memory, in KiB of the process's resident set.

    Each has had so many answers of 100 words by then.

    Raises:
        BenchmarkFailed: a session was lost, or its answer was not whole.
    """
    plan = Plan(target.system.kind, target.port, target.system.path, 10, idle=not answers, turns=answers, stay=True)
    plan = msgspec.structs.replace(plan, rate=_IDLE_RATE, ramp=0.1)
    answering = answers * (plan.ttft + plan.words / plan.rate)
    with _load(plan, cores, folder) as (loader, out):
        # What the first sessions make the process import or build is not theirs alone.
        time.sleep(answering)
        _stop(loader, out)
    before = memory(target.process.pid)
    with _load(msgspec.structs.replace(plan, sessions=sessions, ramp=_IDLE_RAMP), cores, folder) as (loader, out):
        time.sleep(answering + _IDLE_REST)
        after = memory(target.process.pid)
        record = _stop(loader, out)
    whole = sum(turn.complete for turn in record.turns)
    if record.errors or whole != sessions * answers:
        raise BenchmarkFailed(f"{target.system.name}, idle: {whole} answers were whole; {record.errors[:5]}")
    return round((after.rss - before.rss) / sessions, 1)


def start_seconds(engine_port: int, cores: Cores, folder: Path, times: int) -> float:
    """Return the median time from starting the service to its being ready, before an engine that loads in no time."""
    taken = []
    for _ in range(times):
        begin = time.monotonic()
        started = service(engine_port, folder)
        with child(
            "startup", started.command, folder=folder, cores=cores.tested, variables=started.variables
        ) as process:
            process.wait_until(started.ready, every=0.005)
            taken.append(time.monotonic() - begin)
    return round(median(taken), 3)


@contextlib.contextmanager
def _load(plan: Plan, cores: Cores, folder: Path) -> Generator[tuple[Child, Path], None, None]:
    """Run a load generator; the block begins when all its sessions stream."""
    out = folder / "record"
    arguments = module("load", msgspec.json.encode(plan).decode(), str(out))
    with child("load", arguments, folder=folder, cores=cores.rest) as process:
        if process.line() == "done":
            raise BenchmarkFailed(f"the load broke off: {_decode_record(out.read_bytes()).errors[:5]}")
        yield process, out


def _stop(loader: Child, out: Path) -> Record:
    loader.tell("stop")
    while loader.line() != "done":
        pass
    return _decode_record(out.read_bytes())


def _log(engine_port: int) -> EngineLog:
    """Fetch, and clear, the engine's record of what it wrote when."""
    connection = http.client.HTTPConnection("127.0.0.1", engine_port, timeout=30)
    try:
        connection.request("GET", "/bench/log")
        return _decode_log(connection.getresponse().read())
    finally:
        connection.close()
