"""uvicorn's protocols with the limits it lacks: time for a request to arrive, and for a peer to read its answer."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from llm_service.close_codes import CloseCode
from llm_service.wire import WIRE_EXTENSION

# RFC 6455, 5.2: FIN and the opcode of text or of binary, then the length, in 7, 16 or 64 bits.
_TEXT = 0x81
_BINARY = 0x82
_SHORT_HEADERS = [bytes((_TEXT, length)) for length in range(126)]

# A body may come slower than headers: uploads cross phones' networks.
BODY_TIMEOUT = 30.0
# For one message, however many fragments it comes in.
MESSAGE_TIMEOUT = 30.0
# For a peer to read what was written before the end; closing alone waits for ever.
FLUSH_GRACE = 2.0

# SO_LINGER: on, for no time.
_AT_ONCE = struct.pack("ii", 1, 0)

_BAD_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

_logger = logging.getLogger("uvicorn.error")

# RFC 6455, section 7.4.1: stands for a connection that ended without a closing frame, and is never sent.
_LOST = 1006


class DeadlineH11Protocol(H11Protocol):
    """Closes a connection whose request does not arrive in time, or whose answer is not taken in time.

    uvicorn waits for a partial header, and for a peer that does not read, until the peer's TCP gives up. Times are in
    seconds; `send_timeout` is for what fills the buffers on the way.
    """

    header_timeout = 5.0
    send_timeout = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._awaited: object = None
        self._upgraded = False
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await(h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        self._stop_waiting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting()
        self._stalled = self.loop.call_later(self.send_timeout, self._overdue)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def handle_events(self) -> None:
        super().handle_events()
        state = self.conn.their_state
        if self._upgraded or self.transport.is_closing() or state not in (h11.IDLE, h11.SEND_BODY):
            self._await(None)
        elif state is h11.SEND_BODY:
            self._await(h11.SEND_BODY)
        elif self.conn.trailing_data[0]:
            self._await(h11.IDLE)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Within a request that is being answered there is no place for another answer.
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        # A client's mistake, and no reason to install anything.
        _logger.info("An upgrade was asked for that is not offered here.")

    def _await(self, state: object) -> None:
        if state is self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._awaited = state
        if state is not None:
            seconds = BODY_TIMEOUT if state is h11.SEND_BODY else self.header_timeout
            self._deadline = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


class TransportWire:
    """A `Wire` at the transport itself: neither way does a message pass a task, a queue or ASGI's dictionaries.

    `pause`, `resume` and `take` are for the transport's protocol to call; `take` is None until somebody listens.
    """

    __slots__ = ("_transport", "pause", "resume", "take")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.pause: Callable[[], None] = _ignore
        self.resume: Callable[[], None] = _ignore
        self.take: Callable[[str], None] | None = None

    def write(self, text: bytes) -> None:
        transport, length = self._transport, len(text)
        if transport.is_closing():
            return
        if length < 126:
            header = _SHORT_HEADERS[length]
        elif length < 65_536:
            header = struct.pack("!BBH", _TEXT, 126, length)
        else:
            header = struct.pack("!BBQ", _TEXT, 127, length)
        transport.write(header + text)

    def write_binary(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        length = len(data)
        if length < 126:
            header = struct.pack("!BB", _BINARY, length)
        elif length < 65_536:
            header = struct.pack("!BBH", _BINARY, 126, length)
        else:
            header = struct.pack("!BBQ", _BINARY, 127, length)
        self._transport.write(header + data)

    def listen(self, pause: Callable[[], None], resume: Callable[[], None], take: Callable[[str], None]) -> None:
        self.pause, self.resume, self.take = pause, resume, take

    def leave(self) -> None:
        """Let go of who listened."""
        self.pause = self.resume = _ignore
        self.take = None

    def abort(self) -> None:
        _reset(self._transport)


def _reset(transport: asyncio.Transport) -> None:
    """Close at once, and let go of what the peer has not read: the kernel would keep megabytes of it for minutes."""
    peer = transport.get_extra_info("socket")
    if peer is not None:
        with contextlib.suppress(OSError):  # it is closed already
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


def _ignore() -> None:
    """Do nothing."""


class WireWebSocketProtocol(WebSocketsSansIOProtocol):
    """Offers the application a `TransportWire` in the scope, under `WIRE_EXTENSION`.

    No end waits for ever: closing a transport waits until the peer has read what was written, holding socket and
    buffer, so that whatever closes this one drops it when FLUSH_GRACE is over.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._message_deadline: asyncio.TimerHandle | None = None
        self._wire: TransportWire | None = None
        self._drop: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not (self.handshake_initiated or self.transport.is_closing()):
            # What h11 takes may be too much for websockets: a header of more than 8 KiB is. uvicorn takes no note of
            # it, and would wait for ever.
            self.transport.write(b"".join(self.conn.data_to_send()) or _BAD_HANDSHAKE)
            self.transport.close()
            self._drop_in(FLUSH_GRACE)

    def _drop_in(self, seconds: float) -> None:
        if self._drop is None and not self.disconnected:
            self._drop = self.loop.call_later(seconds, _reset, self.transport)

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._drop_in(FLUSH_GRACE)

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._drop_in(FLUSH_GRACE)

    def shutdown(self) -> None:
        if self.transport.is_closing():
            # It has had its grace, and uvicorn would send another closing frame, which is an error.
            self.transport.abort()
        else:
            super().shutdown()
            self._drop_in(FLUSH_GRACE)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._wire is not None:
            self._wire.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._wire is not None:
            self._wire.resume()

    async def run_asgi(self) -> None:
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[WIRE_EXTENSION] = self._wire = TransportWire(self.transport)
        app = self.app

        async def finishing(*call: Any) -> None:
            await app(*call)
            # uvicorn takes a handshake that was answered by HTTP for one that was not answered.
            self.handshake_complete = self.handshake_complete or self.initial_response is not None

        self.app = finishing
        try:
            await super().run_asgi()
        finally:
            # Both hold this protocol, by way of the application and of who listens.
            self.app = app
            self._wire.leave()
        self._drop_in(self.close_timeout + FLUSH_GRACE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._message_complete()
        if self._drop is not None:
            self._drop.cancel()
            self._drop = None
        if self.conn.close_rcvd is None:
            # uvicorn says 1005, which stands for a client that closed, without a code; this one was lost.
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _LOST})
        super().connection_lost(exc)
        # There is nothing more to parse, and websockets' parser and what it parses for hold each other.
        self.conn.parser.close()

    def keepalive_timeout(self) -> None:
        """Close with a code that says "connect again"; uvicorn's own says that the server failed."""
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(CloseCode.NO_PONG, "no pong")
        super().keepalive_timeout()
        self._drop_in(FLUSH_GRACE)

    def handle_text(self, event: Frame) -> None:
        if not event.fin:
            self._message_begun()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if not event.fin:
            self._message_begun()
        super().handle_bytes(event)

    def send_receive_event_to_app(self) -> None:
        if self._message_deadline is not None:
            self._message_complete()
        if self.curr_msg_data_type != "text":
            super().send_receive_event_to_app()
            return
        try:
            text = b"".join(self.frames).decode()
        except UnicodeDecodeError:
            # uvicorn would log the client's mistake with a traceback.
            _logger.info("A client sent invalid UTF-8.")
            self.frames = []
            self.conn.fail(CloseCode.INVALID_UTF8, "invalid UTF-8")
            self.handle_parser_exception()
            return
        take = None if self._wire is None else self._wire.take
        if take is None or self.close_sent or not self.queue.empty():
            # Nobody listens yet, or what came earlier still waits for its reader.
            super().send_receive_event_to_app()
        else:
            self.frames = []
            take(text)

    def _message_begun(self) -> None:
        if self._message_deadline is None:
            self._message_deadline = self.loop.call_later(MESSAGE_TIMEOUT, self._message_overdue)

    def _message_complete(self) -> None:
        if self._message_deadline is not None:
            self._message_deadline.cancel()
            self._message_deadline = None

    def _message_overdue(self) -> None:
        self._message_deadline = None
        if not self.transport.is_closing():
            self.transport.abort()
