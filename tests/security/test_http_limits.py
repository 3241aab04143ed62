"""Huge headers, slow headers, slow and endless bodies, clients that do not read (vLLM CVE-2025-48956)."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import Request, Response

from llm_service import protocols
from llm_service.config import Settings
from llm_service.engines import OpenedEngine
from llm_service.engines.scripted import ScriptedEngine
from llm_service.server import create_app_for
from llm_service.service import Service
from llm_service.serving import QuietServer, bind, main_config
from tests.live import opened
from tests.security.raw import exchange, head, status, to_the_end, upgrade

MEGABYTE = 1_048_576


@dataclass(frozen=True)
class Posting:
    """The main application with two routes more: one reads a body, and notes its length in `read`; one says much, and
    notes that in `asked`."""

    port: int
    read: list[int]
    asked: list[str]
    connections: set[Any]

    def clients(self) -> set[int]:
        """Return the ports of the clients that are connected."""
        return {connection.client[1] for connection in self.connections}

    async def probe(self) -> int:
        """Ask for the health, as a load balancer does."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            return (await client.get(f"http://127.0.0.1:{self.port}/health")).status_code


@pytest.fixture
async def posting() -> AsyncGenerator[Posting, None]:
    main = bind("127.0.0.1", 0, setting="LLM_PORT")
    settings = Settings.load({"LLM_PORT": str(main.getsockname()[1]), "HEADER_TIMEOUT": "2", "SEND_TIMEOUT": "1"})

    async def opener(_: Settings) -> OpenedEngine:
        return opened(ScriptedEngine(models=()))

    async with Service(settings, opener=opener) as service:
        app, read, asked = create_app_for(service), list[int](), list[str]()

        @app.post("/body")
        async def body(request: Request) -> int:
            read.append(len(await request.body()))
            return read[-1]

        @app.get("/much")
        async def much() -> Response:
            asked.append("/much")
            return Response(bytes(16 * MEGABYTE))

        server = QuietServer(main_config(app, settings))
        task = asyncio.create_task(server.serve(sockets=[main]))
        while not server.started:
            await asyncio.sleep(0.005)
        yield Posting(settings.llm_port, read, asked, server.server_state.connections)
        server.should_exit = True
        await task


def chunk(size: int) -> bytes:
    return b"%x\r\n" % size + bytes(size) + b"\r\n"


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([(f"X-{number}", "y") for number in range(120)], 200),
        ([(f"X-{number}", "y") for number in range(129)], 431),
        ([(f"X-{number}", "y" * 8000) for number in range(4)], 200),
        ([(f"X-{number}", "y" * 8000) for number in range(5)], 431),
        ([("Cookie", "y" * 200_000)], 431),
    ],
    ids=["120", "129", "32 KB", "40 KB", "200 KB"],
)
async def test_headers(posting: Posting, headers: list[tuple[str, str]], answer: int) -> None:
    """At most 128 headers of 32 KiB in all, in requests and in handshakes, however they arrive."""
    # What does not arrive at once the parser refuses before it is whole, with a status of its own.
    accepted = {answer} if answer != 431 else {400, 431}
    assert await status(posting.port, head("/health", headers)) in accepted
    expected = {101} if answer == 200 else accepted
    assert await status(posting.port, upgrade(dict(headers))) in expected


