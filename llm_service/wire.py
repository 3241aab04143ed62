"""What a connection writes frames to: the server's own socket where it offers one, else ASGI's `send`."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

WIRE_EXTENSION = "fasttalk.wire"


class Wire(Protocol):
    """One WebSocket that can be written to without waiting."""

    def write(self, text: bytes) -> None:
        """Write a text frame; nothing happens once the WebSocket is closed."""
        ...

    def write_binary(self, data: bytes) -> None:
        """Write a binary frame; nothing happens once the WebSocket is closed."""
        ...

    def listen(self, pause: Callable[[], None], resume: Callable[[], None], take: Callable[[str], None]) -> None:
        """Call `pause` when the peer takes no more for now, and `resume` when it does again.

        `take` gets the text of a message from within the read that brought it, where that can be done here;
        every other message comes by ASGI's `receive`, and none overtakes another.
        """
        ...

    def abort(self) -> None:
        """Drop the TCP connection, if that can be done here."""
        ...


class ASGIWire:
    """A wire over ASGI's `send`, for servers that are not ours: every frame waits for the one before it.

    A client that reads nothing is told so and left to the server: dropping it is not in ASGI.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        self._sending: asyncio.Task[None] | None = None

    def write(self, text: bytes) -> None:
        self._begin({"type": "websocket.send", "text": text.decode()})

    def write_binary(self, data: bytes) -> None:
        self._begin({"type": "websocket.send", "bytes": data})

    def listen(self, pause: Callable[[], None], resume: Callable[[], None], take: Callable[[str], None]) -> None:  # noqa: ARG002
        self._pause, self._resume = pause, resume

    def abort(self) -> None:
        """Do nothing: ASGI has no such thing."""

    def _begin(self, message: Message) -> None:
        self._pause()
        self._sending = asyncio.get_running_loop().create_task(self._send(message))

    async def _send(self, message: Message) -> None:
        # A client that left is noticed by who reads from it.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.send(message)
            self._resume()


def wire_of(socket: WebSocket) -> Wire:
    """Return the wire of an accepted WebSocket."""
    wire: Wire | None = socket.scope.get("extensions", {}).get(WIRE_EXTENSION)
    return ASGIWire(socket) if wire is None else wire
