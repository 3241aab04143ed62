"""One WebSocket, over real sockets, with the scripted engine."""

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnreachable, GenerationFailed
from llm_service.generation import Finish, GenerationRequest, Sink
from tests.live import Live, ask, collect, live_service, receive, send, start
from tests.talk import handshake, history, idle, masked, scripted, text, words


@pytest.fixture
def engine() -> ScriptedEngine:
    return scripted(2000)


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    async with live_service(engine) as running:
        yield running


async def closed(socket: object) -> ConnectionClosed:
    """Read until the connection is closed and return how."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await receive(socket)  # type: ignore[arg-type]
    return caught.value


class TestExchanges:
    async def test_fasttalk_1x(self, engine: ScriptedEngine) -> None:
        """A client of FastTalk 1.x reads one frame, sends start_session, reads one frame, and talks."""
        async with live_service(engine, {"GREETING_DELAY_MS": "10"}) as live, live.connect() as socket:
            started = await receive(socket)
            assert "session_started" == started["type"]
            assert started["session_id"]
            await socket.send(json.dumps({"type": "start_session", "config": {"system_prompt": "Be brief."}}))
            configured = await receive(socket)
            assert "session_configured" == configured["type"]
            assert {"system_prompt": "Be brief."} == configured["config"]
            answer = await ask(socket, "a 5")
            assert text("a", 5) == answer.text
            stats = answer.terminal["stats"]
            assert 5 == stats["tokens_generated"]
            assert stats["processing_time_ms"] > 0
            assert stats["tokens_per_second"] > 0
            await send(socket, "end_session")
            ended = await receive(socket)
            assert "session_ended" == ended["type"]
            assert started["session_id"] == ended["stats"]["session_id"]

    async def test_readme(self, live: Live) -> None:
        """A client that starts at once gets session_started as its answer."""
        async with live.connect() as socket:
            started = await start(socket, temperature=0.2)
            assert ("session_started", 1) == (started["type"], started["seq"])
            assert text("a", 3) == (await ask(socket, "a 3")).text

    async def test_seq_has_no_gaps(self, live: Live) -> None:
        """Events are numbered from 1 without a gap."""
        async with live.connect() as socket:
            events = [await start(socket)]
            answer = await ask(socket, "a 20")
            events += [*answer.tokens, answer.terminal]
            assert list(range(1, len(events) + 1)) == [event["seq"] for event in events]

    async def test_a_message_needs_no_start(self, live: Live) -> None:
        """A user_message on a fresh connection starts a session with the defaults."""
        async with live.connect() as socket:
            answer = await ask(socket, "a 2", id="m1")
            assert ["session_started"] == [event["type"] for event in answer.others]
            assert (text("a", 2), "m1") == (answer.text, answer.terminal["id"])

    async def test_the_subprotocol_is_taken_up(self, live: Live) -> None:
        """A client that offers the subprotocol gets it; one that offers another gets none."""
        async with live.connect(subprotocols=["fasttalk"]) as socket:
            assert "fasttalk" == socket.subprotocol


class TestCancel:
    async def test_cancel_is_read_while_tokens_flow(self, live: Live, engine: ScriptedEngine) -> None:
        """The engine's stream is closed at once, `cancelled` is the last word, and the partial answer stays."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="a 100000")
            heard = "".join([(await receive(socket))["data"] for _ in range(5)])
            await send(socket, "cancel")
            answer = await collect(socket)
            seconds = await idle(engine)
            print(f"\ncancel to engine idle: {seconds * 1000:.2f} ms after `cancelled` was read")
            assert ("cancelled", True) == (answer.terminal["type"], answer.terminal["success"])
            await ask(socket, "b 1")
            kept = [("user", "a 100000"), ("assistant", heard + answer.text), ("user", "b 1")]
            assert kept == history(engine)

    async def test_cancel_when_idle(self, live: Live) -> None:
        """Cancelling nothing is answered by success false."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "cancel")
            assert {"type": "cancelled", "seq": 2, "success": False} == await receive(socket)

    @pytest.mark.parametrize("how", ["close", "abort"])
    async def test_a_client_that_leaves_frees_the_engine(self, live: Live, engine: ScriptedEngine, how: str) -> None:
        """Closing the socket, politely or not, closes the engine's stream."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="a 100000")
            await receive(socket)
            if how == "abort":
                socket.transport.abort()
        await idle(engine)
        async with asyncio.timeout(5):
            await live.service.empty.wait()
        assert 0 == live.service.manager.active_connections

    async def test_end_session_frees_the_engine(self, live: Live, engine: ScriptedEngine) -> None:
        """Ending the session cancels the response first, and forgets the history."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="a 100000")
            await receive(socket)
            await send(socket, "end_session")
            assert "cancelled" == (await collect(socket)).terminal["type"]
            assert "session_ended" == (await receive(socket))["type"]
            await idle(engine)
            await ask(socket, "b 1")
            assert [("user", "b 1")] == history(engine)

    async def test_interrupt_is_barge_in(self, live: Live) -> None:
        """Under on_busy=interrupt a message cancels the running response and is answered."""
        async with live.connect() as socket:
            await start(socket, on_busy="interrupt")
            await send(socket, "user_message", text="a 100000", id="first")
            await receive(socket)
            await send(socket, "user_message", text="b 3", id="second")
            first, second = await collect(socket), await collect(socket)
            assert ("cancelled", "first") == (first.terminal["type"], first.terminal["id"])
            assert ("response_complete", "second") == (second.terminal["type"], second.terminal["id"])
            assert text("b", 3) == second.text

    async def test_queue_keeps_the_order(self, live: Live) -> None:
        """Under on_busy=queue messages are answered one after the other."""
        async with live.connect() as socket:
            await start(socket, on_busy="queue", events=["queued"])
            for tag in ("a", "b", "c"):
                await send(socket, "user_message", text=f"{tag} 20", id=tag)
            answers = [await collect(socket) for _ in range(3)]
            assert [text(tag, 20) for tag in ("a", "b", "c")] == [answer.text for answer in answers]
            assert ["a", "b", "c"] == [answer.terminal["id"] for answer in answers]
            assert [1, 2] == [event["position"] for answer in answers for event in answer.others]

    async def test_reject_is_the_default(self, live: Live) -> None:
        """A message while a response runs is refused, and the response goes on."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="a 50")
            await receive(socket)
            await send(socket, "user_message", text="b 1", id="late")
            refused = await collect(socket)
            assert ("response_in_progress", "late") == (refused.terminal["error"]["code"], refused.terminal["id"])
            assert "response_complete" == (await collect(socket)).terminal["type"]

    async def test_one_response_at_a_time(self) -> None:
        """The engine is freed of an interrupted response before it is asked for the next."""
        at_once: list[int] = []

        def answer(request: GenerationRequest) -> Iterator[str]:
            at_once.append(counting.running)
            return words(request)

        counting = ScriptedEngine(answer, tokens_per_second=2000, models=())
        async with live_service(counting) as live, live.connect() as socket:
            await start(socket, on_busy="interrupt")
            for number in range(20):
                await send(socket, "user_message", text=f"a{number} 1000")
                await asyncio.sleep(0.002)
            await send(socket, "user_message", text="last 1")
            while (await collect(socket)).terminal["type"] != "response_complete":
                pass
        assert {1} == set(at_once)

    async def test_the_engine_is_freed_first(self) -> None:
        """However long an engine takes to close a stream, the next request waits for it."""

        class Slow(ScriptedEngine):
            open_streams = 0
            most = 0

            async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
                self.open_streams += 1
                self.most = max(self.most, self.open_streams)
                try:
                    return await super().generate(request, sink)
                finally:
                    await asyncio.sleep(0.02)
                    self.open_streams -= 1

        slow = Slow(words, tokens_per_second=2000, models=())
        async with live_service(slow) as live, live.connect() as socket:
            await start(socket, on_busy="interrupt")
            for number in range(3):
                await send(socket, "user_message", text=f"a{number} 1000")
                # What is still on its way is the last answer's: a message that comes before a word of its own answer
                # would be joined with the next.
                if number:
                    assert "cancelled" == (await collect(socket)).terminal["type"]
                while (await receive(socket))["type"] != "token":
                    pass
            await send(socket, "user_message", text="last 1")
            while (await collect(socket)).terminal["type"] != "response_complete":
                pass
        assert 1 == slow.most

    async def test_what_was_stopped_is_counted(self, live: Live, engine: ScriptedEngine) -> None:
        """The metrics hold the cancel, the time it took, the tokens and the messages; so do the statistics."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="a 100000")
            for _ in range(5):
                await receive(socket)
            await send(socket, "cancel")
            await collect(socket)
            await idle(engine)
            await send(socket, "end_session")
            stats = (await receive(socket))["stats"]
        sample = live.service.registry.get_sample_value
        pair = {"engine": "scripted", "model": "test"}
        assert stats["tokens_generated"] >= 5
        assert stats["tokens_generated"] == sample("fasttalk_tokens_total", pair | {"token_type": "output"})
        assert 1 == sample("fasttalk_cancels_total")
        assert 1 == sample("fasttalk_cancel_to_idle_seconds_count", pair)
        assert 1 == sample("fasttalk_messages_total", {"type": "cancel"})


class TestFailures:
    async def test_a_failed_turn_leaves_the_history(self, live: Live, engine: ScriptedEngine) -> None:
        """An engine that dies in mid-answer ends the response by an error; the same message can be sent again."""
        async with live.connect() as socket:
            await start(socket)
            await ask(socket, "a 1")
            engine.faults.append(Fault(3, GenerationFailed("the engine died")))
            failed = await ask(socket, "b 10", id="m")
            assert ("error", True, "m") == (failed.terminal["type"], failed.terminal["terminal"], failed.terminal["id"])
            assert "generation_failed" == failed.terminal["error"]["code"]
            again = await ask(socket, "b 10")
            assert text("b", 10) == again.text
            assert [("user", "a 1"), ("assistant", text("a", 1)), ("user", "b 10")] == history(engine)

    async def test_an_unreachable_engine(self, live: Live, engine: ScriptedEngine) -> None:
        """What the engine says of itself reaches the client with code, category and severity."""
        engine.faults.append(Fault(0, EngineUnreachable("nobody answers", retry_after=2.0)))
        async with live.connect() as socket:
            await start(socket)
            error = (await ask(socket, "a 1")).terminal["error"]
            assert {
                "code": "engine_unreachable",
                "message": "nobody answers",
                "category": "connection",
                "severity": "high",
                "recoverable": True,
                "retry_after": 2.0,
            } == error

    async def test_a_defect_of_ours_is_an_error_too(self, live: Live, engine: ScriptedEngine) -> None:
        """An exception nobody foresaw ends the response without its text, and the session goes on."""
        engine.faults.append(Fault(1, ZeroDivisionError("secret of the implementation")))  # type: ignore[arg-type]
        async with live.connect() as socket:
            await start(socket)
            error = (await ask(socket, "a 3")).terminal["error"]
            assert "internal_error" == error["code"]
            assert "secret" not in json.dumps(error)
            assert text("a", 3) == (await ask(socket, "a 3")).text


class TestLooks:
    async def test_who_is_looked_after_more_often(self, live: Live) -> None:
        """Those that have yet to say something, and those that are closed; not those that are well."""
        async with live.connect() as socket:
            (connection,) = live.service.connections
            told = [connection.held_up]
            await start(socket)
            await ask(socket, "a 3")
            told.append(connection.held_up)
            connection.shut_down()
            told.append(connection.held_up)
            assert [True, False, True] == told

    async def test_those_that_are_held_up_do_not_wait_for_the_others(self, live: Live) -> None:
        """They are looked after each time; of those that are well each every fourth time, and as many each time."""
        watched: list[int] = []

        class Looked:
            def __init__(self, number: int) -> None:
                self.number, self.held_up = number, number == 0

            def watch(self, _: float) -> None:
                watched.append(self.number)

        live.service.connections = set(map(Looked, range(9)))  # type: ignore[arg-type]
        try:
            for _ in range(8):
                live.service._watch_each(0.0)
            assert {0: 8, **dict.fromkeys(range(1, 9), 2)} == Counter(watched)
            del watched[:]
            live.service._watch_each(0.0)
            assert 3 == len(watched)
        finally:
            live.service.connections = set()

    async def test_all_that_a_client_was_sent_is_counted_when_it_leaves(self, live: Live) -> None:
        """However soon after the answer that is: nobody looks at its connection any more."""
        async with live.connect() as socket:
            await start(socket)
            (connection,) = live.service.connections
            session = connection.session
            last = (await ask(socket, "a 20")).terminal["seq"]
        while live.service.connections:
            await asyncio.sleep(0.005)
        assert last == session.counters.messages_sent


class TestLimits:
    async def test_binary_frames(self, live: Live) -> None:
        """A binary frame is refused by an error; the session goes on."""
        async with live.connect() as socket:
            await start(socket)
            await socket.send(b"\x00\x01")
            assert "unsupported_frame" == (await receive(socket))["error"]["code"]
            assert text("a", 1) == (await ask(socket, "a 1")).text

    async def test_a_message_that_is_too_long(self, live: Live) -> None:
        """More than 64 KiB closes the connection with 1009."""
        async with live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="x" * 65_536)
            assert 1009 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]

    async def test_invalid_utf8(self, live: Live) -> None:
        """Text that is not UTF-8 closes the connection with 1007, as RFC 6455 has it."""
        async with live.connect() as socket:
            await start(socket)
            await socket.send(b"\xff\xfe", text=True)
            assert 1007 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]

    async def test_too_many_invalid_messages(self, engine: ScriptedEngine) -> None:
        """After MAX_INVALID_MESSAGES in a row the client is told and cut off with 3013; a valid one starts anew."""
        async with live_service(engine, {"MAX_INVALID_MESSAGES": "3"}) as live, live.connect() as socket:
            await start(socket)
            for _ in range(3):
                for _ in range(2):
                    await socket.send("{")
                    await receive(socket)
                await send(socket, "cancel")
                await receive(socket)
            for _ in range(3):
                await socket.send("{")
            codes = [(await receive(socket))["error"]["code"] for _ in range(4)]
            assert ["invalid_json"] * 3 + ["too_many_invalid_messages"] == codes
            assert 3013 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]

    async def test_no_first_message(self, engine: ScriptedEngine) -> None:
        """A client that says nothing is greeted, then told, then cut off with 3502."""
        environment = {"FIRST_MESSAGE_TIMEOUT": "0.3", "GREETING_DELAY_MS": "10"}
        async with live_service(engine, environment) as live, live.connect() as socket:
            assert "session_started" == (await receive(socket))["type"]
            assert "no_first_message" == (await receive(socket))["error"]["code"]
            assert 3502 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]

    async def test_a_silent_session_expires(self, engine: ScriptedEngine) -> None:
        """After SESSION_TIMEOUT of silence the session ends by name and the connection is closed."""
        async with live_service(engine, {"SESSION_TIMEOUT": "0.3"}) as live, live.connect() as socket:
            await start(socket)
            ended = await receive(socket)
            assert ("session_ended", "expired") == (ended["type"], ended["reason"])
            assert 1000 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]

    async def test_the_connection_limit(self, engine: ScriptedEngine) -> None:
        """One client too many is told so in a frame and closed with 3504; the others do not notice."""
        async with live_service(engine, {"LLM_MAX_CONNECTIONS": "1"}) as live, live.connect() as socket:
            await start(socket)
            async with live.connect() as second:
                error = (await receive(second))["error"]
                assert ("max_connections", "high") == (error["code"], error["severity"])
                assert 3504 == (await closed(second)).rcvd.code  # type: ignore[union-attr]
            sheds = live.service.registry.get_sample_value("fasttalk_sheds_total", {"reason": "max_connections"})
            assert 1 == sheds
            assert text("a", 1) == (await ask(socket, "a 1")).text

    async def test_answers_that_echo_are_bounded_too(self, engine: ScriptedEngine) -> None:
        """What waits for a client that does not read is bounded, whatever kind of event it is."""
        async with live_service(engine) as live:
            raw = await handshake(live.port)
            message = masked(json.dumps({"type": "update_config", "config": {"system_prompt": "x" * 32_000}}))
            loop = asyncio.get_running_loop()
            waiting = 0
            with contextlib.suppress(OSError):
                async with asyncio.timeout(10):
                    while live.service.connections or not waiting:
                        await asyncio.wait_for(loop.sock_sendall(raw, message), 5)
                        for connection in live.service.connections:
                            waiting = max(waiting, connection.live.outbox.pending_bytes)
            assert 500_000 < waiting < 1_200_000
            raw.close()

    async def test_a_client_that_says_goodbye_and_reads_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its socket and what it left unread are dropped soon, and the shutdown meets no error."""
        monkeypatch.setattr("llm_service.protocols.FLUSH_GRACE", 0.05)
        engine = ScriptedEngine(lambda _: ["x" * 50_000] * 100, tokens_per_second=10_000, models=())
        async with live_service(engine) as live:
            raw = await handshake(live.port)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(raw, masked(json.dumps({"type": "user_message", "text": "a 1"})))
            async with asyncio.timeout(10):
                while not any(connection.live.outbox.paused for connection in live.service.connections):
                    await asyncio.sleep(0.001)
                await loop.sock_sendall(raw, b"\x88\x82\0\0\0\0\x03\xe8")
                while live.server.server_state.connections:
                    await asyncio.sleep(0.001)
            raw.close()

    async def test_nothing_is_compressed(self, live: Live) -> None:
        """permessage-deflate is offered by the client and not taken up: a compressed bomb is no message here."""
        async with connect(live.ws_url, compression="deflate", proxy=None) as socket:
            assert [] == socket.protocol.extensions

    async def test_a_client_that_never_reads_is_cut_off(self) -> None:
        """A frozen reader is dropped within the deadline, and the engine is freed."""
        engine = scripted(1_000_000)
        environment = {"SEND_TIMEOUT": "0.5", "MAX_PENDING_BYTES": "65536"}
        async with live_service(engine, environment, context_window=10_000_000) as live:
            raw = await handshake(live.port)
            raw.send(masked(json.dumps({"type": "start_session", "config": {"max_tokens": 1_000_000}})))
            raw.send(masked(json.dumps({"type": "user_message", "text": "x 1000000"})))
            began = time.monotonic()
            async with asyncio.timeout(10):
                while not live.service.connections:
                    await asyncio.sleep(0.01)
                await live.service.empty.wait()
            print(f"\na frozen reader was cut off after {time.monotonic() - began:.2f} s")
            await idle(engine)
            raw.close()


