"""The store as a process uses it, over real sockets and a real file."""

import asyncio
from pathlib import Path

from llm_service import records
from llm_service.engines.scripted import ScriptedEngine
from llm_service.records import SessionRecord
from llm_service.stores.sqlite import SQLiteStore
from tests.live import ask, live_service, start


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
