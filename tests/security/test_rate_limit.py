"""Clients that ask for too much: OWASP's 100 messages a minute, and 20 at once."""

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from llm_service.engines.scripted import ScriptedEngine
from tests.live import Event, Live, ask, collect, live_service, receive, send, start
from tests.talk import idle, scripted, text

# The defaults of the service, which the other tests do without.
DEFAULT = {"MESSAGE_RATE": "100", "GREETING_DELAY_MS": "60000"}
# So that a slow machine brings no allowance back within a test.
BURST_ALONE = DEFAULT | {"MESSAGE_RATE": "0.01"}
SLOW = {"MESSAGE_RATE": "0.01", "MESSAGE_BURST": "3", "GREETING_DELAY_MS": "60000"}


async def flood(live: Live, count: int, **options: Any) -> tuple[list[Event], int | None]:
    """Send so many user messages at once; returns what came until the connection closed or all were answered."""
    socket = await live.connect(**options)
    await start(socket)
    for number in range(count):
        await send(socket, "user_message", text="a 1", id=str(number))
    answers = await _answers(socket, count)
    code = socket.close_code
    await socket.close()
    return answers, code


async def _answers(socket: ClientConnection, count: int) -> list[Event]:
    answers: list[Event] = []
    try:
        while len(answers) < count:
            event = await receive(socket)
            if event["type"] in ("response_complete", "error"):
                answers.append(event)
    except ConnectionClosed:
        pass
    return answers


def codes(answers: list[Event]) -> list[str]:
    return [answer.get("error", {}).get("code", "answered") for answer in answers]


async def test_twenty_at_once() -> None:
    """Of a burst the first 20 messages pass, the start among them; the others are refused, each by its id."""
    engine = scripted(10_000)
    async with live_service(engine, BURST_ALONE | {"MAX_QUEUED_MESSAGES": "100"}) as live, live.connect() as socket:
        await start(socket, on_busy="queue")
        for number in range(30):
            await send(socket, "user_message", text="a 1", id=str(number))
        answers = await _answers(socket, 30)
        assert 19 == codes(answers).count("answered") == len(engine.requests)
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert [str(number) for number in range(19, 30)] == [answer["id"] for answer in refused]
        assert {("rate_limited", True)} == {(each["error"]["code"], each["error"]["recoverable"]) for each in refused}
        assert not any("terminal" in answer for answer in refused)  # of the response that may run


async def test_after_the_wait_it_passes() -> None:
    """A client that waits as long as it was told is answered."""
    async with (
        live_service(scripted(10_000), DEFAULT | {"MESSAGE_RATE": "60", "MESSAGE_BURST": "1"}) as live,
        live.connect() as socket,
    ):
        await start(socket)
        refusal = (await ask(socket, "a 1")).terminal
        assert 0 < refusal["error"]["retry_after"] <= 1.01
        await asyncio.sleep(refusal["error"]["retry_after"])
        assert text("a", 1) == (await ask(socket, "a 1")).text


async def test_connections_of_a_key_share() -> None:
    """A key's messages count together, on however many connections; another key's are its own."""
    engine = scripted(10_000)
    async with live_service(engine, SLOW | {"API_KEYS": "one,two"}) as live:
        header = {"additional_headers": {"X-API-Key": "one"}}
        async with live.connect(**header) as first, live.connect() as second:
            await start(first)
            await send(second, "start_session", api_key="one")
            assert "session_started" == (await receive(second))["type"]
            assert "response_complete" == (await ask(first, "a 1")).terminal["type"]
            for socket in (first, second):
                assert "rate_limited" == (await ask(socket, "a 1")).terminal["error"]["code"]
        async with live.connect(additional_headers={"X-API-Key": "two"}) as other:
            await start(other)
            assert "response_complete" == (await ask(other, "a 1")).terminal["type"]
        answers, _ = await flood(live, 1, **header)  # nor does a new connection bring anything
        assert [] == answers or ["rate_limited"] == codes(answers)
        assert 2 == len(engine.requests)


async def test_without_keys_each_connection_has_its_own() -> None:
    """Where no key is asked for, one client's flood takes nothing from another's allowance."""
    async with live_service(scripted(10_000), SLOW) as live:
        for _ in range(2):
            answers, _ = await flood(live, 4)
            assert 2 == codes(answers).count("rate_limited")


async def test_a_flood_is_cut_off() -> None:
    """Who goes on all the same is closed with 3013, and told why; the metrics count what was refused."""
    async with live_service(scripted(10_000), BURST_ALONE) as live:
        answers, code = await flood(live, 1000)
        assert "too_many_invalid_messages" == answers[-1]["error"]["code"]
        assert 3013 == code
        assert 100 == codes(answers).count("rate_limited")
        assert 100.0 == live.service.registry.get_sample_value("fasttalk_sheds_total", {"reason": "rate_limited"})


async def test_a_cancel_is_never_held_up() -> None:
    """Past the limit a cancel still stops the response that runs; one that stops nothing is refused as all else is."""
    engine: ScriptedEngine = scripted(500)
    async with live_service(engine, SLOW | {"MESSAGE_BURST": "2"}) as live, live.connect() as socket:
        await start(socket)
        await send(socket, "user_message", text="a 100000")
        await receive(socket)
        for message in ("partial_message", "user_message"):
            await send(socket, message, text="a 1")
        assert ["rate_limited"] * 2 == [(await collect(socket)).terminal["error"]["code"] for _ in range(2)]
        await send(socket, "cancel")
        assert ("cancelled", True) == ((end := (await collect(socket)).terminal)["type"], end["success"])
        await idle(engine)
        await send(socket, "cancel")
        assert "rate_limited" == (await receive(socket))["error"]["code"]


async def test_a_voice_client_is_not_limited() -> None:
    """What a voice client says all the time, of its user's speech and its playback, leaves room for the turns."""
    async with live_service(scripted(10_000), DEFAULT) as live, live.connect() as socket:
        await start(socket)
        for _ in range(10):
            for _ in range(15):
                await send(socket, "partial_message", text="a 1")
            assert "response_complete" == (await ask(socket, "a 1")).terminal["type"]
            await send(socket, "played", chars=1)


async def test_what_is_no_message_is_not_counted() -> None:
    """Broken messages have their own bound, and take nothing of what a client may say."""
    async with live_service(scripted(10_000), SLOW) as live, live.connect() as socket:
        await start(socket)
        for _ in range(50):
            await socket.send("{")
            assert "invalid_json" == json.loads(await socket.recv())["error"]["code"]
        assert "response_complete" == (await ask(socket, "a 1")).terminal["type"]
