"""The engines of a process, with all that protects them, watches them and lets requests wait for them."""

import asyncio
from contextlib import suppress
from time import monotonic

import structlog

from llm_service import engine_health
from llm_service.config import Settings
from llm_service.engine_health import EngineHealth
from llm_service.engines import OpenedEngine
from llm_service.engines.base import Engine, timed
from llm_service.engines.members import MemberEngine
from llm_service.engines.pool import PoolEngine, PoolMember
from llm_service.engines.protection import ProtectedEngine, admission, protect
from llm_service.engines.retrying import RetryingEngine
from llm_service.errors import EngineError, FastTalkError
from llm_service.generation import GenerationRequest, Message, SamplingParams
from llm_service.metrics import FailoverMoment, Metrics

# What an engine is asked to find out whether it answers again.
TRIAL = "Say yes."

_log = structlog.get_logger(__name__)


class EngineSet:
    """What `open_engine` opened; `engine` is the one to ask, be it one or several."""

    def __init__(self, opened: OpenedEngine, settings: Settings, metrics: Metrics) -> None:
        self._opened = opened
        self._settings = settings
        self._metrics = metrics
        self.context_window = opened.context_window
        self.admission = admission(settings, metrics.queue_wait.observe)
        self.members = tuple(self._member(member) for member in opened.members)
        if self.members:
            self.protected = tuple(member.protected for member in self.members)
            pool = PoolEngine(self.members, self.admission, failed_over=self._failed_over)
            inner: Engine = pool
            self.health: PoolHealth | EngineHealth = PoolHealth(self, pool)
        else:
            (only,) = self.protected = (self._protect(opened.engine, settings),)
            inner = only.engine
            self.health = EngineHealth(inner, metrics, checked=self.note_silence)
        self.engine = RetryingEngine(
            inner, retries=settings.engine_retries, budget=settings.retry_budget, retried=self._retried
        )

    @property
    def reads_on(self) -> bool:
        """Whether one of them goes on reading a prompt that nobody wants any more."""
        return any(each.engine.reads_on for each in self.protected)

    def statistics(self, now: float) -> dict[str, object]:
        """Return how the engines stand, and the line of those who wait for one, for `/stats`."""
        line = self.admission.line
        engines = self.members or self.protected
        return {
            "engines": {each.name: each.statistics(now) for each in engines},
            "queue": {"waiting": line.waiting, "max_waiting": line.limit},
        }

    def breakers(self, now: float) -> dict[str, object]:
        """Return how the circuit breakers stand, for `/stats`."""
        return {each.name: each.breaker.statistics(now) for each in self.protected}

    def measure(self) -> None:
        """Bring the gauges up to now."""
        self._metrics.queue_depth.set(self.admission.line.waiting)
        for each in self.protected:
            permits = each.engine.permits
            self._metrics.set_permits(each.name, taken=permits.taken, unwanted=permits.unwanted)

    def note_silence(self) -> None:
        """Take note which engines are known to say nothing, and end the waiting of those who wait for these alone."""
        for each, health in zip(self.protected, self._healths(), strict=True):
            since = health.silent_since
            each.engine.permits.silent = since is not None and each.hearing.heard_at < since
        self.admission.let_go([each.engine.permits for each in self.protected])

    def _healths(self) -> list[EngineHealth]:
        if isinstance(self.health, EngineHealth):
            return [self.health]
        return [member.health for member in self.members]

    def _member(self, engine: MemberEngine) -> PoolMember:
        spec = next(spec for spec in self._settings.engines if spec.name == engine.name)
        protected = self._protect(engine, self._settings.model_copy(update=spec.limits()), engine.provider)
        return PoolMember(engine, protected, EngineHealth(protected.engine, self._metrics))

    def _protect(self, engine: Engine, settings: Settings, provider: str = "") -> ProtectedEngine:
        opened = self._opened
        loaded = (opened.model, opened.context_window) if settings.preload else None
        return protect(engine, settings, self._metrics, self.admission, provider=provider or engine.name, loaded=loaded)

    def _retried(self, error: EngineError) -> None:
        name = self._opened.engine.name
        _log.warning("engine_retried", engine=name, code=error.code)
        self._metrics.count_retry(name)

    def _failed_over(self, member: PoolMember, error: FastTalkError, moment: FailoverMoment) -> None:
        _log.warning("failed_over", engine=member.name, code=error.code, first_token=moment)
        self._metrics.count_failover(member.name, moment)


class PoolHealth:
    """Of several engines: it is well with them if it is with one."""

    def __init__(self, engines: EngineSet, pool: PoolEngine) -> None:
        self._engines = engines
        self._pool = pool

    @property
    def reachable(self) -> bool:
        """Whether one of them answered when last asked."""
        return any(member.health.reachable for member in self._engines.members)

    @property
    def problem(self) -> str | None:
        """What is the matter with each of them, where none answers."""
        if self.reachable:
            return None
        return "; ".join(f"{member.name}: {member.health.problem}" for member in self._engines.members)

    async def check(self) -> bool:
        """Ask each of them once; returns whether one answered in time."""
        await asyncio.gather(*(member.health.check() for member in self._engines.members))
        self._engines.note_silence()
        self._pool.leave_silent()
        for member in self._engines.members:
            # One that is back, or the last that is gone, may be what somebody waits for now.
            self._engines.admission.line.offer(member.permits)
        return self.reachable

    async def watch(self) -> None:
        """Ask every so many seconds until cancelled; one that failed too often is tried, so that no client need be."""
        async with asyncio.TaskGroup() as trials:
            while True:
                await asyncio.sleep(engine_health.INTERVAL)
                await self.check()
                for member in self._engines.members:
                    if member.due(monotonic()):
                        trials.create_task(self._try(member))

    async def _try(self, member: PoolMember) -> None:
        """Have it say a word: its breaker closes, or it rests on."""
        model = next(iter(member.engine.offers), "")
        sampling = SamplingParams(temperature=0.0, top_p=1.0, top_k=1, max_tokens=1)
        request = GenerationRequest(model, (Message("user", TRIAL),), sampling, self._engines.context_window)
        member.permits.taken += 1
        with suppress(FastTalkError):
            await member.protected.engine.admitted(request, timed(lambda _: None))
