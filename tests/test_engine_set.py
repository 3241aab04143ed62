"""The engines of a process: the service with several of them, over the wire."""

import asyncio
import json
from time import monotonic

import httpx
import pytest

from llm_service.engine_set import TRIAL
from llm_service.engines.breaker import LEAST_CALLS
from llm_service.engines.members import Members
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import GenerationFailed
from tests.engines.pools import MODEL, Pool, named
from tests.live import ask, collect, live_service, receive, send, start


async def test_one_of_two_fails() -> None:
    """Clients see nothing of it; `/stats`, `/health` and the metrics do, and readiness goes with any that is ready."""
    pool = Pool("a", "b")
    environment = named({"a": {"max_running": 2}, "b": {}})
    async with (
        live_service(Members(pool.members), environment, model=MODEL, members=tuple(pool.members)) as live,
        live.connect() as socket,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        started = await start(socket)
        assert ("pool", MODEL) == (started["provider"], started["model"])
        assert "a says it." == (await ask(socket, "hello")).text
        pool.inner["a"].fail(GenerationFailed("it broke"))
        assert "b says it." == (await ask(socket, "hello")).text
        pool.inner["a"].down = True
        await live.service.health.check()
        assert "b says it." == (await ask(socket, "hello")).text
        body = (await http.get(live.url + "/stats")).json()
        assert (2, 1024) == (body["engines"]["a"]["max_running"], body["engines"]["b"]["max_running"])
        assert (False, True) == (body["engines"]["a"]["healthy"], body["engines"]["b"]["healthy"])
        assert {"a", "b"} == set(body["errors"]["circuit_breakers"])
        assert 200 == (await http.get(live.monitoring_url + "/health/ready")).status_code
        metrics = (await http.get(live.monitoring_url + "/metrics")).text
        pool.inner["b"].down = True
        await live.service.health.check()
        ready = await http.get(live.monitoring_url + "/health/ready")
        health = (await http.get(live.url + "/health")).json()
    assert 503 == ready.status_code
    assert "a: The scripted engine was told to be down.; b: The scripted" in health["problem"]
    for line in (
        'fasttalk_failovers_total{engine="a",first_token="before"} 1.0',
        'fasttalk_engine_healthy{engine="a"} 0.0',
        'fasttalk_engine_healthy{engine="b"} 1.0',
        'fasttalk_permits_taken{engine="b"} 0.0',
        'fasttalk_time_to_first_token_seconds_count{engine="a",model="test"} 1.0',
        'fasttalk_time_to_first_token_seconds_count{engine="b",model="test"} 2.0',
    ):
        assert line in metrics


WORDS = [f"w{number} " for number in range(12)]


async def test_one_that_breaks_at_every_word() -> None:
    """Whichever word it is: the client gets the whole text once, by one terminal event, and the conversation has it."""
    pool = Pool("a", "b", words=WORDS)
    members = tuple(pool.members)
    async with (
        live_service(Members(pool.members), named({"a": {}, "b": {}}), model=MODEL, members=members) as live,
        live.connect() as socket,
    ):
        for after in range(1, len(WORDS) + 1):
            await start(socket)
            pool.inner["a"].fail(GenerationFailed("it broke"), after=after)
            for member in live.service.engines.members:
                member.protected.breaker._outcomes.clear()
            for expected in (1, 2):
                answer = await ask(socket, "hello")
                assert ("".join(WORDS), "response_complete") == (answer.text, answer.terminal["type"])
                (session,) = live.service.manager.sessions
                assert ["".join(WORDS)] * expected == [turn.answer for turn in session.conversation.turns]
    assert len(WORDS) == len([request for request in pool.inner["b"].requests if request.messages[-1].role != "user"])


async def test_one_that_nobody_goes_on_with() -> None:
    """One error, after the words that were said, and the history as before."""
    pool = Pool("a", "b", words=WORDS)
    pool.inner["b"]._continues = False
    members = tuple(pool.members)
    async with (
        live_service(Members(pool.members), named({"a": {}, "b": {}}), model=MODEL, members=members) as live,
        live.connect() as socket,
    ):
        await start(socket)
        pool.inner["a"].fail(GenerationFailed("it broke"), after=3)
        answer = await ask(socket, "hello")
        assert ("w0 w1 w2 ", "generation_failed") == (answer.text, answer.terminal["error"]["code"])
        (session,) = live.service.manager.sessions
        assert () == session.conversation.turns
        assert "".join(WORDS) == (await ask(socket, "hello")).text


async def test_all_fail() -> None:
    """One error, and the history as before."""
    pool = Pool("a", "b")
    async with (
        live_service(
            Members(pool.members), named({"a": {}, "b": {}}), model=MODEL, members=tuple(pool.members)
        ) as live,
        live.connect() as socket,
    ):
        await start(socket)
        for engine in pool.inner.values():
            engine.faults.append(Fault(0, GenerationFailed("it broke")))
        failed = await ask(socket, "hello")
        assert ("generation_failed", 0) == (failed.terminal["error"]["code"], live.service.manager.totals().turns)
        assert "says it." in (await ask(socket, "hello")).text


async def test_the_watch_tries_what_failed_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a word of its own, when the breaker's rest is over: no client waits to find out."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.001)
    pool = Pool("a", "b")
    await pool.look()
    breaker = pool.set.protected[0].breaker
    for _ in range(LEAST_CALLS):
        breaker.failed(breaker.admit(monotonic()), monotonic())
    pool.inner["a"].fail(GenerationFailed("still sick"))
    watch = asyncio.create_task(pool.set.health.watch())
    async with asyncio.timeout(10):
        for tried in (1, 2):
            breaker._open_until = 0.0
            while len(pool.inner["a"].requests) < tried or pool.taken() != [0, 0]:
                await asyncio.sleep(0.001)
            assert ("open" if tried == 1 else "closed") == breaker.state
    watch.cancel()
    assert {TRIAL} == {request.messages[0].content for request in pool.inner["a"].requests}
    assert [] == pool.inner["b"].requests


async def test_the_watch_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked again and again; what is the matter with each is told when none answers."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.001)
    pool = Pool("a", "b")
    assert (False, "a: not asked yet; b: not asked yet") == (pool.set.health.reachable, pool.set.health.problem)
    watch = asyncio.create_task(pool.set.health.watch())
    async with asyncio.timeout(10):
        while not pool.set.health.reachable:
            await asyncio.sleep(0)
    assert pool.set.health.problem is None
    watch.cancel()
    assert json.dumps(pool.set.statistics(0.0))


async def test_the_line_of_one_that_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the only engine: the one that was asked goes on waiting, who stands behind it is told that nothing comes."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.01)
    monkeypatch.setattr("llm_service.engine_health.PING_TIMEOUT", 0.01)
    engine = ScriptedEngine(lambda _: ["a ", "b "], tokens_per_second=10_000, models=(), faults=[Fault(0)])
    async with (
        live_service(engine, {"MAX_RUNNING": "1"}) as live,
        live.connect() as first,
        live.connect() as second,
    ):
        await start(first)
        await start(second, events=["queued"])
        await send(first, "user_message", text="hello")
        await send(second, "user_message", text="hello")
        assert "queued" == (await receive(second))["type"]
        ping, engine.ping = engine.ping, asyncio.Event().wait  # type: ignore[method-assign, assignment]
        error = (await collect(second)).terminal["error"]
        assert ("engine_timeout", True) == (error["code"], error["recoverable"])
        assert "not even pings" in error["message"]
        assert 1 == engine.running
        engine.ping = ping  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            while not live.service.health.reachable:
                await asyncio.sleep(0.01)
        await send(first, "cancel")
        assert "cancelled" == (await collect(first)).terminal["type"]
        assert "a b " == (await ask(second, "again")).text
