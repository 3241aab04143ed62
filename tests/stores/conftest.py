"""The stores that the tests here are run on."""

import itertools
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from llm_service.config import Settings
from llm_service.stores import open_store
from llm_service.stores.base import Store
from tests.redis_server import RedisServer

KINDS = ["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)]
SHARED_KINDS = KINDS[1:]

Opening = Callable[[], Awaitable[Store]]


def environment(kind: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    """Return the settings of a store of this kind that is empty."""
    variables = {"SESSION_STORE": kind, "SQLITE_PATH": str(folder / "sessions.sqlite3"), "MAX_RECORD_BYTES": "2000000"}
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        variables |= {"REDIS_URL": server.url, "REDIS_PREFIX": f"test-{uuid.uuid4()}:"}
    return variables


@pytest.fixture
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Opening, None]:
    """Opens the store of the test's kind as often as it is called, as so many processes would."""
    settings = Settings.load(environment(request.param, request, tmp_path))
    stores: list[Store] = []

    async def again() -> Store:
        stores.append(await open_store(settings))
        return stores[-1]

    yield again
    for store in itertools.chain(stores, stores):
        await store.aclose()


@pytest.fixture
async def store(opened: Opening) -> Store:
    return await opened()
