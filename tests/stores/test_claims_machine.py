"""Hypothesis plays two processes against a model: whose each session is, and what each of them finds."""

import asyncio
import tempfile
import uuid
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from llm_service.stores.base import Store
from llm_service.stores.redis import RedisStore
from llm_service.stores.sqlite import SQLiteStore
from tests.redis_server import RedisServer

Result = TypeVar("Result")

SESSIONS = ["a", "b", "c"]
OWNERS = ["here", "there"]
TTL = 1000.0

sessions, owners = st.sampled_from(SESSIONS), st.sampled_from(OWNERS)


class Claims(RuleBasedStateMachine):
    """Two stores with the same things in them, one for each owner, beside what should be in them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stores: dict[str, Store] = {owner: self.run(self.open()) for owner in OWNERS}
        self.records: dict[str, bytes] = {}
        self.whose: dict[str, str] = {}
        self.asks: dict[str, set[str]] = {owner: set() for owner in OWNERS}

    async def open(self) -> Store:
        raise NotImplementedError

    def let_everything_run_out(self) -> None:
        raise NotImplementedError

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(call)

    @rule(owner=owners, session_id=sessions)
    def claim(self, owner: str, session_id: str) -> None:
        """A session goes to who claims it first."""
        present = self.whose.setdefault(session_id, owner)
        expected = None if present == owner else present
        assert expected == self.run(self.stores[owner].claim(session_id, owner, ttl=TTL))

    @rule(owner=owners, ids=st.lists(sessions, unique=True))
    def renew(self, owner: str, ids: list[str]) -> None:
        """Renewing takes what is free, and tells what is another's."""
        anew = [each for each in ids if each not in self.whose]
        lost = [each for each in ids if self.whose.setdefault(each, owner) != owner]
        assert (lost, anew) == self.run(self.stores[owner].renew(ids, owner, ttl=TTL))

    @rule(owner=owners, session_id=sessions)
    def release(self, owner: str, session_id: str) -> None:
        """Only an owner gives a session up."""
        if self.whose.get(session_id) == owner:
            del self.whose[session_id]
        self.run(self.stores[owner].release(session_id, owner))

    @rule(owner=owners, session_id=sessions, record=st.binary(max_size=20))
    def save(self, owner: str, session_id: str, record: bytes) -> None:
        """What was saved last counts, whoever saved it."""
        self.records[session_id] = record
        self.run(self.stores[owner].save(session_id, record, ttl=TTL))

    @rule(owner=owners, session_id=sessions)
    def delete(self, owner: str, session_id: str) -> None:
        """A record that was deleted is gone for all; the session stays whose it is."""
        self.records.pop(session_id, None)
        self.run(self.stores[owner].delete(session_id))

    @rule(owner=owners, asked=owners, session_id=sessions)
    def ask(self, owner: str, asked: str, session_id: str) -> None:
        """An ask changes nothing by itself."""
        self.asks[asked].add(session_id)
        self.run(self.stores[owner].ask(asked, session_id))

    @rule(owner=owners)
    def listen(self, owner: str) -> None:
        """An owner hears all that it was asked for since it listened last, once."""
        expected, self.asks[owner] = self.asks[owner], set()
        assert Counter(expected) == Counter(self.run(self.heard(owner, len(expected))))

    async def heard(self, owner: str, count: int) -> list[str]:
        asks = self.stores[owner].asked(owner)
        async with asyncio.timeout(5):
            heard = [await anext(asks) for _ in range(count)]
        await asks.aclose()  # type: ignore[attr-defined]
        return heard

    @rule(owner=owners)
    def restart(self, owner: str) -> None:
        """A process that starts anew finds everything as it left it."""
        self.run(self.stores[owner].aclose())
        self.stores[owner] = self.run(self.open())

    @rule()
    def time_passes(self) -> None:
        """After its time everything is gone, and every session nobody's."""
        self.let_everything_run_out()
        self.records.clear()
        self.whose.clear()
        self.asks = {owner: set() for owner in OWNERS}

    @invariant()
    def all_find_the_same(self) -> None:
        """Both find the records that the model has."""
        for store in self.stores.values():
            found = {session_id: self.run(store.load(session_id)) for session_id in SESSIONS}
            assert {session_id: self.records.get(session_id) for session_id in SESSIONS} == found

    def teardown(self) -> None:
        for store in self.stores.values():
            self.run(store.aclose())
        self.runner.close()


def play(machine: type[Claims]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_sqlite() -> None:
    """Two processes on one file agree with the model, whatever they do."""

    class OnOneFile(Claims):
        def __init__(self) -> None:
            self.now = 1_000_000.0
            self.folder = tempfile.TemporaryDirectory()
            super().__init__()

        async def open(self) -> Store:
            path = Path(self.folder.name) / "sessions"
            return await SQLiteStore.open(str(path), timeout=5.0, clock=lambda: self.now)

        def let_everything_run_out(self) -> None:
            self.now += TTL

        def teardown(self) -> None:
            super().teardown()
            self.folder.cleanup()

    play(OnOneFile)


@pytest.mark.redis
def test_redis(redis_server: RedisServer) -> None:
    """Two processes with one Redis agree with the model, whatever they do."""
    raw = Redis.from_url(redis_server.url)

    class WithOneRedis(Claims):
        def __init__(self) -> None:
            self.prefix = f"test-{uuid.uuid4()}:"
            super().__init__()

        async def open(self) -> Store:
            return await RedisStore.open(redis_server.url, prefix=self.prefix, timeout=5.0)

        def let_everything_run_out(self) -> None:
            for key in raw.scan_iter(f"{self.prefix}*"):
                assert raw.pttl(key) > 0
                raw.pexpire(key, 0)

    with raw:
        play(WithOneRedis)
