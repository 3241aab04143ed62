"""Clients that lose their connection and come back, over real sockets."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from llm_service.engines.scripted import ScriptedEngine
from llm_service.generation import GenerationRequest
from tests.live import TERMINAL, Event, Live, ask, collect, live_service, receive, send, start
from tests.talk import handshake, history, idle, masked, scripted, text, words

GREETING = {"GREETING_DELAY_MS": "10"}
GENEROUS = {"RESUME_GENERATE": "30", "LLM_MAX_CONNECTIONS": "500"}


@pytest.fixture
def engine() -> ScriptedEngine:
    return scripted(2000)


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    async with live_service(engine, GENEROUS) as running:
        yield running


async def lose(socket: ClientConnection) -> None:
    """Drop the TCP connection, as a network does."""
    socket.transport.abort()
    await socket.wait_closed()


async def come_back(
    live: Live, session_id: str, last_seq: int | None, *, max_size: int | None = 1_000_000, **fields: Any
) -> tuple[ClientConnection, Event]:
    """Connect anew, ask for the session, and return the answer."""
    socket = await live.connect(max_size=max_size)
    await send(socket, "start_session", session_id=session_id, last_seq=last_seq, **fields)
    return socket, await receive(socket)


async def deserted(live: Live) -> None:
    """Wait until the service has noticed that nobody is connected."""
    async with asyncio.timeout(5):
        while live.service.connections:
            await asyncio.sleep(0.001)


async def read(socket: ClientConnection, count: int) -> list[Event]:
    return [await receive(socket) for _ in range(count)]


class TestNothingIsLost:
    async def test_random_cuts(self, live: Live) -> None:
        """However often a client is cut off, the events it gets are numbered without gap or double, the text exact."""
        chance, cuts = random.Random(7), 0

        async def talk(name: str) -> None:
            nonlocal cuts
            socket = await live.connect()
            started = await start(socket)
            session_id, seq, said = started["session_id"], started["seq"], ""
            await send(socket, "user_message", text=f"{name} 400")
            while True:
                patience = chance.randrange(1, 120)
                try:
                    for _ in range(patience):
                        event = await receive(socket)
                        assert seq + 1 == event["seq"]
                        seq, said = event["seq"], said + event.get("data", "")
                        if event["type"] in TERMINAL:
                            assert "response_complete" == event["type"]
                            assert text(name, 400) == said
                            await socket.close()
                            return
                finally:
                    socket.transport.abort()
                cuts += 1
                await asyncio.sleep(chance.random() / 50)
                socket, answer = await come_back(live, session_id, seq)
                assert ("session_started", True, seq) == (answer["type"], answer["resumed"], answer["seq"])

        async with asyncio.TaskGroup() as talks:
            for number in range(20):
                talks.create_task(talk(f"s{number}x"))
        print(f"\n{cuts} cuts, 20 answers of 400 words: each exact")
        assert cuts > 60

    async def test_the_response_goes_on_meanwhile(self, live: Live, engine: ScriptedEngine) -> None:
        """What is generated while nobody listens comes as one piece behind what was missed, and ends as ever."""
        socket = await live.connect()
        session_id = (await start(socket))["session_id"]
        await send(socket, "user_message", text="a 200", id="m")
        heard = await read(socket, 20)
        await lose(socket)
        await idle(engine)
        socket, answer = await come_back(live, session_id, heard[4]["seq"])
        assert answer["resumed"]
        rest = await collect(socket)
        assert text("a", 200) == "".join(event["data"] for event in heard[:5]) + rest.text
        assert ("response_complete", "m", 200) == (
            rest.terminal["type"],
            rest.terminal["id"],
            rest.terminal["stats"]["tokens_generated"],
        )
        assert text("b", 2) == (await ask(socket, "b 2")).text
        assert [("user", "a 200"), ("assistant", text("a", 200)), ("user", "b 2")] == history(engine)
        await socket.close()

    async def test_a_slow_client_may_come_back(self) -> None:
        """A client that is cut off with 3008 gets all that it did not read on its next connection."""

        def long_words(request: GenerationRequest) -> Iterator[str]:
            return (word.ljust(10_000) for word in words(request))

        engine = ScriptedEngine(long_words, tokens_per_second=2000, models=())
        environment = {"SEND_TIMEOUT": "0.2", "MAX_PENDING_BYTES": "67108864", "RESUME_BUFFER_BYTES": "67108864"}
        async with live_service(engine, environment | GENEROUS) as live:
            frozen, loop = await handshake(live.port), asyncio.get_running_loop()
            await loop.sock_sendall(frozen, masked('{"type":"start_session"}'))
            await loop.sock_sendall(frozen, masked('{"type":"user_message","text":"a 1000"}'))
            async with asyncio.timeout(10):
                while not live.service.resumption.resting:
                    await asyncio.sleep(0.01)
            assert 1 == live.service.registry.get_sample_value("fasttalk_slow_clients_total")
            (session,) = live.service.manager.sessions
            socket, answer = await come_back(live, session.id, 1, max_size=None)
            assert (True, 1) == (answer["resumed"], answer["seq"])
            assert text("a", 1000) == "".join(f"{word} " for word in (await collect(socket)).text.split())
            await socket.close()
            frozen.close()


class TestGaps:
    @pytest.mark.parametrize(
        ("last_seq", "whole", "reason"),
        [
            (None, False, "last_seq was not given"),
            (0, True, None),
            (1, True, None),
            (6, True, None),
            (7, False, "past the last event"),
            (10**17, False, "past the last event"),
        ],
    )
    async def test_all_or_nothing(
        self, live: Live, engine: ScriptedEngine, last_seq: int | None, whole: bool, reason: str | None
    ) -> None:
        """A number within the session's is followed by all that came after it; another by none, with the reason."""
        socket = await live.connect()
        session_id = (await start(socket))["session_id"]
        await ask(socket, "a 4")  # events 2 to 6
        await lose(socket)
        socket, answer = await come_back(live, session_id, last_seq)
        assert (session_id, whole) == (answer["session_id"], answer["resumed"])
        assert (reason or "") in (answer.get("reason") or "")
        if whole:
            assert last_seq is not None
            missed = await read(socket, 6 - last_seq)
            assert [*range(last_seq, 7)] == [answer["seq"], *(event["seq"] for event in missed)]
        else:
            assert 1 == answer["seq"]
        said = await ask(socket, "b 1")
        assert (7 if whole else 2) == said.tokens[0]["seq"]
        # The conversation goes on either way.
        assert [("user", "a 4"), ("assistant", text("a", 4)), ("user", "b 1")] == history(engine)
        await socket.close()

    async def test_what_was_missed_may_be_too_much(self, engine: ScriptedEngine) -> None:
        """Events that are not kept any more are no part of an answer: what runs is stopped, nothing of it is sent."""
        async with live_service(engine, {"RESUME_BUFFER_BYTES": "4096", **GENEROUS}) as live:
            socket = await live.connect()
            session_id = (await start(socket))["session_id"]
            await ask(socket, "a 300")
            await send(socket, "user_message", text="b 100000")
            await read(socket, 10)
            await lose(socket)
            socket, answer = await come_back(live, session_id, 3)
            assert (False, session_id, 1) == (answer["resumed"], answer["session_id"], answer["seq"])
            assert "not kept any more" in answer["reason"]
            await idle(engine)
            said = await ask(socket, "c 2")
            assert (text("c", 2), []) == (said.text, said.others)
            roles = [role for role, _ in history(engine)]
            assert ["user", "assistant", "user", "assistant", "user"] == roles
            await socket.close()

    async def test_a_session_nobody_knows(self, live: Live) -> None:
        """An unknown session is a new one, and said to be."""
        socket, answer = await come_back(live, "no such session", 5)
        assert (False, 1) == (answer["resumed"], answer["seq"])
        assert "no such session" != answer["session_id"]
        assert text("a", 1) == (await ask(socket, "a 1")).text
        await socket.close()

    async def test_a_session_that_ended_is_gone(self, live: Live) -> None:
        """Whoever ends a session does not find it again."""
        socket = await live.connect()
        session_id = (await start(socket))["session_id"]
        await ask(socket, "a 1")
        await send(socket, "end_session")
        await receive(socket)
        await socket.close()
        socket, answer = await come_back(live, session_id, 3)
        assert not answer["resumed"]
        assert session_id != answer["session_id"]
        await socket.close()

    @pytest.mark.parametrize("store", ["memory", "sqlite"])
    async def test_one_that_ended_after_it_rested_is_gone(
        self, engine: ScriptedEngine, store: str, tmp_path: Path
    ) -> None:
        """What the store kept of a session is deleted when it ends, and nothing is kept of so many that ended."""
        environment = {"SESSION_STORE": store, "SQLITE_PATH": str(tmp_path / "sessions"), "RESUME_WINDOW": "0.1"}
        async with live_service(engine, environment) as live:
            resumption = live.service.resumption
            for _ in range(2):
                socket = await live.connect()
                session_id = (await start(socket))["session_id"]
                await ask(socket, "a 1")
                await lose(socket)
                async with asyncio.timeout(5):
                    while resumption.resting or live.service.connections or resumption.find(session_id, ""):
                        await asyncio.sleep(0.01)
                socket, answer = await come_back(live, session_id, 1)
                assert session_id == answer["session_id"]
                await send(socket, "end_session")
                assert "session_ended" == (await receive(socket))["type"]
                await socket.close()
                async with asyncio.timeout(5):
                    while resumption._archive._to_delete:
                        await asyncio.sleep(0.01)
                socket, answer = await come_back(live, session_id, 1)
                assert session_id != answer["session_id"]
                await socket.close()
            archive = resumption._archive
            async with asyncio.timeout(5):
                while archive._to_delete or archive._claimed or archive._unsaved or archive._to_claim:
                    await asyncio.sleep(0.01)

    async def test_a_wrong_configuration_changes_nothing(self, live: Live) -> None:
        """A refused configuration is an error; the session still waits for its client."""
        socket = await live.connect()
        session_id = (await start(socket))["session_id"]
        await lose(socket)
        socket, answer = await come_back(live, session_id, 1, config={"model": "another"})
        assert "invalid_config" == answer["error"]["code"]
        await send(socket, "start_session", session_id=session_id, last_seq=1, config={"temperature": 0.1})
        assert (await receive(socket))["resumed"]
        await socket.close()


