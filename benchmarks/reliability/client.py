"""A client that takes its events one by one, notes what is wrong with their numbers, and can be cut off."""

import asyncio
from collections import deque
from time import monotonic
from typing import Any

import msgspec
import picows

# Seconds of silence after which a client is hung.
PATIENCE = 40.0


class ErrorBody(msgspec.Struct):
    """Of an `error` event."""

    code: str


class Stats(msgspec.Struct):
    """Of a `response_complete` event, in tokens."""

    prompt_tokens: int = 0
    tokens_generated: int = 0


class Event(msgspec.Struct):
    """A server event, as far as it matters here; `at` is when it came."""

    type: str
    seq: int = 0
    data: str = ""
    session_id: str = ""
    resumed: bool | None = None
    reason: str | None = None
    terminal: bool = False
    success: bool = False
    id: int | str | None = None
    chunk: int = 0
    error: ErrorBody | None = None
    stats: Stats | None = None
    at: float = 0.0


_decode = msgspec.json.Decoder(Event).decode
_encode = msgspec.json.Encoder().encode


class Lost(Exception):
    """The connection is gone; `code` is the closing frame's, None without one."""

    def __init__(self, code: object) -> None:
        super().__init__(f"the connection was closed with {code}" if code else "the connection was lost")
        self.code = code


class Hung(Exception):
    """Nothing came for PATIENCE seconds."""


class Client(picows.WSListener):
    """One WebSocket."""

    def __init__(self) -> None:
        self._transport: picows.WSTransport | None = None
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: Lost | None = None
        self._code: object = None  # an int, whichever class it comes in

    @classmethod
    async def connect(cls, port: int) -> "Client":
        """Connect to the service on this port of loopback.

        Raises:
            Lost: it takes no connection.
        """
        client = cls()
        url = f"ws://127.0.0.1:{port}/ws/llm"
        try:
            await picows.ws_connect(lambda: client, url, websocket_handshake_timeout=PATIENCE)
        except (OSError, TimeoutError, picows.WSError) as error:
            raise Lost(None) from error
        return client

    def send(self, kind: str, **fields: Any) -> None:
        """Say something."""
        assert self._transport is not None
        self._transport.send(picows.WSMsgType.TEXT, _encode({"type": kind, **fields}))

    async def event(self, seconds: float = PATIENCE) -> Event:
        """Return the next event.

        Raises:
            Lost: the connection is gone, and all that came was taken.
            Hung: nothing came for so many `seconds`.
        """
        if not self._events:
            if self._lost is not None:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._waiter
            except TimeoutError:
                raise Hung from None
            finally:
                self._waiter = None
            return await self.event(seconds)
        return self._events.popleft()

    def cut(self) -> None:
        """Drop the connection without a word, and what has come and was not taken."""
        self._events.clear()
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def close(self) -> None:
        """Say goodbye."""
        if self._transport is not None and self._lost is None:
            self._transport.send_close(picows.WSCloseCode.OK)
            self._transport.disconnect()

    # picows' callbacks

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            event = _decode(frame.get_payload_as_bytes())
            event.at = monotonic()
            self._events.append(event)
            self._wake()
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self._code = frame.get_close_code()
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        self._lost = Lost(self._code)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def started(port: int, **config: Any) -> Client:
    """Connect and start a session."""
    client = await Client.connect(port)
    client.send("start_session", config=config)
    # A service that is busy greets first, and answers then.
    while (await client.event()).type not in {"session_started", "session_configured"}:
        pass
    return client


async def answer(client: Client, prompt: str) -> tuple[str, Event]:
    """Ask, and return the text and the terminal event."""
    client.send("user_message", text=prompt)
    said = []
    while True:
        event = await client.event()
        if event.type == "token":
            said.append(event.data)
        elif event.type in {"response_complete", "cancelled"} or event.terminal or event.type == "error":
            return "".join(said), event