async def test_a_long_header_of_a_handshake(posting: Posting) -> None:
    """One header of more than 8 KiB is refused in a handshake; it is not left without an answer."""
    assert 101 == await status(posting.port, upgrade({"Cookie": "y" * 8000}))
    answer = await exchange(posting.port, upgrade({"Cookie": "y" * 9000}))
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_header_of_100_megabytes(posting: Posting) -> None:
    """A header that goes on for ever is cut within the first of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", posting.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    sent = 0
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while sent < 100 * MEGABYTE and not reader.at_eof():
                writer.write(b"y" * 65_536)
                await writer.drain()
                sent += 65_536
    writer.close()
    assert sent < 16 * MEGABYTE  # what the kernel's buffers took
    print(f"\na header of 100 MiB: cut off after {sent / MEGABYTE:.1f} MiB were sent")


async def test_a_body_of_one_megabyte_passes(posting: Posting) -> None:
    """What the limit allows is read whole."""
    length = [("Content-Length", str(MEGABYTE)), ("Connection", "close")]
    assert 200 == await status(posting.port, head("/body", length, method="POST") + bytes(MEGABYTE))
    assert [MEGABYTE] == posting.read


async def test_a_length_above_it_is_refused_at_once(posting: Posting) -> None:
    """Before a byte of a body that is too long has come, the answer is there, and the connection is closed."""
    answer = await exchange(posting.port, head("/body", [("Content-Length", str(MEGABYTE + 1))], method="POST"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("target", ["/body", "/health", "/nothing"])
async def test_a_chunked_body_of_250_megabytes(posting: Posting, target: str) -> None:
    """A body without a length is cut off at the limit, wherever it is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", posting.port)
    writer.write(head(target, [("Transfer-Encoding", "chunked")], method="POST"))
    sent, piece = 0, chunk(65_536)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while sent < 250 * MEGABYTE and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += 65_536
    writer.close()
    assert [] == posting.read
    assert sent < 16 * MEGABYTE
    print(f"\na body of 250 MiB to {target}: cut off after {sent / MEGABYTE:.1f} MiB were sent")


async def drip(port: int, begin: bytes, drop: bytes) -> None:
    """Send a byte or so at a time until the peer has enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.create_task(to_the_end(reader))
    with contextlib.suppress(ConnectionError):
        writer.write(begin)
        while not ended.done():
            writer.write(drop)
            await asyncio.wait({ended}, timeout=0.05)
    await ended
    writer.close()


ATTACKS = {
    "slow headers": (head("/health").removesuffix(b"\r\n"), b"X: y\r\n"),
    "slow body": (head("/body", [("Content-Length", "1000000")], method="POST"), b"x"),
    "slow chunks": (head("/body", [("Transfer-Encoding", "chunked")], method="POST"), b"1\r\nx\r\n"),
    "slow handshake": (upgrade().removesuffix(b"\r\n"), b"X: y\r\n"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_slow_clients_beside_a_probe(posting: Posting, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    """A hundred clients that send as slowly as they can are all cut off; meanwhile every probe is answered."""
    monkeypatch.setattr(protocols, "BODY_TIMEOUT", 0.5)
    begin, drop = ATTACKS[attack]
    answers = []
    async with asyncio.timeout(60):
        attackers = [asyncio.create_task(drip(posting.port, begin, drop)) for _ in range(100)]
        while not all(task.done() for task in attackers):
            answers.append(await posting.probe())
        await asyncio.gather(*attackers)
    assert answers
    assert {200} == set(answers)
    assert [] == posting.read


async def test_clients_that_do_not_read(posting: Posting) -> None:
    """Clients that ask for much and read nothing are cut off after SEND_TIMEOUT; meanwhile every probe is answered."""
    loop, lazy = asyncio.get_running_loop(), [socket.socket() for _ in range(10)]
    for each in lazy:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.setblocking(False)
        await loop.sock_connect(each, ("127.0.0.1", posting.port))
        await loop.sock_sendall(each, head("/much"))
    ports = {each.getsockname()[1] for each in lazy}

    answers = []
    async with asyncio.timeout(60):
        while posting.asked.count("/much") < len(lazy) or ports & posting.clients():
            answers.append(await posting.probe())
    assert {200} == set(answers)
    for each in lazy:
        each.close()


async def test_pipelined_requests_wait(posting: Posting) -> None:
    """Requests that are sent without waiting for answers are answered one after another."""
    answer = await exchange(posting.port, head("/health") * 49 + head("/health", [("Connection", "close")]))
    assert 50 == answer.count(b"HTTP/1.1 200 OK")


async def _bytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(1024)


async def test_a_decent_client_learns_why(posting: Posting) -> None:
    """A client that sends too long a body by chunks gets the code."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"http://127.0.0.1:{posting.port}/body", content=_bytes(1100))
    assert (413, "body_too_large") == (answer.status_code, answer.json()["error"]["code"])
