"""Tools as Ollama and OpenAI both take them, and the calls that a model makes of them."""

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from llm_service.engines.refusals import UNREADABLE
from llm_service.errors import InvalidToolCall
from llm_service.generation import Message, Tool, ToolCall

MAX_CALLS = 64
MAX_CALLS_BYTES = 1_048_576

_role, _calls = attrgetter("role"), attrgetter("tool_calls")
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Function(msgspec.Struct, gc=False):
    """A tool as both APIs want it; its own fields have their names."""

    function: Tool
    type: Literal["function"] = "function"


def functions(tools: Iterable[Tool]) -> list[Function]:
    """Return what goes into a request's `tools`."""
    return [Function(tool) for tool in tools]


def spelled(
    messages: Sequence[Message], with_tools: Callable[[Message], dict[str, Any]]
) -> Sequence[Message | dict[str, Any]]:
    """Return messages as they go into a request, those that have to do with tools spelled by `with_tools`."""
    # Nearly every history is of text alone: that is found out without a step of Python's for each message.
    if "tool" not in map(_role, messages) and not any(map(_calls, messages)):
        return messages
    return [with_tools(message) if message.tool_calls or message.role == "tool" else message for message in messages]


def unreadable(engine: str, why: str = "") -> InvalidToolCall:
    """Return the error of a call that is no JSON object for a function; `why` begins with its own punctuation."""
    return InvalidToolCall(
        f"{engine}: the model wrote a tool call that can't be read{why}; send the message again, or use another model"
    )


class ToolCalls:
    """Joins the calls of one answer from the parts in which they come; `engine` names the engine in errors."""

    __slots__ = (
        "_calls",
        "_engine",
        "_size",
    )

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._calls: dict[int, _Call] = {}
        self._size = 0

    @property
    def count(self) -> int:
        """How many calls there are so far."""
        return len(self._calls)

    def add(self, index: int | None, id: str, name: str, arguments: str) -> None:  # noqa: A002
        """Take a part of the call at `index`; without one a name begins the next call.

        Raises:
            InvalidToolCall: the calls are more, or larger, than anything a tool is called for.
        """
        if index is None:
            index = max(self._calls, default=-1)
            index += bool(name) or index < 0
        call = self._calls.setdefault(index, _Call())
        # Some engines repeat both with each part.
        call.id, call.name = call.id or id, call.name or name
        call.arguments.append(arguments)
        # A part without text is stored, too: it counts, so that no stream of them goes on for ever.
        self._size += len(id.encode()) + len(name.encode()) + len(arguments.encode()) + 1
        if len(self._calls) > MAX_CALLS or self._size > MAX_CALLS_BYTES:
            raise InvalidToolCall(
                f"{self._engine} let the model call tools without end: "
                f"more than {MAX_CALLS} calls or {MAX_CALLS_BYTES} bytes of them in one answer."
            )

    def whole(self, *, cut: bool) -> tuple[ToolCall, ...]:
        """Return the calls once the answer is over; `cut` says that it ended at its limit of tokens.

        Raises:
            InvalidToolCall: one has no name, or arguments that are not a JSON object.
        """
        taken = {call.id for call in self._calls.values()}
        names = (f"call_{number}" for number in range(2 * MAX_CALLS + 1))
        unused = (name for name in names if name not in taken)
        calls: dict[str, ToolCall] = {}
        for _, call in sorted(self._calls.items()):
            arguments = "".join(call.arguments)
            # Of a tool without parameters some models give no arguments at all.
            arguments = arguments if arguments.strip() else "{}"
            if not call.name or not _is_object(arguments):
                why = ": its limit of tokens cut it off" if cut else ""
                raise unreadable(self._engine, why)
            id_ = call.id if call.id and call.id not in calls else next(unused)
            calls[id_] = ToolCall(id_, call.name, arguments)
        return tuple(calls.values())


class _Call:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


def _is_object(text: str) -> bool:
    try:
        _decode_object(text)
    except UNREADABLE:
        return False
    return True
