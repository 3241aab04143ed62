"""Sockets that bring no key: they keep nobody out who has one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, ask, live_service, receive, send, start
from tests.talk import scripted, text

PLACES = 20
KEY = {"additional_headers": {"Authorization": "Bearer anna"}}


@pytest.fixture
def engine() -> ScriptedEngine:
    return scripted(10_000)


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    environment = {"API_KEYS": "anna", "LLM_MAX_CONNECTIONS": str(PLACES), "FIRST_MESSAGE_TIMEOUT": "60"}
    async with live_service(engine, environment) as running:
        yield running


async def turned_away(socket: ClientConnection) -> str:
    """Wait until the socket is told that there are too many, and closed with 3504; returns the message."""
    error = (await receive(socket))["error"]
    assert "max_connections" == error["code"]
    with pytest.raises(ConnectionClosed) as closed:
        await receive(socket)
    assert closed.value.rcvd is not None
    assert 3504 == closed.value.rcvd.code
    message: str = error["message"]
    return message


async def test_silent_sockets_keep_nobody_out(live: Live) -> None:
    """While 200 sockets come and say nothing every place is there for clients with a key, wherever it comes."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(live.connect())
        clients = [await stack.enter_async_context(live.connect(**KEY)) for _ in range(PLACES // 2)]
        for number in range(PLACES // 2):
            clients.append(await stack.enter_async_context(live.connect()))
            await send(clients[-1], "start_session", api_key="anna")
            assert "session_started" == (await receive(clients[-1]))["type"], number
        for _ in range(100):
            await stack.enter_async_context(live.connect())
        for client in clients[: PLACES // 2]:
            await start(client)
        answers = await asyncio.gather(*(ask(client, "a 5") for client in clients))
        assert {text("a", 5)} == {answer.text for answer in answers}
        assert PLACES == live.service.manager.active_connections
        assert len(live.service._strangers) <= PLACES
        # The limit holds, wherever the key comes.
        assert "in use" in await turned_away(await stack.enter_async_context(live.connect(**KEY)))
        late = await stack.enter_async_context(live.connect())
        await send(late, "start_session", api_key="anna")
        assert "in use" in await turned_away(late)
    async with asyncio.timeout(10):
        while live.service.connections:
            await asyncio.sleep(0.01)
    assert (0, 0) == (live.service.manager.active_connections, len(live.service._strangers))


async def test_the_oldest_goes_first(live: Live) -> None:
    """Of those that wait for their key the one that has waited longest makes room for another; the rest may stay."""
    async with contextlib.AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(live.connect()) for _ in range(PLACES + 1)]
        assert "bring it in the handshake" in await turned_away(waiting[0])
        for socket in waiting[1:]:
            await send(socket, "start_session", api_key="anna")
            assert "session_started" == (await receive(socket))["type"]


async def test_a_wrong_key_takes_no_place(live: Live) -> None:
    """Neither a wrong key nor none is let in, and what they were counted by is given back."""
    for _ in range(2 * PLACES):
        async with live.connect() as socket:
            await send(socket, "start_session", api_key="wrong")
            assert "unauthorized" == (await receive(socket))["error"]["code"]
    async with live.connect(**KEY) as socket:
        await start(socket)
        assert 1 == live.service.manager.active_connections
