"""Which connections and sessions there are: admits and counts them. Decides; does no I/O of its own."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import get_args

from llm_service.counters import Counters
from llm_service.errors import Category, InvalidConfig, TooManyConnections
from llm_service.events import StartSession
from llm_service.records import SessionRecord
from llm_service.session import Session, SessionState
from llm_service.session_defaults import SessionDefaults

RECENT_ERRORS = 10


@dataclass(frozen=True, slots=True)
class RecentError:
    """`at` is in seconds since the epoch."""

    code: str
    category: str
    severity: str
    at: float


class SessionManager:
    """The connections of one process, and its sessions: some have lost their connection and wait for their client.

    `new_id` makes session ids. Times named `now` are in seconds of a clock that never goes back.
    """

    def __init__(self, defaults: SessionDefaults, *, max_connections: int, new_id: Callable[[], str]) -> None:
        self._defaults = defaults
        self._max_connections = max_connections
        self._new_id = new_id
        self._sessions: set[Session] = set()
        self._closed = Counters()
        self._connections = self._connections_closed = self._sessions_closed = 0
        self._closed_seconds = 0.0
        self._errors: Counter[str] = Counter()
        self._recent_errors: deque[RecentError] = deque(maxlen=RECENT_ERRORS)

    def __repr__(self) -> str:
        return f"<SessionManager: {self.active_connections} of {self._max_connections} connections>"

    @property
    def active_connections(self) -> int:
        return self._connections

    @property
    def sessions(self) -> frozenset[Session]:
        """Those of connections, and those that wait for their client."""
        return frozenset(self._sessions)

    @property
    def active_sessions(self) -> int:
        return sum(session.state is SessionState.ACTIVE for session in self._sessions)

    @property
    def running_responses(self) -> int:
        return sum(session.running is not None for session in self._sessions)

    @property
    def max_connections(self) -> int:
        """LLM_MAX_CONNECTIONS."""
        return self._max_connections

    def admit(self, now: float, *, known: bool = True) -> Session:
        """Make the session that a new connection begins with; `leave` and `forget` must follow.

        One whose key is still to come is not `known`, and takes nobody's place before it is `let_in`.

        Raises:
            TooManyConnections: LLM_MAX_CONNECTIONS are open.
        """
        if known:
            self.let_in()
        session = Session(self._defaults, new_id=self._new_id, now=now)
        self._sessions.add(session)
        return session

    def let_in(self) -> None:
        """Give a connection a place among the LLM_MAX_CONNECTIONS.

        Raises:
            TooManyConnections: all are taken.
        """
        if self._connections >= self._max_connections:
            raise TooManyConnections(
                f"all {self._max_connections} connections are in use; try again later", retry_after=5.0
            )
        self._connections += 1

    def leave(self, *, known: bool = True) -> None:
        """Forget a connection that is gone; one that was not `known` had no place."""
        self._connections -= known
        self._connections_closed += 1

    def restore(self, record: SessionRecord, now: float, *, wall: float) -> Session:
        """Make the session of a record; `wall` is the time in seconds since the epoch.

        Raises:
            pydantic.ValidationError: its configuration is none.
        """
        session = Session.restore(record, self._defaults, new_id=self._new_id, now=now, wall=wall)
        self._sessions.add(session)
        return session

    def refusal(self, event: StartSession) -> InvalidConfig | None:
        """Return why a session cannot have the configuration that a client names, or None if it can."""
        return None if event.config is None else self._defaults.refusal(event.config)

    def forget(self, session: Session, now: float) -> None:
        """Forget a session that is over, or rests elsewhere; its figures stay in the totals."""
        self._sessions.remove(session)
        self._sessions_closed += 1
        self._closed_seconds += now - session.started_at
        self._closed.add(session.counters)

    def note_error(self, *, code: str, category: str, severity: str, at: float) -> None:
        """Count an error that a client was told of; `at` is in seconds since the epoch."""
        self._errors[category] += 1
        self._recent_errors.append(RecentError(code, category, severity, at))

    def totals(self) -> Counters:
        """Return what all sessions did so far, living and gone."""
        total = Counters()
        total.add(self._closed)
        for session in self._sessions:
            total.add(session.counters)
        return total

    def statistics(self, now: float, *, circuit_breakers: Mapping[str, object]) -> dict[str, object]:
        """Return the body of `GET /stats`, in FastTalk 1.x's shape."""
        total = self.totals()
        active = self.active_connections
        opened = active + self._connections_closed
        sessions = len(self._sessions) + self._sessions_closed
        seconds = self._closed_seconds + sum(now - session.started_at for session in self._sessions)
        connections = {
            "active_connections": active,
            "max_connections": self._max_connections,
            "utilization_percent": round(100 * active / self._max_connections, 2),
            "total_connections": opened,
            "total_disconnections": self._connections_closed,
            "total_messages_received": total.messages_received,
            "total_messages_sent": total.messages_sent,
            "total_tokens_generated": total.tokens_generated,
            "total_generations_completed": total.generations_completed,
            "total_generations_cancelled": total.generations_cancelled,
            "average_session_duration_seconds": round(seconds / sessions, 3) if sessions else 0.0,
        }
        conversations = {
            "active_sessions": self.active_sessions,
            "running_responses": self.running_responses,
            "total_turns": total.turns,
            "total_tokens_generated": total.tokens_generated,
        }
        errors = {
            "total_errors": self._errors.total(),
            "by_category": {category: self._errors[category] for category in get_args(Category)},
            "recent_errors": [asdict(error) for error in self._recent_errors],
            "circuit_breakers": circuit_breakers,
        }
        return {"connections": connections, "conversations": conversations, "errors": errors}