class TestTheEngine:
    async def test_goodbye_frees_it_at_once(self, live: Live, engine: ScriptedEngine) -> None:
        """A client that closes its connection wants no more of the answer; coming back it is told of the cancel."""
        socket = await live.connect()
        session_id = (await start(socket))["session_id"]
        await send(socket, "user_message", text="a 100000")
        heard = await read(socket, 5)
        await socket.close()
        assert await idle(engine) < 0.5
        socket, answer = await come_back(live, session_id, heard[-1]["seq"])
        assert answer["resumed"]
        rest = await collect(socket)
        assert ("cancelled", True) == (rest.terminal["type"], rest.terminal["success"])
        await ask(socket, "b 1")
        said = "".join(event["data"] for event in heard) + rest.text
        assert [("user", "a 100000"), ("assistant", said), ("user", "b 1")] == history(engine)
        await socket.close()

    async def test_nobody_comes_back(self, engine: ScriptedEngine) -> None:
        """A response without a listener is stopped when RESUME_GENERATE is over."""
        async with live_service(engine, {"RESUME_GENERATE": "0.3"}) as live:
            socket = await live.connect()
            await start(socket)
            await send(socket, "user_message", text="a 100000")
            await receive(socket)
            await lose(socket)
            await deserted(live)
            assert engine.running
            assert await idle(engine) < 2

    async def test_no_window_keeps_nothing(self, engine: ScriptedEngine) -> None:
        """RESUME_WINDOW=0: the engine is freed at once, the session is gone."""
        async with live_service(engine, {"RESUME_WINDOW": "0"}) as live:
            socket = await live.connect()
            session_id = (await start(socket))["session_id"]
            await send(socket, "user_message", text="a 100000")
            await receive(socket)
            await lose(socket)
            assert await idle(engine) < 0.5
            await deserted(live)
            assert (0, 0) == (live.service.resumption.resting, live.service.manager.active_sessions)
            socket, answer = await come_back(live, session_id, 2)
            assert not answer["resumed"]
            await socket.close()


