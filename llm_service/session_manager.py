"""Which sessions there are: admits, counts and expires them. Decides; does no I/O of its own."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import get_args

from llm_service.counters import Counters
from llm_service.errors import Category, TooManyConnections
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
    """The sessions of one process; each belongs to one connection.

    `new_id` makes session ids. Times named `now` are in seconds of a clock that never goes back.
    """

    def __init__(
        self, defaults: SessionDefaults, *, max_connections: int, session_timeout: float, new_id: Callable[[], str]
    ) -> None:
        self._defaults = defaults
        self._max_connections = max_connections
        self._session_timeout = session_timeout
        self._new_id = new_id
        self._sessions: set[Session] = set()
        self._closed = Counters()
        self._connections_closed = 0
        self._closed_seconds = 0.0
        self._errors: Counter[str] = Counter()
        self._recent_errors: deque[RecentError] = deque(maxlen=RECENT_ERRORS)

    def __repr__(self) -> str:
        return f"<SessionManager: {self.active_connections} of {self._max_connections} connections>"

    @property
    def active_connections(self) -> int:
        return len(self._sessions)

    @property
    def active_sessions(self) -> int:
        return sum(session.state is SessionState.ACTIVE for session in self._sessions)

    @property
    def running_responses(self) -> int:
        return sum(session.running is not None for session in self._sessions)

    def admit(self, now: float) -> Session:
        """Make the session of a new connection.

        Raises:
            TooManyConnections: LLM_MAX_CONNECTIONS are open.
        """
        if len(self._sessions) >= self._max_connections:
            raise TooManyConnections(
                f"all {self._max_connections} connections are in use; try again later", retry_after=5.0
            )
        session = Session(self._defaults, new_id=self._new_id, now=now)
        self._sessions.add(session)
        return session

    def release(self, session: Session, now: float) -> None:
        """Forget the session of a connection that is gone; its figures stay in the totals."""
        self._sessions.remove(session)
        self._connections_closed += 1
        self._closed_seconds += now - session.started_at
        _add(self._closed, session.counters)

    def expired(self, session: Session, now: float) -> bool:
        """Whether the session has been silent for longer than SESSION_TIMEOUT."""
        return session.idle_seconds(now) > self._session_timeout

    def note_error(self, *, code: str, category: str, severity: str, at: float) -> None:
        """Count an error that a client was told of; `at` is in seconds since the epoch."""
        self._errors[category] += 1
        self._recent_errors.append(RecentError(code, category, severity, at))

    def totals(self) -> Counters:
        """Return what all sessions did so far, living and gone."""
        total = Counters()
        _add(total, self._closed)
        for session in self._sessions:
            _add(total, session.counters)
        return total

    def statistics(self, now: float, *, circuit_breakers: Mapping[str, object]) -> dict[str, object]:
        """Return the body of `GET /stats`, in FastTalk 1.x's shape."""
        total = self.totals()
        active = self.active_connections
        opened = active + self._connections_closed
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
            "average_session_duration_seconds": round(seconds / opened, 3) if opened else 0.0,
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


def _add(total: Counters, counters: Counters) -> None:
    for name, value in asdict(counters).items():
        setattr(total, name, getattr(total, name) + value)
