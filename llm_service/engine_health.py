"""Whether the engine answers, asked in the background so that no health probe ever waits for it."""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

import structlog

from llm_service.engines.base import Engine
from llm_service.errors import EngineTimeout, EngineUnreachable, FastTalkError
from llm_service.metrics import Metrics

INTERVAL = 5.0
PING_TIMEOUT = 3.0
# So many pings in a row must go unanswered before an engine counts as silent: one may fall into a busy moment.
SILENT_PINGS = 2

_log = structlog.get_logger(__name__)


class EngineHealth:
    """The last answer of an engine to a ping; the gauge of `metrics` follows it. `checked` hears of each."""

    def __init__(self, engine: Engine, metrics: Metrics, *, checked: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._checked = checked
        self._unanswered: deque[float] = deque(maxlen=SILENT_PINGS)  # when each was begun
        self.reachable = False
        self.problem: str | None = "not asked yet"
        self.checked_at: float | None = None

    @property
    def silent_since(self) -> float | None:
        """When the first of the last pings began, if none of them was answered; None if one was."""
        return self._unanswered[0] if len(self._unanswered) == SILENT_PINGS else None

    async def check(self) -> bool:
        """Ask once; returns whether the engine answered within PING_TIMEOUT seconds."""
        problem, began = None, monotonic()
        answered = True
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._engine.ping()
        except TimeoutError:
            answered, problem = False, f"no answer within {PING_TIMEOUT:g} seconds"
        except (EngineTimeout, EngineUnreachable) as error:
            answered, problem = False, error.message
        except FastTalkError as error:
            problem = error.message
        # That it answers the first time goes without saying.
        if problem is not None and (self.reachable or self.checked_at is None):
            _log.warning("engine_unreachable", engine=self._engine.name, problem=problem)
        elif problem is None and self.checked_at is not None and not self.reachable:
            _log.warning("engine_reachable", engine=self._engine.name)
        self.reachable = problem is None
        self.problem = problem
        self.checked_at = monotonic()
        self._metrics.set_engine_healthy(self._engine.name, self.reachable)
        if answered:
            self._unanswered.clear()
        else:
            self._unanswered.append(began)
        self._checked()
        return self.reachable

    def note(self, problem: str) -> None:
        """Take note that it did not answer when it was asked for something else."""
        if self.reachable:
            _log.warning("engine_unreachable", engine=self._engine.name, problem=problem)
        self.reachable = False
        self.problem = problem
        self._metrics.set_engine_healthy(self._engine.name, False)

    async def watch(self) -> None:
        """Ask every INTERVAL seconds until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.check()