KEYS = {"API_KEYS": "right-key,other-key", "GREETING_DELAY_MS": "10"}


class TestKeys:
    @pytest.mark.parametrize(
        "options",
        [
            {"additional_headers": {"Authorization": "Bearer right-key"}},
            {"additional_headers": {"X-API-Key": "other-key"}},
            {"subprotocols": ["fasttalk", "fasttalk.api-key.right-key"]},
        ],
    )
    async def test_a_key_in_thehandshake(self, engine: ScriptedEngine, options: dict[str, object]) -> None:
        """A header or a subprotocol carries the key."""
        async with live_service(engine, KEYS) as live, live.connect(**options) as socket:
            await start(socket)
            assert text("a", 1) == (await ask(socket, "a 1")).text

    async def test_a_key_in_the_first_message(self, engine: ScriptedEngine) -> None:
        """A first start_session with api_key is let in, and nothing is said to the client before."""
        async with live_service(engine, KEYS) as live, live.connect() as socket:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await socket.recv()
            await send(socket, "start_session", api_key="right-key")
            assert "session_started" == (await receive(socket))["type"]
            assert text("a", 1) == (await ask(socket, "a 1")).text

    @pytest.mark.parametrize(
        "message",
        [
            {"type": "start_session"},
            {"type": "start_session", "api_key": "wrong"},
            {"type": "user_message", "text": "a 1"},
            {"type": "cancel"},
        ],
    )
    async def test_without_one_nothing_is_done(self, engine: ScriptedEngine, message: dict[str, object]) -> None:
        """Without a right key in the first message the client is told and closed with 3500; the engine is not asked."""
        async with live_service(engine, KEYS) as live, live.connect() as socket:
            await socket.send(json.dumps(message))
            await send(socket, "start_session", api_key="right-key")
            await send(socket, "user_message", text="a 1")
            assert "unauthorized" == (await receive(socket))["error"]["code"]
            assert 3500 == (await closed(socket)).rcvd.code  # type: ignore[union-attr]
            assert not engine.requests


