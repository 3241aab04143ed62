"""One WebSocket: reads what the client says, and writes what its session says.

The reader never waits for the engine, so that `cancel` is read while tokens flow. The session outlives the
connection: its client may come back on another one, and go on from the event it saw last.
"""

import asyncio
import contextlib
import contextvars
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from llm_service.admission import Admission
from llm_service.close_codes import CloseCode
from llm_service.effects import Effect
from llm_service.errors import (
    ClientError,
    FastTalkError,
    NoFirstMessage,
    QueueFull,
    RateLimited,
    ShuttingDown,
    TooManyConnections,
    TooManyInvalidMessages,
    Unauthorized,
    UnsupportedFrame,
)
from llm_service.events import ClientMessage, StartSession, UserMessage
from llm_service.live_session import LiveSession
from llm_service.metrics import Metrics
from llm_service.parsing import parse
from llm_service.resumption import Resumption
from llm_service.session import Session
from llm_service.wire import Wire

STOPPING = "the service stops; send the message again, elsewhere"
# Seconds between the end of the greeting delay and the greeting.
GREETING_GRACE = 0.01
# Seconds a slow client gets to take the closing frame before its TCP connection is dropped.
CLOSE_GRACE = 0.5
# Messages that wait while a session is fetched.
MAX_HELD = 16
# Codes of clients that said goodbye; RFC 6455, section 7.4.1: 1005 stands for a closing frame without one.
GOODBYES = frozenset({1000, 1001, 1005})

