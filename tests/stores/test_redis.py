"""Sessions that rest in a real Redis: what goes wrong with it, and what must not."""

import asyncio
import contextlib
import random
import time
import traceback
import uuid
from collections.abc import AsyncGenerator, Awaitable
from typing import cast

import pytest
from redis.asyncio import Redis

from llm_service.errors import ConfigurationError, StoreUnavailable
from llm_service.stores import redis as redis_store
from llm_service.stores.redis import RedisStore
from tests.redis_server import RedisServer
from tests.stores.slow_proxy import SlowProxy
from tests.stores.test_contract import LONG, becomes

pytestmark = pytest.mark.redis
TIMEOUT = 0.3


@contextlib.asynccontextmanager
async def a_store(url: str, *, patience: float = TIMEOUT, prefix: str = "") -> AsyncGenerator[RedisStore, None]:
    store = await RedisStore.open(url, prefix=prefix or f"test-{uuid.uuid4()}:", timeout=patience)
    try:
        yield store
    finally:
        await store.aclose()


async def fails(call: Awaitable[object], *, within: float) -> StoreUnavailable:
    """Wait for a call to fail as it should, soon enough."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await call
    assert time.monotonic() - began < within
    return caught.value


async def storm(store: RedisStore, *, readers: int, reads: int) -> tuple[int, int, int]:
    """Read and claim, giving up by chance; returns how many were answered, were given up, and got another's bytes.

    About half of them are given up, however fast the machine is.
    """
    sessions = [f"session-{number}" for number in range(64)]
    for session_id in sessions:
        await store.save(session_id, session_id.encode() * 50, ttl=LONG)
        await store.claim(session_id, f"owner of {session_id}", ttl=LONG)
    answered = given_up = foreign = 0
    patience = 0.02  # seconds; it follows what calls take
    chance = random.Random(11)

    async def read() -> None:
        nonlocal answered, given_up, foreign, patience
        for _ in range(reads):
            session_id = chance.choice(sessions)
            claims = chance.random() < 0.3
            expected: object = f"owner of {session_id}" if claims else session_id.encode() * 50
            call = store.claim(session_id, "nobody", ttl=1.0) if claims else store.load(session_id)
            task = asyncio.ensure_future(cast("Awaitable[object]", call))
            await asyncio.wait([task], timeout=chance.uniform(0, patience))
            if task.done():
                answered += 1
                patience /= 1.05
                foreign += task.result() != expected
            else:
                given_up += 1
                patience *= 1.05
                task.cancel()

    await asyncio.gather(*(read() for _ in range(readers)))
    return answered, given_up, foreign


async def test_a_cancelled_commands_connection_is_not_used_again(redis_server: RedisServer) -> None:
    """In a storm of calls to a slow Redis that are given up, no call ever gets what another one asked for."""
    proxy = SlowProxy(redis_server.port, delay=0.003)
    async with proxy.listening() as url, a_store(url, patience=5.0) as store:
        answered, given_up, foreign = await storm(store, readers=24, reads=120)
        assert 0 == foreign
        assert answered > 300
        assert given_up > 300
        # Those that were given up while their command was under way took their connections with them.
        assert proxy.connections > 100
        print(f"\nredis: {answered} answers, {given_up} given up, {proxy.connections} connections, {foreign} foreign")


async def test_a_save_that_comes_late_changes_nothing(redis_server: RedisServer) -> None:
    """A save, or a deletion, that was given up and reaches Redis after a newer one does not undo that."""
    proxy = SlowProxy(redis_server.port, delay=0)
    async with proxy.listening() as url, a_store(url) as store:
        proxy.hold()
        await fails(store.save("a", b"old", ttl=LONG), within=2 * TIMEOUT)
        await store.save("a", b"new", ttl=LONG)
        proxy.hold()
        await fails(store.save("b", b"old", ttl=LONG), within=2 * TIMEOUT)
        await store.delete("b")
        proxy.let_go()

        async def passed() -> object:
            return proxy.passed_late

        await becomes(2, passed)
        for _ in range(20):
            assert (b"new", None) == (await store.load("a"), await store.load("b"))


async def test_a_frozen_redis_holds_nobody_up(own_redis: RedisServer) -> None:
    """While Redis is silent every call fails in time, more than there are connections, too; then it works as before."""
    async with a_store(own_redis.url) as store:
        await store.save("a", b"1", ttl=LONG)
        own_redis.freeze()
        began = time.monotonic()
        answers = await asyncio.gather(*(store.load("a") for _ in range(50)), return_exceptions=True)
        assert time.monotonic() - began < 3 * TIMEOUT
        assert {StoreUnavailable} == {type(answer) for answer in answers}
        error = await fails(store.renew(["a"], "me", ttl=LONG), within=2 * TIMEOUT)
        assert (1.0, True, "resource") == (error.retry_after, error.recoverable, error.category)
        own_redis.thaw()
        assert b"1" == await store.load("a")


async def test_a_redis_that_comes_back_is_used(own_redis: RedisServer) -> None:
    """Calls fail at once while Redis is away, and work again when it is there, without anything being opened anew."""
    async with a_store(own_redis.url) as store:
        await asyncio.gather(*(store.ping() for _ in range(10)))
        own_redis.stop()
        await fails(store.load("a"), within=TIMEOUT)
        own_redis.start()
        await store.save("a", b"1", ttl=LONG)
        assert [b"1"] * 10 == await asyncio.gather(*(store.load("a") for _ in range(10)))


@pytest.mark.parametrize("how", ["freeze", "stop"])
async def test_one_who_listens_learns_that_redis_is_away(
    own_redis: RedisServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who listens gets an error within bounds, and what was asked for meanwhile when it listens anew."""
    monkeypatch.setattr(redis_store, "_LISTEN_SECONDS", 0.1)
    async with a_store(own_redis.url) as store:
        await store.ask("me", "a")
        asks = store.asked("me")
        assert "a" == await anext(asks)
        listening = asyncio.ensure_future(anext(asks))
        await asyncio.sleep(0.25)  # through two signs of life
        assert not listening.done()
        (own_redis.freeze if how == "freeze" else own_redis.stop)()
        await fails(listening, within=0.2 + 2 * TIMEOUT)
        (own_redis.thaw if how == "freeze" else own_redis.start)()
        await store.ask("me", "b")
        async with contextlib.aclosing(store.asked("me")) as again:
            assert "b" == await anext(again)