class TestWhoComesBack:
    async def test_another_key_finds_nothing(self, engine: ScriptedEngine) -> None:
        """A session is there for the key that opened it alone; to any other it is unknown, and stays untouched."""
        async with live_service(engine, {"API_KEYS": "one,two", **GENEROUS}) as live:
            one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
            mine = await live.connect(additional_headers=one)
            session_id = (await start(mine))["session_id"]
            await ask(mine, "a 1")
            for _ in range(2):  # while it is connected, and when it is not
                async with live.connect(additional_headers=two) as thief:
                    await send(thief, "start_session", session_id=session_id, last_seq=1)
                    answer = await receive(thief)
                    assert not answer["resumed"]
                    assert session_id != answer["session_id"]
                if mine.state.name == "OPEN":
                    assert text("b", 1) == (await ask(mine, "b 1")).text
                    await lose(mine)
            async with live.connect() as anybody:  # the key comes in the first message
                await send(anybody, "start_session", session_id=session_id, last_seq=1, api_key="one")
                assert (await receive(anybody))["resumed"]

    async def test_a_newer_connection_takes_over(self, live: Live) -> None:
        """Of two connections that ask for a session the newer one has it; the older is closed with 3502."""
        old = await live.connect()
        session_id = (await start(old))["session_id"]
        await send(old, "user_message", text="a 300")
        heard = await read(old, 10)
        new, answer = await come_back(live, session_id, heard[-1]["seq"])
        assert answer["resumed"]
        rest = await collect(new)
        assert text("a", 300) == "".join(event["data"] for event in heard) + rest.text
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await receive(old)
        assert closed.value.rcvd is not None
        assert 3502 == closed.value.rcvd.code
        assert text("b", 1) == (await ask(new, "b 1")).text
        await new.close()

    async def test_a_client_that_was_greeted(self, engine: ScriptedEngine) -> None:
        """A client that waits to be greeted, as FastTalk 1.x's do, is answered by session_configured."""
        async with live_service(engine, GREETING | GENEROUS) as live:
            socket = await live.connect()
            session_id = (await receive(socket))["session_id"]
            assert "session_configured" == (await start(socket))["type"]
            await ask(socket, "a 2")
            await lose(socket)
            socket = await live.connect()
            assert session_id != (await receive(socket))["session_id"]
            await send(socket, "start_session", session_id=session_id, last_seq=3)
            answer = await receive(socket)
            assert ("session_configured", True, 3) == (answer["type"], answer["resumed"], answer["seq"])
            assert [4, 5] == [event["seq"] for event in await read(socket, 2)]
            await socket.close()
            await deserted(live)
            assert 1 == live.service.manager.active_sessions

    async def test_the_same_connection_may_ask_again(self, live: Live) -> None:
        """A client that asks for the session it has gets what it says it missed."""
        async with live.connect() as socket:
            session_id = (await start(socket))["session_id"]
            await ask(socket, "a 2")
            await send(socket, "start_session", session_id=session_id, last_seq=2)
            assert (await receive(socket))["resumed"]
            assert [3, 4] == [event["seq"] for event in await read(socket, 2)]


