"""Every Prometheus collector of the service, and the few ways to feed it.

Base units (seconds, tokens), prefix `fasttalk_`, and no label that a client can make longer: models outside
the configured ones, unknown message types and reasons are all counted as "other". Every series but those of
models is there from the start, at 0, so that a rate is right from the first event on.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import sub
from platform import python_version
from typing import Final, Literal, get_args

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from llm_service.errors import Category
from llm_service.speech_metrics import SpeechMetrics

Outcome = Literal["finished", "cancelled", "failed"]
TokenType = Literal["input", "output", "cached"]
BreakerState = Literal["closed", "half_open", "open"]
ResumeOutcome = Literal["whole", "gap", "unknown", "failed"]
FailoverMoment = Literal["before", "after"]
AsideKind = Literal["summary", "warm"]
AsideOutcome = Literal["finished", "failed", "preempted", "skipped"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
SHED_REASONS: Final = ("max_connections", "queue_full", "rate_limited", "overloaded", "shutting_down")
MESSAGE_TYPES: Final = (
    "start_session", "user_message", "cancel", "end_session", "update_config", "played", "partial_message",
    "tool_result",
)  # fmt: skip

# In seconds
FIRST_TOKEN_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
INTER_TOKEN_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5,
)  # fmt: skip
REQUEST_BUCKETS: Final = tuple(0.01 * 2**power for power in range(16))  # to 327.68
# What may wait to be counted, about a millisecond of work: tokens, and for each response as much as for so many.
_PORTION: Final = 2048
_RESPONSE_WEIGHT: Final = 64
DELAY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once: one by one, each costs two locks."""

    def observe_all(self, values: list[float]) -> None:
        """Add these observations; they are sorted by then."""
        if not values:
            return
        # Sorting them costs less than looking each one's bucket up.
        values.sort()
        before = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            end = bisect_right(values, bound)
            if end > before:
                bucket.inc(end - before)
                before = end
        self._sum.inc(sum(values))


class Measured(msgspec.Struct):
    """What is counted of a response that has ended; times in seconds, `cancel_to_idle` None where nothing was stopped.

    `times` are when its tokens came, by the clock of `started`.
    """

    outcome: Outcome
    started: float
    ended: float
    times: Sequence[float]
    cancel_to_idle: float | None
    tokens: dict[TokenType, int]


class ResponseMetrics:
    """The series of one engine and model.

    A response is put in by `add` when it is over, and counted some of them at a time: between two tokens of others the
    collectors' code is in no cache, and costs a turn more than the conversation does. But not too many: all that end
    within a second, of a thousand sessions, took 20 ms in which no word was passed on.
    """

    def __init__(
        self,
        first_token: BulkHistogram,
        inter_token: BulkHistogram,
        durations: dict[Outcome, BulkHistogram],
        cancel_to_idle: Histogram,
        tokens: dict[TokenType, Counter],
        running: Gauge,
    ) -> None:
        self._first_token = first_token
        self._inter_token = inter_token
        self._durations = durations
        self._cancel_to_idle = cancel_to_idle
        self._tokens = tokens
        self._running = running
        self.running = 0
        self._ended: list[Measured] = []
        self._weight = 0

    def add(self, response: Measured) -> None:
        """Take a response that is over."""
        self._ended.append(response)
        self._weight += len(response.times) + _RESPONSE_WEIGHT
        if self._weight >= _PORTION:
            self.settle()

    def settle(self) -> None:
        """Bring the collectors up to now."""
        self._running.set(self.running)
        ended, self._ended = self._ended, []
        self._weight = 0
        for outcome, durations in self._durations.items():
            durations.observe_all([each.ended - each.started for each in ended if each.outcome == outcome])
        self._first_token.observe_all([each.times[0] - each.started for each in ended if each.times])
        for each in ended:
            if each.cancel_to_idle is not None:
                self._cancel_to_idle.observe(each.cancel_to_idle)
        gaps: list[float] = []
        tokens: dict[TokenType, int] = dict.fromkeys(self._tokens, 0)
        for each in ended:
            gaps.extend(map(sub, each.times[1:], each.times))
            for kind, count in each.tokens.items():
                tokens[kind] += count
        self._inter_token.observe_all(gaps)
        for kind, count in tokens.items():
            if count:
                self._tokens[kind].inc(count)


