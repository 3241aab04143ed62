"""Writing at once to a transport's socket, on both event loops."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from llm_service.write_through import descriptor, write_through

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
# More than a socket holds.
MUCH = bytes(range(256)) * 40_000


def on(loop: Callable[[], asyncio.AbstractEventLoop], test: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.paused: list[bool] = []
        self.lost = asyncio.get_running_loop().create_future()

    def pause_writing(self) -> None:
        self.paused.append(True)

    def resume_writing(self) -> None:
        self.paused.append(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[asyncio.Transport, _Protocol, socket.socket], None]:
    """A transport over TCP, its protocol, and the other end, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(_Protocol, *listener.getsockname())
        peer, _ = listener.accept()
    with peer:
        peer.setblocking(False)
        yield transport, protocol, peer
    transport.abort()
    await protocol.lost


async def read(peer: socket.socket, length: int) -> bytes:
    found = bytearray()
    async with asyncio.timeout(10):
        while len(found) < length:
            found += await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
    return bytes(found)


@pytest.mark.parametrize("loop", LOOPS)
def test_it_is_written_at_once(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The other end can read it before the event loop turns again."""

    async def test() -> None:
        async with connected() as (transport, _, peer):
            write_through(transport, descriptor(transport), b"word")
            assert b"word" == peer.recv(100)

    on(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_order_is_kept(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What the transport still holds goes first; so does what the socket did not take at once, of which the protocol
    is told."""

    async def test() -> None:
        async with connected() as (transport, protocol, peer):
            number = descriptor(transport)
            transport.write(b"held ")
            write_through(transport, number, b"behind ")
            write_through(transport, number, MUCH)
            write_through(transport, number, b"last")
            expected = b"held behind " + MUCH + b"last"
            assert protocol.paused[:1] == [True]
            assert expected == await read(peer, len(expected))
            await asyncio.sleep(0)
            assert protocol.paused == [True, False]
            assert 0 == transport.get_write_buffer_size()
            write_through(transport, number, b"again")
            assert b"again" == await read(peer, 5)

    on(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_part_that_is_taken_is_not_written_twice(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Of much the socket takes some at once, and the transport writes the rest."""

    async def test() -> None:
        async with connected() as (transport, _, peer):
            write_through(transport, descriptor(transport), MUCH)
            assert 0 < transport.get_write_buffer_size() < len(MUCH)
            assert await read(peer, len(MUCH)) == MUCH

    on(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_broken_connection_is_lost(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """An error raises nothing: the protocol learns that the connection is lost."""

    async def test() -> None:
        async with connected() as (transport, protocol, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            write_through(transport, descriptor(transport), b"to nobody")
            async with asyncio.timeout(5):
                await asyncio.shield(protocol.lost)

    on(loop, test)


def test_tls_is_the_transports_own() -> None:
    """Through a transport that encrypts nothing is written past it."""

    class Encrypting(asyncio.Transport):
        def get_extra_info(self, name: str, default: object = None) -> Any:
            return {"sslcontext": ssl.create_default_context(), "socket": beneath}.get(name, default)

        def get_write_buffer_size(self) -> int:
            return 0

        def write(self, data: bytes | bytearray | memoryview) -> None:
            written.append(bytes(data))

    written: list[bytes] = []
    with socket.socket() as beneath:
        transport = Encrypting()
        assert descriptor(transport) is None
        write_through(transport, descriptor(transport), b"word")
    assert [b"word"] == written
