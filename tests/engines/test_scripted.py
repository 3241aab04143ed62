"""The scripted engine says what it is told to, when it is told to, and remembers."""

import asyncio
import time
from contextlib import aclosing

import msgspec
import pytest

from llm_service.engines.base import timed
from llm_service.engines.scripted import Fault, ScriptedEngine, default_answer
from llm_service.errors import EngineUnreachable, GenerationFailed, ModelNotFound
from llm_service.generation import Delta, Finish, Message, ToolCall, Usage
from tests.engines.requests import WEATHER, a_request, a_tool_turn, collect, stream

FAST = 1_000_000.0


def scripted(*tokens: str, faults: tuple[Fault | None, ...] = ()) -> ScriptedEngine:
    return ScriptedEngine(lambda request: tokens, tokens_per_second=FAST, models=(), faults=faults)


async def test_an_answer() -> None:
    """The tokens come in order, then one finish with the counts; empty tokens are not shown."""
    engine = scripted("a", "", " b")
    events = [event async for event in stream(engine, a_request("one two"))]
    assert [Delta("a"), Delta(" b"), Finish("stop", Usage(2, 3))] == events
    assert (["finished"], 0, 1) == (engine.endings, engine.running, engine.most_running)


async def test_max_tokens() -> None:
    """The answer is cut where the request says, and only if there was more."""
    engine = scripted("a", "b", "c")
    assert ("ab", "", Finish("length", Usage(1, 2))) == await collect(stream(engine, a_request("x", max_tokens=2)))
    assert "stop" == (await collect(stream(engine, a_request("x", max_tokens=3))))[2].reason


def test_the_default_answer_depends_on_the_message() -> None:
    """The same message gets the same text, another one another."""
    one, again, other = (default_answer(a_request(text)) for text in ("a b", "a b", "a c"))
    assert (True, False) == (one == again, one == other)
    assert "".join(one).startswith("You said: a b That is 2 words and 3 characters")


async def test_the_pace() -> None:
    """Tokens come on a schedule: one that is taken slowly does not delay the rest."""
    engine = ScriptedEngine(lambda request: ["x"] * 20, tokens_per_second=200, ttft=0.05, models=())
    clock = asyncio.get_running_loop().time
    began = clock()
    times = []

    def take(delta: Delta) -> None:
        times.append(clock() - began)
        if len(times) == 5:
            time.sleep(0.03)

    await engine.generate(a_request(max_tokens=20), timed(take))
    assert times[0] >= 0.05
    assert 0.05 + 19 / 200 <= times[19] < 0.05 + 19 / 200 + 0.1


@pytest.mark.parametrize("after", [0, 2, 3])
async def test_failing(after: int) -> None:
    """A fault comes before the first token, after some or after the last; the next generation is whole."""
    engine = scripted("a", "b", "c")
    engine.fail(GenerationFailed("on purpose"), after=after)
    got = []
    with pytest.raises(GenerationFailed, match="on purpose"):
        async for event in stream(engine, a_request()):
            got.append(event)  # noqa: PERF401 - what came before the error is wanted
    assert [Delta(token) for token in "abc"[:after]] == got
    assert "abc" == (await collect(stream(engine, a_request())))[0]
    assert ["failed", "finished"] == engine.endings


@pytest.mark.parametrize("after", [0, 2])
async def test_hanging(after: int) -> None:
    """A hang lasts until the generation is cancelled, and that is recorded as closed."""
    engine = scripted("a", "b", "c", faults=(Fault(after),))
    events = stream(engine, a_request())
    for _ in range(after):
        await anext(events)
    waiting = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait([waiting], timeout=0.02)
    assert (set(), 1) == (done, engine.running)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (["closed"], 0) == (engine.endings, engine.running)


async def test_a_pause() -> None:
    """After a stall of some time the answer goes on."""
    engine = scripted("a", "b", faults=(None, Fault(1, pause=0.01)))
    assert ["ab", "ab"] == [(await collect(stream(engine, a_request())))[0] for _ in range(2)]


