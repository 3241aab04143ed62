"""Sessions at rest in Redis, for any number of processes on any number of machines."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from llm_service.errors import ConfigurationError, StoreUnavailable
from llm_service.stores.base import MAX_RECORD_BYTES, Renewed, check_size

_CONNECTIONS = 16
# Seconds between two signs of life of the connection that listens: one that is lost without a word is silent for ever.
_LISTEN_SECONDS = 5.0
# Seconds that an ask waits for an owner that does not listen, and in which a save that comes late finds its session
# deleted.
_ASK_SECONDS = 60.0
_DELETED_SECONDS = 60.0
_IDS_AT_ONCE = 500

# Each runs as one: nothing comes between its looking and its writing.
# Of one process's writes the one that was called last wins, whichever connection it took and however late it arrives.
# Without a record (a deletion) the number alone stays for a while.
_WRITE = """
local last = redis.call('HMGET', KEYS[1], 'writer', 'number')
if last[1] == ARGV[1] and tonumber(last[2]) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'writer', ARGV[1], 'number', ARGV[2])
if ARGV[4] then redis.call('HSET', KEYS[1], 'record', ARGV[4]) else redis.call('HDEL', KEYS[1], 'record') end
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
_CLAIM = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return owner end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_RENEW = """
local lost, anew = {}, {}
for number, key in ipairs(KEYS) do
  local owner = redis.call('GET', key)
  if owner and owner ~= ARGV[1] then
    lost[#lost + 1] = number
  else
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
    if not owner then anew[#anew + 1] = number end
  end
end
return {lost, anew}
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_ASK = """
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('PUBLISH', KEYS[1], '')
"""


class RedisStore:
    """One Redis, or what speaks its protocol; `prefix` begins all its keys and channels.

    `timeout` is what any call may take, in seconds. A connection whose command was cancelled, or took longer, is
    closed: its answer would be taken for that of the next command.
    """

    shared = True

    def __init__(self, redis: Redis, *, prefix: str, timeout: float, max_record_bytes: int = MAX_RECORD_BYTES) -> None:
        self._redis = redis
        self._prefix = prefix
        self._timeout = timeout
        self._max_record_bytes = max_record_bytes
        self._writer = secrets.token_hex(8)
        self._writes = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisStore: keys {self._prefix}*>"

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        prefix: str,
        timeout: float,  # noqa: ASYNC109 - of the calls to come, too
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> "RedisStore":
        """Connect.

        Raises:
            ConfigurationError: the URL is none, or no Redis answers there; nothing of it is in the message.
        """
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=timeout,
                socket_connect_timeout=timeout,
                # The whole call is bounded instead; by these, redis-py's `wait_for` could swallow a cancel.
                socket_timeout=None,
                protocol=2,
                # Once, for a connection that was closed while it rested.
                retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionLost,)),
            )
        except (ValueError, TypeError):  # the latter for options in the URL that redis-py does not know
            raise ConfigurationError(
                "REDIS_URL is no address of a Redis; write redis://[user:password@]host:port/number, "
                "or rediss:// for TLS"
            ) from None
        store = cls(Redis(connection_pool=pool), prefix=prefix, timeout=timeout, max_record_bytes=max_record_bytes)
        try:
            await store.ping()
        except StoreUnavailable as error:
            await store.aclose()
            why = error.message.removesuffix("; try again")
            raise ConfigurationError(f"REDIS_URL: {why}; check that Redis runs and that the URL is right") from None
        return store

    async def save(self, session_id: str, record: bytes, *, ttl: float) -> None:
        """Keep a record for `ttl` seconds, in the place of the last one."""
        check_size(record, self._max_record_bytes)
        await self._write(session_id, ttl, record)

    async def load(self, session_id: str) -> bytes | None:
        """Return the session's record, if its time is not over."""
        async with self._bounded():
            return await cast("Awaitable[bytes | None]", self._redis.hget(self._record(session_id), "record"))

    async def delete(self, session_id: str) -> None:
        """Forget the session's record, if there is one."""
        await self._write(session_id, _DELETED_SECONDS)

    async def claim(self, session_id: str, owner: str, *, ttl: float) -> str | None:
        """Make the session the owner's, or return whose it is."""
        other = await self._run(_CLAIM, [self._owner(session_id)], owner, str(_milliseconds(ttl)))
        return None if other is None else bytes(other).decode()

    async def renew(self, session_ids: Iterable[str], owner: str, *, ttl: float) -> Renewed:
        """Renew all of these that are not another's."""
        ids, renewed = list(session_ids), Renewed([], [])
        for begin in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[begin : begin + _IDS_AT_ONCE]
            keys = [self._owner(session_id) for session_id in some]
            found = await self._run(_RENEW, keys, owner, str(_milliseconds(ttl)))
            for ids_of, numbers in zip(renewed, found, strict=True):
                ids_of += [some[number - 1] for number in numbers]
        return renewed

    async def release(self, session_id: str, owner: str) -> None:
        """Let the session be nobody's, if it is the owner's."""
        await self._run(_RELEASE, [self._owner(session_id)], owner)

    async def ask(self, owner: str, session_id: str) -> None:
        """Leave a note for the owner, and wake it if it listens."""
        await self._run(_ASK, [self._asks(owner)], session_id, str(_milliseconds(_ASK_SECONDS)))

    async def asked(self, owner: str) -> AsyncGenerator[str, None]:
        """Yield the ids of sessions that the owner is asked for."""
        listening, subscribed = self._redis.pubsub(), False
        try:
            async with self._bounded():
                await listening.subscribe(self._asks(owner))
            while True:
                # Before the first word, too: what was asked for while nobody listened.
                while notes := await self._notes(owner):
                    for session_id in notes:
                        yield session_id
                if await self._word(listening) == "subscribe":
                    if subscribed:
                        # redis-py has made the connection anew, of itself: to a Redis that may be another.
                        raise StoreUnavailable("the session store was away; try again", retry_after=1.0)
                    subscribed = True
        finally:
            await listening.aclose()  # type: ignore[no-untyped-call]

    async def ping(self) -> None:
        """Return if Redis answers."""
        async with self._bounded():
            await self._redis.ping()

    async def writable(self) -> None:
        """Return if Redis takes what is written: a full one, a replica and one that can't save do not."""
        async with self._bounded():
            await self._redis.set(f"{self._prefix}writable", b"", px=_milliseconds(self._timeout))

    async def aclose(self) -> None:
        """Close all connections. A second call does nothing."""
        self._closed = True
        await self._redis.aclose(close_connection_pool=True)

    async def _write(self, session_id: str, ttl: float, *record: bytes) -> None:
        self._writes += 1
        await self._run(
            _WRITE, [self._record(session_id)], self._writer, str(self._writes), str(_milliseconds(ttl)), *record
        )

    async def _notes(self, owner: str) -> list[str]:
        async with self._bounded():
            found = await cast("Awaitable[list[bytes]]", self._redis.spop(self._asks(owner), _IDS_AT_ONCE))
        return [note.decode() for note in found]

    async def _word(self, listening: PubSub) -> str:
        """Return what kind of thing was said, when something was, and now and then without."""
        async with self._bounded(_LISTEN_SECONDS):
            message = await listening.get_message(timeout=_LISTEN_SECONDS)
        if message is None:
            async with self._bounded():
                await listening.ping()
                message = await listening.get_message(timeout=None)
        return "" if message is None else str(message["type"])

    async def _run(self, script: str, keys: list[str], *arguments: str | bytes) -> Any:
        async with self._bounded():
            return await self._redis.eval(script, len(keys), *keys, *arguments)

    def _record(self, session_id: str) -> str:
        return f"{self._prefix}session:{session_id}"

    def _owner(self, session_id: str) -> str:
        return f"{self._prefix}owner:{session_id}"

    def _asks(self, owner: str) -> str:
        return f"{self._prefix}asks:{owner}"

    @asynccontextmanager
    async def _bounded(self, longer: float = 0) -> AsyncGenerator[None, None]:
        """Let the block take the timeout and `longer`, in seconds, and turn its failures into ours."""
        if self._closed:
            raise StoreUnavailable("the session store is closed: the service is stopping")
        try:
            async with asyncio.timeout(self._timeout + longer):
                yield
        except TimeoutError:
            raise StoreUnavailable(
                f"the session store did not answer within {self._timeout:g} seconds; try again", retry_after=1.0
            ) from None
        except (RedisError, OSError) as error:
            # Its class alone: messages name addresses, and of some commands what was sent.
            kind = type(error).__name__
            raise StoreUnavailable(f"the session store failed ({kind}); try again", retry_after=1.0) from None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
