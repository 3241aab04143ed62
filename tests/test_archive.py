"""The store as a process uses it, over real sockets and a real file."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from llm_service import records
from llm_service.archive import SLOW_SECONDS
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import FastTalkError, StoreUnavailable
from llm_service.records import SessionRecord
from llm_service.stores.sqlite import SQLiteStore
from tests.live import Event, Live, ask, live_service, receive, send, start
from tests.redis_server import RedisServer
from tests.talk import scripted, text


async def saved(store: SQLiteStore, session_id: str, turns: int) -> SessionRecord:
    """Wait until the session is in the file with so many turns."""
    async with asyncio.timeout(10):
        while True:
            data = await store.load(session_id)
            record = None if data is None else records.load(data)
            if record is not None and len(record.conversation.turns) == turns:
                return record
            await asyncio.sleep(0.01)


async def test_one_too_large_keeps_nobody_else_from_being_saved(tmp_path: Path) -> None:
    """A session that outgrows MAX_RECORD_BYTES stays as it was saved last; it goes on, and others are saved."""
    path = str(tmp_path / "sessions")
    environment = {
        "SESSION_STORE": "sqlite",
        "SQLITE_PATH": path,
        "MAX_RECORD_BYTES": "65536",
        "RESUME_BUFFER_BYTES": "4096",
        "DEFAULT_CONTEXT_WINDOW": "1000000",
    }
    async with live_service(
        ScriptedEngine(tokens_per_second=5000), environment, model="scripted", context_window=1_000_000
    ) as live:
        store = await SQLiteStore.open(path, timeout=5.0)
        async with live.connect() as large:
            large_id = (await start(large))["session_id"]
            await ask(large, "x" * 40_000)
            await saved(store, large_id, 1)
            assert "response_complete" == (await ask(large, "x" * 40_000)).terminal["type"]
            for _ in range(5):
                async with live.connect() as small:
                    small_id = (await start(small))["session_id"]
                    await ask(small, "hello")
                    await saved(store, small_id, 1)
            assert "response_complete" == (await ask(large, "hello")).terminal["type"]
            await saved(store, large_id, 1)
        await store.aclose()


def shared(path: Path, **settings: str) -> dict[str, str]:
    return {"SESSION_STORE": "sqlite", "SQLITE_PATH": str(path / "sessions"), "RESUME_GENERATE": "30"} | settings


async def begin(live: Live, count: int) -> tuple[str, list[Event]]:
    """Ask for so many words and lose the connection after twenty of them; returns the session and its events."""
    socket = await live.connect()
    started = await start(socket)
    await send(socket, "user_message", text=f"a {count}")
    events = [started, *[await receive(socket) for _ in range(20)]]
    socket.transport.abort()
    await socket.wait_closed()
    return started["session_id"], events


async def rest_of(live: Live, session_id: str, events: list[Event]) -> tuple[Event, str]:
    """Come back for what was missed; returns the answer and the text from the beginning to the end."""
    async with live.connect() as socket:
        await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
        answer = await receive(socket)
        if not answer["resumed"]:
            return answer, ""
        said = "".join(event.get("data", "") for event in events)
        seq = answer["seq"]
        while True:
            event = await receive(socket)
            assert seq + 1 == event["seq"]
            seq = event["seq"]
            if event["type"] != "token":
                assert "response_complete" == event["type"]
                return answer, said
            said += event["data"]


async def test_another_process_takes_a_session_over(tmp_path: Path) -> None:
    """A client that comes back to another process gets the same text as from its own, though its response still ran."""
    engine = scripted(400)
    async with live_service(engine, shared(tmp_path)) as one, live_service(engine, shared(tmp_path)) as other:
        session_id, events = await begin(one, 200)
        answer, said = await rest_of(other, session_id, events)
        assert (True, session_id, events[-1]["seq"]) == (answer["resumed"], answer["session_id"], answer["seq"])
        assert text("a", 200) == said
        assert 0 == one.service.resumption.resting


async def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """What a client missed before a restart, what waited for it included, is there after it."""
    engine = scripted(2000)
    async with live_service(engine, shared(tmp_path, DRAIN_TIMEOUT="5")) as live:
        session_id, events = await begin(live, 300)
    async with live_service(engine, shared(tmp_path)) as live:
        answer, said = await rest_of(live, session_id, events)
        assert answer["resumed"]
        assert text("a", 300) == said


async def test_what_a_crash_left_is_no_whole_session(tmp_path: Path) -> None:
    """A session that its process did not give up is taken up as it was saved last; its client is told."""
    engine = scripted(2000)
    async with live_service(engine, shared(tmp_path)) as live:
        store = await SQLiteStore.open(str(tmp_path / "sessions"), timeout=5.0)
        async with live.connect() as socket:
            session_id = (await start(socket))["session_id"]
            await ask(socket, "a 1")
            record = await saved(store, session_id, 1)
        assert not record.whole
    # As a process that was killed leaves it: saved while it ran, and claimed by nobody who lives.
    await store.save(session_id, records.dump(record), ttl=60.0)
    await store.aclose()
    async with live_service(engine, shared(tmp_path)) as live, live.connect() as socket:
        await send(socket, "start_session", session_id=session_id, last_seq=record.replay.seq)
        answer = await receive(socket)
        assert (False, session_id) == (answer["resumed"], answer["session_id"])
        assert "goes on as it was kept" in answer["reason"]
        await ask(socket, "b 1")
        assert ["a 1", "a0", "b 1"] == [
            message.content.strip() for message in engine.requests[-1].messages if message.role != "system"
        ]


class Gate:
    """Holds what the store of a service is asked to save until it is opened, or refuses it."""

    def __init__(self, live: Live, monkeypatch: pytest.MonkeyPatch, error: FastTalkError | None = None) -> None:
        self._open = asyncio.Event()
        self.reached = asyncio.Event()
        store = live.service.resumption._archive._store
        save = store.save

        async def held(session_id: str, record: bytes, *, ttl: float) -> None:
            self.reached.set()
            if error is not None:
                raise error
            await self._open.wait()
            await save(session_id, record, ttl=ttl)

        monkeypatch.setattr(store, "save", held)

    def open(self) -> None:
        """Let it through, and what comes after it."""
        self._open.set()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_asked_for_twice(tmp_path: Path) -> None:
    """A session that is asked for while it is being given up is given up once, and the service lives."""
    engine = scripted(400)
    async with live_service(engine, shared(tmp_path)) as live:
        session_id, _ = await begin(live, 60)
        await until(lambda: live.service.resumption.resting)
        resumption = live.service.resumption
        await asyncio.gather(*(resumption.hand_over(session_id) for _ in range(3)))
        assert (0, None) == (resumption.resting, resumption.find(session_id, ""))
        assert live.service.ready
        assert 1 == live.service.registry.get_sample_value("fasttalk_handovers_total")


async def test_an_ask_that_comes_late(tmp_path: Path) -> None:
    """A client that went to another process and came back here stays: the other's ask was from before that."""
    async with live_service(scripted(400), shared(tmp_path)) as live, live.connect() as socket:
        session_id = (await start(socket))["session_id"]
        await live.service.resumption.hand_over(session_id)
        assert text("a", 3) == (await ask(socket, "a 3")).text


