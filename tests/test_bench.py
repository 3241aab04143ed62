"""The benchmark for users: its load against a live service that behaves or does not."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from websockets.asyncio.server import ServerConnection, serve

from llm_service import bench
from llm_service.bench_figures import Failure, Load, Records, figures
from llm_service.chat_client import ChatClient
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import GenerationFailed
from tests.live import Live, live_service

LOAD = Load(sessions=2, turns=2, prompt="private words", max_tokens=5)
STARTED = {"type": "session_started", "session_id": "s", "model": "m"}


def fast(**options: Any) -> ScriptedEngine:
    return ScriptedEngine(tokens_per_second=1000, models=(), **options)


async def measured(url: str, load: Load = LOAD) -> Records:
    records = Records()
    async with asyncio.timeout(20):
        await bench.measure(load, lambda: ChatClient(url, config=load.config), records, lambda _: None)
    return records


async def measured_of(engine: ScriptedEngine, load: Load = LOAD, **environment: str) -> Records:
    async with live_service(engine, environment) as live:
        return await measured(live.ws_url, load)


async def measured_against(talk: Callable[[ServerConnection], Awaitable[None]]) -> Records:
    """Measure one question of one session with a service that talks as the test says."""
    async with serve(talk, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        return await measured(f"ws://127.0.0.1:{port}/", replace(LOAD, sessions=1, turns=1))


class TestMeasure:
    async def test_counts(self) -> None:
        """Every session asks every question, all at once; the warm-up is asked before and not counted."""
        engine = fast()
        records = await measured_of(engine)
        assert ("test", []) == (records.model, records.failures)
        assert [0, 0, 1, 1] == sorted(answer.session for answer in records.answers)
        assert 5 == len(engine.requests)
        assert 2 == engine.most_running
        assert {(5, 0.0)} == {(asked.sampling.max_tokens, asked.sampling.temperature) for asked in engine.requests}
        # What was said before: nothing at the warm-up, nor in the two sessions' first questions, then a turn.
        assert [1, 1, 1, 3, 3] == sorted(
            sum(message.role != "system" for message in asked.messages) for asked in engine.requests
        )
        for answer in records.answers:
            assert (5, 5, False) == (answer.words, answer.tokens, answer.estimated)
            times = [answer.asked, *answer.arrivals, answer.ended]
            assert 2 < len(times)
            assert times == sorted(times)

    async def test_time_to_first_token(self) -> None:
        """It is at least what the engine took."""
        records = await measured_of(fast(ttft=0.05))
        found = figures(LOAD, records)
        assert found.time_to_first_token_seconds is not None
        assert 0.05 <= min(answer.arrivals[0] - answer.asked for answer in records.answers)
        assert found.complete

    async def test_an_answer_that_fails(self) -> None:
        """It is counted, and the session asks its next question."""
        engine = fast(faults=[None, Fault(2, GenerationFailed("it broke"))])
        records = await measured_of(engine)
        assert [Failure("generation_failed", "it broke")] == records.failures
        assert 3 == len(records.answers)

    async def test_a_warm_up_that_fails(self) -> None:
        """Nothing is measured then."""
        engine = fast(faults=[Fault(0, GenerationFailed("it broke"))])
        records = await measured_of(engine)
        assert ([Failure("generation_failed", "it broke")], []) == (records.failures, records.answers)
        assert 1 == len(engine.requests)

    async def test_more_sessions_than_connections(self) -> None:
        """Those turned away are counted, once each; the others are measured."""
        records = await measured_of(fast(), replace(LOAD, sessions=5), LLM_MAX_CONNECTIONS="3")
        assert ["max_connections"] * 2 == [failure.code for failure in records.failures]
        assert 3 * 2 == len(records.answers)

    async def test_a_full_service(self) -> None:
        """A service that has no place at all says so."""
        async with live_service(fast(), {"LLM_MAX_CONNECTIONS": "1"}) as live, live.connect() as other:
            await other.send(json.dumps({"type": "start_session"}))
            await other.recv()
            records = await measured(live.ws_url)
        assert ["max_connections"] == [failure.code for failure in records.failures]

    async def test_a_config_that_is_refused(self) -> None:
        """The service's own words say why."""
        records = await measured_of(fast(), replace(LOAD, max_tokens=10**9))
        assert ["invalid_config"] == [failure.code for failure in records.failures]

    async def test_a_service_that_stops(self) -> None:
        """An error that ends the session is counted once, though the connection closes after it."""

        async def talk(socket: ServerConnection) -> None:
            await socket.recv()
            await socket.send(json.dumps(STARTED))
            message = json.loads(await socket.recv())
            error = {"code": "shutting_down", "message": "stopping", "recoverable": False}
            await socket.send(json.dumps({"type": "error", "error": error, "id": message["id"], "terminal": True}))

        assert [Failure("shutting_down", "stopping")] == (await measured_against(talk)).failures

    @pytest.mark.parametrize(
        ("end", "code"),
        [
            ({"type": "cancelled", "success": True}, "cancelled"),
            ({"type": "response_complete"}, "other_protocol"),
            ({"type": "response_complete", "stats": []}, "other_protocol"),
            ({"type": "error", "error": "no"}, "other_protocol"),
        ],
    )
    async def test_other_ends(self, end: dict[str, object], code: str) -> None:
        """What somebody else cancels was not completed, nor what ends in an unknown way."""

        async def talk(socket: ServerConnection) -> None:
            await socket.recv()
            await socket.send(json.dumps(STARTED))
            message = json.loads(await socket.recv())
            await socket.send(json.dumps({**end, "id": message["id"]}))
            await socket.wait_closed()

        assert [code] == [failure.code for failure in (await measured_against(talk)).failures]

    async def test_an_answer_that_never_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is given up some time."""
        monkeypatch.setattr(bench, "ANSWER_TIMEOUT", 0.05)
        records = await measured_of(fast(faults=[Fault(1)]))
        assert [Failure("no_answer", "an answer took longer than 0.05 seconds")] == records.failures

    async def test_interrupted(self) -> None:
        """What was measured until then is there, and no connection is left."""
        engine = fast(faults=[None, None, Fault(1)])
        records, load = Records(), replace(LOAD, sessions=1)
        async with live_service(engine) as live, asyncio.timeout(20):
            work = asyncio.create_task(
                bench.measure(load, lambda: ChatClient(live.ws_url, config=load.config), records, lambda _: None)
            )
            while len(engine.requests) < 3:
                await asyncio.sleep(0.001)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            while live.service.connections:
                await asyncio.sleep(0.001)
        assert (1, []) == (len(records.answers), records.failures)


class TestRun:
    async def run(self, live: Live, *, as_json: bool) -> tuple[int, str, str]:
        output, notes = io.StringIO(), io.StringIO()
        status = await asyncio.to_thread(
            bench.run,
            LOAD,
            lambda: ChatClient(live.ws_url, config=LOAD.config),
            as_json=as_json,
            console=Console(file=output, width=80),
            notes=Console(file=notes, width=80),
        )
        return status, output.getvalue(), notes.getvalue()

    async def test_table(self) -> None:
        """The figures go to the one console and what is going on to the other; no word of the question to either."""
        async with live_service(fast()) as live:
            status, output, notes = await self.run(live, as_json=False)
        assert 0 == status
        assert "4 of 4 responses completed, 20 words, 20 tokens of test" == output.splitlines()[-1]
        said = ["warming up: one answer that does not count", "measuring; sessions: 2, questions in each: 2"]
        assert said == notes.splitlines()
        assert "private" not in output

    async def test_json(self) -> None:
        """The output is one document with every key, and status 1 says that an answer failed."""
        async with live_service(fast(faults=[None, Fault(2, GenerationFailed("it broke"))])) as live:
            status, output, _ = await self.run(live, as_json=True)
        found = json.loads(output)
        assert 1 == status
        assert [
            "model",
            "sessions",
            "turns",
            "max_tokens",
            "interrupted",
            "responses_asked_for",
            "responses_completed",
            "time_to_first_token_seconds",
            "gap_seconds",
            "response_seconds",
            "words",
            "tokens",
            "tokens_estimated",
            "words_per_second",
            "tokens_per_second",
            "errors",
        ] == list(found)
        assert ["p50", "p95", "p99", "max"] == list(found["gap_seconds"])
        assert ["per_session", "in_all"] == list(found["words_per_second"])
        assert {"generation_failed": {"count": 1, "message": "it broke"}} == found["errors"]
        assert (4, 3, 15) == (found["responses_asked_for"], found["responses_completed"], found["tokens"])
        assert "private" not in output