class Metrics:
    """The collectors, registered with `registry`; one instance a registry.

    `models` are the names that may become labels; `know_models` adds those that are known later. Engines' names
    come from their classes, never from a client, and are taken as they are.
    """

    def __init__(self, registry: CollectorRegistry, *, models: Collection[str] = (), version: str = "unknown") -> None:
        self._models = frozenset(models)
        self._responses: dict[tuple[str, str], ResponseMetrics] = {}
        self._heard: dict[str, int] = {}  # messages by type, since they were counted last
        self.measure: Callable[[], None] = lambda: None  # called to bring gauges up to now
        registry.register(_Settling(self.settle))  # before all others: collectors are asked in this order
        self._create_timings(registry)
        self._create_gauges(registry)
        self._create_counters(registry)
        self.speech = SpeechMetrics(registry)
        build = Gauge(
            "fasttalk_build_info", "What runs here; always 1", ["version", "python"], registry=registry,
            multiprocess_mode="max",
        )  # fmt: skip
        build.labels(version, python_version()).set(1)

    def know_models(self, models: Collection[str]) -> None:
        """Let these models become labels: those the service offers, never one that a client named."""
        self._models |= frozenset(models)

    def for_engine(self, engine: str, model: str) -> ResponseMetrics:
        """Return the series of this pair; the same object each time. An unknown model is "other"."""
        key = (engine, model if model in self._models else OTHER)
        found = self._responses.get(key)
        if found is None:
            found = self._responses[key] = self._children(*key)
        return found

    def settle(self) -> None:
        """Measure, and count what has ended, as a scrape does; to be called where another process is scraped."""
        self.measure()
        for responses in tuple(self._responses.values()):
            responses.settle()
        heard, self._heard = self._heard, {}
        for kind, count in heard.items():
            self._messages[kind].inc(count)

    def count_error(self, category: Category) -> None:
        """Count an error that a client was told of."""
        self._errors.get(category, self._errors[OTHER]).inc()

    def count_shed(self, reason: str) -> None:
        """Count what was refused for lack of room, by the code of its error."""
        self._sheds.get(reason, self._sheds[OTHER]).inc()

    def count_dropped(self, tokens: int) -> None:
        """Count tokens of history that were dropped because the window has no room for them."""
        self._dropped_tokens.inc(tokens)
        self._trims.inc()

    def count_aside(self, kind: AsideKind, outcome: AsideOutcome) -> None:
        """Count a generation that no user waited for.

        One is preempted if a turn came first or its session ended, and skipped if the engine was not asked.
        """
        self._asides[kind, outcome].inc()

    def count_resume(self, outcome: ResumeOutcome) -> None:
        """Count a client that came back: to all it missed, to a gap, to nothing, or to a store that failed."""
        self._resumes[outcome].inc()

    def count_message(self, message_type: str) -> None:
        """Count a message of a client, by the type it names."""
        kind = message_type if message_type in self._messages else OTHER
        self._heard[kind] = self._heard.get(kind, 0) + 1

    def set_engine_healthy(self, engine: str, healthy: bool) -> None:
        """Say whether the engine answered when it was last asked."""
        self._engine_healthy.labels(engine).set(healthy)

    def set_permits(self, engine: str, *, taken: int, unwanted: int) -> None:
        """Say how many permits of an engine are taken, and how many of these for nobody."""
        self._permits_taken.labels(engine).set(taken)
        self._permits_unwanted.labels(engine).set(unwanted)

    def count_retry(self, engine: str) -> None:
        """Count that an engine failed before its first token, and is asked again."""
        self._retries.labels(engine).inc()

    def count_failover(self, engine: str, moment: FailoverMoment) -> None:
        """Count that an engine of several failed before or after its first token, and another is asked."""
        self._failovers.labels(engine, moment).inc()

    def know_engine(self, engine: str) -> None:
        """Have this engine's series from its start on."""
        self._retries.labels(engine)
        for moment in get_args(FailoverMoment):
            self._failovers.labels(engine, moment)
        for state in get_args(BreakerState):
            self._breaker_transitions.labels(engine, state)
        self.set_breaker(engine, "closed")

    def set_breaker(self, engine: str, state: BreakerState) -> None:
        """Say how an engine's circuit breaker stands, from its start on."""
        for each in get_args(BreakerState):
            self._breaker_state.labels(engine, each).set(each == state)

    def count_breaker(self, engine: str, state: BreakerState) -> None:
        """Count that an engine's circuit breaker came into this state."""
        self._breaker_transitions.labels(engine, state).inc()
        self.set_breaker(engine, state)

    def _create_timings(self, registry: CollectorRegistry) -> None:
        def timing(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...]) -> BulkHistogram:
            return BulkHistogram(f"fasttalk_{name}_seconds", text, labels, buckets=buckets, registry=registry)

        pair = ("engine", "model")
        self._first_token = timing(
            "time_to_first_token", "From asking the engine to its first token", FIRST_TOKEN_BUCKETS, pair
        )
        self._inter_token = timing(
            "inter_token_latency",
            "Between two tokens of a response, as the engine emits them",
            INTER_TOKEN_BUCKETS,
            pair,
        )
        self._duration = timing(
            "request_duration", "From asking the engine to the end of its stream", REQUEST_BUCKETS, (*pair, "outcome")
        )
        self._cancel_to_idle = timing(
            "cancel_to_idle", "From a cancel to the engine's stream being closed", DELAY_BUCKETS, pair
        )
        self.stop = timing(
            "stop",
            "From the read of a message that stops an answer, or its sound, to all that was at it being told",
            DELAY_BUCKETS,
            (),
        )
        self.queue_wait = timing(
            "queue_wait", "That a message waited for an engine, of those that had to wait", DELAY_BUCKETS, ()
        )
        self.event_loop_delay = timing(
            "event_loop_delay", "How much later than due the event loop runs a timer", DELAY_BUCKETS, ()
        )

    def _create_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"fasttalk_{name}", text, labels, registry=registry, multiprocess_mode="livesum")

        self.sessions_active = gauge("sessions_active", "Sessions that are kept, with or without a connection")
        self.sessions_resting = gauge("sessions_resting", "Sessions in memory whose client is not connected")
        self.connections_active = gauge("connections_active", "Open WebSockets")
        self.event_loop_tasks = gauge("event_loop_tasks", "Tasks of the event loop")
        self._running = gauge("responses_running", "Responses being generated", ("engine", "model"))
        self.queue_depth = gauge("queue_depth", "Messages that wait for an engine")
        self._permits_taken = gauge("permits_taken", "Permits to ask the engine that are taken", ("engine",))
        self._permits_unwanted = gauge(
            "permits_unwanted", "Permits kept because the engine still reads what nobody waits for", ("engine",)
        )
        # Of several workers the least content counts: its clients get errors.
        self._engine_healthy = Gauge(
            "fasttalk_engine_healthy", "1 if the engine answered when last asked, else 0", ["engine"],
            registry=registry, multiprocess_mode="livemin",
        )  # fmt: skip

        self._breaker_state = gauge(
            "breaker_state", "Workers whose circuit breaker for the engine is in this state", ("engine", "state")
        )

    def _create_counters(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"fasttalk_{name}_total", text, labels, registry=registry)

        def by(name: str, text: str, label: str, values: Iterable[str]) -> dict[str, Counter]:
            family = counter(name, text, (label,))
            return {value: family.labels(value) for value in (*values, OTHER)}

        self._tokens = counter("tokens", "Tokens as the engines count them", ("engine", "model", "token_type"))
        self._dropped_tokens = counter("dropped_tokens", "Tokens of history that the window had no room for")
        self._trims = counter("context_trims", "Times that turns were dropped from the front of a history")
        asides = counter("asides", "Generations that no user waited for", ("kind", "outcome"))
        self._asides = {
            (kind, outcome): asides.labels(kind, outcome)
            for kind in get_args(AsideKind)
            for outcome in get_args(AsideOutcome)
        }
        resumes = counter("resumes", "Clients that came back for their session", ("outcome",))
        self._resumes = {outcome: resumes.labels(outcome) for outcome in get_args(ResumeOutcome)}
        self.handovers = counter("handovers", "Sessions given up to another process, where their client had come back")
        self._retries = counter("retries", "Attempts that failed before the first token and were repeated", ("engine",))
        self._failovers = counter(
            "failovers",
            "Requests that went on to another engine, by that which failed, before or after its first token",
            ("engine", "first_token"),
        )
        self._breaker_transitions = counter("breaker_transitions", "States that came to be", ("engine", "state"))
        self.sessions = counter("sessions", "Sessions started")
        self.cancels = counter("cancels", "Responses stopped before their end, by their client or because it left")
        self.slow_clients = counter("slow_clients", "Clients cut off because they read too slowly")
        self._errors = by("errors", "Errors that clients were told of", "category", get_args(Category))
        self._sheds = by("sheds", "Refused for lack of room", "reason", SHED_REASONS)
        self._messages = by("messages", "Messages of clients", "type", MESSAGE_TYPES)

    def _children(self, engine: str, model: str) -> ResponseMetrics:
        outcomes: tuple[Outcome, ...] = get_args(Outcome)
        token_types: tuple[TokenType, ...] = get_args(TokenType)
        return ResponseMetrics(
            first_token=self._first_token.labels(engine, model),
            inter_token=self._inter_token.labels(engine, model),
            durations={outcome: self._duration.labels(engine, model, outcome) for outcome in outcomes},
            cancel_to_idle=self._cancel_to_idle.labels(engine, model),
            tokens={kind: self._tokens.labels(engine, model, kind) for kind in token_types},
            running=self._running.labels(engine, model),
        )


class _Settling(Collector):
    """Has no series: what is collected behind it is up to date."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Metric]:
        self._settle()
        return ()


def render(registry: Collector) -> bytes:
    """Return what `registry` holds in Prometheus' text format, of type CONTENT_TYPE."""
    return generate_latest(_WithoutCreated(registry))


def shared_registry(folder: str) -> CollectorRegistry:
    """Return a registry to `render` that adds up all workers' series.

    `folder` is PROMETHEUS_MULTIPROC_DIR, which must be set, and the folder empty, before the first import of
    prometheus_client in any worker.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry


class _WithoutCreated(Collector):
    """Leaves out the `_created` series: nothing reads them, and they double the counters' number."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
