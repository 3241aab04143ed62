"""A Redis that others use, too (redis-py CVE-2023-28858): keys of our own, and nothing in it that could run."""

import ast
import json
import pickle
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import llm_service
from tests.live import ask, live_service, receive, send, start
from tests.redis_server import RedisServer
from tests.talk import scripted, text

# What makes code of bytes.
RUNNABLE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


@pytest.fixture
async def raw(redis_server: RedisServer) -> AsyncGenerator[Any, None]:
    """A client that sees everything."""
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


def environment(server: RedisServer, prefix: str, **more: str) -> dict[str, str]:
    return {
        "SESSION_STORE": "redis",
        "REDIS_URL": server.url,
        "REDIS_PREFIX": prefix,
        "GREETING_DELAY_MS": "60000",
    } | more


async def rested(server: RedisServer, prefix: str, **more: str) -> str:
    """Have a session, and let its service stop: it rests in Redis alone."""
    async with live_service(scripted(10_000), environment(server, prefix, **more)) as live:
        key = {"additional_headers": {"X-API-Key": "anna"}} if more else {}
        async with live.connect(**key) as socket:
            session_id: str = (await start(socket))["session_id"]
            await ask(socket, "a 1")
        return session_id


async def come_back(server: RedisServer, prefix: str, session_id: str) -> dict[str, Any]:
    """Ask a new service for the session."""
    async with live_service(scripted(10_000), environment(server, prefix)) as live, live.connect() as socket:
        await send(socket, "start_session", session_id=session_id, last_seq=1)
        answer = await receive(socket)
        if not answer["resumed"]:
            assert text("b", 1) == (await ask(socket, "b 1")).text
        return answer


@pytest.mark.redis
async def test_keys_have_our_prefix(redis_server: RedisServer, raw: Any) -> None:
    """All that is written stands under REDIS_PREFIX, ends by itself and is no pickle; another prefix sees nothing."""
    prefix, other = f"mine-{uuid.uuid4()}:", f"other-{uuid.uuid4()}:"
    before = set(await raw.keys("*"))
    session_id = await rested(redis_server, prefix)
    written = set(await raw.keys("*")) - before
    assert written
    for key in written:
        assert key.startswith(prefix.encode()), key
        assert await raw.pttl(key) > 0
        if b"hash" == await raw.type(key):
            record = await raw.hget(key, "record")
            assert record is None or not record.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05", b"c"))
    assert not (await come_back(redis_server, other, session_id))["resumed"]
    assert (await come_back(redis_server, prefix, session_id))["resumed"]


@pytest.mark.redis
async def test_the_key_is_kept_as_a_digest(redis_server: RedisServer, raw: Any) -> None:
    """Who reads the Redis learns no API key."""
    prefix = f"mine-{uuid.uuid4()}:"
    await rested(redis_server, prefix, API_KEYS="anna")
    stored = [
        json.dumps(repr(await raw.hgetall(key)))
        for key in await raw.keys(f"{prefix}*")
        if b"hash" == await raw.type(key)
    ]
    assert stored
    assert not any("anna" in each for each in stored)


@pytest.mark.redis
@pytest.mark.parametrize("planted", ["pickle", "nonsense", "empty", "map", "huge"])
async def test_what_others_write_there(redis_server: RedisServer, raw: Any, tmp_path: Path, planted: str) -> None:
    """A record that another program wrote is none: nothing of it is run, and the client gets a new session."""
    prefix, fuse = f"mine-{uuid.uuid4()}:", tmp_path / "ran"
    payload = {
        "pickle": pickle.dumps(Bomb(fuse)),
        "nonsense": b"\xc1\xff\x00",
        "empty": b"",
        "map": b"\x81\xa2id\x01",
        "huge": b"\xdf\xff\xff\xff\xff",
    }[planted]
    session_id = await rested(redis_server, prefix)
    (key,) = [key for key in await raw.keys(f"{prefix}*") if b"hash" == await raw.type(key)]
    await raw.hset(key, "record", payload)
    assert not (await come_back(redis_server, prefix, session_id))["resumed"]
    assert not fuse.exists()


def test_nothing_is_unpickled() -> None:
    """No module of the service imports what makes code of bytes, or calls eval or exec."""
    package = Path(llm_service.__file__).parent
    imported, called = set[str](), set[str]()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
    assert "msgspec" in imported
    assert set() == imported & RUNNABLE
    assert set() == called & {"eval", "exec", "compile", "__import__"}
