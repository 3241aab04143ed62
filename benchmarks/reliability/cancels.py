"""Cancels at random moments: the engine is idle again at once, by its own count."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from benchmarks.figures import percentile
from benchmarks.reliability.client import Client, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Streams, at_once, engine, service_before, streams, until
from benchmarks.script import Script

_CLIENTS = 8
_WORDS, _RATE, _LONGEST_TTFT = 1000, 40.0, 0.02
# Of those that are cancelled some never came so far as to be asked of the engine.
_IDLE_MS = 100.0


@dataclass
class Cancels:
    """What all clients did: when they cancelled which answer, and what came that must not."""

    wanted: int
    at: dict[int, float] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    wrong: int = 0
    hung: int = 0


async def _cancel_often(number: int, port: int, cancels: Cancels) -> None:
    chance, seed = random.Random(number), 1 + number * 1_000_000
    client = await started(port)
    try:
        while len(cancels.at) < cancels.wanted:
            seed += 1
            await _cancel_once(client, Script(_WORDS, _RATE, chance.random() * _LONGEST_TTFT, seed), chance, cancels)
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
    outcome, cancels, given_up = Outcome(), Cancels(count), dict[int, float]()
    with engine(folder) as (_, engine_port), service_before(engine_port, folder) as service:
        await at_once(_cancel_often(number, service.port, cancels) for number in range(_CLIENTS))

        async def idle() -> bool:
            seen: Streams = await streams(engine_port)
            given_up.update(seen.given_up)
            return not seen.running

        idle_again = await until(idle, 5.0)
        service.check(outcome)
    times = [1000 * (given_up[seed] - at) for seed, at in cancels.at.items() if seed in given_up]
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    outcome.figure(f"{len(cancels.at):,} cancels, {len(times):,} of them while the engine was at it")
    outcome.none(int(not idle_again), "answers left running") if idle_again else outcome.note("the engine still runs")
    outcome.most(p99, _IDLE_MS, f"engine freed after {p50:.1f} ms, p99 {p99:.1f}")
    outcome.figure(f"cancelled after {1000 * percentile(cancels.answered, 0.99):.1f} ms (p99)")
    outcome.none(cancels.wrong, "wrong texts or ends")
    outcome.none(cancels.hung, "hung")
    return outcome