async def test_a_cancel() -> None:
    """A generation that is cancelled between two tokens is recorded as closed."""
    engine = scripted("a", "b")
    async with aclosing(stream(engine, a_request())) as events:
        await anext(events)
        assert 1 == engine.running
    assert (["closed"], 0, 1) == (engine.endings, engine.running, len(engine.requests))


async def test_the_rest_of_the_interface() -> None:
    """Models, window, loads and being down are as told."""
    engine = ScriptedEngine(window=512, name="double", tokens_per_second=FAST)
    await engine.load("scripted", 2048)
    await engine.ping()
    assert (["scripted"], 512) == (await engine.models(), await engine.context_window("scripted"))
    assert (["scripted"], "double") == (engine.loads, engine.name)
    with pytest.raises(ModelNotFound):
        await collect(stream(engine, a_request(model="other")))
    engine.down = True
    for call in (engine.ping(), engine.models(), collect(stream(engine, a_request(model="scripted")))):
        with pytest.raises(EngineUnreachable):
            await call
    await engine.aclose()
    assert engine.closed


@pytest.mark.parametrize("said", ['call get_weather {"city": "x y"}', ' call  get_weather {"city": "x y"}, please.'])
async def test_a_tool_call(said: str) -> None:
    """A user who says so gets the call of a tool, which takes time and tokens and says nothing."""
    engine = ScriptedEngine(tokens_per_second=FAST)
    request = msgspec.structs.replace(a_request(said, model="scripted"), tools=(WEATHER,))
    answer, _, finish = await collect(stream(engine, request))
    assert finish.usage is not None
    assert ("", "tool_calls", 4) == (answer, finish.reason, finish.usage.completion_tokens)
    assert (ToolCall("call_0", "get_weather", '{"city": "x y"}'),) == finish.tool_calls
    cut = msgspec.structs.replace(request, sampling=a_request(max_tokens=2).sampling)
    assert Finish("length", Usage(len(said.split()), 2)) == (await collect(stream(engine, cut)))[2]


@pytest.mark.parametrize("said", ["call x", "call x {", "call x [1]", "please call x {}", "call x {'a': 1}"])
async def test_no_tool_call(said: str) -> None:
    """Without tools, or in other words, an answer is an answer."""
    engine = ScriptedEngine(tokens_per_second=FAST)
    with_tools = msgspec.structs.replace(a_request(said, model="scripted", max_tokens=99), tools=(WEATHER,))
    without = a_request("call x {}", model="scripted", max_tokens=99)
    empty = msgspec.structs.replace(with_tools, messages=())
    for request in (with_tools, without, empty):
        answer, _, finish = await collect(stream(engine, request))
        assert ("stop", ()) == (finish.reason, finish.tool_calls)
        assert answer.startswith("You said: ")


async def test_a_tool_result_is_repeated() -> None:
    """The answer to a tool's result is the result; the call is not made again."""
    engine = ScriptedEngine(tokens_per_second=FAST)
    messages = (Message("user", "call get_weather {}"), *a_tool_turn(text="Rain, 3 °C.")[1:])
    request = msgspec.structs.replace(a_request(model="scripted"), messages=messages, tools=(WEATHER,))
    assert ("Rain, 3 °C.", "", Finish("stop", Usage(6, 3))) == await collect(stream(engine, request))


async def test_counting() -> None:
    """A token is a word, as in the counts of an answer; an engine that is down can't count and does not fail."""
    engine = scripted("a")
    assert (3, 0) == (await engine.count_tokens("x", " a b\nc "), await engine.count_tokens("x", ""))
    engine.down = True
    assert await engine.count_tokens("x", "a") is None


async def test_records_are_bounded() -> None:
    """A demonstration that runs for weeks remembers the last thousand."""
    engine = scripted("a")
    for number in range(1100):
        await collect(stream(engine, a_request(str(number))))
    assert (1000, "1099") == (len(engine.requests), engine.requests[-1].messages[0].content)
