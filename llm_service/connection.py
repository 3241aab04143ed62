"""One WebSocket: its reader and the response that runs, in one TaskGroup.

    client ──frames──▶ reader ──▶ session (decides) ──effects──▶ outbox ──frames──▶ client
                                     ▲                     │
                                     └── deltas ── engine ◀── responder

The reader never waits for the engine, so that `cancel` is read while tokens flow. Cancelling the responder's
task ends the generation, and with it the HTTP stream behind it.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from llm_service import events
from llm_service.asides import Asides
from llm_service.close_codes import CloseCode
from llm_service.effects import Condense, Count, Dropped, Effect, Generate, Send, Stop, StopAsides, Warm
from llm_service.engines.base import Engine
from llm_service.errors import (
    ClientError,
    FastTalkError,
    InternalError,
    NoFirstMessage,
    ShuttingDown,
    TooManyInvalidMessages,
    Unauthorized,
    UnsupportedFrame,
)
from llm_service.events import ClientMessage, StartSession
from llm_service.generation import Finish, Sink
from llm_service.idle_work import IdleWork
from llm_service.metering import ResponseMeter
from llm_service.metrics import Metrics
from llm_service.outbox import Outbox
from llm_service.parsing import parse
from llm_service.session import Session
from llm_service.session_manager import SessionManager
from llm_service.wire import Wire

STOPPING = "the service stops; send the message again, elsewhere"
# Seconds between the end of the greeting delay and the greeting.
GREETING_GRACE = 0.01
# Seconds a slow client gets to take the closing frame before its TCP connection is dropped.
CLOSE_GRACE = 0.5

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Times in seconds; see the settings of the same names."""

    greeting_delay: float
    first_message_timeout: float
    send_timeout: float
    max_pending_bytes: int
    max_invalid_messages: int


