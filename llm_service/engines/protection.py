"""What stands around each engine, so that one that is slow, broken or full costs its clients an error and no more.

limited (permits) → breaker → hearing → loading, where the engine loads models when asked → deadlines → the engine
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import structlog

from llm_service.config import Settings
from llm_service.engines.base import Engine
from llm_service.engines.breaker import LONGEST_TRIAL, TRIAL_TIMEOUT, Breaker, BreakerEngine
from llm_service.engines.deadlines import DeadlineEngine, Deadlines
from llm_service.engines.hearing import HearingEngine
from llm_service.engines.limited import Admission, LimitedEngine
from llm_service.engines.loading import LoadingEngine
from llm_service.engines.permits import Line, Permits
from llm_service.engines.prompt_reading import PromptReading
from llm_service.metrics import BreakerState, Metrics

# Answers at once of an engine that has a queue of its own and serves it well.
MANY = 1024

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProtectedEngine:
    """An engine with what protects it; `engine` is the one to ask."""

    engine: LimitedEngine
    breaker: Breaker
    hearing: HearingEngine

    @property
    def name(self) -> str:
        return self.engine.name

    def statistics(self, now: float) -> dict[str, object]:
        """Return how it stands, for `/stats`."""
        permits = self.engine.permits
        return {
            "running": permits.taken - permits.unwanted,
            "max_running": permits.limit,
            "unwanted": permits.unwanted,
            "breaker": self.breaker.statistics(now)["state"],
        }


def admission(settings: Settings, waited: Callable[[float], None]) -> Admission:
    """Return the line for all engines of a process; `waited` hears how many seconds each waited."""
    return Admission(Line(settings.max_waiting), timeout=settings.queue_timeout, waited=waited)


def protect(
    engine: Engine,
    settings: Settings,
    metrics: Metrics,
    line: Admission,
    *,
    provider: str,
    loaded: tuple[str, int] | None = None,
) -> ProtectedEngine:
    """Put around an engine of this provider what the settings ask for.

    `loaded` is a model in its memory, with the context window.
    """
    name = engine.name

    def changed(state: BreakerState) -> None:
        say = _log.info if state == "closed" else _log.warning
        say("breaker", engine=name, state=state)
        metrics.count_breaker(name, state)

    metrics.know_engine(name)
    breaker = Breaker(changed, trial_timeout=min(TRIAL_TIMEOUT, settings.first_token_timeout))
    deadlines = Deadlines(
        first_token=settings.first_token_timeout,
        between_tokens=settings.token_timeout,
        response=settings.response_timeout,
    )
    inner: Engine = DeadlineEngine(engine, deadlines)
    kept = keep_alive_seconds(settings.ollama_keep_alive)
    # One that unloads its model after each answer must not be asked to load it before.
    loading = None
    if provider == "ollama" and kept:
        inner = loading = LoadingEngine(inner, load_timeout=settings.load_timeout, kept=kept, loaded=loaded)
    hearing = HearingEngine(inner)
    permits = Permits(max_running(settings, provider))
    limited = LimitedEngine(
        BreakerEngine(
            hearing,
            breaker,
            longest_trial=min(LONGEST_TRIAL, settings.first_token_timeout),
            loading=lambda: loading is not None and loading.loading,
        ),
        permits,
        line,
        reading=PromptReading(permits.limit) if provider == "ollama" else None,
        aside_seconds=settings.aside_read_seconds,
    )
    return ProtectedEngine(limited, breaker, hearing)


def max_running(settings: Settings, provider: str) -> int:
    """Return how many answers an engine of this provider is asked for at once."""
    if settings.max_running is not None:
        return settings.max_running
    return {"ollama": settings.ollama_num_parallel, "llama_cpp": settings.llama_cpp_parallel}.get(provider, MANY)


def keep_alive_seconds(keep_alive: str) -> float:
    """Return how long OLLAMA_KEEP_ALIVE keeps a model: seconds, or a Go duration such as 1h30m; below 0 for ever."""
    if keep_alive.lstrip("-").isdigit():
        seconds = float(keep_alive)
        return inf if seconds < 0 else seconds
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", keep_alive))
