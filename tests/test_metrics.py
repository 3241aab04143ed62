"""What /metrics shows, that nobody can make it grow, and that workers' figures add up."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from llm_service.errors import Category
from llm_service.metrics import (
    CONTENT_TYPE,
    INTER_TOKEN_BUCKETS,
    MESSAGE_TYPES,
    SHED_REASONS,
    BulkHistogram,
    Measured,
    Metrics,
    ResponseMetrics,
    TokenType,
    render,
    shared_registry,
)


def fresh(*models: str) -> tuple[Metrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return Metrics(registry, models=models, version="1.2.3"), registry


def series(registry: CollectorRegistry) -> set[str]:
    """Return every series as it stands in the text, without its value."""
    return {line.rpartition(" ")[0] for line in render(registry).decode().splitlines() if not line.startswith("#")}


def feed_all(metrics: Metrics) -> None:
    """Touch every way to feed a collector."""
    response = metrics.for_engine("ollama", "small")
    tokens: dict[TokenType, int] = {"input": 3, "output": 3, "cached": 3}
    response.add(Measured("finished", 1.0, 2.5, [1.25, 1.5], 0.001, tokens))
    response.add(Measured("cancelled", 1.0, 2.5, [], None, {}))
    response.add(Measured("failed", 1.0, 2.5, [], None, {}))
    response.running += 1
    metrics.event_loop_delay.observe(0.002)
    metrics.stop.observe(0.003)
    metrics.sessions_active.set(2)
    metrics.connections_active.set(3)
    metrics.set_engine_healthy("ollama", True)
    for counter in (metrics.sessions, metrics.cancels, metrics.slow_clients):
        counter.inc()
    metrics.count_error("gpu")
    metrics.count_shed("queue_full")
    metrics.count_message("cancel")


def test_the_text_is_prometheus_format() -> None:
    """The rendering parses, every name has our prefix, and no `_created` series is in it."""
    metrics, registry = fresh("small")
    feed_all(metrics)
    families = list(text_string_to_metric_families(render(registry).decode()))
    assert {family.name.partition("_")[0] for family in families} == {"fasttalk"}
    assert not [name for name in series(registry) if "_created" in name]
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_promtool_has_no_complaint() -> None:
    """Prometheus's own linter accepts names, units and help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    metrics, registry = fresh("small")
    feed_all(metrics)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=render(registry), capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_is_fed_is_shown() -> None:
    """Each way to feed reaches its series, with the labels that the dashboards use."""
    metrics, registry = fresh("small")
    feed_all(metrics)
    pair = {"engine": "ollama", "model": "small"}
    shown = {
        "time_to_first_token_seconds_sum": (pair, 0.25),
        "inter_token_latency_seconds_sum": (pair, 0.25),
        "cancel_to_idle_seconds_sum": (pair, 0.001),
        "request_duration_seconds_sum": ({**pair, "outcome": "cancelled"}, 1.5),
        "tokens_total": ({**pair, "token_type": "cached"}, 3),
        "responses_running": (pair, 1),
        "event_loop_delay_seconds_sum": ({}, 0.002),
        "stop_seconds_sum": ({}, 0.003),
        "sessions_active": ({}, 2),
        "connections_active": ({}, 3),
        "engine_healthy": ({"engine": "ollama"}, 1),
        "sessions_total": ({}, 1),
        "cancels_total": ({}, 1),
        "slow_clients_total": ({}, 1),
        "errors_total": ({"category": "gpu"}, 1),
        "sheds_total": ({"reason": "queue_full"}, 1),
        "messages_total": ({"type": "cancel"}, 1),
    }
    assert {
        name: (labels, registry.get_sample_value(f"fasttalk_{name}", labels)) for name, (labels, _) in shown.items()
    } == shown
    assert 'fasttalk_build_info{python="' in render(registry).decode()


def _one_series() -> tuple[ResponseMetrics, BulkHistogram]:
    """The collectors of one engine and model, with no registry that would have them counted; and the durations'."""
    durations = BulkHistogram("duration", "Test", registry=None)
    metrics = ResponseMetrics(
        first_token=BulkHistogram("first", "Test", registry=None),
        inter_token=BulkHistogram("gap", "Test", registry=None, buckets=INTER_TOKEN_BUCKETS),
        durations={"finished": durations},
        cancel_to_idle=Histogram("idle", "Test", registry=None),
        tokens={},
        running=Gauge("running", "Test", registry=None),
    )
    return metrics, durations