class TestManySessions:
    async def test_five_at_50_words_a_second(self) -> None:
        """Five sessions at once each get 50 words a second, and none waits longer for its first word."""
        async with live_service(scripted(50)) as live:

            async def session(tag: str) -> tuple[float, float]:
                async with live.connect() as socket:
                    await start(socket)
                    answer = await ask(socket, f"{tag} 50")
                    assert text(tag, 50) == answer.text
                    stats = answer.terminal["stats"]
                    return stats["tokens_per_second"], stats["time_to_first_token_ms"]

            alone = await session("z")
            together = await asyncio.gather(*(session(tag) for tag in "abcde"))
        print(f"\nalone {alone[0]:.1f} words/s, first after {alone[1]:.1f} ms; together {together}")
        assert all(rate > 45 for rate, _ in together)

    async def test_a_hundred_texts_are_exact(self, engine: ScriptedEngine) -> None:
        """A hundred sessions at once: every text is whole, in order and its own."""
        async with live_service(engine, {"LLM_MAX_CONNECTIONS": "100"}) as live:

            async def session(tag: str) -> None:
                async with live.connect() as socket:
                    await start(socket)
                    for turn in range(3):
                        assert text(f"{tag}.{turn}.", 40) == (await ask(socket, f"{tag}.{turn}. 40")).text

            await asyncio.gather(*(session(f"s{number}") for number in range(100)))
        assert 300 == len(engine.requests)


