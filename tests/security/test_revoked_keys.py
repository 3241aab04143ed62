"""Authority that has gone: a key that is taken out of API_KEYS_FILE."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import ConfigurationError
from llm_service.generation import GenerationRequest
from llm_service.service import Service
from tests.live import Live, ask, collect, live_service, receive, send, start
from tests.processes import ServiceProcess, service_process
from tests.talk import handshake, masked, text, words

SOCKETS = 50
GENEROUS = {
    "LLM_MAX_CONNECTIONS": "200",
    "GREETING_DELAY_MS": "60000",
    "RESUME_GENERATE": "60",
    "MAX_PENDING_BYTES": "10000000",
}


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


async def happens(condition: Callable[[], object]) -> None:
    """Wait until it is true; fails the test if it does not become so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def closing_code(socket: ClientConnection) -> int:
    """Read to the end; returns the code it was closed with."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await receive(socket)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def some_long(request: GenerationRequest) -> Iterator[str]:
    """Answer as `words` does; to "long" with words that fill every buffer on the way soon."""
    return repeat("x" * 8000) if request.messages[-1].content == "long" else words(request)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(some_long, tokens_per_second=500, models=())


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# of two users\nanna\nbert\n")
    return path


@pytest.fixture
async def live(engine: ScriptedEngine, keys: Path) -> AsyncGenerator[Live, None]:
    async with live_service(engine, {"API_KEYS_FILE": str(keys), **GENEROUS}) as running:
        yield running


async def test_its_sockets_close(live: Live, keys: Path) -> None:
    """Every socket of the key is told, closed with 3500 and forgotten; those of others go on; prints the time."""
    hers = [await live.connect(**bearer("anna")) for _ in range(SOCKETS)]
    his = [await live.connect(**bearer("bert")) for _ in range(SOCKETS)]
    for socket in (*hers, *his):
        await start(socket)
    unnamed = await live.connect()  # it has yet to say who it is
    keys.write_text("bert\n")
    began = time.monotonic()
    ends = [await receive(socket) for socket in hers]
    codes = [await closing_code(socket) for socket in hers]
    seconds = time.monotonic() - began
    assert {("error", "unauthorized")} == {(end["type"], end["error"]["code"]) for end in ends}
    assert [3500] * SOCKETS == codes
    await happens(lambda: SOCKETS + 1 == len(live.service.connections))
    for socket in his:
        assert text("b", 1) == (await ask(socket, "b 1")).text
    await send(unnamed, "start_session", api_key="bert")
    assert "session_started" == (await receive(unnamed))["type"]
    for socket in (unnamed, *his):
        await socket.close()
    print(f"\n{SOCKETS} sockets of a revoked key were closed in {seconds:.2f} s")


async def test_its_responses_stop(live: Live, engine: ScriptedEngine, keys: Path) -> None:
    """What runs for the key is stopped: a response that is read, one whose client reads nothing, one whose client is
    away."""
    async with live.connect(**bearer("anna")) as reading, live.connect() as away:
        await start(reading)
        await send(reading, "user_message", text="a 100000")
        await send(away, "start_session", api_key="anna")
        await send(away, "user_message", text="a 100000")
        await receive(away)
        away.transport.abort()
        frozen = await handshake(live.port)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(frozen, masked('{"type": "start_session", "api_key": "anna"}'))
        await loop.sock_sendall(frozen, masked('{"type": "user_message", "text": "long"}'))
        await happens(lambda: 3 == engine.running and 2 == len(live.service.connections))
        await happens(lambda: any(each.live.outbox.paused for each in live.service.connections))
        keys.write_text("bert\n")
        await happens(lambda: not engine.running)
        assert ("error", "unauthorized", True) == (
            (end := (await collect(reading)).terminal)["type"],
            end["error"]["code"],
            end["terminal"],
        )
        assert 3500 == await closing_code(reading)
        await happens(lambda: not live.service.connections)
        frozen.close()


@pytest.mark.parametrize("way", ["header", "first message"])
async def test_it_opens_nothing_more(live: Live, keys: Path, way: str) -> None:
    """Neither a new session nor one that it had is to be had with it, and a key that is added counts."""
    socket = await live.connect(**bearer("anna"))
    session_id = (await start(socket))["session_id"]
    await ask(socket, "a 1")
    keys.write_text("bert\ncleo\n")
    assert 3500 == await closing_code(socket)
    for wanted in ({}, {"session_id": session_id, "last_seq": 1}):
        if way == "header":
            with pytest.raises(InvalidStatus) as refused:
                await live.connect(**bearer("anna"))
            assert 401 == refused.value.response.status_code
            continue
        async with live.connect() as again:
            await send(again, "start_session", api_key="anna", **wanted)
            assert "unauthorized" == (await receive(again))["error"]["code"]
            assert 3500 == await closing_code(again)
    async with live.connect(**bearer("cleo")) as other:
        await send(other, "start_session", session_id=session_id, last_seq=1)
        assert not (await receive(other))["resumed"]


async def test_during_the_handshake(live: Live, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that goes between the check of a handshake and its answer opens nothing that lasts."""
    accepts = live.service.access.accepts_key

    def then_gone(key: str | None) -> bool:
        accepted = accepts(key)
        live.service._use_keys(("bert",))
        return accepted

    monkeypatch.setattr(live.service.access, "accepts_key", then_gone)
    async with live.connect(**bearer("anna")) as socket:
        assert 3500 == await closing_code(socket)