class Connection:
    """Runs one session over one accepted WebSocket.

    `accepts_key` is None for a client that needs no key or brought it in the handshake; otherwise its first
    message must bring one that this callable takes. `note_error` hears of every error the client is told of.
    """

    def __init__(
        self,
        socket: WebSocket,
        wire: Wire,
        session: Session,
        engine: Engine,
        manager: SessionManager,
        limits: ConnectionLimits,
        metrics: Metrics,
        idle_work: IdleWork,
        *,
        accepts_key: Callable[[str | None], bool] | None,
        note_error: Callable[[events.ErrorBody], None],
    ) -> None:
        self._socket = socket
        self._wire = wire
        self._session = session
        self._engine = engine
        self._manager = manager
        self._limits = limits
        self._metrics = metrics
        self._idle_work = idle_work
        self._accepts_key = accepts_key
        self._note_error = note_error
        self._outbox = Outbox(wire.write, self._flushed, max_bytes=limits.max_pending_bytes)
        self._closing: tuple[int, str] | None = None
        # Done when all is written after `close`, or with the error that taking a message ran into.
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._log = _log.bind()  # the module's own is made anew for every line, heard or not
        self._opened_at = monotonic()
        self._heard = False
        self._invalid_in_a_row = 0
        self._draining = False
        self._over = False  # the client has gone, or is being sent away: nothing more is taken from it
        self._tasks: asyncio.TaskGroup | None = None
        self._responder: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._greeting: asyncio.TimerHandle | None = None
        self._cut_at: float | None = None
        self._meter: ResponseMeter | None = None

    def __repr__(self) -> str:
        return f"<Connection: {self._session!r}, {self._outbox!r}>"

    @property
    def session(self) -> Session:
        return self._session

    async def run(self) -> None:
        """Serve the client until it leaves or is cut off; no task outlives this call."""
        try:
            with structlog.contextvars.bound_contextvars(session_id=self._session.id):
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    self._asides = Asides(tasks, self._engine, self._idle_work, self._metrics)
                    # What reads for us runs outside of our tasks, and logs in this context all the same.
                    self._context = contextvars.copy_context()
                    self._wire.listen(self._outbox.pause, self._outbox.resume, self._take_text)
                    reader = tasks.create_task(self._read())
                    if self._accepts_key is None:
                        loop = asyncio.get_running_loop()
                        self._greeting = loop.call_later(self._limits.greeting_delay, self._greet_soon)
                    await asyncio.wait({reader, self._end}, return_when=asyncio.FIRST_COMPLETED)
                    self._over = True
                    self._carry_out(self._session.disconnect())
                    self._asides.stop()
                    if self._end.done():
                        self._end.result()
                    if self._closing is not None and not reader.done():
                        await self._close_socket(*self._closing)
                    reader.cancel()
        finally:
            self._session.counters.messages_sent = self._outbox.written
            if self._greeting is not None:
                self._greeting.cancel()

    def watch(self, now: float) -> None:
        """Cut the connection off if the client is too slow, silent or gone; called a few times a second."""
        limits = self._limits
        self._session.counters.messages_sent = self._outbox.written
        if self._cut_at is not None:
            if now - self._cut_at > CLOSE_GRACE:
                self._wire.abort()
        elif self._outbox.overfull or self._outbox.stalled_seconds(now) > limits.send_timeout:
            self._cut_off(now)
        elif not self._heard and now - self._opened_at > limits.first_message_timeout:
            error = NoFirstMessage(
                f"no message came within {limits.first_message_timeout:g} seconds; connect again and begin with "
                "start_session"
            )
            self._carry_out(self._session.tell(error))
            self._close(CloseCode.STALE, "no message in time")
        elif self._heard and self._manager.expired(self._session, now):
            self._carry_out(self._session.expire(now))
            self._close(CloseCode.EXPIRED, "session expired")
        elif self._session.running is not None:
            self._carry_out(self._session.overdue(now))
        elif self._draining:
            self._close(CloseCode.SHUTDOWN, "shutting down")

    def shut_down(self) -> None:
        """End what still runs when the drain is over, and say so: connect again, elsewhere."""
        self._carry_out(self._session.abort(ShuttingDown(STOPPING)))
        self._close(CloseCode.SHUTDOWN, "shutting down")

    def drain(self) -> None:
        """Let the running response finish, then close with 3001: connect again, elsewhere."""
        self._draining = True
        self._carry_out(self._session.drain(ShuttingDown(STOPPING)))
        self.watch(monotonic())

    def _cut_off(self, now: float) -> None:
        """Give up a client that does not read; the closing frame reaches it if it still reads a little."""
        _log.warning("slow_client", session_id=self._session.id, unread=self._outbox.pending_bytes)
        self._metrics.slow_clients.inc()
        self._cut_at = now
        self._carry_out(self._session.disconnect())
        self._closing = self._closing or (CloseCode.SLOW_CLIENT, "slow client")
        self._outbox.cut()

    def _close(self, code: CloseCode, reason: str) -> None:
        """Write what waits, then close the connection. Only the first call counts."""
        self._closing = self._closing or (code, reason)
        self._outbox.close()

    # Client to session

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            self._take_message(message.get("text"))

    def _take_text(self, text: str) -> None:
        """Take a message from within the read that brought it."""
        try:
            self._context.run(self._take_message, text)
        except Exception as error:  # noqa: BLE001 - a bug of ours: `run` is to fail, not the server's read
            if not self._end.done():
                self._end.set_exception(error)

    def _take_message(self, text: str | None) -> None:
        if self._outbox.closing or self._over:
            return
        now = monotonic()
        try:
            if text is None:
                raise UnsupportedFrame("binary frames are not understood here; send JSON in text frames")
            event = parse(text)
            self._check_key(event)
        except ClientError as error:
            self._refuse(error, now)
            return
        self._metrics.count_message(event.type)
        self._heard = True
        self._invalid_in_a_row = 0
        self._session.counters.messages_sent = self._outbox.written
        self._carry_out(self._session.receive(event, now))

    def _check_key(self, event: ClientMessage) -> None:
        if self._accepts_key is None:
            return
        if not (isinstance(event, StartSession) and self._accepts_key(event.api_key)):
            if isinstance(event, StartSession) and event.api_key:
                raise Unauthorized("this key is not known; see API_KEYS")
            raise Unauthorized(
                "this service asks for a key: send it as the header 'Authorization: Bearer KEY', or as api_key in "
                "a first start_session message"
            )
        self._accepts_key = None

    def _refuse(self, error: ClientError, now: float) -> None:
        self._carry_out(self._session.reject(error, now))
        self._invalid_in_a_row += 1
        if isinstance(error, Unauthorized):
            self._close(CloseCode.BAD_KEY, "bad key")
        elif self._invalid_in_a_row >= self._limits.max_invalid_messages:
            last = TooManyInvalidMessages(f"{self._invalid_in_a_row} messages in a row were not understood")
            self._carry_out(self._session.tell(last))
            self._close(CloseCode.TOO_MANY_INVALID, "too many invalid messages")

    def _greet_soon(self) -> None:
        # When the loop is late, a start_session that came in time may be there and not read yet.
        self._greeting = asyncio.get_running_loop().call_later(GREETING_GRACE, self._greet)

    def _greet(self) -> None:
        self._carry_out(self._session.greet(monotonic()))

    # Session to client and engine

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(event):
                    self._send(event)
                case Generate():
                    self._start(self._respond(effect))
                case Count():
                    self._start(self._count(effect))
                case Stop():
                    self._stop_response()
                case Warm(request):
                    self._asides.warm(request)
                case Condense(job):
                    self._asides.condense(effect, partial(self._session.condensed, job))
                case StopAsides():
                    self._asides.stop()
                case Dropped(tokens):
                    self._metrics.count_dropped(tokens)

    def _send(self, event: events.ServerEvent) -> None:
        if isinstance(event, events.SessionStarted):
            self._metrics.sessions.inc()
            self._outbox.begin(event)
            return
        if isinstance(event, events.Error):
            self._note_error(event.error)
        self._outbox.put(event)

    def _stop_response(self) -> None:
        if self._meter is not None:
            self._meter.stopped()
        self._metrics.cancels.inc()
        if self._responder is not None:
            self._responder.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Work for a turn, which nothing else may hold up."""
        assert self._tasks is not None
        self._asides.stop_warming()
        self._responder = self._tasks.create_task(work)

    async def _count(self, effect: Count) -> None:
        tokens = await self._engine.count_tokens(effect.model, effect.text)
        self._carry_out(self._session.counted(effect.response, tokens, monotonic()))

    async def _respond(self, effect: Generate) -> None:
        session, number = self._session, effect.response
        try:
            # The engine is freed of the last response before it is asked for the next.
            async with self._one_at_a_time:
                finish = await self._stream(effect)
        except asyncio.CancelledError:
            self._log_response(effect, "cancelled", self._last_answer())
            raise
        except FastTalkError as error:
            self._log_response(effect, error.code, "", reason=error.message)
            effects = session.failed(number, error, monotonic())
        except Exception:  # noqa: BLE001
            # The owner of the response: a bug of ours must end it by an error, not by a hung client.
            _log.exception("response_crashed")
            crash = InternalError("the service failed; the message was not answered, send it again")
            effects = session.failed(number, crash, monotonic())
        else:
            effects = session.finished(number, finish, monotonic())
            self._log_response(effect, finish.reason, "" if finish.tool_calls else self._last_answer())
        self._carry_out(effects)

    def _log_response(self, effect: Generate, outcome: str, answer: str, **fields: str) -> None:
        """One line a response; what was said is in it by its length alone, unless LOG_PROMPTS is set."""
        prompt = effect.request.messages[-1].content
        self._log.info("response", response=effect.response, outcome=outcome, prompt=prompt, answer=answer, **fields)

    def _last_answer(self) -> str:
        last = self._session.conversation.last
        return last.answer if last is not None else ""

    async def _stream(self, effect: Generate) -> Finish:
        try:
            measured = self._metrics.for_engine(self._engine.name, effect.request.model)
            with self._idle_work.turn(), ResponseMeter(measured) as meter:
                self._meter = meter
                take = self._session.taker(effect.response, self._outbox.put, monotonic, meter.times)
                finish = await self._engine.generate(effect.request, Sink(take, meter.times))
                meter.finished(finish.usage)
        finally:
            self._meter = None
        return finish

    def _flushed(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    async def _close_socket(self, code: int, reason: str) -> None:
        # A client that left, or broke the protocol, meanwhile is noticed by the reader as well; uvicorn answers the
        # second with a RuntimeError.
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(code, reason)