async def test_a_client_that_hangs_elsewhere(tmp_path: Path) -> None:
    """A connection that nobody has closed keeps no session from the process that its client came back to."""
    engine = scripted(400)
    async with (
        live_service(engine, shared(tmp_path)) as one,
        live_service(engine, shared(tmp_path)) as other,
        one.connect() as silent,
    ):
        session_id = (await start(silent))["session_id"]
        await ask(silent, "a 3")
        answer, said = await rest_of(other, session_id, [{"seq": 1}])
        assert (True, text("a", 3)) == (answer["resumed"], said)
        with pytest.raises(ConnectionClosed) as closed:
            await silent.recv()
        assert 3502 == closed.value.rcvd.code  # type: ignore[union-attr]


async def test_a_client_that_is_quicker_than_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes back while its session is being saved to be given up has it, and keeps it."""
    engine = scripted(400)
    async with live_service(engine, shared(tmp_path)) as one, live_service(engine, shared(tmp_path)) as other:
        session_id, _ = await begin(one, 20)
        await until(lambda: one.service.resumption.resting and not engine.running)
        gate = Gate(one, monkeypatch)
        leaving = asyncio.create_task(one.service.resumption.hand_over(session_id))
        await gate.reached.wait()
        async with one.connect() as socket:
            await send(socket, "start_session", session_id=session_id, last_seq=22)
            assert (await receive(socket))["resumed"]
            gate.open()
            await leaving
            assert "a 20" == engine.requests[-1].messages[-1].content
            assert text("b", 2) == (await ask(socket, "b 2")).text
        answer, said = await rest_of(other, session_id, [{"seq": 22}])
        assert (True, text("b", 2)) == (answer["resumed"], said)


async def test_one_that_has_just_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that its process has not saved yet is found by another all the same, a little later."""
    engine = scripted(400)
    async with live_service(engine, shared(tmp_path)) as one, live_service(engine, shared(tmp_path)) as other:
        gate = Gate(one, monkeypatch)
        session_id, events = await begin(one, 60)
        coming = asyncio.create_task(rest_of(other, session_id, events))
        await until(lambda: session_id in other.service.resumption._archive._arriving)
        gate.open()
        answer, said = await coming
        assert (True, text("a", 60)) == (answer["resumed"], said)