async def test_all_are_revoked(live: Live, keys: Path) -> None:
    """Without any key left, nobody is let in, rather than everybody."""
    async with live.connect(**bearer("anna")) as socket:
        await start(socket)
        keys.write_text("# nobody\n")
        assert 3500 == await closing_code(socket)
    async with live.connect() as socket:
        await send(socket, "start_session")
        assert "unauthorized" == (await receive(socket))["error"]["code"]


async def test_keys_of_the_environment_stay(engine: ScriptedEngine, keys: Path) -> None:
    """The keys of API_KEYS count beside those of the file, whatever becomes of it."""
    async with (
        live_service(engine, {"API_KEYS": "dora", "API_KEYS_FILE": str(keys)}) as live,
        live.connect(**bearer("dora")) as hers,
        live.connect(**bearer("anna")) as other,
    ):
        await start(hers)
        await start(other)
        keys.write_text("bert\n")
        assert 3500 == await closing_code(other)
        assert text("a", 1) == (await ask(hers, "a 1")).text


async def test_a_broken_file_revokes_nothing(live: Live, keys: Path) -> None:
    """While the file is missing the keys that were read last count."""
    with_key = bearer("anna")
    async with live.connect(**with_key) as socket:
        await start(socket)
        keys.unlink()
        file = live.service._key_file
        assert file is not None
        await happens(lambda: file._problem)
        assert text("a", 1) == (await ask(socket, "a 1")).text
        async with live.connect(**with_key) as another:
            await start(another)
        keys.write_text("bert\n")
        assert 3500 == await closing_code(socket)


async def test_a_start_without_the_file(tmp_path: Path) -> None:
    """A file that is missing stops the start before any engine is opened."""

    async def opener(_: Settings) -> OpenedEngine:
        raise AssertionError("not to be reached")

    settings = Settings.load({"API_KEYS_FILE": str(tmp_path / "none")})
    with pytest.raises(ConfigurationError, match="API_KEYS_FILE="):
        async with Service(settings, opener=opener):
            pass


def test_every_worker_sees_it(tmp_path: Path) -> None:
    """Of several workers each reads the file: no socket of the key is left at any of them."""
    keys = tmp_path / "keys"
    keys.write_text("anna\nbert\n")
    environment = {"API_KEYS_FILE": str(keys), "NUM_WORKERS": "2", "GREETING_DELAY_MS": "60000"}
    with service_process(tmp_path, environment=environment) as service:
        service.wait_until_listening(2)
        asyncio.run(_revoke_at_workers(service, keys))
        service.wait_until(lambda: 2 == len(service.lines("api_keys_changed")), "each worker has read the file")
        by_worker = Counter(line["worker"] for line in service.lines("key_revoked"))
        assert 20 == by_worker.total()


async def _revoke_at_workers(service: ServiceProcess, keys: Path) -> None:
    sockets = [await connect(service.ws_url, compression=None, proxy=None, **bearer("anna")) for _ in range(20)]
    for socket in sockets:
        await start(socket)
    new = keys.with_name("new")
    new.write_text("bert\n")
    new.replace(keys)
    assert [3500] * 20 == [await closing_code(socket) for socket in sockets]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_with_a_broken_file(tmp_path: Path, workers: str) -> None:
    """The process ends with 1 and says which line is no key, but not what it holds; so do workers."""
    keys = tmp_path / "keys"
    keys.write_text("fine\ncanary canary\n")
    with service_process(tmp_path, environment={"API_KEYS_FILE": str(keys), "NUM_WORKERS": workers}) as service:
        assert 1 == service.process.wait(40)
        assert "line 2 is no key" in service.text()
        assert "canary" not in service.text()
