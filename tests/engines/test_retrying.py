"""Retries: an engine that fails before its first token is asked again, and never one that has begun."""

import asyncio
from collections.abc import Iterable

import msgspec
import pytest

from llm_service.engines.base import timed
from llm_service.engines.retrying import RetryingEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import (
    CircuitOpen,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    InvalidToolCall,
)
from llm_service.generation import Finish, GenerationRequest, Sink
from tests.engines.requests import a_request

SHORT = 0.2  # seconds, longer than the first wait between two attempts
WORDS = ["a ", "b ", "c "]


class Asked:
    """A scripted engine behind retries, and what came of one question."""

    def __init__(self, faults: Iterable[Fault], *, retries: int = 2, budget: float = 10.0) -> None:
        self.inner = ScriptedEngine(lambda _: WORDS, tokens_per_second=1_000_000, faults=faults)
        self.failures: list[EngineError] = []
        self.pieces: list[str] = []
        self.engine = RetryingEngine(self.inner, retries=retries, budget=budget, retried=self.failures.append)

    async def ask(self, *, background: bool = False) -> str:
        """Return the text that was handed out."""
        request = msgspec.structs.replace(a_request(model="scripted"), background=background)
        await self.engine.generate(request, timed(lambda delta: self.pieces.append(delta.text)))
        return "".join(self.pieces)


@pytest.mark.parametrize("error", [EngineUnreachable("gone"), GenerationFailed("broke"), InvalidToolCall("what?")])
async def test_it_is_asked_again_before_the_first_token(error: EngineError) -> None:
    """Two failures are not seen by whoever asked, but counted."""
    asked = Asked([Fault(0, error), Fault(0, error)])
    assert "a b c " == await asked.ask()
    assert (3, [error, error]) == (len(asked.inner.requests), asked.failures)


async def test_what_no_user_waits_for_is_asked_once() -> None:
    """A summary that fails is not tried again."""
    asked = Asked([Fault(0, GenerationFailed("broke"))])
    with pytest.raises(GenerationFailed):
        await asked.ask(background=True)
    assert (1, []) == (len(asked.inner.requests), asked.failures)


async def test_the_last_failure_comes_out() -> None:
    """After so many attempts the error is the engine's own."""
    asked = Asked([Fault(0, EngineUnreachable(str(number))) for number in range(5)], retries=2)
    with pytest.raises(EngineUnreachable, match="2"):
        await asked.ask()
    assert 3 == len(asked.inner.requests)


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_never_after_a_token_went_out(after: int) -> None:
    """Whatever was said before the failure was said once, and the error is told."""
    asked = Asked([Fault(after, EngineUnreachable("gone"))])
    with pytest.raises(EngineUnreachable):
        await asked.ask()
    assert (WORDS[:after], 1) == (asked.pieces, len(asked.inner.requests))


@pytest.mark.parametrize(
    "error",
    [EngineRejected("no"), EngineTimeout("slow"), CircuitOpen("open", retry_after=0.0), ContextOverflow("long")],
)
async def test_what_another_attempt_would_meet_as_well(error: FastTalkError) -> None:
    """Refusals, timeouts and an open breaker come out at once."""
    asked = Asked([Fault(0, error)])  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        await asked.ask()
    assert (1, []) == (len(asked.inner.requests), asked.failures)


async def test_the_budget() -> None:
    """An engine that asks for more patience than the budget has is not waited for."""
    asked = Asked([Fault(0, EngineUnreachable("busy", retry_after=30.0))], budget=0.5)
    async with asyncio.timeout(5):
        with pytest.raises(EngineUnreachable, match="busy"):
            await asked.ask()
    assert 1 == len(asked.inner.requests)


class SlowEngine(EngineWrapper):
    """One that takes longer to answer, or to fail, than the budget is."""

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        await asyncio.sleep(2 * SHORT)
        return await super().generate(request, sink)


@pytest.mark.parametrize(("failures", "attempts", "text"), [(1, 2, "a b c "), (2, 2, "")])
async def test_the_budget_bounds_when_an_attempt_begins(failures: int, attempts: int, text: str) -> None:
    """One that began in time may last longer than the budget and answer; after it no other begins."""
    asked = Asked([Fault(0, EngineUnreachable("gone"))] * failures)
    asked.engine = RetryingEngine(SlowEngine(asked.inner), retries=9, budget=SHORT)
    if text:
        assert text == await asked.ask()
    else:
        with pytest.raises(EngineUnreachable, match="gone"):
            await asked.ask()
    assert attempts == len(asked.inner.requests)


async def test_an_engine_that_says_when_is_not_asked_earlier() -> None:
    """Its `retry_after` is kept."""
    asked = Asked([Fault(0, EngineUnreachable("busy", retry_after=0.3))])
    begun = asyncio.get_running_loop().time()
    assert "a b c " == await asked.ask()
    assert asyncio.get_running_loop().time() - begun >= 0.29


async def test_no_retries() -> None:
    """With none the first failure comes out."""
    asked = Asked([Fault(0, EngineUnreachable("gone"))], retries=0)
    with pytest.raises(EngineUnreachable):
        await asked.ask()
    assert 1 == len(asked.inner.requests)


async def test_a_cancel_ends_the_waiting() -> None:
    """Who asked may leave between two attempts: none follows."""
    asked = Asked([Fault(0, EngineUnreachable("busy", retry_after=5.0))])
    task = asyncio.create_task(asked.ask())
    while not asked.failures:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 1 == len(asked.inner.requests)
