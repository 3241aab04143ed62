"""What every store promises, shown on each of them; and what those do that processes share."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from llm_service.errors import RecordTooLarge, StoreUnavailable
from llm_service.stores.base import Store
from tests.stores.conftest import KINDS, SHARED_KINDS, Opening

every_store = pytest.mark.parametrize("opened", KINDS, indirect=True)
every_shared_store = pytest.mark.parametrize("opened", SHARED_KINDS, indirect=True)
LONG = 60.0


async def becomes(expected: object, look: Callable[[], Awaitable[object]]) -> float:
    """Look until what is expected is there; returns after how many seconds it was."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        while await look() != expected:
            await asyncio.sleep(0.005)
    return time.monotonic() - began


@every_store
class TestRecords:
    async def test_what_was_saved_last_is_found(self, store: Store) -> None:
        """A session has the record it was saved with last, until that is deleted; others have none of it."""
        assert await store.load("a") is None
        await store.save("a", b"1", ttl=LONG)
        await store.save("b", b"other", ttl=LONG)
        await store.save("a", b"2", ttl=LONG)
        assert (b"2", b"other") == (await store.load("a"), await store.load("b"))
        await store.delete("a")
        await store.delete("a")
        assert (None, b"other") == (await store.load("a"), await store.load("b"))
        await store.save("a", b"3", ttl=LONG)
        assert b"3" == await store.load("a")

    @pytest.mark.parametrize("record", [b"", bytes(range(256)) * 4, b"\r\n$-1\r\n", bytes(1_500_000)])
    async def test_bytes_are_bytes(self, store: Store, record: bytes) -> None:
        """A record comes back as it was, whatever is in it."""
        await store.save("a", record, ttl=LONG)
        assert record == await store.load("a")

    async def test_ids_are_any_text(self, store: Store) -> None:
        """Ids that differ at all are different sessions: nothing in them has a meaning."""
        ids = ["", " ", "*", "a", "A", "a:b", "a%b", "ä", "a\u0308", "'; DROP TABLE records; --", "é" * 64, "\r\nGET x"]
        for number, session_id in enumerate(ids):
            await store.save(session_id, str(number).encode(), ttl=LONG)
        assert [str(number).encode() for number in range(len(ids))] == [await store.load(each) for each in ids]

    async def test_time_runs_out(self, store: Store) -> None:
        """A record is gone after its time, and not before; saving it anew gives it new time."""
        await store.save("short", b"1", ttl=0.2)
        await store.save("renewed", b"2", ttl=0.2)
        await store.save("renewed", b"2", ttl=LONG)
        assert b"1" == await store.load("short")
        waited = await becomes(None, lambda: store.load("short"))
        assert 0.1 < waited < 2
        assert b"2" == await store.load("renewed")

    async def test_one_too_large_is_refused(self, store: Store) -> None:
        """Past MAX_RECORD_BYTES nothing is saved, the last record stays, and the error says what to change."""
        await store.save("a", b"1", ttl=LONG)
        with pytest.raises(RecordTooLarge, match=r"2000001 bytes and MAX_RECORD_BYTES is 2000000.*lower"):
            await store.save("a", bytes(2_000_001), ttl=LONG)
        assert b"1" == await store.load("a")

    async def test_calls_keep_their_order(self, store: Store) -> None:
        """Of many writes of one session that run at once the one that was called last wins."""
        for _ in range(5):
            writes = [store.save("a", str(number).encode(), ttl=LONG) for number in range(60)]
            writes.insert(30, store.delete("a"))
            await asyncio.gather(*writes)
            assert b"59" == await store.load("a")
        await asyncio.gather(*(store.save("a", bytes(10_000), ttl=LONG) for _ in range(30)), store.delete("a"))
        assert await store.load("a") is None

    async def test_it_answers(self, store: Store) -> None:
        """A store that is open answers and can be written to; closing it twice is closing it."""
        await store.ping()
        await store.writable()
        await store.aclose()
        await store.aclose()


@every_shared_store
class TestSharing:
    async def test_a_restart_loses_nothing(self, opened: Opening) -> None:
        """What was saved is there when the store is opened anew, whose it was as well."""
        store = await opened()
        assert store.shared
        await store.save("a", b"1", ttl=LONG)
        assert await store.claim("a", "me", ttl=LONG) is None
        await store.aclose()
        again = await opened()
        assert b"1" == await again.load("a")
        assert "me" == await again.claim("a", "you", ttl=LONG)

    async def test_a_closed_one_says_so(self, opened: Opening) -> None:
        """Each call of a closed store fails by StoreUnavailable, and opens nothing anew."""
        store = await opened()
        await store.aclose()
        for call in (
            store.save("a", b"", ttl=LONG),
            store.load("a"),
            store.delete("a"),
            store.claim("a", "me", ttl=LONG),
            store.renew(["a"], "me", ttl=LONG),
            store.release("a", "me"),
            store.ask("me", "a"),
            anext(store.asked("me")),
            store.ping(),
            store.writable(),
        ):
            with pytest.raises(StoreUnavailable, match="stopping"):
                await cast("Awaitable[object]", call)