@pytest.mark.parametrize(("tokens", "most"), [(0, 40), (100, 16), (10_000, 1)])
def test_responses_are_counted_in_portions(tokens: int, most: int) -> None:
    """Those that end are counted by themselves some at a time, long ones fewer; the rest when it is asked for."""
    metrics, durations = _one_series()

    def counted() -> float:
        return next(s.value for metric in durations.collect() for s in metric.samples if s.name == "duration_count")

    for number in range(1, 101):
        metrics.add(Measured("finished", 0.0, 1.0, [0.1] * tokens, None, {}))
        assert number - most < counted() <= number
    metrics.settle()
    assert 100 == counted()


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("time_to_first_token", "0.001", "160.0", 20),
        ("inter_token_latency", "0.001", "2.5", 16),
        ("request_duration", "0.01", "327.68", 16),
        ("cancel_to_idle", "0.001", "10.0", 13),
        ("event_loop_delay", "0.001", "10.0", 13),
        ("stop", "0.001", "10.0", 13),
    ],
)
def test_buckets(name: str, first: str, last: str, count: int) -> None:
    """The buckets are those of performance.md; each is there once beside +Inf."""
    metrics, registry = fresh("small")
    feed_all(metrics)
    family = next(family for family in registry.collect() if family.name == f"fasttalk_{name}_seconds")
    bounds = [sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = list(dict.fromkeys(bounds))
    assert (bounds[0], bounds[-2], bounds[-1], len(bounds) - 1) == (first, last, "+Inf", count)


def test_the_number_of_series_is_constant() -> None:
    """10,000 random models, message types and reasons add not one series to those that were there."""
    metrics, registry = fresh("small")
    feed_all(metrics)
    metrics.for_engine("ollama", "unheard-of")
    before = series(registry)
    source = random.Random(1)
    for _ in range(10_000):
        name = "".join(chr(source.randrange(1, 0xD800)) for _ in range(source.randrange(20)))
        response = metrics.for_engine("ollama", name)
        response.add(Measured("finished", 0.0, 1.0, [0.1], None, {}))
        metrics.count_message(name)
        metrics.count_shed(name)
    assert series(registry) == before
    labels = {"engine": "ollama", "model": "other"}
    assert registry.get_sample_value("fasttalk_time_to_first_token_seconds_count", labels) == 10_000
    assert registry.get_sample_value("fasttalk_messages_total", {"type": "other"}) == 10_000


def test_series_exist_before_the_first_event() -> None:
    """Known categories, reasons and types are there at 0, so that the first event is a rise."""
    _, registry = fresh()
    for name, label, values in (
        ("errors", "category", get_args(Category)),
        ("sheds", "reason", SHED_REASONS),
        ("messages", "type", MESSAGE_TYPES),
    ):
        for value in (*values, "other"):
            assert registry.get_sample_value(f"fasttalk_{name}_total", {label: value}) == 0


def test_children_are_made_once() -> None:
    """The same pair is the same object: the token path looks nothing up."""
    metrics, _ = fresh("small")
    assert metrics.for_engine("ollama", "small") is metrics.for_engine("ollama", "small")
    assert metrics.for_engine("ollama", "a") is metrics.for_engine("ollama", "b")


def test_two_services_in_a_process_do_not_mix() -> None:
    """Metrics live on the registry they are given, never on the global one."""
    one, first = fresh()
    _, second = fresh()
    one.cancels.inc()
    assert first.get_sample_value("fasttalk_cancels_total") == 1
    assert second.get_sample_value("fasttalk_cancels_total") == 0


WORKER = """
import sys
from prometheus_client import CollectorRegistry
from llm_service.metrics import Measured, Metrics
metrics = Metrics(CollectorRegistry(), models=["small"])
response = metrics.for_engine("ollama", "small")
response.add(Measured("finished", 0.0, 1.0, [0.5, 0.5005, 0.501], None, {}))
response.running += 1
metrics.settle()
metrics.count_message("cancel")
metrics.settle()
metrics.sessions_active.set(2)
metrics.set_engine_healthy("ollama", sys.argv[1] == "healthy")
"""


def test_workers_add_up(tmp_path: Path) -> None:
    """Two processes' counters, histograms and gauges are summed, and one unwell engine shows as unwell."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    for health in ("healthy", "unwell"):
        subprocess.run([sys.executable, "-c", WORKER, health], env=environment, check=True, timeout=60)
    registry = shared_registry(str(tmp_path))
    pair = {"engine": "ollama", "model": "small"}
    assert registry.get_sample_value("fasttalk_time_to_first_token_seconds_count", pair) == 2
    assert registry.get_sample_value("fasttalk_inter_token_latency_seconds_count", pair) == 4
    assert registry.get_sample_value("fasttalk_responses_running", pair) == 2
    assert registry.get_sample_value("fasttalk_messages_total", {"type": "cancel"}) == 2
    assert registry.get_sample_value("fasttalk_sessions_active") == 4
    assert registry.get_sample_value("fasttalk_engine_healthy", {"engine": "ollama"}) == 0
    assert b"fasttalk_build_info{" in render(registry)


@pytest.mark.parametrize("amounts", [[], [0.0], [0.001, 0.0011, 0.0025, 0.02, 0.02, 7.0]])
def test_many_observations_at_once(amounts: list[float]) -> None:
    """Observing in bulk leaves what observing one by one leaves."""
    registries = CollectorRegistry(), CollectorRegistry()
    one_by_one, at_once = (
        BulkHistogram("h", "help", ["l"], buckets=INTER_TOKEN_BUCKETS, registry=registry) for registry in registries
    )
    for amount in amounts:
        one_by_one.labels("x").observe(amount)
    one_by_one.labels("x")
    at_once.labels("x").observe_all(amounts[::-1])
    assert render(registries[0]) == render(registries[1])
