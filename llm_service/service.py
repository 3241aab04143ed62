"""What the routes of one process share: the engine, the sessions, the metrics, and the tasks that watch them."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Literal, Self

import psutil
import structlog
from prometheus_client import CollectorRegistry

from llm_service import __version__
from llm_service.access import AccessPolicy
from llm_service.archive import CLAIM_SECONDS, Archive
from llm_service.chunk_hook import ChunkHook, OnChunk
from llm_service.collector import Collector
from llm_service.config import Settings
from llm_service.connection import Connection, ConnectionLimits
from llm_service.engine_health import EngineHealth
from llm_service.engine_set import EngineSet, PoolHealth
from llm_service.engines import OpenedEngine, open_engine
from llm_service.events import ErrorBody
from llm_service.generation import SamplingParams
from llm_service.huge_pages import HugePages
from llm_service.idle_work import IdleWork
from llm_service.key_file import KeyFile
from llm_service.live_session import LiveSession, Workplace
from llm_service.message_rate import MessageRates
from llm_service.metrics import Metrics, shared_registry
from llm_service.resumption import Resumption
from llm_service.session import Session
from llm_service.session_defaults import SessionDefaults
from llm_service.session_manager import SessionManager
from llm_service.speaking import SpeechDesk
from llm_service.speech import open_speech
from llm_service.speech_choices import SpeechDefaults
from llm_service.speech_rules import SpeechRules
from llm_service.stores import open_store

# How often the event loop's delay is measured, and connections are looked after that are held up, in seconds.
WATCH_INTERVAL = 0.25
# Of those that are well each is looked after every so many times: a look costs as much as half a token. Sessions that
# expire, and tool results that do not come, are found late by that.
LOOK_EVERY = 4
# How often what is counted is written down for the other workers, in seconds; one process counts when it is scraped.
SETTLE_INTERVAL = 1.0
# WATCH_INTERVAL while it drains, so that the last answer's end is soon followed by the process's.
DRAIN_INTERVAL = 0.05

# Seconds that a client who comes back waits for another process, beside those for which the claim of one that was
# killed stands, and those of a response that ends there.
PATIENCE = 5.0

State = Literal["starting", "ready", "draining", "stopped"]
EngineOpener = Callable[[Settings], Awaitable[OpenedEngine]]

_log = structlog.get_logger(__name__)


class Service:
    """One process of the service, from start to stop; an async context manager.

    `metrics_folder` is where several processes write their figures, for `exposed` to add them up.

    Entering it opens the engine and loads the model; while it is "starting" only liveness answers. Leaving
    it closes the engine. A background task that fails brings the service down, loudly.

    Raises on entering:
        StartupError: there is no such device or engine, the model cannot be had, or API_KEYS_FILE is broken.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        opener: EngineOpener = open_engine,
        metrics_folder: str = "",
        on_chunk: OnChunk | None = None,
    ) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.exposed = shared_registry(metrics_folder) if metrics_folder else self.registry
        self.metrics = Metrics(self.registry, version=__version__)
        self.speech = open_speech(settings, self.metrics.speech)
        self._hook = None if on_chunk is None else ChunkHook(on_chunk, self.metrics.speech)
        self._key_file = KeyFile(Path(settings.api_keys_file)) if settings.api_keys_file else None
        self.access = AccessPolicy(
            api_keys=(key.get_secret_value() for key in settings.api_keys),
            allowed_origins=settings.allowed_origins,
            allowed_hosts=(*settings.allowed_hosts, settings.llm_host.lower(), settings.llm_monitoring_host.lower()),
            port=settings.llm_port,
            keys_change=self._key_file is not None,
        )
        self.limits = ConnectionLimits(
            greeting_delay=settings.greeting_delay_ms / 1000,
            first_message_timeout=settings.first_message_timeout,
            send_timeout=settings.send_timeout,
            session_timeout=settings.session_timeout,
            max_invalid_messages=settings.max_invalid_messages,
        )
        self.rates = MessageRates(settings.message_rate, settings.message_burst)
        self.connections: set[Connection] = set()
        # Those whose key is still to come, the oldest first.
        self._strangers: dict[Connection, None] = {}
        self._looks = 0
        self.idle_work = IdleWork()
        self.collector = Collector()
        self.huge_pages = HugePages()
        self.empty = asyncio.Event()
        self.empty.set()
        self.started_at = monotonic()
        self.state: State = "starting"
        self._opener = opener
        self._stack = contextlib.AsyncExitStack()
        self.opened: OpenedEngine
        self.engines: EngineSet
        self.manager: SessionManager
        self.resumption: Resumption
        self._workplace: Workplace

    async def __aenter__(self) -> Self:
        settings = self.settings
        if self._key_file is not None:
            self.access.change_keys(self._key_file.load())
        self._stack.push_async_callback(self.speech.aclose)
        if self._hook is not None:
            self._stack.push_async_callback(self._hook.aclose)
        try:
            self.opened = await self._opener(settings)
            self._stack.push_async_callback(self.opened.engine.aclose)
            self.metrics.know_models(self.opened.models)
            self.engines = EngineSet(self.opened, settings, self.metrics)
            self.manager = SessionManager(
                self._session_defaults(),
                max_connections=settings.llm_max_connections,
                new_id=lambda: str(uuid.uuid4()),
            )
            await self._open_sessions()
            await self.health.check()
            psutil.cpu_percent()  # the first call only sets the point from which the next one measures
            tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
            works = [self.health.watch(), self._watch_connections()]
            if self.speech:
                works.append(self.speech.watch())
            if self._key_file is not None:
                works.append(self._key_file.watch(self._use_keys))
            for work in works:
                self._stack.callback(tasks.create_task(work).cancel)
            self.metrics.measure = self._measure
        except BaseException:
            await self._stack.aclose()
            raise
        self.state = "ready"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.state = "stopped"
        try:
            await self._stack.__aexit__(kind, error, traceback)
        finally:
            self.metrics.settle()
            self.metrics.measure = lambda: None  # who asks from now on may do so without an event loop

    @property
    def health(self) -> EngineHealth | PoolHealth:
        """Whether the engine answers, or one of several."""
        return self.engines.health

    @property
    def ready(self) -> bool:
        """Whether new sessions are taken and would be answered."""
        return self.state == "ready" and self.health.reachable

    @property
    def uptime_seconds(self) -> float:
        return round(monotonic() - self.started_at, 3)

    def info(self) -> dict[str, object]:
        """Return what runs here, for `/info`; no secrets."""
        body: dict[str, object] = {
            "service": "llm-service",
            "version": __version__,
            "uptime_seconds": self.uptime_seconds,
            "state": self.state,
        }
        if self.state != "starting":
            opened = self.opened
            body |= {
                "provider": opened.provider,
                "provider_reason": opened.reason,
                "model": opened.model,
                "models": sorted(opened.models),
                "context_window": opened.context_window,
                "device": opened.device.describe(),
            }
        return body

    def note_error(self, error: ErrorBody) -> None:
        """Count an error that a client was told of."""
        self.manager.note_error(code=error.code, category=error.category, severity=error.severity, at=time.time())
        self.metrics.count_error(error.category)
        if error.category == "resource":
            self.metrics.count_shed(error.code)
        say = _log.warning if error.severity in ("high", "critical") else _log.info
        say("client_told_of_error", code=error.code, category=error.category)

    def enter(self, connection: Connection) -> None:
        """Take note of a connection; `leave` must follow."""
        self.connections.add(connection)
        self.empty.clear()
        if not connection.known:
            self._strangers[connection] = None
            if len(self._strangers) > self.manager.max_connections:
                # Who has a key says so at once; who holds sockets open and says nothing keeps nobody else out.
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.make_room()
        if self.access.revoked(connection.live.key):
            connection.revoke()  # while the handshake was answered

    def let_in(self, connection: Connection) -> None:
        """Give a connection whose key has come a place.

        Raises:
            TooManyConnections: LLM_MAX_CONNECTIONS are open.
        """
        self.manager.let_in()
        self._strangers.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        self.connections.discard(connection)
        self._strangers.pop(connection, None)
        self.manager.leave(known=connection.known)
        self._look_if_empty()

    def _use_keys(self, keys: Sequence[str]) -> None:
        """Let these keys in; what others opened ends at once."""
        self.access.change_keys(keys)
        for connection in tuple(self.connections):
            if self.access.revoked(connection.live.key):
                connection.revoke()
        self.resumption.revoke(self.access.revoked)
        self.rates.forget(self.access.revoked)

    def _look_if_empty(self) -> None:
        if not (self.connections or self.resumption.busy):
            self.empty.set()

    def drain(self) -> None:
        """Take no new sessions and let running responses finish; `empty` is set when nothing runs any more.

        A second call does nothing.
        """
        if self.state == "draining":
            return
        self.state = "draining"
        for connection in tuple(self.connections):
            connection.drain()

    def cut(self) -> None:
        """End the responses that outlasted the drain, each with an error that says so."""
        for connection in tuple(self.connections):
            connection.shut_down()

    async def _open_sessions(self) -> None:
        """Set up where sessions work, and where they rest."""
        settings = self.settings
        store = await open_store(settings)
        self._stack.push_async_callback(store.aclose)
        archive = Archive(
            store,
            owner=str(uuid.uuid4()),
            ttl=settings.session_timeout,
            patience=CLAIM_SECONDS + PATIENCE,
            at_most=settings.response_timeout + CLAIM_SECONDS + PATIENCE,
        )
        self.resumption = Resumption(
            self.manager,
            archive,
            self.metrics,
            self.employ,
            window=settings.resume_window,
            generate=settings.resume_generate,
            max_resting=settings.max_resting_sessions,
        )
        self._workplace = Workplace(
            engine=self.engines.engine,
            metrics=self.metrics,
            idle_work=self.idle_work,
            reads_on=self.engines.reads_on,
            note_error=self.note_error,
            max_pending_bytes=settings.max_pending_bytes,
            replay_bytes=settings.resume_buffer_bytes,
            started=self.resumption.started,
            changed=self.resumption.changed,
            ended=self.resumption.ended,
            speech=SpeechDesk(
                endpoints=self.speech,
                metrics=self.metrics.speech,
                hook=self._hook,
                rules=SpeechRules.parse(settings.speech_rules),
                max_ahead=settings.tts_max_ahead,
                max_waiting=settings.tts_max_waiting,
            ),
        )
        resumption = self.resumption
        await self._stack.enter_async_context(
            archive.kept_up(resumption.lost, resumption.forgotten, resumption.hand_over)
        )
        self._stack.push_async_callback(self.resumption.aclose)

    def employ(self, session: Session, key: str) -> LiveSession:
        """Put a session to work; `key` is the digest of the key it was opened with, or ""."""
        return LiveSession(session, self._workplace, key=key)

    async def _watch_connections(self) -> None:
        interval, settle_at = WATCH_INTERVAL, 0.0
        while True:
            expected = monotonic() + interval
            await asyncio.sleep(interval)
            now = monotonic()
            self.metrics.event_loop_delay.observe(max(0.0, now - expected))
            self._watch_each(now)
            self.resumption.watch(now)
            self._look_if_empty()
            self.collector.look(busy=not self.idle_work.idle)
            if (piece := self.huge_pages.find()) is not None:
                await asyncio.to_thread(self.huge_pages.move, piece)
            if self.exposed is not self.registry and now >= settle_at:
                settle_at = now + SETTLE_INTERVAL
                self.metrics.settle()  # the scrape of several workers is answered by another process
            interval = DRAIN_INTERVAL if self.state == "draining" else WATCH_INTERVAL

    def _watch_each(self, now: float) -> None:
        # Not in the loop that calls it: there the last of them would be held until the next time.
        self._looks += 1
        for connection in tuple(self.connections):
            due = (connection.number + self._looks) % LOOK_EVERY == 0
            if due or connection.held_up or self.state == "draining":
                connection.watch(now)

    def _measure(self) -> None:
        """Bring the gauges up to now."""
        metrics = self.metrics
        metrics.connections_active.set(len(self.connections))
        metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        metrics.sessions_resting.set(self.resumption.resting)
        metrics.sessions_active.set(self.manager.active_sessions)
        self.engines.measure()

    def _session_defaults(self) -> SessionDefaults:
        settings, opened = self.settings, self.opened
        temperature = settings.default_temperature
        if opened.temperature is not None and not settings.default_temperature_given:
            temperature = opened.temperature
        return SessionDefaults(
            provider=opened.provider,
            model=opened.model,
            models=opened.models,
            sampling=SamplingParams(
                temperature=temperature,
                top_p=settings.default_top_p,
                top_k=settings.default_top_k,
                max_tokens=settings.default_max_tokens,
            ),
            context_window=opened.context_window,
            system_prompt=settings.system_prompt,
            max_history_messages=settings.max_history_length,
            max_queued_messages=settings.max_queued_messages,
            low_water=settings.context_low_water,
            high_water=settings.context_high_water,
            context_strategy=settings.context_strategy,
            summary_max_tokens=settings.summary_max_tokens,
            warm=settings.warm_prompts,
            tool_timeout=settings.tool_timeout,
            counts_tokens=opened.counts_tokens,
            window_enforced=opened.window_enforced,
            answer_in_window=opened.answer_in_window,
            speech=SpeechDefaults(
                enabled=settings.speech_enabled,
                voice=settings.tts_voice,
                language=settings.tts_language,
                speed=settings.tts_speed,
                format=settings.tts_format,
                formats=self.speech.formats,
            ),
        )
