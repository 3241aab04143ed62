"""The load generator's clients: one WebSocket or one HTTP connection each, turn after turn.

They do as little as can be for each frame: note the time, count the words, keep the text. The text of every
answer is compared with the script's, whole answers and broken off ones alike.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Literal, Protocol

import httptools
import msgspec
import picows

from benchmarks.script import Script

Kind = Literal["websocket", "sse"]

# Each session's answers have seeds of their own, so many.
_SEEDS = 10_000


class Turn(msgspec.Struct):
    """One answer as it arrived: times of the shared clock, one for each word; `error` says what was wrong."""

    seed: int
    asked: float
    arrivals: list[float] = []
    frames: int = 0
    complete: bool = False
    error: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What a load generator is to do. Idle sessions start and say nothing; `turns` 0 means until stopped.

    Sessions that have had their `turns` and that `stay` are silent then until they are stopped.
    """

    kind: Kind
    port: int
    path: str
    sessions: int
    words: int = 100
    rate: float = 50.0
    ttft: float = 0.05
    ramp: float = 1.0
    idle: bool = False
    turns: int = 0
    stay: bool = False
    first_seed: int = 1
    key: str = "none"


def session_of(seed: int) -> int:
    """Return which session of a plan an answer is of, by its seed."""
    return seed // _SEEDS


class Session:
    """One user: asks, takes the answer, asks again. `started` is called once, when the first word is there."""

    def __init__(self, plan: Plan, number: int, started: Callable[[], None]) -> None:
        self._plan = plan
        self._seed = plan.first_seed + number * _SEEDS
        self._started: Callable[[], None] | None = started
        self._script = Script(0)
        self._pieces: list[str] = []
        self.ask: Callable[[str], None]
        self.turns: list[Turn] = []
        self.stopped = False
        self.failure = ""

    def begin(self) -> None:
        """Take note that the session stands, and ask for the first time."""
        if self._plan.idle:
            self._tell_started()
        else:
            self._next()

    def text(self, text: str) -> None:
        """Take what arrived in one frame."""
        now = monotonic()
        turn = self.turns[-1]
        turn.frames += 1
        words = text.count(" ")
        if words == 1:
            turn.arrivals.append(now)
        else:
            turn.arrivals.extend([now] * words)
        self._pieces.append(text)
        if self._started is not None:
            self._tell_started()

    def end(self) -> None:
        """Take the end of an answer."""
        self.turns[-1].complete = True
        self.close_turn()
        if not self.stopped and len(self.turns) != self._plan.turns:
            self._next()

    def fail(self, reason: str) -> None:
        """Take note that this session is lost."""
        if not self.stopped and not self.failure:
            self.failure = reason

    def close_turn(self) -> None:
        """Compare what arrived with what was to arrive."""
        if not self.turns or not self._script.words:
            return
        turn, wanted, got = self.turns[-1], self._script.text(), "".join(self._pieces)
        if turn.complete and got != wanted:
            turn.error = f"{len(got)} characters came, {len(wanted)} were due, or not these"
        elif not wanted.startswith(got):
            turn.error = "what came is not how the answer begins"
        self._script = Script(0)

    def _next(self) -> None:
        plan = self._plan
        self._script = Script(plan.words, plan.rate, plan.ttft, self._seed + len(self.turns))
        self._pieces = []
        self.turns.append(Turn(self._script.seed, monotonic()))
        self.ask(self._script.prompt)

    def _tell_started(self) -> None:
        if self._started is not None:
            self._started()
            self._started = None


class Connection(Protocol):
    """What a load generator does with either kind of client."""

    async def connect(self) -> None: ...

    def close(self) -> None: ...


class _Event(msgspec.Struct, gc=False):
    type: str
    data: str = ""
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.Encoder().encode


class WebSocketClient(picows.WSListener):
    """Speaks `/ws/llm`."""

    def __init__(self, plan: Plan, session: Session) -> None:
        self._url = f"ws://127.0.0.1:{plan.port}{plan.path}"
        self._session = session
        self._transport: picows.WSTransport | None = None
        session.ask = lambda prompt: self._send({"type": "user_message", "text": prompt})

    async def connect(self) -> None:
        """Connect and start the session."""
        self._transport, _ = await picows.ws_connect(lambda: self, self._url, websocket_handshake_timeout=30)
        self._send({"type": "start_session"})

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.disconnect()

    def on_ws_frame(self, _transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type != picows.WSMsgType.TEXT:
            if frame.msg_type == picows.WSMsgType.CLOSE:
                self._session.fail(f"the server closed with {frame.get_close_code()}: {frame.get_close_reason()}")
            return
        event = _decode_event(frame.get_payload_as_bytes())
        match event.type:
            case "token":
                self._session.text(event.data)
            case "response_complete":
                self._session.end()
            case "session_started":
                self._session.begin()
            case "session_configured":
                # A service that is so busy that start_session waits for longer than GREETING_DELAY_MS greets
                # first, and says this in answer to it.
                pass
            case _:
                self._session.fail(f"{event.type}: {bytes(event.error).decode()[:300]}")

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        self._session.fail("the connection was lost")

    def _send(self, message: dict[str, str]) -> None:
        assert self._transport is not None
        self._transport.send(picows.WSMsgType.TEXT, _encode(message))


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta


class _Part(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw()


_decode_part = msgspec.json.Decoder(_Part).decode


class HTTPClient(asyncio.Protocol):
    """One HTTP connection, on which one request is answered at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)


class SSEClient(HTTPClient):
    """Speaks OpenAI's chat completions."""

    def __init__(self, plan: Plan, session: Session) -> None:
        super().__init__()
        self._plan = plan
        self._session = session
        session.ask = self._ask

    async def connect(self) -> None:
        """Connect and ask."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._plan.port)
        self._session.begin()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._session.fail("the connection was lost")

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body if self._rest else body).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._take(_decode_part(line[6:]))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            self._session.fail(f"HTTP {self._parser.get_status_code()}")
        else:
            # Not within the parser's callback: the next request needs the parser.
            asyncio.get_running_loop().call_soon(self._session.end)

    def _take(self, part: _Part) -> None:
        if bytes(part.error) not in {b"", b"null"}:
            self._session.fail(bytes(part.error).decode()[:300])
        for choice in part.choices:
            if choice.delta.content:
                self._session.text(choice.delta.content)

    def _ask(self, prompt: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = _encode({"model": "bench", "messages": [{"role": "user", "content": prompt}], "stream": True})
        head = (
            f"POST {self._plan.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._plan.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._transport.write(head.encode() + body)


def client(plan: Plan, session: Session) -> Connection:
    """Return the client of the plan's kind."""
    return WebSocketClient(plan, session) if plan.kind == "websocket" else SSEClient(plan, session)
