"""Frames on their way out, through our own protocol and through a server that is not ours."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
import uvicorn
from websockets.asyncio.client import connect

from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import ScriptedEngine
from llm_service.server import create_app_for
from llm_service.service import Service
from llm_service.serving import QuietServer, bind
from tests.live import ask, live_service, opened, receive, send, start

# Around the bounds of RFC 6455's three forms of a length; a token event is this much longer than its text.
LENGTHS = [1, *range(80, 97), *range(65_490, 65_506), 100_000]


@contextlib.asynccontextmanager
async def foreign_server(engine: ScriptedEngine) -> AsyncGenerator[tuple[str, Service], None]:
    """Run the application under uvicorn as it is, with its own protocol."""
    listener = bind("127.0.0.1", 0, setting="LLM_PORT")

    async def opener(_: Settings) -> OpenedEngine:
        return opened(engine)

    async with Service(Settings.load({"MAX_INVALID_MESSAGES": "3"}), opener=opener) as service:
        server = QuietServer(
            uvicorn.Config(create_app_for(service), ws="websockets-sansio", lifespan="off", log_config=None)
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}/ws/llm", service
        finally:
            server.should_exit = True
            await task


async def test_frames_of_any_length() -> None:
    """Whatever its length, a frame arrives whole, and the next one behind it."""
    engine = ScriptedEngine(lambda request: ["x" * int(request.messages[-1].content), "y"], tokens_per_second=10_000)
    async with live_service(engine, model="scripted") as live, live.connect() as socket:
        await start(socket)
        for length in LENGTHS:
            answer = await ask(socket, str(length))
            assert ["x" * length, "y"] == [token["data"] for token in answer.tokens]


async def test_a_server_that_is_not_ours() -> None:
    """Under another server the application talks all the same: in order, numbered, and to the closing frame."""
    engine = ScriptedEngine(lambda _: map(str, range(50)), tokens_per_second=10_000, models=())
    async with foreign_server(engine) as (url, _), connect(url, proxy=None) as socket:
        await start(socket)
        answer = await ask(socket, "x")
        assert "".join(map(str, range(50))) == answer.text
        numbers = [event["seq"] for event in (*answer.tokens, answer.terminal)]
        assert list(range(2, 2 + len(numbers))) == numbers
        for _ in range(3):
            await socket.send("{")
        while (await receive(socket))["error"]["code"] != "too_many_invalid_messages":
            pass
        await asyncio.wait_for(socket.wait_closed(), 5)
        assert 3013 == socket.close_code


async def test_a_client_that_leaves_a_server_that_is_not_ours() -> None:
    """A client that is gone frees the engine there, too."""
    engine = ScriptedEngine(lambda _: ["x"] * 100_000, tokens_per_second=5000, models=())
    async with foreign_server(engine) as (url, _):
        async with connect(url, proxy=None) as socket:
            await start(socket)
            await send(socket, "user_message", text="x")
            await receive(socket)
        async with asyncio.timeout(5):
            while engine.running:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("foreign", [False, True], ids=["our own", "a server that is not ours"])
async def test_binary_frames(foreign: bool) -> None:
    """Binary frames of any length go between the text ones, in order."""
    engine = ScriptedEngine(lambda _: ["x"], tokens_per_second=10_000, models=())
    async with contextlib.AsyncExitStack() as stack:
        if foreign:
            url, service = await stack.enter_async_context(foreign_server(engine))
        else:
            live = await stack.enter_async_context(live_service(engine))
            url, service = live.ws_url, live.service
        socket = await stack.enter_async_context(connect(url, proxy=None, compression=None))
        await start(socket)
        (connection,) = service.connections
        for length in (0, 1, 125, 126, 65_535, 65_536, 100_000):
            connection.write_binary(b"y" * length)
            assert b"y" * length == await socket.recv()
        await send(socket, "update_config", config={})
        assert "session_configured" == (await receive(socket))["type"]