async def test_one_that_cannot_be_saved_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose time here is over, and that the store does not take, rests on: its client finds all of it."""
    environment = {"RESUME_WINDOW": "0.2", "RESUME_GENERATE": "30"}
    async with live_service(scripted(400), environment) as live:
        gate = Gate(live, monkeypatch, StoreUnavailable("it is down"))
        session_id, events = await begin(live, 60)
        await gate.reached.wait()
        await until(lambda: live.service.resumption.resting)
        answer, said = await rest_of_cancelled(live, session_id, events)
        assert (True, session_id) == (answer["resumed"], answer["session_id"])
        assert text("a", 60).startswith(said)


async def rest_of_cancelled(live: Live, session_id: str, events: list[Event]) -> tuple[Event, str]:
    """As `rest_of`, of an answer that was stopped or is whole."""
    async with live.connect() as socket:
        await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
        answer = await receive(socket)
        said = "".join(event.get("data", "") for event in events)
        while (event := await receive(socket))["type"] == "token":
            said += event["data"]
        assert event["type"] in {"cancelled", "response_complete"}
        return answer, said


async def test_what_cannot_be_saved_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is down, twice MAX_RESTING_SESSIONS are kept; those that rest longest are dropped."""
    async with live_service(scripted(4000), {"MAX_RESTING_SESSIONS": "2"}) as live:
        Gate(live, monkeypatch, StoreUnavailable("it is down"))
        resumption = live.service.resumption
        for _ in range(8):
            async with live.connect() as socket:
                await start(socket)
                await ask(socket, "a 1")
        await until(lambda: not live.service.connections and not resumption.busy)
        assert 2 <= resumption.resting <= 4
        assert resumption.resting == live.service.manager.active_sessions


async def cancel(socket: ClientConnection) -> None:
    """Stop a long answer after its first words."""
    await send(socket, "user_message", text="b 4000")
    for _ in range(5):
        await receive(socket)
    await send(socket, "cancel")


async def barge_in(socket: ClientConnection) -> None:
    """Ask for another long answer while one runs."""
    for name in "bc":
        await send(socket, "user_message", text=f"{name} 4000")
        for _ in range(5):
            await receive(socket)


async def configure(socket: ClientConnection) -> None:
    """Change the instructions."""
    await send(socket, "update_config", config={"system_prompt": "Be brief."})


async def play(socket: ClientConnection) -> None:
    """Say how much of the answer was heard."""
    await send(socket, "played", chars=2)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (cancel, lambda record: "b 4000" == record.conversation.turns[-1].user),
        (barge_in, lambda record: "b 4000" == record.conversation.turns[-1].user),
        (configure, lambda record: "Be brief." == record.config.get("system_prompt")),
        (play, lambda record: record.ended is not None and 2 == record.ended.heard),
    ],
)
async def test_changes_that_end_no_response_are_saved(
    tmp_path: Path, change: Callable[[ClientConnection], Awaitable[None]], kept: Callable[[SessionRecord], bool]
) -> None:
    """What a client stops, interrupts, sets or has heard is in the store while it is connected and says no more."""
    async with live_service(scripted(400), shared(tmp_path)) as live, live.connect() as socket:
        store = await SQLiteStore.open(str(tmp_path / "sessions"), timeout=5.0)
        session_id = (await start(socket, on_busy="interrupt"))["session_id"]
        await ask(socket, "a 3")
        assert not kept(await saved(store, session_id, 1))
        await change(socket)
        async with asyncio.timeout(5):
            while not kept(records.load(await store.load(session_id) or b"")):  # type: ignore[arg-type]
                await asyncio.sleep(0.01)
        await store.aclose()


def hurry(live: Live) -> None:
    """Let a fetch wait for another process for a second after that one saved the session last."""
    live.service.resumption._archive._patience = 1.0


async def test_a_long_response_goes_on_for_a_client_that_waits_elsewhere(tmp_path: Path) -> None:
    """Whoever comes back to another process gets all of an answer that lasts far longer than RESUME_GENERATE."""
    engine, environment = scripted(100), shared(tmp_path, RESUME_GENERATE="0.3")
    async with live_service(engine, environment) as one, live_service(engine, environment) as other:
        hurry(other)
        session_id, events = await begin(one, 600)
        answer, said = await rest_of(other, session_id, events)
        assert (True, session_id) == (answer["resumed"], answer["session_id"])
        assert text("a", 600) == said


async def test_a_client_that_waits_elsewhere_no_longer(tmp_path: Path) -> None:
    """A response that nobody waits for any more, here or elsewhere, is stopped."""
    engine, environment = scripted(100), shared(tmp_path, RESUME_GENERATE="0.3")
    async with live_service(engine, environment) as one, live_service(engine, environment) as other:
        session_id, events = await begin(one, 100_000)
        socket = await other.connect()
        await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
        await until(lambda: one.service.resumption._asked_for)
        assert engine.running
        socket.transport.abort()
        await until(lambda: not engine.running and not one.service.resumption.busy)


