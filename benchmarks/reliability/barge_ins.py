"""Barge-ins at random moments, with a TTS that is slow: it is left at once, and nothing of the old answer is heard."""

import itertools
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from benchmarks.reliability import stops
from benchmarks.reliability.client import Client, Event, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.slow_tts import SlowTTS, slow_tts
from benchmarks.reliability.tested import at_once, engine, service_before, until
from benchmarks.script import Script

_CLIENTS = 2
_WORDS, _RATE = 400, 500.0


@dataclass
class BargeIns:
    """What all clients of one system did, and what came that must not; `name` begins their voices'."""

    name: str
    wanted: int = 0
    done: int = 0
    number: Iterator[int] = field(default_factory=itertools.count)  # of the next client
    at: dict[str, list[float]] = field(default_factory=dict)  # when, by the clients' voices
    late: int = 0  # sounds of an answer that was left
    wrong: int = 0
    hung: int = 0


class _Listener:
    """One client; `newest` is the highest chunk that it was told of."""

    def __init__(self, client: Client, chance: random.Random, barge_ins: BargeIns, at: list[float]) -> None:
        self._client = client
        self._chance = chance
        self._barge_ins = barge_ins
        self._at = at
        self._over = False  # the answer's text is
        self._newest = 0
        self._left = 0  # no chunk up to this one may be heard any more

    async def barge_in(self, script: Script) -> None:
        """Ask, cancel when so many pieces of sound have come, and take all up to the `cancelled`."""
        self._client.send("user_message", text=script.prompt)
        pieces, said, self._over = self._chance.randrange(8), "", False
        while pieces:
            event = await self._client.event()
            said += self._take(event)
            pieces -= event.type == "audio"
        self._client.send("cancel")
        self._at.append(monotonic())
        while (event := await self._client.event()).type != "cancelled":
            said += self._take(event)
        self._left = self._newest
        self._barge_ins.done += 1
        words = _WORDS if self._over else said.count(" ")
        right = said == Script(words, seed=script.seed).text() and event.success != self._over
        self._barge_ins.wrong += not right

    def _take(self, event: Event) -> str:
        if event.type == "chunk" and isinstance(event.id, int):
            self._newest = max(self._newest, event.id)
        elif event.type == "audio":
            self._barge_ins.late += event.chunk <= self._left
        elif event.type == "response_complete":
            self._over = True
        elif event.type != "token":
            self._barge_ins.wrong += 1
        return event.data if event.type == "token" else ""


async def _barge_in_often(port: int, barge_ins: BargeIns) -> None:
    number = next(barge_ins.number)
    seed = 1 + number * 1_000_000
    voice = f"{barge_ins.name}-{number}"
    client = await started(port, speech={"enabled": True, "format": "pcm", "voice": voice}, events=["chunk", "audio"])
    listener = _Listener(client, random.Random(number), barge_ins, barge_ins.at.setdefault(voice, []))
    try:
        while barge_ins.done < barge_ins.wanted:
            seed += 1
            await listener.barge_in(Script(_WORDS, _RATE, 0.0, seed))
        client.close()
    except (Hung, Lost):
        barge_ins.hung += 1


async def run(count: int, folder: Path) -> Outcome:
    """Barge in so many times."""
    outcome, barge_ins, floor = Outcome(), BargeIns("service"), BargeIns("floor")
    async with slow_tts() as tts:
        settings = {"TTS_ENDPOINTS": f"openai=http://127.0.0.1:{tts.port}/v1"}
        with (
            engine(folder) as (_, engine_port),
            service_before(engine_port, folder, settings) as service,
            stops.floor_before(engine_port, folder, tts_port=tts.port) as floor_port,
        ):
            for part in range(1, stops.ROUNDS + 1):
                for port, each in ((floor_port, floor), (service.port, barge_ins)):
                    each.wanted = count * part // stops.ROUNDS
                    await at_once(_barge_in_often(port, each) for _ in range(_CLIENTS))

            async def idle() -> bool:
                return not tts.running

            idle_again = await until(idle, 5.0)
            within = stops.within(service)
            service.check(outcome)
    times = _times(barge_ins, tts)
    outcome.figure(f"{barge_ins.done:,} barge-ins, {len(times):,} of them while the TTS was at it")
    outcome.none(int(not idle_again), "syntheses left running")
    stops.tell(outcome, times, _times(floor, tts), within, what="TTS left")
    stops.tell_floor(outcome, wrong=floor.wrong, hung=floor.hung)
    _tell(outcome, barge_ins)
    return outcome


def _times(barge_ins: BargeIns, tts: SlowTTS) -> list[float]:
    return [ms for voice, at in barge_ins.at.items() for ms in _since(at, tts.left.get(voice, []))]


def _tell(outcome: Outcome, barge_ins: BargeIns) -> None:
    outcome.none(barge_ins.late, "sounds of an answer that was left")
    outcome.none(barge_ins.wrong, "wrong texts or ends")
    outcome.none(barge_ins.hung, "hung")


def _since(cancels: list[float], left: list[float]) -> list[float]:
    """Return how many ms after its client's last cancel each request was left; both are in their order."""
    times = []
    for moment in left:
        before = bisect_right(cancels, moment)
        if before:
            times.append(1000 * (moment - cancels[before - 1]))
    return times
