"""A small HTTP server on loopback that answers as a test tells it to and notices when its client leaves."""

import asyncio
import os
import select
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec


class Exchange:
    """One request and the means to answer it, in pieces of the test's choice."""

    def __init__(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        writer: asyncio.StreamWriter,
        connection: int,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.connection = connection  # its number, from 1
        self._writer = writer
        self.left = asyncio.Event()  # the client has closed the connection

    def json(self) -> dict[str, object]:
        """Decode the request's body."""
        return msgspec.json.decode(self.body, type=dict[str, object])

    async def start(self, status: int = 200, **headers: str) -> None:
        """Send status and headers of a chunked answer."""
        lines = [f"HTTP/1.1 {status} X", "Transfer-Encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes, size: int | None = None) -> None:
        """Send a part of the body, in chunks of `size` bytes."""
        size = size or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            await self.raw(b"%x\r\n%s\r\n" % (len(piece), piece))

    async def end(self) -> None:
        """Send the end of the body."""
        await self.raw(b"0\r\n\r\n")

    async def answer(self, data: bytes, status: int = 200, size: int | None = None, **headers: str) -> None:
        """Send a whole answer."""
        await self.start(status, **headers)
        if data:
            await self.send(data, size)
        await self.end()

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    def is_left(self) -> bool:
        """Whether the client's end has come, by the kernel: unlike for `left`, no event loop need run for it."""
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as peer:
            ready, _, _ = select.select([peer], [], [], 0.5)
            return bool(ready) and peer.recv(1, socket.MSG_PEEK) == b""

    def reset(self) -> None:
        """Break the connection."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection in order."""
        self._writer.close()


Answer = Callable[[Exchange], Awaitable[None]]


class FakeServer:
    """The server; `answer` is what it does with each request, `exchanges` what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Answer = _not_told
        self.exchanges: list[Exchange] = []
        self.asked = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        self.connections += 1
        connection = self.connections
        first = b""
        exchange: Exchange | None = None
        try:
            while True:
                exchange = await _read_request(first, reader, writer, connection)
                self.exchanges.append(exchange)
                self.asked.set()
                # No client sends a second request before it has the answer: what can be read is the end.
                watch = asyncio.ensure_future(_first_byte(reader, exchange))
                try:
                    await self.answer(exchange)
                    first = await watch
                finally:
                    watch.cancel()
                if not first:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if exchange is not None:
                exchange.left.set()
            writer.close()


async def _not_told(exchange: Exchange) -> None:
    raise AssertionError("the test did not say what to answer")


async def _first_byte(reader: asyncio.StreamReader, exchange: Exchange) -> bytes:
    try:
        first = await reader.read(1)
    except ConnectionError:
        first = b""
    if not first:
        exchange.left.set()
    return first


async def _read_request(
    first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
) -> Exchange:
    head = first + await reader.readuntil(b"\r\n\r\n")
    request, *lines = head.decode().split("\r\n")[:-2]
    method, path, _ = request.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, path, headers, body, writer, connection)


@asynccontextmanager
async def fake_server(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncGenerator[FakeServer, None]:
    """Run a server until the block is left."""
    fake = FakeServer()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await fake.serve(reader, writer)
        except asyncio.CancelledError:
            # The stream server's own callback would report a cancelled connection as an error.
            pass
        finally:
            connections.discard(task)

    server = await asyncio.start_server(serve, host, 0, ssl=tls, backlog=1024)
    shown = f"[{host}]" if ":" in host else host
    fake.url = f"http{'s' if tls else ''}://{shown}:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections)
        await server.wait_closed()