_log = structlog.get_logger(__name__)
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Times in seconds; see the settings of the same names."""

    greeting_delay: float
    first_message_timeout: float
    send_timeout: float
    session_timeout: float
    max_invalid_messages: int


class Connection:
    """Serves one accepted WebSocket, with a session of its own until its client asks for another.

    `let_in` is called when a key has come that the handshake lacked, and may refuse by a TooManyConnections. `known`
    says whether there is a key, if one is asked for, and a place for the connection among the others.
    """

    def __init__(
        self,
        socket: WebSocket,
        wire: Wire,
        live: LiveSession,
        resumption: Resumption,
        limits: ConnectionLimits,
        admission: Admission,
        let_in: Callable[["Connection"], None],
        metrics: Metrics,
    ) -> None:
        self._socket = socket
        self._wire = wire
        self.write = wire.write  # itself, and no method that calls it: it is called for every token
        self._live = live
        self._resumption = resumption
        self._limits = limits
        self._admission = admission
        self._let_in = let_in
        self.known = not admission.waits_for_key
        self._metrics = metrics
        self._closing: tuple[int, str] | None = None
        # Done when all is written after `close`, or with the error that taking a message ran into.
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened_at = monotonic()
        self._heard = False
        self._refused_in_a_row = 0
        self._draining = False
        self._over = False  # the client has gone, or is being sent away: nothing more is taken from it
        self._said_goodbye = False
        self._greeting: asyncio.TimerHandle | None = None
        self._greeted = False
        self._cut_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._held: deque[ClientMessage] = deque()  # what the client said while its session is fetched
        self.number = next(_numbers)  # by which it has its turn to be looked after
        live.attach(self)

    def __repr__(self) -> str:
        return f"<Connection: {self._live!r}>"

    @property
    def session(self) -> Session:
        return self._live.session

    @property
    def live(self) -> LiveSession:
        """The session it serves, at work."""
        return self._live

    @property
    def held_up(self) -> bool:
        """Whether its client takes nothing for now, has yet to say something, or is being sent away."""
        return not self._heard or self._cut_at is not None or not self._live.outbox.flows

    async def run(self) -> None:
        """Serve the client until it leaves or is cut off; then the session is alone."""
        try:
            with structlog.contextvars.bound_contextvars(session_id=self.session.id):
                # What reads for us runs outside of our task, and logs in this context all the same.
                self._context = contextvars.copy_context()
                self._wire.listen(self._pause, self._resume, self._take_text)
                reader = asyncio.create_task(self._read())
                try:
                    if not self._admission.waits_for_key:
                        loop = asyncio.get_running_loop()
                        self._greeting = loop.call_later(self._limits.greeting_delay, self._greet_soon)
                    await asyncio.wait({reader, self._end}, return_when=asyncio.FIRST_COMPLETED)
                    self._leave()
                    if self._end.done():
                        self._end.result()
                    if self._closing is not None and not reader.done():
                        await self._close_socket(*self._closing)
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, *filter(None, [self._fetching]), return_exceptions=True)
        finally:
            self._leave()
            if self._greeting is not None:
                self._greeting.cancel()

    def watch(self, now: float) -> None:
        """Cut it off if its client is too slow, silent or gone; called once a second, or oftener while held up."""
        limits, outbox, session = self._limits, self._live.outbox, self.session
        if self._cut_at is not None:
            if now - self._cut_at > CLOSE_GRACE:
                self._wire.abort()
        elif self._over:
            return
        elif outbox.overfull or outbox.stalled_seconds(now) > limits.send_timeout:
            self._cut_off(now)
        elif not self._heard and now - self._opened_at > limits.first_message_timeout:
            error = NoFirstMessage(
                f"no message came within {limits.first_message_timeout:g} seconds; connect again and begin with "
                "start_session"
            )
            self._carry_out(session.tell(error))
            self._close(CloseCode.STALE, "no message in time")
        elif self._heard and session.idle_seconds(now) > limits.session_timeout:
            self._carry_out(session.expire(now))
            self._close(CloseCode.EXPIRED, "session expired")
        elif session.running is not None:
            self._live.watch(now)
        elif self._draining and not self._live.speaking:
            self._close(CloseCode.SHUTDOWN, "shutting down")
        self._live.count_sent()

    def make_room(self) -> None:
        """Leave to one that came later: too many wait until their clients say who they are."""
        error = TooManyConnections(
            "too many connections wait for a key; connect again, and bring it in the handshake", retry_after=1.0
        )
        self._carry_out(self.session.tell(error))
        self._close(CloseCode.CONNECTION_LIMIT, "connection limit")

    def shut_down(self) -> None:
        """End what still runs when the drain is over, and say so: connect again, elsewhere."""
        self._carry_out(self.session.abort(ShuttingDown(STOPPING)))
        self._close(CloseCode.SHUTDOWN, "shutting down")

    def revoke(self) -> None:
        """Stop what runs, and close with 3500: the client's key counts no more."""
        if self._over:
            return
        _log.info("key_revoked", session_id=self.session.id)
        error = Unauthorized("this key was revoked; connect with another")
        self._carry_out(self.session.abort(error) or self.session.tell(error))
        self._close(CloseCode.BAD_KEY, "key revoked")
        if self._live.outbox.paused:
            self._wire.abort()  # it takes nothing for now, and is to get nothing later

    def drain(self) -> None:
        """Let the running response finish, then close with 3001: connect again, elsewhere."""
        self._draining = True
        self._carry_out(self.session.drain(ShuttingDown(STOPPING)))
        self.watch(monotonic())

    # What its session asks of it

    def write_binary(self, frame: bytes) -> None:
        """Write the data of a binary frame."""
        self._wire.write_binary(frame)

    def flushed(self) -> None:
        """Take note that all is written after the last word."""
        if not self._end.done():
            self._end.set_result(None)

    def displaced(self) -> None:
        """Leave the session to a newer connection of its client."""
        self._over = True
        self._closing = self._closing or (CloseCode.STALE, "resumed on another connection")
        self.flushed()

    def broke(self, error: BaseException) -> None:
        """End by an error of ours, which is no answer to anybody."""
        if not self._end.done():
            self._end.set_exception(error)

    # The end

    def _cut_off(self, now: float) -> None:
        """Give up a client that does not read; the closing frame reaches it if it still reads a little."""
        _log.warning("slow_client", session_id=self.session.id, unread=self._live.outbox.pending_bytes)
        self._metrics.slow_clients.inc()
        self._cut_at = now
        self._closing = self._closing or (CloseCode.SLOW_CLIENT, "slow client")
        self._leave()
        self.flushed()

    def _close(self, code: CloseCode, reason: str) -> None:
        """Write what waits, then close the connection. Only the first call counts."""
        self._closing = self._closing or (code, reason)
        self._live.outbox.close()

    def _leave(self) -> None:
        """Let the session go on alone: its client may come back for it. Only the first call counts."""
        self._over = True
        if self._live.listener is self:
            self._live.detach()
            self._resumption.rest(self._live, monotonic(), goodbye=self._said_goodbye)

    def _pause(self) -> None:
        if self._live.listener is self:
            self._live.outbox.pause()

    def _resume(self) -> None:
        if self._live.listener is self:
            self._live.outbox.resume()

    async def _close_socket(self, code: int, reason: str) -> None:
        # A client that left, or broke the protocol, meanwhile is noticed by the reader as well; uvicorn answers the
        # second with a RuntimeError.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(code, reason)

    # Client to session

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self._said_goodbye = message.get("code") in GOODBYES
                return
            self._take_message(message.get("text"))

    def _take_text(self, text: str) -> None:
        """Take a message from within the read that brought it."""
        try:
            self._context.run(self._take_message, text)
        except Exception as error:  # noqa: BLE001 - a bug of ours: `run` is to fail, not the server's read
            self.broke(error)

    def _take_message(self, text: str | None) -> None:
        if self._live.outbox.closing or self._over:
            return
        now = monotonic()
        if self._live.outbox.overfull:
            self._cut_off(now)  # answers to what it goes on saying would only add to what waits
            return
        try:
            if text is None:
                raise UnsupportedFrame("binary frames are not understood here; send JSON in text frames")
            event = parse(text)
            if self._admission.waits_for_key:
                self._admission.check_key(event)
                self._let_in(self)
                self.known = True
                self._live.key = self._admission.key
        except (ClientError, TooManyConnections) as error:
            self._refuse(error, now)
            return
        try:
            self._admission.check_rate(event, now, running=self.session.running is not None)
        except RateLimited as error:
            self._refuse(error, now, id=event.id if isinstance(event, UserMessage) else None)
            return
        self._metrics.count_message(event.type)
        self._heard = True
        self._refused_in_a_row = 0
        if self._fetching is not None:
            self._hold(event)
        elif type(event) is StartSession and event.session_id is not None:
            self._come_back(event, now)
        else:
            self._live.receive(event, now)

    def _refuse(self, error: FastTalkError, now: float, *, id: str | None = None) -> None:  # noqa: A002
        self._carry_out(self.session.reject(error, now, id=id))
        self._refused_in_a_row += 1
        if isinstance(error, Unauthorized):
            self._close(CloseCode.BAD_KEY, "bad key")
        elif isinstance(error, TooManyConnections):
            self._close(CloseCode.CONNECTION_LIMIT, "connection limit")
        elif self._refused_in_a_row >= self._limits.max_invalid_messages:
            last = TooManyInvalidMessages(f"{self._refused_in_a_row} messages in a row were refused; see the errors")
            self._carry_out(self.session.tell(last))
            self._close(CloseCode.TOO_MANY_REFUSED, "too many messages refused")

    def _greet_soon(self) -> None:
        # When the loop is late, a start_session that came in time may be there and not read yet.
        self._greeting = asyncio.get_running_loop().call_later(GREETING_GRACE, self._greet)

    def _greet(self) -> None:
        if self._fetching is None and not self._over:
            effects = self.session.greet(monotonic())
            self._greeted = self._greeted or bool(effects)
            self._carry_out(effects)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        self._live.carry_out(effects)

    # Clients that come back

    def _come_back(self, event: StartSession, now: float) -> None:
        """Take up the session that the client names: from here, or else from where it rests."""
        assert event.session_id is not None
        found = self._resumption.find(event.session_id, self._live.key)
        if found is not None:
            self._switch(found, event, now)
        else:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(event))

    async def _fetch(self, event: StartSession) -> None:
        assert event.session_id is not None
        try:
            found = await self._resumption.fetch(event.session_id, self._live.key, lambda: not self._over)
        except FastTalkError as error:
            self._fetching = None
            self._carry_out(self.session.tell(error))
            # Said to the session that could not be looked for, and to no other.
            for held in self._held:
                said = held.id if isinstance(held, UserMessage) else None
                self._carry_out(self.session.reject(error, monotonic(), id=said))
            self._held.clear()
        else:
            self._fetching = None
            if self._over:
                return
            if found is not None:
                self._context.run(self._switch, found, event, monotonic())
            else:
                self._live.receive(event, monotonic())
        while self._held and not self._over:
            self._live.receive(self._held.popleft(), monotonic())

    def _switch(self, found: LiveSession, event: StartSession, now: float) -> None:
        """Leave the session that this connection began with for another."""
        error = self._resumption.refusal(event)
        if error is not None:
            self._carry_out(self.session.tell(error))
            return
        own, self._live = self._live, found
        if own is not found:
            own.detach()
            self._resumption.drop(own, now)
        self._resumption.resume(found, self, event, now, greeted=self._greeted)
        structlog.contextvars.bind_contextvars(session_id=found.session.id)
        if self._draining:
            self.drain()

    def _hold(self, event: ClientMessage) -> None:
        if len(self._held) >= MAX_HELD:
            error = QueueFull(f"{MAX_HELD} messages wait already until the session is found; send this one again then")
            self._carry_out(self.session.tell(error))
        else:
            self._held.append(event)