JUNK = st.one_of(
    st.text(max_size=200),
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=10,
    ).map(json.dumps),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["start_session", "user_message", "cancel", "end_session", "update_config", "x"])},
        optional={
            "text": st.none() | st.integers() | st.just(""),
            "config": st.dictionaries(st.sampled_from(["temperature", "top_k", "stop", "foo", "model"]), st.text())
            | st.integers(),
            "session_id": st.integers() | st.text(),
            "api_key": st.integers(),
        },
    ).map(json.dumps),
)

PYTHON_WORDS = ("Traceback", "NoneType", "Error:", "Exception", "object at 0x", "pydantic", "msgspec", "<class", "dict")


async def test_ten_thousand_malformed_messages(engine: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is sent, the same socket answers on, nothing of Python is said, and nothing is logged as a crash."""
    batches: list[list[str | bytes]] = []

    @settings(max_examples=115, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(JUNK, min_size=100, max_size=100))
    def make(batch: list[str | bytes]) -> None:
        batches.append(batch)

    make()
    sent = 0
    with structlog.testing.capture_logs() as lines:
        async with live_service(engine, {"LLM_MAX_CONNECTIONS": "2"}) as live, live.connect() as socket:
            await start(socket)
            for batch in batches:
                for message in batch[:90]:
                    await socket.send(message)
                    sent += 1
                await send(socket, "update_config", config={"stop": ["end of batch"]})
                while True:
                    event = await receive(socket)
                    assert not any(word in json.dumps(event) for word in PYTHON_WORDS), event
                    if event["type"] == "session_configured" and event["config"] == {"stop": ["end of batch"]}:
                        break
            answer = await ask(socket, "a 5")
            assert text("a", 5) == answer.text
    print(f"\n{sent} malformed messages on one socket")
    assert sent >= 10_000
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not [line for line in lines if line["log_level"] in {"error", "critical"} or line.get("exc_info")]
