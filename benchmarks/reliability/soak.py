"""Hours of everyday use in minutes: answers, cancels, lost connections, new sessions; nothing grows."""

import asyncio
import contextlib
import http.client
import random
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.processes import BenchmarkFailed
from benchmarks.reliability.client import Client, Event, Hung, Lost, answer, started
from benchmarks.reliability.frozen import Held
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, engine, service_before
from benchmarks.script import Script

_CLIENTS = 20
_RATE = 50.0
# The first part of the time is the warm-up: what is made once is no growth.
_WARM_UP = 1 / 3
_EVERY = 1.0
_MIB_AN_HOUR = 1.0
# A slope of a few minutes is that of the noise; what is promised of it then is how much it grew.
_LEAST_SECONDS, _GROWTH_MIB = 600, 15.0
# A service that is late with its figures, or gone.
_NO_ANSWER = (OSError, http.client.HTTPException, psutil.Error)
# Sessions whose client is gone rest for a moment alone, so that there are as many of them at the end as after a while.
_SETTINGS = {"RESUME_WINDOW": "2", "RESUME_GENERATE": "2", "SESSION_STORE_BYTES": "1048576"}


class Users:
    """What all of them did, and what went wrong."""

    def __init__(self) -> None:
        self.done = dict.fromkeys(("answer", "cancel", "lose", "configure", "again"), 0)
        self.wrong: list[str] = []


async def _use(number: int, port: int, users: Users) -> None:
    """Be one user, until cancelled: every conversation is of a few turns, then another one begins."""
    chance, seed = random.Random(number), number * 10_000_000
    while True:
        client = await started(port)
        try:
            for _ in range(chance.randrange(1, 12)):
                seed += 1
                script = Script(chance.randrange(5, 60), _RATE, 0.02, seed)
                kind = chance.choices(list(users.done), (10, 3, 2, 2, 1))[0]
                if not await _turn(client, script, kind, users):
                    break
        except (Lost, Hung) as error:
            users.wrong.append(repr(error))
        finally:
            client.close()


async def _turn(client: Client, script: Script, kind: str, users: Users) -> bool:
    """Do one thing; returns whether the conversation goes on."""
    users.done[kind] += 1
    match kind:
        case "answer":
            said, end = await answer(client, script.prompt)
            if end.type != "response_complete" or said != script.text():
                users.wrong.append(f"{end.type} {end.error and end.error.code}")
        case "cancel":
            client.send("user_message", text=script.prompt)
            await client.event()
            client.send("cancel")
            end = await _last(client)
            if end.type not in {"cancelled", "response_complete"}:
                users.wrong.append(end.type)
            elif end.type == "response_complete":
                await client.event()  # the answer to a cancel that had nothing to cancel
        case "lose":
            client.send("user_message", text=script.prompt)
            await client.event()
            client.cut()
            return False
        case "configure":
            client.send("update_config", config={"temperature": 0.5})
            await client.event()
        case "again":
            client.send("start_session")
            await client.event()
    return True


async def _last(client: Client) -> Event:
    while (event := await client.event()).type == "token":
        pass
    return event


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return by how much the values of (time, value) pairs grow in a unit of time: the line of least squares."""
    count = len(samples)
    if count < 2:
        return 0.0
    middle = sum(at for at, _ in samples) / count
    mean = sum(value for _, value in samples) / count
    spread = sum((at - middle) ** 2 for at, _ in samples)
    return sum((at - middle) * (value - mean) for at, value in samples) / spread


async def run(seconds: int, folder: Path) -> Outcome:
    """Use the service for so many seconds."""
    outcome, users, held = Outcome(), Users(), list[tuple[float, Held]]()
    with engine(folder) as (_, engine_port), service_before(engine_port, folder, _SETTINGS) as service:
        using = [asyncio.create_task(_use(number, service.port, users)) for number in range(_CLIENTS)]
        until = monotonic() + seconds
        while monotonic() < until and service.process.process.poll() is None:
            await asyncio.sleep(_EVERY)
            try:
                held.append((monotonic(), await asyncio.to_thread(Held, service)))
            except _NO_ANSWER as error:
                # One answer that is late, or none any more: what was seen until then is told all the same.
                users.wrong.append(f"it did not say how it was: {error!r}")
        if service.process.process.poll() is not None:
            users.wrong.insert(0, "the service ended")
        for task in using:
            task.cancel()
        ends = await asyncio.gather(*using, return_exceptions=True)
        await _rest(service)
        service.check(outcome)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            users.wrong.append(repr(end))
    if not held:
        raise BenchmarkFailed("; ".join(users.wrong[:5]) or "the service ended at once")
    _judge(outcome, users, held[int(len(held) * _WARM_UP) :])
    return outcome


async def _rest(service: Tested) -> None:
    """Let those who lost their connection be forgotten."""
    with contextlib.suppress(*_NO_ANSWER):
        async with asyncio.timeout(15):
            while await asyncio.to_thread(service.metric, "fasttalk_responses_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def _judge(outcome: Outcome, users: Users, held: list[tuple[float, Held]]) -> None:
    hours = (held[-1][0] - held[0][0]) / 3600
    per_hour = 3600 * slope([(at, each.rss) for at, each in held])
    total = sum(users.done.values())
    outcome.figures.insert(0, f"{total:,} turns of {_CLIENTS} users, {users.done['lose']:,} of them cut off")
    memory = f"memory {held[-1][1].rss:.0f} MiB"
    if 3600 * hours >= _LEAST_SECONDS:
        text = f"{memory}, {per_hour:+.1f} MiB an hour over {60 * hours:.0f} minutes"
        outcome.most(per_hour, _MIB_AN_HOUR, text)
    else:
        grown = per_hour * hours
        outcome.most(grown, _GROWTH_MIB, f"{memory}, {grown:+.1f} in {3600 * hours:.0f} s")
    for name, most in (("files", 2 * _CLIENTS), ("tasks", 3 * _CLIENTS)):
        values = [getattr(each, name) for _, each in held]
        half = len(values) // 2
        grown = max(values[half:]) - max(values[:half] or values)
        outcome.most(grown, most, f"{'sockets' if name == 'files' else name} {max(values):.0f} at most, {grown:+.0f}")
    outcome.none(len(users.wrong), "wrong answers")
    for problem in users.wrong[:5]:
        outcome.note(problem)
