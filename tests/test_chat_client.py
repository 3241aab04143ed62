"""The client of the chat, against services that behave and services that do not."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from llm_service import chat_client
from llm_service.chat_client import ChatClient, ChatError, printable
from llm_service.engines.scripted import ScriptedEngine
from tests.live import live_service

Event = dict[str, Any]
STARTED = {"type": "session_started", "session_id": "s", "model": "m"}


@contextlib.asynccontextmanager
async def service(talk: Callable[[ServerConnection], Awaitable[None]]) -> AsyncGenerator[ChatClient, None]:
    """A service that talks as the test says, and a client of it."""
    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        client = ChatClient(f"ws://127.0.0.1:{port}/ws/llm", config={"system_prompt": "Be brief."})
        try:
            yield client
        finally:
            await client.aclose()


async def hear(socket: ServerConnection) -> Event:
    heard: Event = json.loads(await socket.recv())
    return heard


async def say(socket: ServerConnection, *events: Event) -> None:
    for event in events:
        await socket.send(json.dumps(event))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\tb", "a\n\tb"),
        ("\x1b[31mred\x1b]0;title\x07", "[31mred]0;title"),
        ("a\rb\x08\x00\x7f\x9b2J", "ab2J"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("\ud800x", "x"),
        ("日本語 👩\u200d🔬 naïve", "日本語 👩\u200d🔬 naïve"),
        (5, "5"),
    ],
)
def test_printable(text: object, expected: str) -> None:
    """Nothing that steers a terminal is left, and every word of every script is."""
    assert expected == printable(text)


async def test_an_answer() -> None:
    """The answer is written as it comes, without what could steer the terminal, and ends its line."""
    output = io.StringIO()
    seen = []

    async def talk(socket: ServerConnection) -> None:
        assert {"type": "start_session", "config": {"system_prompt": "Be brief."}} == await hear(socket)
        await say(socket, STARTED)
        message = await hear(socket)
        for piece in ("It is \x1b[2J", "so."):
            await say(socket, {"type": "token", "data": piece})
            while piece[-3:] not in output.getvalue():
                await asyncio.sleep(0.001)
            seen.append(output.getvalue())
        await say(socket, {"type": "response_complete", "id": message["id"], "stats": {}})
        await socket.wait_closed()

    async with service(talk) as client, asyncio.timeout(10):
        assert await client.open()
        assert "m" == client.model
        assert not await client.open()
        assert "response_complete" == (await client.ask("hello", output))["type"]
    assert ["It is [2J", "It is [2Jso."] == seen
    assert "It is [2Jso.\n" == output.getvalue()


async def test_a_service_that_greets_first() -> None:
    """A greeting that crosses the start, and the answer to the start that follows it, do not confuse what comes."""

    async def talk(socket: ServerConnection) -> None:
        await say(socket, STARTED)
        await hear(socket)
        await say(socket, {"type": "session_configured", "config": {}})
        message = await hear(socket)
        await say(socket, {"type": "token", "data": "yes"})
        await say(socket, {"type": "response_complete", "id": message["id"], "stats": {}})
        await hear(socket)
        await say(socket, {"type": "session_configured", "config": {}})
        await socket.wait_closed()

    async with service(talk) as client, asyncio.timeout(10):
        await client.open()
        output = io.StringIO()
        assert "response_complete" == (await client.ask("hello", output))["type"]
        assert "yes\n" == output.getvalue()
        await client.set_system_prompt("Be long.")


async def test_the_end_of_an_earlier_answer() -> None:
    """A cancel that came too late is answered, and its answer does not end the next question's."""

    async def talk(socket: ServerConnection) -> None:
        await hear(socket)
        await say(socket, STARTED)
        first = await hear(socket)
        await say(socket, {"type": "response_complete", "id": first["id"], "stats": {}})
        assert "cancel" == (await hear(socket))["type"]
        await say(socket, {"type": "cancelled", "success": False})
        second = await hear(socket)
        await say(socket, {"type": "token", "data": "again"}, {"type": "cancelled", "success": True, "id": "0"})
        await say(socket, {"type": "response_complete", "id": second["id"], "stats": {"second": 1}})
        await socket.wait_closed()

    async with service(talk) as client, asyncio.timeout(10):
        await client.open()
        await client.ask("one", io.StringIO())
        await client.cancel()
        assert {"second": 1} == (await client.ask("two", io.StringIO()))["stats"]


async def test_a_closed_connection_is_made_anew() -> None:
    """A service that closes is told of with code and reason; the next open connects again, with the system prompt."""
    configs = []

    async def talk(socket: ServerConnection) -> None:
        configs.append((await hear(socket))["config"])
        await say(socket, STARTED)
        await socket.close(1000, "session \x1b[2Jexpired")

    async with service(talk) as client, asyncio.timeout(10):
        await client.open()
        with pytest.raises(ChatError, match=r"closed the connection \(1000 session "):
            await client.ask("hello", io.StringIO())
        assert await client.open()
    assert [{"system_prompt": "Be brief."}] * 2 == configs


async def test_what_was_said_before_the_close() -> None:
    """A service that says why it closes is heard, also by who asks after it did."""

    async def talk(socket: ServerConnection) -> None:
        await hear(socket)
        await say(socket, STARTED, {"type": "error", "error": {"code": "shutting_down", "message": "stopping"}})

    async with service(talk) as client, asyncio.timeout(10):
        await client.open()
        assert client._socket is not None
        await client._socket.wait_closed()
        assert "shutting_down" == (await client.ask("hello", io.StringIO()))["error"]["code"]
        with pytest.raises(ChatError) as lost:
            await client.ask("hello", io.StringIO())
        assert "connection_closed" == lost.value.code


@pytest.mark.parametrize("said", ["no JSON", "[]", "{}", "5"])
async def test_another_protocol(said: str) -> None:
    """What is not the service's protocol is an error that says so."""

    async def talk(socket: ServerConnection) -> None:
        await socket.send(said)
        await socket.wait_closed()

    async with service(talk) as client, asyncio.timeout(10):
        with pytest.raises(ChatError, match="is not this protocol"):
            await client.open()


async def test_a_silent_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that takes the connection and says nothing is given up."""
    monkeypatch.setattr(chat_client, "REPLY_TIMEOUT", 0.05)

    async def talk(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with service(talk) as client, asyncio.timeout(10):
        with pytest.raises(ChatError, match=r"said nothing for 0\.05 seconds"):
            await client.open()


async def test_what_the_service_refuses() -> None:
    """A configuration that is refused leaves the old one, and a message that is refused is an error event."""
    engine = ScriptedEngine(lambda _: ["yes"], models=())
    async with live_service(engine, {"SYSTEM_PROMPT": "Default.", "MAX_MESSAGE_BYTES": "100000"}) as live:
        client = ChatClient(live.ws_url)
        await client.open()
        with pytest.raises(ChatError, match=r"config\.system_prompt"):
            await client.set_system_prompt("x" * 65_537)
        assert "response_complete" == (await client.ask("hello", io.StringIO()))["type"]
        assert "Default." == engine.requests[-1].messages[0].content
        assert "empty_message" == (await client.ask(" ", io.StringIO()))["error"]["code"]
        await client.set_system_prompt("Be brief.")
        await client.set_system_prompt(None)
        await client.reset()
        await client.aclose()
        await client.aclose()


async def test_before_it_is_open() -> None:
    """Nothing can be said before there is a connection, and closing then does nothing."""
    client = ChatClient("ws://127.0.0.1:1/")
    await client.aclose()
    with pytest.raises(ChatError, match="not connected"):
        await client.cancel()
