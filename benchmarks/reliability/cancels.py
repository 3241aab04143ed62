"""Cancels at random moments: the engine is idle again at once, by its own count."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from benchmarks.figures import percentile
from benchmarks.reliability import stops
from benchmarks.reliability.client import Client, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Streams, at_once, engine, service_before, streams, until
from benchmarks.script import Script

_CLIENTS = 8
_WORDS, _RATE, _LONGEST_TTFT = 1000, 40.0, 0.02
# Seeds from here on are the floor's.
_FLOORS = 1_000_000_000


@dataclass
class Cancels:
    """What all clients of one system did: when they cancelled which answer, and what came that must not."""

    seeds: Iterator[int]
    wanted: int = 0
    at: dict[int, float] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    wrong: int = 0
    hung: int = 0


async def _cancel_often(port: int, cancels: Cancels) -> None:
    chance = random.Random(next(cancels.seeds))
    client = await started(port)
    try:
        while len(cancels.at) < cancels.wanted:
            script = Script(_WORDS, _RATE, chance.random() * _LONGEST_TTFT, next(cancels.seeds))
            await _cancel_once(client, script, chance, cancels)
        client.close()
    except (Hung, Lost):
        cancels.hung += 1


async def _cancel_once(client: Client, script: Script, chance: random.Random, cancels: Cancels) -> None:
    """Ask, cancel at a random moment, and take all up to the `cancelled`; what came must be how the answer begins."""
    client.send("user_message", text=script.prompt)
    said = ""
    for _ in range(chance.randrange(4)):
        event = await client.event()
        if event.type != "token":
            cancels.wrong += 1
            return
        said += event.data
    if not said:
        await asyncio.sleep(chance.random() * 2 * _LONGEST_TTFT)
    client.send("cancel")
    at = cancels.at[script.seed] = monotonic()
    while (event := await client.event()).type == "token":
        said += event.data
    cancels.answered.append(event.at - at)
    begins = Script(script.words and said.count(" "), seed=script.seed).text()
    if event.type != "cancelled" or not event.success or said != begins:
        cancels.wrong += 1


async def run(count: int, folder: Path) -> Outcome:
    """Cancel so many answers."""
    outcome, given_up = Outcome(), dict[int, float]()
    cancels, floor = Cancels(itertools.count(1)), Cancels(itertools.count(_FLOORS))
    with (
        engine(folder) as (_, engine_port),
        service_before(engine_port, folder) as service,
        stops.floor_before(engine_port, folder) as floor_port,
    ):
        for part in range(1, stops.ROUNDS + 1):
            for port, each in ((floor_port, floor), (service.port, cancels)):
                each.wanted = count * part // stops.ROUNDS
                await at_once(_cancel_often(port, each) for _ in range(_CLIENTS))

        async def idle() -> bool:
            seen: Streams = await streams(engine_port)
            given_up.update(seen.given_up)
            return not seen.running

        idle_again = await until(idle, 5.0)
        within = stops.within(service)
        service.check(outcome)
    times = _times(cancels, given_up)
    outcome.figure(f"{len(cancels.at):,} cancels, {len(times):,} of them while the engine was at it")
    outcome.none(int(not idle_again), "answers left running") if idle_again else outcome.note("the engine still runs")
    stops.tell(outcome, times, _times(floor, given_up), within, what="engine freed")
    stops.tell_floor(outcome, wrong=floor.wrong, hung=floor.hung)
    outcome.figure(f"cancelled after {1000 * percentile(cancels.answered, 0.99):.1f} ms (p99)")
    outcome.none(cancels.wrong, "wrong texts or ends")
    outcome.none(cancels.hung, "hung")
    return outcome


def _times(cancels: Cancels, given_up: dict[int, float]) -> list[float]:
    """Return after how many ms each was given up; some never came so far as to be asked of the engine."""
    return [1000 * (given_up[seed] - at) for seed, at in cancels.at.items() if seed in given_up]
