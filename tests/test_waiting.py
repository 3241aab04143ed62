"""More messages than the engine can work on, over the wire."""

import asyncio

import httpx

from llm_service.engines.scripted import Fault, ScriptedEngine
from tests.live import ask, collect, live_service, receive, send, start

ONE = {"MAX_RUNNING": "1", "MAX_WAITING": "1"}


def engine_that_hangs_once() -> ScriptedEngine:
    """Stop the first answer behind its first word, for ever."""
    return ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=(), faults=[Fault(1)])


async def test_a_line_and_its_end() -> None:
    """The second waits and is told where, the third is refused at once; a cancel of the first lets the second in."""
    async with (
        live_service(engine_that_hangs_once(), ONE) as live,
        live.connect() as first,
        live.connect() as second,
        live.connect() as third,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        await start(first)
        await start(second, events=["queued"])
        await start(third)
        await send(first, "user_message", text="hello")
        assert "token" == (await receive(first))["type"]
        await send(second, "user_message", text="hello", id="m-2")
        queued = await receive(second)
        assert ("queued", 1, "m-2") == (queued["type"], queued["position"], queued["id"])
        refused = await ask(third, "hello")
        error = refused.terminal["error"]
        assert ("overloaded", "resource", True) == (error["code"], error["category"], refused.terminal["terminal"])
        assert error["retry_after"] >= 1
        stats = (await http.get(live.url + "/stats")).json()
        assert ({"waiting": 1, "max_waiting": 1}, 1) == (stats["queue"], stats["engines"]["scripted"]["running"])
        before = (await http.get(live.monitoring_url + "/metrics")).text
        await send(first, "cancel")
        assert "cancelled" == (await collect(first)).terminal["type"]
        assert "a b " == (await collect(second)).text
        assert "a b " == (await ask(third, "again")).text
        after = (await http.get(live.monitoring_url + "/metrics")).text
    assert "fasttalk_queue_depth 1.0" in before
    assert 'fasttalk_permits_taken{engine="scripted"} 1.0' in before
    assert 'fasttalk_responses_running{engine="scripted",model="test"} 1.0' in before
    assert 'fasttalk_sheds_total{reason="overloaded"} 1.0' in after
    assert "fasttalk_queue_wait_seconds_count 1.0" in after


async def test_who_leaves_the_line() -> None:
    """By a cancel, or by going away: the engine never hears of either, and the turn is undone."""
    engine = engine_that_hangs_once()
    async with (
        live_service(engine, ONE | {"RESUME_GENERATE": "0"}) as live,
        live.connect() as first,
        live.connect() as second,
    ):
        await start(first)
        await start(second, events=["queued"])
        await send(first, "user_message", text="hello")
        await receive(first)
        await send(second, "user_message", text="hello")
        assert "queued" == (await receive(second))["type"]
        await send(second, "cancel")
        assert "cancelled" == (await collect(second)).terminal["type"]
        async with live.connect() as third:
            await start(third, events=["queued"])
            await send(third, "user_message", text="hello")
            assert "queued" == (await receive(third))["type"]
        line = live.service.engines.admission.line
        async with asyncio.timeout(10):
            while line.waiting:
                await asyncio.sleep(0.01)
        await send(first, "cancel")
        await collect(first)
    assert 1 == len(engine.requests)
