"""Series that clients could make: the metrics have none, whatever sessions, models and messages there were."""

import asyncio
import json
import random

import httpx

from llm_service.engines.scripted import ScriptedEngine
from tests.live import Live, ask, live_service, receive, send, start

SESSIONS = 10_000
AT_ONCE = 200


async def series(live: Live) -> set[str]:
    """Return the name and labels of every series."""
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(live.monitoring_url + "/metrics")).text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


async def test_random_sessions_and_models() -> None:
    """After ten thousand sessions of random ids, models, message types and configurations there is not one series
    more."""
    chance = random.Random(7)
    engine = ScriptedEngine(lambda _: ["yes"], tokens_per_second=10_000, models=())
    environment = {"MAX_INVALID_MESSAGES": "1000000", "MAX_RESTING_SESSIONS": "10"}
    async with live_service(engine, environment) as live, live.connect() as socket:
        await start(socket)
        await ask(socket, "hi")
        await socket.send("{}")
        await receive(socket)
        before = await series(live)
        async with asyncio.timeout(10):
            while (settled := await series(live)) != before or "fasttalk_permits_taken" not in str(settled):
                before = settled
                await asyncio.sleep(0.1)
        for _ in range(SESSIONS // AT_ONCE):
            for _ in range(AT_ONCE):
                name = f"{chance.getrandbits(64):x}"
                await send(socket, "start_session", config={"model": name})
                await send(socket, "start_session", config={"seed": chance.getrandbits(32), "system_prompt": name})
            started = 0
            while started < AT_ONCE:
                started += (await receive(socket))["type"] == "session_started"
        await send(socket, "start_session", session_id="f" * 32, last_seq=1)
        await receive(socket)
        await ask(socket, "hi", id="f" * 32)
        for _ in range(AT_ONCE):
            await socket.send(json.dumps({"type": f"{chance.getrandbits(64):x}"}))
            await receive(socket)
        for path in (f"/{chance.getrandbits(64):x}" for _ in range(200)):
            async with httpx.AsyncClient(trust_env=False) as http:
                await http.get(live.url + path)
        after = await series(live)
        assert SESSIONS < live.service.manager.totals().messages_received
        assert set() == after - before
        assert before == after
    print(f"\n{SESSIONS} sessions, {2 * SESSIONS} names: {len(before)} series before, {len(after)} after")
