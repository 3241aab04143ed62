"""Two engines in a pool, and one of them killed in mid-answer: the other goes on, and the text is whole."""

import asyncio
import contextlib
import json
import random
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.processes import Child, free_port
from benchmarks.reliability.client import Client, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import at_once, engine, service_before
from benchmarks.script import Script

_SESSIONS = 12
_WORDS, _RATE = 80, 50.0
# An engine that was away is asked again once it has answered a ping: every five seconds.
_WELL_AGAIN = 6.0
# Rounds of short answers behind each kill.
_BETWEEN = 3


class Answers:
    """What came of all answers. `seams` are the longest gaps of each that was broken off, in milliseconds."""

    def __init__(self) -> None:
        self.whole = self.broken = self.hung = 0
        self.longest: list[float] = []
        self.problems: list[str] = []


async def _read(client: Client, script: Script, begun: asyncio.Semaphore, answers: Answers) -> None:
    """Have one answer, to its end."""
    said, last, longest = "", 0.0, 0.0
    client.send("user_message", text=script.prompt)
    try:
        while (event := await client.event()).type == "token":
            if not said:
                begun.release()
            longest = max(longest, event.at - last if last else 0.0)
            said, last = said + event.data, event.at
    except (Hung, Lost) as error:
        answers.hung += 1
        answers.problems.append(repr(error))
        return
    finally:
        if not said:
            begun.release()
    answers.longest.append(1000 * longest)
    if event.type == "response_complete" and said == script.text():
        answers.whole += 1
    else:
        answers.broken += 1
        answers.problems.append(f"{event.type} {event.error and event.error.code}, {said.count(' ')} words")


async def run(count: int, folder: Path) -> Outcome:
    """Kill one engine or the other so many times."""
    outcome, answers, chance = Outcome(), Answers(), random.Random(1)
    ports = (free_port(), free_port())
    pool = [
        {"name": name, "provider": "openai", "url": f"http://127.0.0.1:{port}/v1"}
        for name, port in zip(("one", "other"), ports, strict=True)
    ]
    with contextlib.ExitStack() as stack:
        lives = [stack.enter_context(contextlib.ExitStack()) for _ in ports]
        engines = [life.enter_context(engine(folder, port))[0] for life, port in zip(lives, ports, strict=True)]
        settings = {"ENGINES": json.dumps(pool), "LLM_PROVIDER": ""}
        service = stack.enter_context(service_before(ports[0], folder, settings))
        clients = [await started(service.port) for _ in range(_SESSIONS)]
        for number in range(count):
            victim = chance.randrange(2)
            await _kill(clients, engines[victim], number, answers)
            lives[victim].close()
            engines[victim] = lives[victim].enter_context(engine(folder, ports[victim]))[0]
            await asyncio.sleep(_WELL_AGAIN)
            # Whole answers, so that no breaker opens: most answers of an engine are.
            for whole in range(_BETWEEN):
                await _round(clients, number * 1000 + 100 * (1 + whole), 3, answers)
        failovers = service.metric("fasttalk_failovers_total")
        service.check(outcome)
    outcome.figures.insert(
        0, f"{count} kills, {answers.whole:,} answers whole, {failovers:,.0f} gone on with elsewhere"
    )
    outcome.none(answers.broken, "texts broken")
    outcome.none(answers.hung, "hung")
    outcome.figure(
        f"longest gap p50 {percentile(answers.longest, 0.5):.0f} ms, p99 {percentile(answers.longest, 0.99):.0f}"
    )
    for problem in answers.problems:
        outcome.note(problem)
    return outcome


async def _kill(clients: list[Client], victim: Child, number: int, answers: Answers) -> None:
    begun = asyncio.Semaphore(0)
    scripts = [Script(_WORDS, _RATE, 0.01, 1 + number * 1000 + each) for each in range(len(clients))]

    async def kill() -> None:
        for _ in clients:
            await begun.acquire()
        victim.process.kill()
        await asyncio.to_thread(victim.process.wait)

    await at_once(
        [*(_read(client, script, begun, answers) for client, script in zip(clients, scripts, strict=True)), kill()]
    )


async def _round(clients: list[Client], first_seed: int, words: int, answers: Answers) -> None:
    begun = asyncio.Semaphore(0)
    await at_once(
        _read(client, Script(words, _RATE, 0.01, first_seed + each), begun, answers)
        for each, client in enumerate(clients)
    )
