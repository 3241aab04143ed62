"""What a process costs, asked from the kernel: CPU time and memory; and where it may run.

CPU time, unlike elapsed time, changes little when others use the machine as well.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """In KiB. `pss` shares out what several processes have mapped."""

    rss: int
    pss: int


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Return the CPU time of a process so far, user and system, all threads.

    Threads that have ended are not counted where the kernel gives nanoseconds: those under test keep theirs.
    """
    process = proc / str(pid)
    try:
        spent = [int((task / "schedstat").read_text().split()[0]) for task in (process / "task").iterdir()]
    except (FileNotFoundError, IndexError, ValueError):
        spent = []
    if sum(spent):
        return sum(spent) / 1e9
    # The second field may hold spaces, and stands in parentheses.
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory(pid: int, proc: Path = Path("/proc")) -> Memory:
    """Return the memory of a process."""
    found = {"Rss:": 0, "Pss:": 0}
    for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        if name in found:
            found[name] = int(value)
    return Memory(found["Rss:"], found["Pss:"])


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the system under test, and those of engine and load."""

    tested: frozenset[int]
    rest: frozenset[int]


def anywhere() -> frozenset[int]:
    """Return all cores that this process may use."""
    return frozenset(os.sched_getaffinity(0))


def cores(tested: int = 1) -> Cores:
    """Share out the cores this process may use; where none would be left for the rest, all share them."""
    allowed = sorted(anywhere())
    if len(allowed) <= tested:
        return Cores(frozenset(allowed), frozenset(allowed))
    # The first one serves most machines' interrupts.
    return Cores(frozenset(allowed[-tested:]), frozenset(allowed[:-tested]))


def machine() -> dict[str, str | int]:
    """Describe this machine, for whoever reads the numbers; to be asked before anything is measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = os.uname()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "kernel": f"{system.sysname} {system.release}",
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }
