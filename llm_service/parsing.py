"""Reads what clients send: a frame's text in, one client event out, or an error that says what is wrong.

Pure. Only legal JSON of bounded depth and integers gets as far as the models of `events`.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from llm_service.errors import (
    ClientError,
    EmptyMessage,
    InvalidConfig,
    InvalidJSON,
    InvalidMessage,
    UnknownMessageType,
)
from llm_service.events import CLIENT_EVENTS, MAX_INTEGER, ClientEvent, ClientMessage, UserMessage
from llm_service.session_config import SessionConfig

MAX_DEPTH = 32
# A message can be wrong in thousands of places; the answer is not to be longer than the message.
MAX_EXPLAINED = 5

# What neither nests nor counts.
_HARMLESS = frozenset({str, bool, type(None)})

_validate: Callable[[object], ClientMessage] = TypeAdapter[ClientMessage](ClientEvent).validator.validate_python
_client_types = {model.model_fields["type"].default for model in CLIENT_EVENTS}


def parse(text: str) -> ClientMessage:
    """Read one client message.

    Raises:
        ClientError: of the kind that says what is wrong, naming the field, what was there and the bounds.
    """
    value = _load(text)
    if not isinstance(value, dict):
        raise InvalidMessage(f"a message is a JSON object with a type, not {_json_kind(value)}")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _client_types:
        shown = _shorten(kind) if isinstance(kind, str) else str(_json_kind(kind)) if "type" in value else "none"
        raise UnknownMessageType(f"unknown message type: {shown}; known are {', '.join(sorted(_client_types))}")
    try:
        event = _validate(value)
    except ValidationError as error:
        raise _client_error(error.errors(include_url=False, include_input=False), value) from None
    if isinstance(event, UserMessage) and not event.text.strip():
        raise EmptyMessage("text is empty; say something")
    return event


# pydantic's own texts speak of Python; these speak of JSON.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "too_long": "must have at most {max_length} items",
    "model_type": "must be an object",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "value_error": "{error}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def _load(text: str) -> object:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, ValueError):
        raise InvalidJSON("the message is not JSON") from None
    except RecursionError:
        raise InvalidJSON(f"the message is nested deeper than {MAX_DEPTH} levels") from None
    _check_bounds(value)
    return value


def _check_bounds(value: object) -> None:
    """Refuse what is legal JSON but costs more than any message of ours: deep nesting, huge integers."""
    if isinstance(value, dict) and _HARMLESS.issuperset(map(type, value.values())):
        return  # nearly every message
    level: list[object] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidJSON(f"the message is nested deeper than {MAX_DEPTH} levels")
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, int) and abs(item) >= MAX_INTEGER:
                raise InvalidJSON("the message holds an integer of more than 18 digits")
        level = inner


def _client_error(errors: list[ErrorDetails], message: dict[str, Any]) -> ClientError:
    # A tagged union puts the tag before the path; what follows is the client's own naming of its fields.
    paths = [tuple(str(part) for part in details["loc"][1:]) for details in errors]
    explained = "; ".join(_explain(*each) for each in zip(paths[:MAX_EXPLAINED], errors, strict=False))
    if len(errors) > MAX_EXPLAINED:
        explained += f"; and {len(errors) - MAX_EXPLAINED} more"
    in_config = all(path[:1] == ("config",) and len(path) > 1 for path in paths)
    if in_config:
        return InvalidConfig(explained)
    if message["type"] == "user_message" and paths == [("text",)] and errors[0]["type"] == "missing":
        return EmptyMessage("text is missing; say something")
    return InvalidMessage(explained)


def _explain(path: tuple[str, ...], details: ErrorDetails) -> str:
    field = ".".join(_shorten(part) for part in path)
    if details["type"] == "extra_forbidden":
        known = f"; known are {', '.join(SessionConfig.model_fields)}" if len(path) == 2 else ""
        return f"{field}: unknown key{known}"
    words = _WORDS.get(details["type"], "is not valid here")
    return f"{field}: {words.format_map(details.get('ctx', {}))}"


def _shorten(text: str, limit: int = 64) -> str:
    """Make what a client sent fit to be said back: short, in one line, printable."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])
    return printable if len(text) <= limit else printable + "…"


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object")
