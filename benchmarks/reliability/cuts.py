"""Clients that are cut off at random points and come back: every event once, in order, on every store."""

import contextlib
import random
from collections.abc import Generator
from pathlib import Path

from benchmarks.reliability.client import Client, Event, Hung, Lost
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, at_once, engine, redis, service_before
from benchmarks.script import Script

_CLIENTS = 40
# An answer takes about 0.8 s, and is cut a few times.
_WORDS, _RATE = 120, 150.0
_LONGEST_LIFE = 0.25
_SETTINGS = {"RESUME_GENERATE": "30", "RESUME_WINDOW": "120"}


class Cuts:
    """What happened so far, of all clients together."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.made = self.answers = self.lost = self.doubled = self.gaps = self.wrong = self.hung = 0
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        """Keep the first few of what went wrong."""
        if len(self.problems) < 5:
            self.problems.append(problem)


class Caller:
    """One conversation, over many connections."""

    def __init__(self, number: int, port: int, cuts: Cuts) -> None:
        self._port = port
        self._cuts = cuts
        self._chance = random.Random(number)
        self._seed = 1 + number * 100_000
        self._session = ""
        self._seq = 0
        self._client: Client

    async def talk(self) -> None:
        """Ask and be cut off, again and again, until all cuts are made."""
        try:
            self._client = await Client.connect(self._port)
            self._client.send("start_session")
            first = await self._client.event()
            if first.type != "session_started":  # greeted already: its answer comes next
                self._cuts.note(f"the first event was {first.type}")
            self._session, self._seq = first.session_id, first.seq
            while self._cuts.made < self._cuts.wanted:
                self._seed += 1
                await self._turn(Script(_WORDS, _RATE, 0.01, self._seed))
            self._client.close()
        except Hung:
            self._cuts.hung += 1
        except Lost as lost:
            self._cuts.lost += 1
            self._cuts.note(str(lost))

    async def _turn(self, script: Script) -> None:
        self._client.send("user_message", text=script.prompt)
        # A message that was on its way when the connection was cut is nobody's to keep: it was never heard.
        said, over = [], False
        event: Event | None = self._take(await self._client.event())
        while True:
            if event is not None:
                said.append(event.data)
                over = event.type == "response_complete"
                if event.type not in {"token", "response_complete", "session_configured"}:
                    self._cuts.note(f"{event.type} {event.error and event.error.code}")
                    self._cuts.lost += 1
                    return
            if over:
                break
            event = await self._next_or_cut()
        self._cuts.answers += 1
        if "".join(said) != script.text():
            self._cuts.wrong += 1

    async def _next_or_cut(self) -> Event | None:
        """Take the next event, or have the connection cut off and come back."""
        if self._chance.random() > 0.06:
            return self._take(await self._client.event())
        life = self._chance.choice((0.0, 0.0, self._chance.random() * _LONGEST_LIFE))
        if life:
            with contextlib.suppress(Hung):
                return self._take(await self._client.event(life))
        await self._come_back()
        return None

    async def _come_back(self) -> None:
        while True:
            self._client.cut()
            self._cuts.made += 1
            self._client = await Client.connect(self._port)
            self._client.send("start_session", session_id=self._session, last_seq=self._seq)
            if self._chance.random() < 0.1:  # once more, before it is answered
                with contextlib.suppress(Hung):
                    self._check(await self._client.event(self._chance.random() * 0.01))
                continue
            self._check(await self._client.event())
            return

    def _check(self, answer: Event) -> None:
        if answer.resumed is not True or answer.seq != self._seq:
            self._cuts.gaps += 1
            self._cuts.note(f"not resumed: {answer.type} {answer.reason}")

    def _take(self, event: Event) -> Event:
        if event.seq <= self._seq:
            self._cuts.doubled += 1
        self._cuts.lost += max(0, event.seq - self._seq - 1)
        self._seq = event.seq
        return event


@contextlib.contextmanager
def _service(store: str, folder: Path) -> Generator[Tested, None, None]:
    """Run the service on a store: two workers where they share one, so that who comes back may meet another."""
    with contextlib.ExitStack() as stack:
        _, engine_port = stack.enter_context(engine(folder))
        settings = {"SESSION_STORE": store, **_SETTINGS}
        if store == "redis":
            settings["REDIS_URL"] = stack.enter_context(redis(folder))
        workers = 1 if store == "memory" else 2
        yield stack.enter_context(service_before(engine_port, folder, settings, workers=workers))


async def run(count: int, folder: Path, *, store: str) -> Outcome:
    """Make so many cuts on this store."""
    outcome, cuts = Outcome(), Cuts(count)
    with _service(store, folder) as service:
        await at_once(Caller(number, service.port, cuts).talk() for number in range(_CLIENTS))
        handed_over = service.metric("fasttalk_handovers_total")
        outcome.figure(f"{cuts.made:,} cuts, {cuts.answers:,} answers")
        if handed_over:
            outcome.figure(f"{handed_over:,.0f} taken over by the other worker")
        outcome.none(cuts.lost, "events lost")
        outcome.none(cuts.doubled, "doubled")
        outcome.none(cuts.gaps, "gaps")
        outcome.none(cuts.wrong, "wrong texts")
        outcome.none(cuts.hung, "hung")
        service.check(outcome)
    for problem in cuts.problems:
        outcome.note(problem)
    return outcome
