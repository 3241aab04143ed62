"""What is put around an engine, by the settings."""

import asyncio
import contextlib
from math import inf
from time import monotonic

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from llm_service.config import Settings
from llm_service.engines.base import timed
from llm_service.engines.breaker import FIRST_REST, LEAST_CALLS
from llm_service.engines.protection import MANY, admission, keep_alive_seconds, max_running, protect
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import Overloaded
from llm_service.metrics import Metrics
from tests.engines.requests import a_request
from tests.engines.telling import TellingEngine


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25), ("90", 90.0), ("0", 0.0), ("-1", inf), ("1.5s", 1.5)],
)
def test_keep_alive(keep_alive: str, seconds: float) -> None:
    """Ollama's ways to say it, in seconds."""
    assert seconds == keep_alive_seconds(keep_alive)


@pytest.mark.parametrize(
    ("provider", "environment", "permits"),
    [
        ("ollama", {}, 1),
        ("ollama", {"OLLAMA_NUM_PARALLEL": "4"}, 4),
        ("llama_cpp", {"LLAMA_CPP_PARALLEL": "3"}, 3),
        ("vllm", {"OLLAMA_NUM_PARALLEL": "4"}, MANY),
        ("ollama", {"OLLAMA_NUM_PARALLEL": "4", "MAX_RUNNING": "7"}, 7),
    ],
)
def test_permits(provider: str, environment: dict[str, str], permits: int) -> None:
    """As many as the engine works on at once, unless MAX_RUNNING says otherwise."""
    assert permits == max_running(Settings.load(environment), provider)


@pytest.mark.parametrize(("name", "keep_alive", "loads"), [("ollama", "5m", 1), ("ollama", "0", 0), ("vllm", "5m", 0)])
async def test_who_loads_first(name: str, keep_alive: str, loads: int) -> None:
    """Ollama, unless it unloads after each answer: then loading it first would be loading it twice."""
    settings = Settings.load({"OLLAMA_KEEP_ALIVE": keep_alive})
    inner = ScriptedEngine(name=name, models=(), tokens_per_second=1_000_000)
    protected = protect(
        inner, settings, Metrics(CollectorRegistry()), admission(settings, lambda _: None), provider=name
    )
    await protected.engine.generate(a_request(), timed(lambda _: None))
    assert loads == len(inner.loads)
    assert {"running": 0, "unwanted": 0, "breaker": "closed"}.items() <= protected.statistics(0.0).items()


class SlowLoad(ScriptedEngine):
    """Takes a while to load its model."""

    async def load(self, model: str, context_window: int) -> None:
        await asyncio.sleep(0.3)
        await super().load(model, context_window)


async def test_a_trial_that_must_load_first() -> None:
    """A restarted Ollama whose model loads longer than any trial may take gets back all the same."""
    settings = Settings.load({"FIRST_TOKEN_TIMEOUT": "0.05"})
    inner = SlowLoad(name="ollama", models=(), tokens_per_second=1_000_000)
    line = admission(settings, lambda _: None)
    protected = protect(inner, settings, Metrics(CollectorRegistry()), line, provider="ollama")
    breaker = protected.breaker
    for _ in range(LEAST_CALLS):
        breaker.failed(breaker.admit(monotonic() - FIRST_REST), monotonic() - FIRST_REST)
    assert ("open", 0.05) == (breaker.state, breaker.trial_timeout)
    await protected.engine.generate(a_request(), timed(lambda _: None))
    assert ("closed", 1) == (breaker.state, len(inner.loads))


@pytest.mark.parametrize(("provider", "asked"), [("ollama", [False, True]), ("vllm", [True, True])])
async def test_what_no_user_waits_for(provider: str, asked: list[bool]) -> None:
    """Ollama, which can't be stopped while it reads, is asked for it within ASIDE_READ_SECONDS; others always."""
    begun = []
    for seconds in ("0", "60"):
        settings = Settings.load({"ASIDE_READ_SECONDS": seconds})
        inner = TellingEngine(name=provider, models=(), tokens_per_second=1_000_000)
        protected = protect(
            inner, settings, Metrics(CollectorRegistry()), admission(settings, lambda _: None), provider=provider
        )
        await protected.engine.generate(a_request("hello"), timed(lambda _: None))
        with contextlib.suppress(Overloaded):
            aside = msgspec.structs.replace(a_request("and more"), background=True)
            await protected.engine.generate(aside, timed(lambda _: None))
        begun.append(len(inner.requests) == 2)
    assert asked == begun
    assert (provider == "ollama") == protected.engine.reads_on
