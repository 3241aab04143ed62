"""How long a stop takes: from a client's `cancel` to the other end seeing its reader gone, beside the same of a floor.

The floor does nothing but close, for the same clients under the same load on the same machine, in turns with the
service: what both take is the sockets' and the scheduler's.
"""

import contextlib
from collections.abc import Generator, Sequence
from math import sqrt
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.processes import child, free_port, listens, module
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, cores

ROUNDS = 4
# What the service may take on top, in ms, and the share of stops that may take longer: a p99. Twice the floor's, since
# on a busy machine whoever has more to do waits longer for a core.
_OWN_MS, _FLOORS = 5.0, 2
_LATE = 0.01
# Of the service's own times, which hold what the machine takes from it meanwhile.
_OWN_SHARE = 0.9


@contextlib.contextmanager
def floor_before(engine_port: int, folder: Path, *, tts_port: int = 0) -> Generator[int, None, None]:
    """Run the floor before an engine and a TTS; gives its port."""
    port = free_port()
    ports = ("--port", str(port), "--engine-port", str(engine_port), "--tts-port", str(tts_port))
    with child("floor", module("reliability.stop_floor", *ports), folder=folder, cores=cores()) as process:
        process.wait_until(lambda: listens(port))
        yield port


def tell(outcome: Outcome, service: Sequence[float], floor: Sequence[float], within: float, *, what: str) -> None:
    """Compare times in ms; `within` is the share of the service's own that were short."""
    p50, p99 = percentile(service, 0.5), percentile(service, 0.99)
    least50, least99 = percentile(floor, 0.5), percentile(floor, 0.99)
    outcome.figure(
        f"{what} after {p50:.1f} ms, p99 {p99:.1f}; by a relay that only closes {least50:.1f}, {least99:.1f}"
    )
    late = sum(each > _FLOORS * least99 + _OWN_MS for each in service) / max(1, len(service))
    # Three times what chance alone adds to a share that is just allowed.
    chance = 3 * sqrt(_LATE * (1 - _LATE) / max(1, len(service)))
    outcome.most(late, _LATE + chance, f"{late:.1%} more than {_OWN_MS:g} ms over twice its p99")
    outcome.least(within, _OWN_SHARE, f"{within:.1%} closed within {_OWN_MS:g} ms of the read of `cancel`")


def tell_floor(outcome: Outcome, *, wrong: int, hung: int) -> None:
    """Say what went wrong with the floor: then nothing can be compared with it."""
    if wrong or hung:
        outcome.note(f"the floor itself went wrong {wrong} times, and hung {hung} times")


def within(service: Tested) -> float:
    """Return the share of stops that took 5 ms at most within the service, by its own metric."""
    stops = service.metric("fasttalk_stop_seconds_count")
    return service.metric("fasttalk_stop_seconds_bucket", le=f"{_OWN_MS / 1000:g}") / stops if stops else 0.0
