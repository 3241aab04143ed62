"""Deadlines: a response is whole in time, or fails by the error of the deadline it missed."""

import asyncio
from time import monotonic

import msgspec
import pytest

from llm_service.engines.base import timed
from llm_service.engines.deadlines import DeadlineEngine, Deadlines
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, FirstTokenTimeout, GenerationFailed, ResponseTimeout, StreamStalled
from llm_service.generation import Finish, GenerationRequest, Sink
from tests.engines.requests import a_request

LONG = 60.0
SHORT = 0.02


def engines(
    *faults: Fault, first: float = LONG, between: float = LONG, response: float = LONG, rate: float = 100_000.0
) -> tuple[ScriptedEngine, DeadlineEngine]:
    """Return an engine that says six tokens, and the same with deadlines."""
    inner = ScriptedEngine(lambda _: ["a "] * 6, tokens_per_second=rate, faults=faults)
    return inner, DeadlineEngine(inner, Deadlines(first_token=first, between_tokens=between, response=response))


async def said(engine: DeadlineEngine) -> str:
    """Return the whole answer."""
    pieces: list[str] = []
    await engine.generate(a_request(model="scripted"), timed(lambda delta: pieces.append(delta.text)))
    return "".join(pieces)


async def test_an_answer_in_time_is_not_touched() -> None:
    """The text is the engine's, and nothing is looked after any more."""
    _, engine = engines()
    assert "a " * 6 == await said(engine)
    assert set() == engine._running


@pytest.mark.parametrize(
    ("fault", "limits", "error"),
    [
        (Fault(0), {"first": SHORT}, FirstTokenTimeout),
        (Fault(3), {"between": SHORT}, StreamStalled),
        (Fault(6), {"between": SHORT}, StreamStalled),
        (Fault(0), {"response": SHORT}, ResponseTimeout),
        (Fault(3), {"response": SHORT}, ResponseTimeout),
    ],
)
async def test_silence(fault: Fault, limits: dict[str, float], error: type[EngineError]) -> None:
    """Before the first token, within the answer, before its end: the engine's work is stopped, the error is typed."""
    inner, engine = engines(fault, **limits)
    async with asyncio.timeout(5):
        with pytest.raises(error) as caught:
            await said(engine)
    assert f"{SHORT:g} seconds" in caught.value.message
    assert (0, ["closed"]) == (inner.running, inner.endings)


async def test_a_request_with_patience() -> None:
    """Its first token may take that longer: the engine may be busy with what nobody wants any more."""
    _, engine = engines(Fault(0, pause=0.1), first=SHORT)
    request = msgspec.structs.replace(a_request(model="scripted"), patience=LONG)
    pieces: list[str] = []
    await engine.generate(request, timed(lambda delta: pieces.append(delta.text)))
    assert "a " * 6 == "".join(pieces)


async def test_what_another_engine_has_spent() -> None:
    """The whole answer's deadline holds for both; the first token of this one has its own time."""
    _, engine = engines(Fault(3), response=LONG)
    spent = msgspec.structs.replace(a_request(model="scripted"), spent=LONG - SHORT)
    with pytest.raises(ResponseTimeout, match=f"{LONG:g} seconds"):
        await engine.generate(spent, timed(lambda _: None))
    deadlines = Deadlines(first_token=5.0, between_tokens=LONG, response=LONG)
    assert deadlines.missed(now=44.0, begun=0.0, last=None, patience=40.0) is None
    assert isinstance(deadlines.missed(now=46.0, begun=0.0, last=None, patience=40.0), FirstTokenTimeout)


async def test_a_slow_answer_is_no_silence() -> None:
    """Tokens that come in time, each of them, may take longer together than one may."""
    _, engine = engines(first=0.5, between=0.5, rate=10)
    assert "a " * 6 == await said(engine)


class CallingEngine(EngineWrapper):
    """One that writes a tool call in so many parts, a tenth of a second each, behind a text or without, and stalls."""

    def __init__(self, parts: int, *, text: bool, stalls: bool) -> None:
        super().__init__(ScriptedEngine(lambda _: ["a "] if text else [], tokens_per_second=100_000))
        self._parts, self._stalls = parts, stalls
        self.written = 0

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        finish = await super().generate(request, sink)
        for _ in range(self._parts):
            await asyncio.sleep(0.1)
            sink.progress_at = monotonic()
            self.written += 1
        await asyncio.sleep(LONG if self._stalls else 0)
        return finish


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("stalls", [True, False])
async def test_a_tool_call_is_no_silence(text: bool, stalls: bool) -> None:
    """It may be written for longer than an engine may be silent; one that stops within it has stalled."""
    calling = CallingEngine(10, text=text, stalls=stalls)
    engine = DeadlineEngine(calling, Deadlines(first_token=0.6, between_tokens=0.6, response=LONG))
    if stalls:
        with pytest.raises(StreamStalled):
            await said(engine)
    else:
        assert ("a " if text else "") == await said(engine)
    assert 10 == calling.written


async def test_a_tool_call_of_an_earlier_attempt() -> None:
    """It says nothing of this one, which has not begun."""
    _, engine = engines(Fault(0), first=SHORT)
    sink = timed(lambda _: None)
    sink.progress_at = monotonic()
    with pytest.raises(FirstTokenTimeout):
        await engine.generate(a_request(model="scripted"), sink)


async def test_a_talkative_engine_is_stopped() -> None:
    """An answer that does not end is cut at its deadline however steadily it comes."""
    _, engine = engines(response=0.05, rate=50)
    with pytest.raises(ResponseTimeout, match="ask for a shorter one"):
        await said(engine)


async def test_other_errors_and_cancels_are_not_changed() -> None:
    """What the engine raises, and a cancel from outside, come out as they are."""
    _, engine = engines(Fault(2, GenerationFailed("it broke")), first=SHORT, between=SHORT)
    with pytest.raises(GenerationFailed, match="it broke"):
        await said(engine)
    inner, engine = engines(Fault(2))
    task = asyncio.create_task(said(engine))
    while not inner.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
