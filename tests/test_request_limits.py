"""What every request must keep to, whatever server runs the application."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from llm_service.access import AccessPolicy
from llm_service.events import ErrorBody
from llm_service.request_limits import MAX_HEADERS, RequestLimits, _BodyOverflow

LIMIT = 1000


class Limited:
    """An application behind the limits, what it read, and what was refused."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.refused: list[str] = []
        app = FastAPI()

        @app.post("/body")
        async def body(request: Request) -> dict[str, int]:
            self.read.append(len(await request.body()))
            return {"bytes": self.read[-1]}

        @app.post("/parsed")
        async def parsed(value: dict[str, Any]) -> dict[str, int]:
            return {"items": len(value)}

        def refused(error: ErrorBody) -> None:
            self.refused.append(error.code)

        self.app = RequestLimits(
            app, allows_host=AccessPolicy(port=8000).allows_host, max_body_bytes=LIMIT, refused=refused
        )

    async def post(self, path: str = "/body", **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, **options)


@pytest.fixture
def limited() -> Limited:
    return Limited()


async def pieces(count: int, size: int = 100) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


@pytest.mark.parametrize("make", [lambda: b"x" * LIMIT, lambda: pieces(10)], ids=["whole", "chunked"])
async def test_a_body_up_to_the_limit(limited: Limited, make: Callable[[], Any]) -> None:
    """A body of exactly MAX_BODY_BYTES passes."""
    answer = await limited.post(content=make())
    assert (200, {"bytes": LIMIT}) == (answer.status_code, answer.json())
    assert [] == limited.refused


@pytest.mark.parametrize("path", ["/body", "/parsed"])
@pytest.mark.parametrize("make", [lambda: b"x" * (LIMIT + 1), lambda: pieces(11)], ids=["whole", "chunked"])
async def test_a_body_that_is_too_long(limited: Limited, make: Callable[[], Any], path: str) -> None:
    """One byte more is 413 with a code, whether its length was told or not and whatever reads it; the rest is not
    read."""
    answer = await limited.post(path, content=make())
    assert (413, "body_too_large") == (answer.status_code, answer.json()["error"]["code"])
    assert "close" == answer.headers["connection"]
    assert ([], ["body_too_large"]) == (limited.read, limited.refused)


@pytest.mark.parametrize("length", ["1001", "9" * 30, "9" * 5000])
async def test_a_length_that_is_too_large(limited: Limited, length: str) -> None:
    """A length that is told and too large is enough, however many digits it has."""
    answer = await limited.post(content=b"x", headers={"Content-Length": length})
    assert 413 == answer.status_code


async def test_a_body_that_becomes_too_long_while_it_is_answered(limited: Limited) -> None:
    """An answer that has begun cannot be taken back: the server is told, and cuts it."""

    async def answers_first(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await receive()

    limited.app._app = answers_first
    with pytest.raises(_BodyOverflow):
        await limited.post(content=pieces(30))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({f"x-{number}": "y" for number in range(MAX_HEADERS - 10)}, 200),
        ({f"x-{number}": "y" for number in range(MAX_HEADERS + 1)}, 431),
        ({"x": "y" * 32_000}, 200),
        ({"x": "y" * 33_000}, 431),
    ],
    ids=["many", "too many", "long", "too long"],
)
async def test_headers(limited: Limited, headers: dict[str, str], status: int) -> None:
    """More than 128 headers, or more than 32 KiB of them, are 431."""
    assert status == (await limited.post(content=b"x", headers=headers)).status_code


async def test_a_target_that_is_too_long(limited: Limited) -> None:
    """Path and query count as headers do."""
    assert 431 == (await limited.post("/body?" + "q" * 40_000)).status_code


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("evil.org", 403), ("localhost/body?", 403)])
async def test_hosts(limited: Limited, host: str, status: int) -> None:
    """A name that may be anybody's is 403."""
    assert status == (await limited.post(content=b"x", headers={"Host": host})).status_code
