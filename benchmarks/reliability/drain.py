"""SIGTERM while hundreds of answers stream: none is cut, newcomers are told when to come again, the process ends."""

import asyncio
import contextlib
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from benchmarks.figures import percentile
from benchmarks.processes import BenchmarkFailed, answers
from benchmarks.reliability.client import Client, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, at_once, engine, refused_newcomer, service_before
from benchmarks.script import Script

_STREAMS, _IDLE = 300, 20
# The signal comes when all have begun; the last end about three seconds later.
_WORDS, _RATE = 40, 10.0
_SHUTDOWN = 3001
# DRAIN_TIMEOUT's default
_DRAIN_TIMEOUT = 30.0


@dataclass
class Run:
    """One drain. Times in seconds; `ends` are when the answers ended, of the shared clock."""

    cut: int = 0
    wrong_close: int = 0
    refused: tuple[int, str] = (0, "")
    not_ready: float = 0.0
    ends: list[float] = field(default_factory=list)
    ended_after: float = 0.0  # the signal
    exit_after: float = 0.0  # the last word
    status: int = 0


class Readiness:
    """Asks whether the service is ready, in a thread, until it is not."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._until = monotonic() + 30
        self.gone_at = 0.0
        self._thread = threading.Thread(target=self._ask)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def done(self) -> float:
        """Return when it was first not ready."""
        await asyncio.to_thread(self._thread.join)
        return self.gone_at

    def _ask(self) -> None:
        while answers(self._port, "/health/ready") and monotonic() < self._until:
            time.sleep(0.002)
        self.gone_at = monotonic()


async def _stream(client: Client, script: Script, began: asyncio.Semaphore, run: Run) -> None:
    """Take one answer to its end, and the goodbye behind it."""
    said: list[str] = []
    client.send("user_message", text=script.prompt)
    try:
        while (event := await client.event()).type == "token":
            if not said:
                began.release()
            said.append(event.data)
        run.ends.append(event.at)
        if event.type != "response_complete" or "".join(said) != script.text():
            run.cut += 1
        await _goodbye(client, run)
    except (Lost, Hung):
        run.cut += 1
    finally:
        if not said:
            began.release()


async def _goodbye(client: Client, run: Run) -> None:
    try:
        await client.event()
    except Lost as lost:
        if lost.code == _SHUTDOWN:
            return
    except Hung:
        pass
    run.wrong_close += 1


async def _drain(service: Tested, first_seed: int) -> Run:
    run, began = Run(), asyncio.Semaphore(0)
    idle = [await started(service.port) for _ in range(_IDLE)]
    busy = [await started(service.port) for _ in range(_STREAMS)]
    async with asyncio.TaskGroup() as tasks:
        for number, client in enumerate(busy):
            tasks.create_task(_stream(client, Script(_WORDS, _RATE, 0.01, first_seed + number), began, run))
        for _ in busy:
            await began.acquire()
        readiness = Readiness(service.monitoring_port)
        readiness.start()
        signalled = monotonic()
        service.process.process.send_signal(signal.SIGTERM)
        run.not_ready = await readiness.done() - signalled
        run.refused = await asyncio.to_thread(refused_newcomer, service.port)
        await at_once(_goodbye(client, run) for client in idle)
    run.status = await asyncio.to_thread(service.process.process.wait, 60)
    run.ended_after = monotonic() - signalled
    run.exit_after = monotonic() - max(run.ends, default=signalled)
    return run


async def run(count: int, folder: Path) -> Outcome:
    """Drain so many times, one process and two in turn."""
    outcome, runs = Outcome(), []
    with engine(folder) as (_, engine_port):
        for number in range(count):
            with contextlib.ExitStack() as stack:
                service = stack.enter_context(service_before(engine_port, folder, workers=1 + number % 2))
                runs.append(await _drain(service, number * 1000))
                if number == 0 and not runs[0].ends:
                    raise BenchmarkFailed("no answer ended")
                outcome.broken += [f"run {number}: {problem}" for problem in _wrong(service, runs[-1])]
    not_ready = [run.not_ready * 1000 for run in runs]
    exits = [run.exit_after * 1000 for run in runs]
    outcome.figure(f"{count} drains of {_STREAMS} answers")
    outcome.none(sum(run.cut for run in runs), "cut")
    outcome.most(
        max(not_ready), 100, f"not ready after {percentile(not_ready, 0.5):.0f} ms, at most {max(not_ready):.0f}"
    )
    longest = max(run.ended_after for run in runs)
    outcome.most(longest, _DRAIN_TIMEOUT + 1, f"ended {longest:.1f} s after the signal at most")
    outcome.figure(f"{percentile(exits, 0.5):.0f} ms after the last word, at most {max(exits):.0f}")
    return outcome


def _wrong(service: Tested, run: Run) -> list[str]:
    """Return what else of a drain was not as promised."""
    crashes = Outcome()
    service.check(crashes)
    wrong = list(crashes.broken)
    if run.status:
        wrong.append(f"the exit status was {run.status}")
    if run.wrong_close:
        wrong.append(f"{run.wrong_close} connections were not closed with {_SHUTDOWN}")
    if run.refused[0] != 503 or not run.refused[1]:
        wrong.append(f"a newcomer was answered with {run.refused[0]}, Retry-After '{run.refused[1]}'")
    return wrong
