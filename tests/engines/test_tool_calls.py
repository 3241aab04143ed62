"""Calls come out whole, bounded and readable, or not at all."""

import msgspec
import pytest

from llm_service.engines.tool_calls import MAX_CALLS, MAX_CALLS_BYTES, ToolCalls, functions, spelled
from llm_service.errors import InvalidToolCall
from llm_service.generation import Message, ToolCall
from tests.engines.requests import WEATHER


def test_what_is_sent() -> None:
    """A tool is sent as a function with name, description and schema."""
    parameters = WEATHER.parameters
    described = {"name": "get_weather", "description": "The weather in a city.", "parameters": parameters}
    sent = msgspec.json.decode(msgspec.json.encode(functions([WEATHER])))
    assert [{"type": "function", "function": described}] == sent


def test_messages_with_tools_are_spelled() -> None:
    """Of a history those messages alone that call tools or answer them go out in the API's own shape; one that is text
    alone goes out as it is."""
    asks = Message("assistant", "", tool_calls=(ToolCall("1", "f", "{}"),))
    told = Message("tool", "sun", tool_call_id="1", tool_name="f")
    text = (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "hello"))
    assert spelled(text, lambda _: {}) is text
    for messages in ((*text, asks), (*text, told), (told, *text), (text[0], asks, told, text[1])):
        sent = spelled(messages, lambda message: {"role": message.role, "own": True})
        assert len(messages) == len(sent)
        for message, out in zip(messages, sent, strict=True):
            assert out == ({"role": message.role, "own": True} if message in (asks, told) else message)


def test_parts_are_joined() -> None:
    """The parts of two calls may come mixed; a name or id that is repeated counts once."""
    calls = ToolCalls("it")
    calls.add(0, "x", "a", "")
    calls.add(1, "y", "b", '{"k"')
    calls.add(0, "x", "a", '{"n": ')
    calls.add(0, "", "", "1}")
    calls.add(1, "", "", ": [2]}")
    assert (ToolCall("x", "a", '{"n": 1}'), ToolCall("y", "b", '{"k": [2]}')) == calls.whole(cut=False)


def test_without_an_index() -> None:
    """A name begins the next call, all else belongs to the last."""
    calls = ToolCalls("it")
    calls.add(None, "", "a", "{")
    calls.add(None, "", "", "}")
    calls.add(None, "", "b", "{}")
    assert (ToolCall("call_0", "a", "{}"), ToolCall("call_1", "b", "{}")) == calls.whole(cut=False)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["", ""], ["call_0", "call_1"]),
        (["", "call_0"], ["call_1", "call_0"]),
        (["call_1", "call_1", ""], ["call_1", "call_0", "call_2"]),
        (["x", "x"], ["x", "call_0"]),
    ],
)
def test_ids_are_unique(given: list[str], ids: list[str]) -> None:
    """A call without an id, or with one that another has, gets one of its own."""
    calls = ToolCalls("it")
    for index, id_ in enumerate(given):
        calls.add(index, id_, "a", "{}")
    assert ids == [call.id for call in calls.whole(cut=False)]


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_no_arguments(nothing: str) -> None:
    """A call without any has an empty object of them."""
    calls = ToolCalls("it")
    calls.add(0, "x", "a", nothing)
    assert (ToolCall("x", "a", "{}"),) == calls.whole(cut=False)


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "null", "a", '"{}"', "{}{}", "[" * 100_000, "{'a': 1}"])
def test_unreadable_arguments(arguments: str) -> None:
    """What is no JSON object is an error, which quotes nothing and names the limit where that cut it off."""
    calls = ToolCalls("The engine")
    calls.add(0, "x", "a", arguments)
    with pytest.raises(InvalidToolCall, match=r"^The engine: the model wrote a tool call that can't be read; send"):
        calls.whole(cut=False)
    with pytest.raises(InvalidToolCall, match="limit of tokens cut it off"):
        calls.whole(cut=True)


def test_no_name() -> None:
    """A call of nothing is an error."""
    calls = ToolCalls("it")
    calls.add(0, "x", "", "{}")
    with pytest.raises(InvalidToolCall):
        calls.whole(cut=False)


def test_too_many() -> None:
    """The calls of one answer are bounded."""
    calls = ToolCalls("it")
    for index in range(MAX_CALLS):
        calls.add(index, "", "a", "{}")
    assert MAX_CALLS == len({call.id for call in calls.whole(cut=False)})
    with pytest.raises(InvalidToolCall, match="without end"):
        calls.add(MAX_CALLS, "", "a", "{}")


@pytest.mark.parametrize("part", ["", "x" * 1000])
def test_too_large(part: str) -> None:
    """Their size is, too, however it comes, in parts without any text as well."""
    calls = ToolCalls("it")
    with pytest.raises(InvalidToolCall, match="without end"):
        for _ in range(MAX_CALLS_BYTES + 1):
            calls.add(0, "", "", part)
