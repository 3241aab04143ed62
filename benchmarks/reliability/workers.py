"""Two workers instead of one: what a word costs then, and so how much more they can do on two cores.

Two cores that share a cache do less than twice as much as one, whatever runs on them, and on a machine that is shared
that changes by the hour. Beside the two workers there are two services with nothing in common: what those do, the
machine allows.
"""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.measure import cpu_seconds
from benchmarks.reliability.client import Client, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, engine, service_before
from benchmarks.script import Script

# Sessions for each process: as much work finds the same batches whether it is one or two.
_SESSIONS, _RATE = 75, 100.0
_ROUNDS = 3
# Of what two services do that have nothing in common; of the work of two workers; of the words that were asked for.
_SHARE, _LEAST, _ARRIVED = 0.9, 0.25, 0.8


@dataclass(frozen=True)
class _Cost:
    """`word` is the CPU time of a word in microseconds, of all processes together; `least` what the lesser of the two
    busiest has of it, as a share."""

    word: float
    least: float


async def _cost(services: Sequence[Tested], sessions: int, seconds: int, outcome: Outcome) -> _Cost:
    """Measure these services under so many sessions."""
    words = [0]

    async def read(client: Client, seed: int) -> None:
        client.send("user_message", text=Script(10_000, _RATE, 0.01, seed).prompt)
        while True:
            event = await client.event()
            words[0] += event.data.count(" ")

    clients = [await started(services[number % len(services)].port) for number in range(sessions)]
    reading = [asyncio.create_task(read(client, 1 + number)) for number, client in enumerate(clients)]
    await asyncio.sleep(1)
    pids, words[0] = [pid for service in services for pid in service.pids()], 0
    before = [cpu_seconds(pid) for pid in pids]
    await asyncio.sleep(seconds)
    spent = [cpu_seconds(pid) - early for pid, early in zip(pids, before, strict=True)]
    arrived, asked = words[0], sessions * _RATE * seconds
    for task in reading:
        task.cancel()
    ends = await asyncio.gather(*reading, return_exceptions=True)
    for client in clients:
        client.close()
    if broken := [end for end in ends if not isinstance(end, asyncio.CancelledError)]:
        outcome.note(f"{len(broken)} of {sessions} clients broke off: {broken[0]!r}")
    if arrived < _ARRIVED * asked:
        outcome.broken.append(f"{arrived:,} of {asked:,.0f} words arrived: another load than the other services'")
    return _Cost(sum(spent) / max(arrived, 1) * 1e6, sorted(spent)[-2] / sum(spent) if len(spent) > 1 else 1.0)


async def run(seconds: int, folder: Path) -> Outcome:
    """Measure each for so many seconds, three times in turn."""
    outcome = Outcome()
    with ExitStack() as stack:
        _, port = stack.enter_context(engine(folder))
        alone, other, both = (
            stack.enter_context(service_before(port, folder / name, workers=workers))
            for name, workers in (("alone", 1), ("other", 1), ("both", 2))
        )
        one: list[_Cost] = []
        apart: list[_Cost] = []
        two: list[_Cost] = []
        for number in range(_ROUNDS):
            one.append(await _cost([alone], _SESSIONS, seconds, outcome))
            # Neither always follows the other.
            for costs, services in ((apart, [alone, other]), (two, [both]))[:: -1 if number % 2 else 1]:
                costs.append(await _cost(services, 2 * _SESSIONS, seconds, outcome))
        for service in (alone, other, both):
            crashes = Outcome()
            service.check(crashes)
            outcome.broken += crashes.broken
            outcome.wrong |= crashes.wrong
    times, allowed = (median(2 * a.word / b.word for a, b in zip(one, costs, strict=True)) for costs in (two, apart))
    share = median(a.word / b.word for a, b in zip(apart, two, strict=True))
    least = median(cost.least for cost in two)
    words = f"{median(cost.word for cost in one):.0f} µs of CPU a word with one worker"
    outcome.figure(f"{words}, {median(cost.word for cost in two):.0f} with two")
    outcome.least(least, _LEAST, f"the lesser of them does {least:.0%} of it")
    outcome.figure(f"two cores do {times:.2f} × as much, two services with nothing in common {allowed:.2f} ×")
    outcome.least(share, _SHARE, f"{share:.2f} of what those do")
    return outcome