class TestBounds:
    async def test_the_oldest_make_room(self, engine: ScriptedEngine) -> None:
        """Past MAX_RESTING_SESSIONS the longest resting go to the store, and are found there."""
        async with live_service(engine, {"MAX_RESTING_SESSIONS": "3", **GENEROUS}) as live:
            ids = []
            for number in range(6):
                socket = await live.connect()
                ids.append((await start(socket))["session_id"])
                await ask(socket, f"w{number} 1")
                await lose(socket)
                await deserted(live)
            assert 3 == live.service.resumption.resting
            for number, session_id in enumerate(ids):
                socket, answer = await come_back(live, session_id, 1)
                assert answer["resumed"]
                assert f"w{number}0 " == (await collect(socket)).text
                await ask(socket, "b 1")
                assert [("user", f"w{number} 1"), ("assistant", f"w{number}0 "), ("user", "b 1")] == history(engine)
                await socket.close()

    async def test_after_the_window_the_conversation_is_left(self, engine: ScriptedEngine) -> None:
        """When RESUME_WINDOW is over what was missed is gone, and told so; what was said is still known."""
        async with live_service(engine, {"RESUME_WINDOW": "0.2", **GENEROUS}) as live:
            socket = await live.connect()
            session_id = (await start(socket))["session_id"]
            await ask(socket, "a 1")
            await lose(socket)
            async with asyncio.timeout(5):
                while live.service.resumption.resting or live.service.connections:
                    await asyncio.sleep(0.01)
            socket, answer = await come_back(live, session_id, 1)
            assert (False, session_id) == (answer["resumed"], answer["session_id"])
            await ask(socket, "b 1")
            assert [("user", "a 1"), ("assistant", "a0 "), ("user", "b 1")] == history(engine)
            await socket.close()

    async def test_who_said_nothing_is_not_kept(self, engine: ScriptedEngine) -> None:
        """A connection that was greeted and left, or that never spoke, leaves nothing behind."""
        async with live_service(engine, GREETING) as live:
            async with live.connect() as socket:
                await receive(socket)
            await (await live.connect()).close()
            await deserted(live)
            async with asyncio.timeout(5):
                while live.service.resumption.busy:
                    await asyncio.sleep(0.001)
            assert (0, 0) == (live.service.resumption.resting, live.service.manager.active_sessions)

    async def test_messages_wait_while_a_session_is_looked_for(self, live: Live, engine: ScriptedEngine) -> None:
        """What a client says right behind its start_session is answered in order, whether or not it was found."""
        async with live.connect() as socket:
            await send(socket, "start_session", session_id="nobody's", last_seq=1)
            await send(socket, "user_message", text="a 2")
            assert not (await receive(socket))["resumed"]
            assert text("a", 2) == (await collect(socket)).text