async def test_one_who_listens_learns_of_a_new_connection(own_redis: RedisServer) -> None:
    """A connection that is lost and made anew within a moment is told of, too: the Redis behind it may be empty."""
    async with a_store(own_redis.url) as store:
        await store.ask("me", "a")
        asks = store.asked("me")
        assert "a" == await anext(asks)
        listening = asyncio.ensure_future(anext(asks))
        async with Redis.from_url(own_redis.url) as other:

            async def listeners() -> object:
                return (await other.pubsub_numsub(store._asks("me")))[0][1]

            await becomes(1, listeners)
            await other.client_kill_filter(_type="pubsub")
        await fails(listening, within=2 * TIMEOUT)


async def test_keys_are_its_own_and_pass(redis_server: RedisServer) -> None:
    """Every key begins with the prefix and has its time, so that nothing stays in Redis for ever."""
    raw = Redis.from_url(redis_server.url, decode_responses=True)
    async with raw, a_store(redis_server.url, prefix="ours*:") as store:
        before = set(await raw.keys())
        await store.save("a", b"1", ttl=LONG)
        await store.save("b", b"1", ttl=LONG)
        await store.delete("b")
        await store.claim("a", "me", ttl=LONG)
        await store.renew(["c"], "me", ttl=LONG)
        await store.writable()
        await store.ask("me", "a")
        async with a_store(redis_server.url, prefix="theirs:") as other:
            assert (None, None) == (await other.load("a"), await other.claim("a", "you", ttl=LONG))
            await other.release("a", "you")
        keys = set(await raw.keys()) - before
        names = {"session:a", "session:b", "owner:a", "owner:c", "asks:me", "writable"}
        assert {f"ours*:{name}" for name in names} == keys
        assert all([0 < await raw.pttl(key) <= 1000 * LONG for key in keys])


class TestOpening:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "localhost",
            "http://localhost",
            "redis://u:s3cret@127.0.0.1:x/0",
            "redis://127.0.0.1:1/0?socket_timeout=s3cret",
        ],
    )
    async def test_no_address(self, url: str) -> None:
        """What is no address of a Redis stops the start; the message says what one looks like, not what is there."""
        with pytest.raises(ConfigurationError, match=r"REDIS_URL is no address of a Redis; write redis://") as caught:
            await RedisStore.open(url, prefix="test:", timeout=TIMEOUT)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))

    async def test_nobody_there(self) -> None:
        """Where nothing listens the start fails, and neither message nor traceback hold what is in the URL."""
        url = "redis://joe:s3cret@127.0.0.1:1/0"
        with pytest.raises(
            ConfigurationError, match=r"REDIS_URL: .* \(ConnectionError\); check that Redis runs"
        ) as caught:
            await RedisStore.open(url, prefix="test:", timeout=TIMEOUT)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))

    async def test_a_password(self, redis_program: str) -> None:
        """The right password opens; a wrong one or none does not, and is not told."""
        server = RedisServer(redis_program, "--requirepass", "s3cret-right")
        try:
            place = f"127.0.0.1:{server.port}/0"
            async with a_store(f"redis://:s3cret-right@{place}") as store:
                await store.save("a", b"1", ttl=LONG)
                assert "s3cret" not in repr(store)
            for url in (f"redis://:s3cret-wrong@{place}", f"redis://{place}"):
                with pytest.raises(ConfigurationError, match="Authentication") as caught:
                    await RedisStore.open(url, prefix="test:", timeout=TIMEOUT)
                assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        finally:
            server.close()

    async def test_a_full_redis_says_so(self, redis_program: str) -> None:
        """A Redis whose memory is full refuses to save, which is told like any other failure; reading goes on."""
        server = RedisServer(redis_program, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
        try:
            async with a_store(server.url) as store:
                await store.save("a", b"1", ttl=LONG)
                with pytest.raises(StoreUnavailable, match="OutOfMemory"):
                    for number in range(10):
                        await store.save(f"large {number}", bytes(1_000_000), ttl=LONG)
                assert b"1" == await store.load("a")
                async with Redis.from_url(server.url) as raw:
                    await raw.config_set("maxmemory", 1)
                await store.ping()
                with pytest.raises(StoreUnavailable, match="OutOfMemory"):
                    await store.writable()
        finally:
            server.close()
