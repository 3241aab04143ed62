"""One conversation as a state machine: client events and deltas in, effects out.

Pure: no event loop, no I/O; the time is told to it, in seconds of a clock that never goes back. The
connection feeds it and carries out the effects, in their order.

    new ──start_session, user_message, update_config, greet──▶ active ──end_session, expire──▶ ended
     ▲                                                                                           │
     └────────── start_session, user_message, update_config: a new session, a new id ────────────┘

What happens while it is active is in `turns`.
"""

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import msgspec

from llm_service import events
from llm_service.counters import Counters
from llm_service.effects import Effect, Send
from llm_service.errors import FastTalkError
from llm_service.records import VERSION, EndedResponse, SessionRecord
from llm_service.replay import ReplayRecord
from llm_service.response import Response
from llm_service.session_config import SessionConfig, config_as_sent, merge_config
from llm_service.session_defaults import SessionDefaults
from llm_service.turns import Turns

UNKNOWN_SESSION = "the session is not known here; this is a new one"


class SessionState(enum.Enum):
    NEW = "new"
    ACTIVE = "active"
    ENDED = "ended"


class Session(Turns):
    """One conversation of one client. `new_id` makes session ids."""

    __slots__ = ("_counters_before", "_greeted", "_new_id", "_state", "started_at")

    def __init__(self, defaults: SessionDefaults, *, new_id: Callable[[], str], now: float) -> None:
        super().__init__(defaults)
        self._new_id = new_id
        self._greeted = False
        self._begin(SessionConfig(), now)
        self._state = SessionState.NEW

    def __repr__(self) -> str:
        busy = f"response {self._response.number} runs" if self._response is not None else "idle"
        return f"<Session {self.id}: {self._state.value}, {busy}, {len(self._queue)} queued>"

    # What others may know of it

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def config(self) -> SessionConfig:
        """What the client chose."""
        return self._choices.config

    def idle_seconds(self, now: float) -> float:
        """Return how long client and engine have both been silent."""
        return 0.0 if self._response is not None else now - self._active_at

    def stats(self, now: float) -> events.SessionStats:
        """Return the figures of `session_ended`."""
        counters, before = self.counters, self._counters_before
        return events.SessionStats(
            session_id=self.id,
            state=self._state.value,
            duration_seconds=round(now - self.started_at, 3),
            idle_seconds=round(self.idle_seconds(now), 3),
            messages_received=counters.messages_received - before.messages_received,
            messages_sent=counters.messages_sent - before.messages_sent,
            tokens_generated=counters.tokens_generated - before.tokens_generated,
            generations_completed=counters.generations_completed - before.generations_completed,
            errors_count=counters.errors - before.errors,
            config=config_as_sent(self.config),
        )

    # Events in

    def greet(self, now: float) -> list[Effect]:
        """Speak first, to a client that said nothing: FastTalk 1.x's order, where it waits to be greeted."""
        if self._state is not SessionState.NEW:
            return []
        self._greeted = True
        return self._activate(SessionConfig(), now)

    def receive(self, event: events.ClientMessage, now: float, *, sounds: bool = False) -> list[Effect]:
        """Take what the client said; `sounds` says that it still hears an answer."""
        self._active_at = now
        self.counters.messages_received += 1
        match event:
            # First, since it is asked of most: pydantic makes it dear to ask another class for its instances.
            case events.UserMessage():
                return self._user_message(event, now, sounds=sounds)
            case events.StartSession():
                return self._start(event, now)
            case events.UpdateConfig():
                return self._update_config(event, now)
            case events.Cancel():
                return self._cancel()
            case events.EndSession():
                return self._end(now, "end_session")
            case events.Played():
                return self._played(event)
            case events.PartialMessage():
                return self._partial_message(event) if self._state is SessionState.ACTIVE else []
            case events.ToolResult():
                return self._tool_result(event, now)

    def reject(self, error: FastTalkError, now: float, *, id: str | None = None) -> list[Effect]:  # noqa: A002
        """Answer a message that could not be read, or is one too many; nothing else changes."""
        self._active_at = now
        self.counters.messages_received += 1
        return [self._error(error, id=id)]

    def tell(self, error: FastTalkError) -> list[Effect]:
        """Tell the client of an error that no message of its own brought up."""
        return [self._error(error)]

    def expire(self, now: float) -> list[Effect]:
        """End the session because its client has been silent for too long; there may be none to end."""
        return self._end(now, "expired") if self._state is SessionState.ACTIVE else []

    def resume(
        self, event: events.StartSession, now: float, *, greeted: bool
    ) -> tuple[events.ServerEvent, list[Effect]]:
        """Return the answer to a client that comes back, numbered as the last event it has: what it missed follows.

        `greeted` says whether its connection was told of a session before.
        """
        effects = self._come_back(event, now)
        answer = self._answer(event.config or SessionConfig(), greeted=greeted, resumed=True)
        answer.seq = event.last_seq or 0
        return answer, effects

    def resume_without(self, event: events.StartSession, reason: str, now: float, *, greeted: bool) -> list[Effect]:
        """Let a client that comes back go on with the conversation, but not with what it missed, for this reason.

        What runs is stopped: the client would get the rest of an answer whose middle it lacks.
        """
        effects: list[Effect] = [effect for effect in self._stop_all() if not isinstance(effect, Send)]
        effects += self._come_back(event, now)
        config = event.config or SessionConfig()
        return [*effects, Send(self._answer(config, greeted=greeted, resumed=False, reason=reason))]

    def _come_back(self, event: events.StartSession, now: float) -> list[Effect]:
        self._active_at = now
        self.counters.messages_received += 1
        return [] if event.config is None else self._reconfigure(event.config)

    def _reconfigure(self, config: SessionConfig) -> list[Effect]:
        effects: list[Effect] = []
        if self._choices.summarizes and not self._defaults.choices(config).summarizes:
            effects = self._stop_asides()
        self._set_config(config)
        return effects

    # At rest

    def record(self, *, key: str, whole: bool, replay: ReplayRecord, now: float, wall: float) -> SessionRecord:
        """Return what `restore` takes; a turn that is being answered is not in it.

        `key` and `whole` are kept with it; `wall` is the time in seconds since the epoch.
        """
        ended = None if self._response is not None else self._heard.newest
        return SessionRecord(
            version=VERSION,
            id=self.id,
            key=key,
            whole=whole,
            saved_at=wall,
            age=now - self.started_at,
            idle=self.idle_seconds(now),
            config=config_as_sent(self.config),
            counters=self.counters.since(self._counters_before),
            last_response=self._last_response,
            calls=self._calls,
            dropped_before=self._dropped_before,
            conversation=self._conversation.record(),
            ended=None
            if ended is None
            else EndedResponse(
                ended.number, ended.id, ended.chars, ended.heard_end, ended.interrupted, self._heard.stopped
            ),
            replay=replay,
            chunks=self._chunks,
        )

    @classmethod
    def restore(
        cls, record: SessionRecord, defaults: SessionDefaults, *, new_id: Callable[[], str], now: float, wall: float
    ) -> Self:
        """Make the session of a record.

        Raises:
            pydantic.ValidationError: its configuration is none.
        """
        session = cls(defaults, new_id=new_id, now=now)
        session.id = record.id
        away = max(0.0, wall - record.saved_at)
        session.started_at = now - record.age - away
        session._active_at = now - record.idle - away
        session._counters_before = Counters().since(record.counters)
        session._last_response, session._calls = record.last_response, record.calls
        session._chunks = record.chunks
        session._dropped_before = record.dropped_before
        session._conversation.restore(record.conversation)
        config = SessionConfig.model_validate_json(msgspec.json.encode(record.config))
        # What was offered when it was chosen need not be now.
        session._set_config(SessionConfig() if defaults.refusal(config) is not None else config)
        session._state = SessionState.ACTIVE
        if record.ended is not None:
            ended = record.ended
            response = Response(ended.number, session._choices, ended.id, now, earlier_chars=ended.chars)
            response.turn, response.interrupted = session._conversation.last, ended.interrupted
            session._heard.begin(response, behind=False)
            if ended.heard is not None:
                session._heard.take(None, ended.heard)
            session._heard.stopped = ended.interrupted or ended.silenced
        return session

    # Client events, one method each

    def _start(self, event: events.StartSession, now: float) -> list[Effect]:
        config = event.config or SessionConfig()
        if (error := self._defaults.refusal(config)) is not None:
            return [self._error(error)]
        effects = self._leave()
        resumed = None if event.session_id is None else False
        if self._greeted and self._state is SessionState.ACTIVE:
            self._begin(config, now, keep_id=True)
            return [*effects, Send(self._answer(config, greeted=True, resumed=resumed))]
        if self._state is not SessionState.NEW:
            self._begin(config, now)
        return effects + self._activate(config, now, resumed=resumed)

    def _user_message(self, event: events.UserMessage, now: float, *, sounds: bool) -> list[Effect]:
        if self._refusing is not None:
            return [self._error(self._refusing, id=event.id)]
        return self._ensure_active(now) + self._message(event, now, sounds=sounds)

    def _update_config(self, event: events.UpdateConfig, now: float) -> list[Effect]:
        effects = self._ensure_active(now)
        config = merge_config(self.config, event.config)
        if (error := self._defaults.refusal(config)) is not None:
            return [*effects, self._error(error)]
        effects += self._reconfigure(config)
        return [*effects, Send(self._answer(event.config, greeted=True))]

    def _end(self, now: float, reason: events.EndReason) -> list[Effect]:
        effects = self._leave()
        self._state = SessionState.ENDED
        return [*effects, Send(events.SessionEnded(stats=self.stats(now), reason=reason))]

    # State

    def _begin(self, config: SessionConfig, now: float, *, keep_id: bool = False) -> None:
        if not keep_id:
            self.id = self._new_id()
            self.started_at = now
            # The message that begins a session is its first; none has come when the connection is made.
            self._counters_before = replace(
                self.counters, messages_received=max(0, self.counters.messages_received - 1)
            )
        self._active_at = now
        self._start_over(config)

    def _ensure_active(self, now: float) -> list[Effect]:
        """Start a session with the defaults for a client that did not."""
        if self._state is SessionState.ACTIVE:
            return []
        if self._state is SessionState.ENDED:
            self._begin(SessionConfig(), now)
        return self._activate(SessionConfig(), now)

    def _activate(self, config: SessionConfig, now: float, *, resumed: bool | None = None) -> list[Effect]:
        self._state = SessionState.ACTIVE
        self._active_at = now
        self._set_config(config)
        return [Send(self._answer(config, greeted=False, resumed=resumed))]

    def _answer(
        self,
        config: SessionConfig,
        *,
        greeted: bool,
        resumed: bool | None = None,
        reason: str = UNKNOWN_SESSION,
    ) -> events.SessionStarted | events.SessionConfigured:
        """Return what answers a configuration: a client that was greeted has been told of its session before.

        `reason` is told where `resumed` is False.
        """
        provider, why = self._defaults.provider, reason if resumed is False else None
        if greeted:
            sent = config_as_sent(config)
            return events.SessionConfigured(config=sent, provider=provider, resumed=resumed, reason=why)
        return events.SessionStarted(
            session_id=self.id, provider=provider, model=self._choices.model, resumed=resumed, reason=why
        )