@every_shared_store
class TestClaims:
    async def test_one_owner_at_a_time(self, opened: Opening) -> None:
        """A session is the first claimer's until it is released, and only its owner can do that; the record stays."""
        here, there = await opened(), await opened()
        await here.save("a", b"1", ttl=LONG)
        assert await here.claim("a", "here", ttl=LONG) is None
        assert await here.claim("a", "here", ttl=LONG) is None
        assert "here" == await there.claim("a", "there", ttl=LONG)
        await there.release("a", "there")
        assert "here" == await there.claim("a", "there", ttl=LONG)
        await here.release("a", "here")
        assert await there.claim("a", "there", ttl=LONG) is None
        assert "there" == await here.claim("a", "here", ttl=LONG)
        assert b"1" == await there.load("a")

    async def test_a_claim_runs_out(self, opened: Opening) -> None:
        """A claim nobody renews is anybody's after its time, and not before."""
        here, there = await opened(), await opened()
        assert await here.claim("a", "here", ttl=0.2) is None
        assert await here.claim("b", "here", ttl=0.2) is None
        assert ([], []) == await here.renew(["b"], "here", ttl=LONG)
        assert "here" == await there.claim("a", "there", ttl=LONG)
        waited = await becomes(None, lambda: there.claim("a", "there", ttl=LONG))
        assert 0.1 < waited < 2
        assert "here" == await there.claim("b", "there", ttl=LONG)

    async def test_renewing_tells_what_was_lost(self, opened: Opening) -> None:
        """Claims are renewed in bulk; those of others are told and stay theirs, those of nobody are taken and told."""
        here, there = await opened(), await opened()
        ids = [f"session {number}" for number in range(1200)]
        assert ([], ids) == await here.renew(ids, "here", ttl=LONG)
        assert ([], []) == await here.renew([], "here", ttl=LONG)
        for session_id in (ids[0], ids[700], ids[1199]):
            await here.release(session_id, "here")
            assert await there.claim(session_id, "there", ttl=LONG) is None
        await here.release(ids[5], "here")
        assert ([ids[0], ids[700], ids[1199]], [ids[5]]) == await here.renew(iter(ids), "here", ttl=LONG)
        assert ["there", "here"] == [await here.claim(each, "third", ttl=LONG) for each in (ids[700], ids[5])]

    async def test_of_many_one_wins(self, opened: Opening) -> None:
        """Of twenty claimers at once one gets the session, and all others hear of that one."""
        stores = [await opened() for _ in range(4)]
        for number in range(20):
            answers = await asyncio.gather(
                *(stores[owner % 4].claim(f"session {number}", f"owner {owner}", ttl=LONG) for owner in range(20))
            )
            (winner,) = (f"owner {owner}" for owner, answer in enumerate(answers) if answer is None)
            assert {winner, None} == set(answers)
            assert 1 == answers.count(None)


@every_shared_store
class TestAsking:
    async def test_an_owner_hears_what_it_is_asked_for(self, opened: Opening) -> None:
        """Each ask reaches its owner once, soon, and nobody else."""
        here, there = await opened(), await opened()
        heard: dict[str, list[str]] = {"here": [], "third": []}

        async def listen(owner: str) -> None:
            async for session_id in here.asked(owner):
                heard[owner].append(session_id)

        async def all_heard() -> object:
            return sorted(heard["here"])

        async with asyncio.TaskGroup() as tasks:
            listening = [tasks.create_task(listen(owner)) for owner in heard]
            for number in range(10):
                await there.ask("here", f"session {number}")
            waited = await becomes([f"session {number}" for number in range(10)], all_heard)
            for task in listening:
                task.cancel()
        assert [] == heard["third"]
        assert waited < 2

    async def test_an_owner_that_did_not_listen_finds_it(self, opened: Opening) -> None:
        """What an owner was asked for before it listens waits for it; what it has heard does not come again."""
        here, there = await opened(), await opened()
        await there.ask("here", "a")
        await there.ask("here", "a")
        async with asyncio.timeout(5):
            async with contextlib.aclosing(here.asked("here")) as first:  # type: ignore[type-var]
                assert "a" == await anext(first)
            await there.ask("here", "b")
            async with contextlib.aclosing(here.asked("here")) as second:  # type: ignore[type-var]
                assert "b" == await anext(second)