async def test_one_that_its_process_cannot_save_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that comes back to another process while its own can't save gets a new session before long."""
    engine, environment = scripted(100), shared(tmp_path, RESUME_GENERATE="0.3")
    async with live_service(engine, environment) as one, live_service(engine, environment) as other:
        hurry(other)
        store = await SQLiteStore.open(str(tmp_path / "sessions"), timeout=5.0)
        session_id, events = await begin(one, 100_000)
        await saved(store, session_id, 0)
        await store.aclose()
        Gate(one, monkeypatch, StoreUnavailable("it is down"))
        answer, _ = await rest_of(other, session_id, events)
        assert not answer["resumed"]
        assert session_id != answer["session_id"]
        assert one.service.resumption.find(session_id, "") is not None


async def test_a_file_that_is_locked(tmp_path: Path) -> None:
    """A client whose session could not be saved yet is told to try again, on the same connection, and then has it.

    What it said to that session meanwhile is refused: it is answered in no other one.
    """
    engine, environment = scripted(400), shared(tmp_path)
    async with live_service(engine, environment) as one, live_service(engine, environment) as other:
        with contextlib.closing(sqlite3.connect(tmp_path / "sessions", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            session_id, events = await begin(one, 60)
            async with other.connect() as socket:
                await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
                await send(socket, "user_message", text="b 2", id="b")
                told = [await receive(socket) for _ in range(2)]
                writer.execute("ROLLBACK")
                assert [("error", "store_unavailable", 1.0, True)] * 2 == [
                    (each["type"], *(each["error"][name] for name in ("code", "retry_after", "recoverable")))
                    for each in told
                ]
                assert [None, "b"] == [each.get("id") for each in told]
                assert ["a 60"] == [request.messages[-1].content for request in engine.requests]
                async with asyncio.timeout(10):
                    while not (answer := await again(socket, session_id, events))["resumed"]:
                        assert "store_unavailable" == answer["error"]["code"]
                said = "".join(event.get("data", "") for event in events)
                while (event := await receive(socket))["type"] == "token":
                    said += event["data"]
                assert text("a", 60) == said


async def again(socket: ClientConnection, session_id: str, events: list[Event]) -> Event:
    """Come back for a session after a second."""
    await asyncio.sleep(1)
    await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
    return {"resumed": False} | await receive(socket)


async def test_a_store_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose session is not found is told to try again, too, where saving it takes its process long."""
    engine = scripted(400)
    async with live_service(engine, shared(tmp_path)) as one, live_service(engine, shared(tmp_path)) as other:
        gate, store = Gate(one, monkeypatch), other.service.resumption._archive._store
        writable = store.writable

        async def slow() -> None:
            await asyncio.sleep(SLOW_SECONDS)
            await writable()

        monkeypatch.setattr(store, "writable", slow)
        session_id, events = await begin(one, 60)
        async with other.connect() as socket:
            await send(socket, "start_session", session_id=session_id, last_seq=events[-1]["seq"])
            error = (await receive(socket))["error"]
            assert ("store_unavailable", 1.0) == (error["code"], error["retry_after"])
            gate.open()
            assert (await again(socket, session_id, events))["resumed"]


@pytest.mark.redis
async def test_a_redis_that_comes_back_empty(own_redis: RedisServer) -> None:
    """What a Redis has forgotten is saved anew as soon as it is there, though nobody says anything: none is lost."""
    environment = {"SESSION_STORE": "redis", "REDIS_URL": own_redis.url, "RESUME_GENERATE": "30"}
    engine = scripted(2000)
    async with live_service(engine, environment) as one, live_service(engine, environment) as other:
        gone = [await begin(one, 30) for _ in range(20)]
        await until(lambda: not engine.running and not one.service.resumption._archive._unsaved)
        async with one.connect() as silent:
            silent_id = (await start(silent))["session_id"]
            await ask(silent, "b 3")
            await until(lambda: not one.service.resumption._archive._unsaved)
            own_redis.stop()
            own_redis.start()
            began = monotonic()
            for (answer, said), (session_id, _) in zip(
                await asyncio.gather(*(rest_of(other, *each) for each in gone)), gone, strict=True
            ):
                assert (True, session_id, text("a", 30)) == (answer["resumed"], answer["session_id"], said)
            # The next renewal of claims would have come later.
            assert monotonic() - began < 3.0
            answer, said = await rest_of(other, silent_id, [{"seq": 1}])
            assert (True, text("b", 3)) == (answer["resumed"], said)
