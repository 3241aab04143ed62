"""A session at work: what it decides is carried out here, for the connection that listens, or for none for a while.

    connection ──messages──▶ session (decides) ──effects──▶ outbox ──frames──▶ connection
                                 ▲                     │
                                 └── deltas ── engine ◀── responder

A response outlives the connection that asked for it. Cancelling the responder's task ends the generation, and with
it the HTTP stream behind it.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic, time
from typing import Protocol

import structlog

from llm_service import events
from llm_service.asides import Asides
from llm_service.effects import Condense, Count, Dropped, Effect, Generate, Hush, Send, Stop, StopAsides, Warm
from llm_service.engines.base import Engine
from llm_service.errors import FastTalkError, InternalError
from llm_service.events import Cancel, ClientMessage, Played, StartSession, UpdateConfig
from llm_service.generation import Finish, Sink
from llm_service.idle_work import IdleWork
from llm_service.metering import ResponseMeter
from llm_service.metrics import Metrics
from llm_service.outbox import Outbox
from llm_service.records import SessionRecord
from llm_service.session import Session, SessionState
from llm_service.speaking import Speaking, SpeechDesk
from llm_service.summary import Condensation

# Whatever else a client may be told of events it cannot be sent.
NO_LAST_SEQ = "last_seq was not given: events that were missed are not sent again; the conversation goes on"
MISSED_TOO_MUCH = "events behind last_seq are not kept any more; the conversation goes on without them"
CRASHED = "the process that had the session ended without handing it over; the conversation goes on as it was kept"
NEVER_SENT = "last_seq is past the last event that is known of the session; the conversation goes on from there"

# What changes a session without a response that ends: none that runs then, or one that it stops.
CHANGES = frozenset({StartSession, UpdateConfig, Cancel, Played})

_log = structlog.get_logger(__name__)


class Listener(Protocol):
    """The connection that a session speaks to."""

    def write(self, frame: bytes) -> None:
        """Write the text of a frame, now."""
        ...

    def write_binary(self, frame: bytes) -> None:
        """Write the data of a binary frame, now."""
        ...

    def flushed(self) -> None:
        """Take note that all is written after the outbox was closed."""
        ...

    def displaced(self) -> None:
        """Take note that the session listens to another connection from now on."""
        ...

    def broke(self, error: BaseException) -> None:
        """Take note that a bug of ours ended the session's work."""
        ...


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all sessions of a process work with.

    `reads_on` says whether the engine goes on reading a prompt that nobody wants any more.
    `note_error` hears of every error a client is told of; `started` and `ended` of every session that begins, and that
    its client ended or that expired; `changed` of each that is another than before, once a response is over or stopped.
    """

    engine: Engine
    metrics: Metrics
    idle_work: IdleWork
    reads_on: bool
    note_error: Callable[[events.ErrorBody], None]
    max_pending_bytes: int
    replay_bytes: int
    started: Callable[["LiveSession"], None]
    changed: Callable[["LiveSession"], None]
    ended: Callable[["LiveSession"], None]
    speech: SpeechDesk


class LiveSession:
    """One session with its tasks. `key` is the digest of the API key that opened it, or ""."""

    __slots__ = (
        "_asides",
        "_context",
        "_listener",
        "_log",
        "_meter",
        "_one_at_a_time",
        "_responder",
        "_speaking",
        "_tasks",
        "_workplace",
        "attached_at",
        "key",
        "known_as",
        "outbox",
        "session",
        "whole",
    )

    def __init__(self, session: Session, workplace: Workplace, *, key: str = "") -> None:
        self.session = session
        self.key = key
        self.whole = True  # False: it is what a crash left of a session
        self.known_as = ""  # the id that it was last told of by
        self.attached_at = 0.0  # when its connection began, by the monotonic clock
        self.outbox = Outbox(max_bytes=workplace.max_pending_bytes, replay_bytes=workplace.replay_bytes)
        self._workplace = workplace
        self._listener: Listener | None = None
        self._log = _log.bind()  # the module's own is made anew for every line, heard or not
        self._tasks: set[asyncio.Task[None]] = set()
        self._asides = Asides(workplace.engine, workplace.idle_work, workplace.metrics, reads_on=workplace.reads_on)
        self._responder: asyncio.Task[None] | None = None
        self._speaking: Speaking | None = None  # made for the first response that is spoken
        self._one_at_a_time = asyncio.Lock()
        self._meter: ResponseMeter | None = None
        # Its tasks run in no connection's context, and log in that of the session.
        self._context = contextvars.copy_context()
        self._context.run(structlog.contextvars.bind_contextvars, session_id=session.id)

    def __repr__(self) -> str:
        return f"<LiveSession: {self.session!r}, {self.outbox!r}>"

    @property
    def listener(self) -> Listener | None:
        """The connection it speaks to; None while there is none."""
        return self._listener

    @property
    def speaking(self) -> bool:
        """Whether something is still being spoken."""
        return self._speaking is not None and self._speaking.busy

    @property
    def _sounds(self) -> bool:
        """Whether something is still being heard, or will be."""
        return self._speaking is not None and self._speaking.sounds

    # Connections

    def attach(self, listener: Listener) -> None:
        """Speak to this connection, which is the session's first."""
        self._listener = listener
        self.attached_at = monotonic()
        self.outbox.attach(listener.write, listener.flushed, listener.write_binary)

    def detach(self) -> None:
        """Speak to nobody for now: what is said waits."""
        self.count_sent()
        self._listener = None
        if self._speaking is not None:
            self._speaking.mute()
        self.outbox.detach()

    def resume(self, listener: Listener, event: StartSession, now: float, *, greeted: bool) -> bool:
        """Speak to the connection of a client that comes back, from the event on that it missed.

        Returns whether it gets all that it missed; if not, it is told so, and gets none of it. A connection that was
        spoken to until now is displaced.
        """
        if self._listener is not None:
            if self._listener is not listener:
                self._listener.displaced()
            self.detach()
        missed, reason = self._missed(event.last_seq)
        self.attach(listener)
        if missed is not None:
            answer, effects = self.session.resume(event, now, greeted=greeted)
            self.outbox.go_on(answer, missed)
            self.carry_out(effects)
            return True
        self.outbox.forget()
        self.carry_out(self.session.resume_without(event, reason, now, greeted=greeted))
        return False

    def _missed(self, last_seq: int | None) -> tuple[list[bytes] | None, str]:
        if last_seq is None:
            return None, NO_LAST_SEQ
        if not self.whole:
            self.whole = True
            return None, CRASHED
        if last_seq > self.outbox.sent:
            return None, NEVER_SENT
        missed = None if self.outbox.lost else self.outbox.replay.after(last_seq)
        return missed, MISSED_TOO_MUCH

    # Work

    def receive(self, event: ClientMessage, now: float) -> None:
        """Take what the client said, which was read at the time `now`."""
        self.count_sent()
        effects = self.session.receive(event, now, sounds=self._sounds)
        stops = bool(effects) and (type(effects[0]) is Stop or (type(effects[0]) is Hush and self.speaking))
        self.carry_out(effects)
        if stops:
            # Connections by HTTP are closed by now: nothing of it is left to a later turn of the event loop.
            self._workplace.metrics.stop.observe(monotonic() - now)
        if type(event) in CHANGES:
            self._workplace.changed(self)

    def count_sent(self) -> None:
        """Bring the count of events that the client was sent up to date."""
        self.session.counters.messages_sent = self.outbox.written

    def watch(self, now: float) -> None:
        """See to what has deadlines; called once a second, or oftener."""
        if self.session.running is not None:
            self.carry_out(self.session.overdue(now))

    def desert(self) -> None:
        """Stop what runs, since nobody listens; a client that comes back is told."""
        self.carry_out(self.session.desert())

    async def closed(self) -> None:
        """Stop all, wait until no task is left, and let go of what holds the session."""
        self.desert()
        self._hush()
        self._asides.stop()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        if self._speaking is not None:
            self._speaking.leave()
            self._speaking = None

    def record(self, now: float, *, whole: bool, saved_at: float | None = None) -> SessionRecord:
        """Return what the store keeps of it; `whole` says that it is given up with this, and nobody listens."""
        if whole:
            self.outbox.number_waiting()
        replay = self.outbox.replay.record()
        wall = time() if saved_at is None else saved_at
        whole = whole and not self.outbox.lost
        return self.session.record(key=self.key, whole=whole, replay=replay, now=now, wall=wall)

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the session asks for, in this order."""
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
                case Hush(number):
                    self._hush(number)
                case Warm() | Condense() | StopAsides():
                    self._see_to_aside(effect)
                case Dropped(tokens):
                    self._workplace.metrics.count_dropped(tokens)

    def _see_to_aside(self, effect: Warm | Condense | StopAsides) -> None:
        match effect:
            case Warm(request):
                self._asides.warm(request, self._spawn)
            case Condense(job):
                self._asides.condense(effect, partial(self._condensed, job), self._spawn)
            case StopAsides():
                self._asides.stop()

    def _condensed(self, job: Condensation, text: str | None) -> None:
        self.carry_out(self.session.condensed(job, text))

    def _send(self, event: events.ServerEvent) -> None:
        if isinstance(event, events.SessionStarted):
            self.outbox.put(event)
            if self.known_as != self.session.id:
                self._workplace.metrics.sessions.inc()
                self._workplace.started(self)
            return
        if isinstance(event, events.SessionEnded):
            self._workplace.ended(self)
        if isinstance(event, events.Error):
            self._workplace.note_error(event.error)
        self.outbox.put(event)

    # Responses

    def _stop_response(self) -> None:
        if self._meter is not None:
            self._meter.stopped()
        self._workplace.metrics.cancels.inc()
        self._hush()
        if self._responder is not None:
            self._responder.cancel()
        self._workplace.changed(self)

    def _hush(self, number: int | None = None) -> None:
        if self._speaking is None:
            return
        if number is None:
            self._speaking.hush()
        else:
            self._speaking.drop(number)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        """Work for a turn, which nothing else may hold up."""
        self._asides.stop_warming()
        self._responder = self._spawn(work)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        try:
            # Of one that was cancelled, too: until it is asked it holds the frames it ended in, and they hold it.
            error = task.exception()
        except asyncio.CancelledError:
            return
        if error is not None:
            _log.error("session_broke", session_id=self.session.id, exc_info=error)
            if self._listener is not None:
                self._listener.broke(error)

    async def _count(self, effect: Count) -> None:
        tokens = await self._workplace.engine.count_tokens(effect.model, effect.text)
        self.carry_out(self.session.counted(effect.response, tokens, monotonic()))

    async def _respond(self, effect: Generate) -> None:
        session, number = self.session, effect.response
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
        self.carry_out(effects)
        self._workplace.changed(self)

    def _log_response(self, effect: Generate, outcome: str, answer: str, **fields: str) -> None:
        """One line a response; what was said is in it by its length alone, unless LOG_PROMPTS is set."""
        prompt = effect.request.messages[-1].content
        self._log.info("response", response=effect.response, outcome=outcome, prompt=prompt, answer=answer, **fields)

    def _last_answer(self) -> str:
        last = self.session.conversation.last
        return last.answer if last is not None else ""

    async def _stream(self, effect: Generate) -> Finish:
        workplace = self._workplace
        try:
            measured = workplace.metrics.for_engine(workplace.engine.name, effect.request.model)
            with workplace.idle_work.turn(), ResponseMeter(measured) as meter:
                self._meter = meter
                say = self._sayer(effect.response)
                take = self.session.taker(effect.response, say, self.outbox.put, monotonic, meter.times)
                waits = partial(self._waits, effect.response, meter)
                said = partial(self.session.said, effect.response)
                asks = partial(self._asks, effect.request.model, meter)
                finish = await workplace.engine.generate(effect.request, Sink(take, meter.times, waits, said, asks))
                meter.finished(finish.usage)
                if self._speaking is not None:
                    self._speaking.finish(final=not finish.tool_calls)
        finally:
            self._meter = None
        return finish

    def _asks(self, model: str, meter: ResponseMeter, engine: str) -> None:
        """Take note which of several engines is asked."""
        meter.asks(self._workplace.metrics.for_engine(engine, model))

    def _waits(self, number: int, meter: ResponseMeter, position: int) -> None:
        """Take a position in the line for the engine; 0: it is asked now."""
        if position:
            meter.waits()
            self.carry_out(self.session.waits(number, position))
        else:
            meter.asked()

    def _sayer(self, number: int) -> Callable[[str], None]:
        """Return what sends a response's text on: the outbox alone, unless it is spoken."""
        how, muted = self.session.speech, self._listener is None
        if how is None or (muted and not how.chunks):
            return self.outbox.say
        if self._speaking is None:
            tell = self._tell
            self._speaking = Speaking(self.session, self.outbox, self._workplace.speech, self._spawn, tell)
        return self._speaking.begin(number, how, muted=muted)

    def _tell(self, error: FastTalkError) -> None:
        self.carry_out(self.session.tell(error))


def is_worth_keeping(session: Session) -> bool:
    """Whether anything of it would be missed: it was begun, and its client said something."""
    return session.state is SessionState.ACTIVE and session.counters.messages_received > 0
