"""What every log line looks like, ours and the libraries', and what it must never hold.

A line is one event with named values. What people say to each other through this service is not in it:
values under the names in `TEXTS` show as their length, those in `SECRETS` as stars, at any depth; objects
that are not plain data show as their class; exceptions show their type and their stack, and their message
only where it is one of ours, because a library's may quote what it choked on. LOG_PROMPTS lifts all of that but
the stars. The event itself is not looked into: it is a constant, never built from what somebody sent.

No value can break a line or steer a terminal: JSON is ASCII, the console shows control characters escaped.
"""

import json
import logging
import math
import re
import traceback
from collections import deque
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from time import time
from typing import Any, Final, Literal, cast
from uuid import UUID

import structlog
from structlog.dev import Column, ColumnFormatter, ConsoleRenderer, KeyValueColumnFormatter
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, ExcInfo, Processor

from llm_service.errors import FastTalkError

Format = Literal["console", "json"]
_Kind = Literal["plain", "text", "secret"]  # of a field, by its name

TEXTS: Final = frozenset({"text", "data", "content", "messages", "prompt", "system_prompt", "delta", "answer"})
SECRETS: Final = frozenset({"api_key", "api_keys", "authorization", "token", "password", "secret", "cookie"})
STARS: Final = "********"

_SECRET_ENDINGS: Final = ("_api_key", "_api_keys", "authorization", "_password", "_secret", "access_token", "hf_token")
_DEPTH: Final = 8  # of nested values; deeper ones are cut
_ERRORS, _FRAMES = 16, 50  # of one chain of exceptions, of one stack: a RecursionError has a thousand
# The field of a line that is made later than it was said: when that was, in seconds since the epoch.
AT: Final = "_at"


def _stamp(_: object, __: str, event_dict: EventDict) -> EventDict:
    at = event_dict.pop(AT, None)
    said = datetime.fromtimestamp(time() if at is None else at, UTC)
    event_dict["timestamp"] = said.isoformat().replace("+00:00", "Z")
    return event_dict


PREPARATION: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    _stamp,
]
_INVALID_UTF8: Final = "Invalid UTF-8 sequence received from client."
_QUERY: Final = re.compile(r"(?<=\S)\?\S*")
# Control characters, line and paragraph separators, bidirectional overrides, what is not seen at all, halves of
# surrogate pairs.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)
_SEPARATORS: Final = re.compile(r"[ =\"']")
_to_json: Final = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each value


class LineForm:
    """What a line looks like at one output, be it an event of ours or the record of a library."""

    def __init__(self, rendering: list[Processor], log_prompts: bool) -> None:
        """`rendering` makes the text; `log_prompts` shows what people say, too."""
        reader = _Reader(log_prompts)
        self._processors: list[Processor] = [
            reader.all,
            structlog.processors.ExceptionRenderer(reader.trace),
            *rendering,
        ]
        self._formatter = ProcessorFormatter(
            foreign_pre_chain=[*PREPARATION, reader.libraries],
            processors=[ProcessorFormatter.remove_processors_meta, *self._processors],
            use_get_message=False,
            pass_foreign_args=True,
        )

    @classmethod
    def json(cls, log_prompts: bool) -> "LineForm":
        """Return JSON, in ASCII."""
        return cls([_as_json], log_prompts)

    @classmethod
    def console(cls, log_prompts: bool, *, colors: bool) -> "LineForm":
        """Return what people read."""
        return cls(_console(colors), log_prompts)

    def of_record(self, record: logging.LogRecord) -> str:
        return self._formatter.format(record)

    def of_event(self, event_dict: EventDict) -> str:
        """Leave the event as it is: the other output reads it, too."""
        line: Any = event_dict
        for processor in self._processors:
            line = processor(None, "", line)
        return cast("str", line)


class _Reader:
    """Makes plain data of whatever was logged; `reveal` shows what people say, too."""

    def __init__(self, reveal: bool) -> None:
        self._reveal = reveal

    def all(self, _: object, __: str, event_dict: EventDict) -> EventDict:
        """Redact every value but the exception, which `trace` reads."""
        line: EventDict = {}
        for name, value in event_dict.items():
            try:
                line[name] = self._field(_kind_of_field(name), value, 0)
            except Exception:  # noqa: BLE001 - as in `_guarded`, which costs more than most fields
                line[name] = _class(value)
        for name in ("exception", "stack"):  # these names belong to the renderers
            if name in line:
                line[f"{name}_"] = line.pop(name)
        line["exc_info"] = event_dict.get("exc_info")
        return line

    def libraries(self, _: object, __: str, event_dict: EventDict) -> EventDict:
        """Put a library's message together: its first line, without queries of URLs and texts of exceptions."""
        record: logging.LogRecord = event_dict["_record"]
        given: Any = event_dict.pop("positional_args", ())
        if record.msg == _INVALID_UTF8:  # the client's fault: no stack of ours explains it
            event_dict.pop("exc_info", None)
            event_dict["level"] = "warning"
        named = isinstance(given, Mapping)
        arguments = {k: self._argument(given[k]) for k in given} if named else tuple(map(self._argument, given or ()))
        event = _QUERY.sub("", self._merge(record.msg, arguments))
        if not self._reveal:
            event = event.strip().partition("\n")[0]
            if record.name == "asyncio":  # "Exception in callback f('what somebody said')"
                event = event.partition("(")[0]
        event_dict["event"] = event
        return event_dict

    def _merge(self, message: object, arguments: dict[str, object] | tuple[object, ...]) -> str:
        text = self._describe(message) if isinstance(message, BaseException) else str(message)
        try:
            return text % arguments if arguments else text
        except (TypeError, ValueError, KeyError):
            return f"{text} (its arguments do not fit)"

    def _argument(self, value: object) -> object:
        if isinstance(value, (int, float)):
            return value
        text = self._describe(value) if isinstance(value, BaseException) else str(_guarded(str, value))
        return text.partition("?")[0]

    def _field(self, kind: _Kind, value: object, depth: int) -> object:
        if value is None:
            return None
        if kind == "secret":
            return STARS
        return self._plain(value, depth) if self._reveal or kind == "plain" else _length(value)

    def _plain(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return value
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no such numbers
        if isinstance(value, int) and value.bit_length() > 64:
            return f"<{value.bit_length()} bits>"  # Python refuses to print thousands of digits
        if value is None or isinstance(value, (int, float)):
            return value
        return self._structure(value, depth + 1) if depth < _DEPTH else "…"

    def _structure(self, value: object, depth: int) -> object:
        if isinstance(value, Mapping):
            return {
                (name := str(self._plain(key, _DEPTH))): self._field(_kind(name), value[key], depth) for key in value
            }
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return [self._plain(item, depth) for item in value]
        if isinstance(value, (PurePath, UUID, Enum, date)):
            return str(value)
        if isinstance(value, BaseException):
            return self._describe(value)
        # Structs of msgspec and dataclasses
        names = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", ())
        if names and not isinstance(value, type):
            return {name: self._field(_kind(name), getattr(value, name, None), depth) for name in names}
        return repr(value) if self._reveal else _length(value)

    def _describe(self, error: BaseException) -> str:
        kind = type(error).__name__
        return f"{kind}: {_guarded(str, error)}" if self._reveal or isinstance(error, FastTalkError) else kind

    def trace(self, exc_info: ExcInfo) -> list[dict[str, object]]:
        """Return the exception, then what it comes from and what it holds, each with its innermost frames."""
        found: list[dict[str, object]] = []
        seen: set[int] = set()
        waiting = deque([("raised", exc_info[1])])
        while waiting and len(found) < _ERRORS:
            how, current = waiting.popleft()
            if id(current) in seen:
                continue
            seen.add(id(current))
            stack = deque(traceback.walk_tb(current.__traceback__), maxlen=_FRAMES)
            frames = [f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}" for frame, line in stack]
            found.append({"how": how, "error": self._describe(current), "frames": frames})
            if current.__cause__ is not None:
                waiting.append(("caused by", current.__cause__))
            elif current.__context__ is not None and not current.__suppress_context__:
                waiting.append(("while handling", current.__context__))
            if isinstance(current, BaseExceptionGroup):
                waiting.extend(("holding", member) for member in current.exceptions)
        return found


def _kind(name: str) -> _Kind:
    key = name.lower().replace("-", "_")
    if key in SECRETS or key.endswith(_SECRET_ENDINGS):
        return "secret"
    return "text" if key in TEXTS else "plain"


_kind_of_field: Final = lru_cache(maxsize=256)(_kind)  # names at the top of an event are of our code, hence few


def _class(value: object) -> str:
    return f"<{type(value).__name__}>"


def _length(value: object) -> str:
    if not isinstance(value, Collection):
        return _class(value)
    unit = "characters" if isinstance(value, str) else "bytes" if isinstance(value, (bytes, bytearray)) else "items"
    return f"<{len(value)} {unit}>"


def _guarded(convert: Callable[[object], object], value: object) -> object:
    try:
        return convert(value)
    except Exception:  # noqa: BLE001 - whatever an object's own code does, the line is written
        return _class(value)


def _as_json(_: object, __: str, event_dict: EventDict) -> str:
    return json.dumps(event_dict, ensure_ascii=True).replace("\x7f", "\\u007f")


def _console(colors: bool) -> list[Processor]:
    renderer = ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    renderer.columns = [Column(column.key, _cheap(column)) for column in renderer.columns]
    return [_lines, renderer]


def _cheap(column: Column) -> ColumnFormatter:
    """Return what writes the same as structlog's own, which makes a StringIO for each value."""
    own = column.formatter
    if not isinstance(own, KeyValueColumnFormatter):
        return own
    show, width = _visible if column.key else _quoted, own.width
    start = own.prefix and own.prefix + own.reset_style
    end = own.reset_style + (own.postfix and own.postfix + own.reset_style)
    if own.key_style is None:
        start += own.value_style
        return lambda _, value: f"{start}{show(value).ljust(width)}{end}"
    start, middle = start + own.key_style, f"{own.reset_style}={own.value_style}"
    return lambda key, value: f"{start}{key}{middle}{show(value).ljust(width)}{end}"


def _lines(_: object, __: str, event_dict: EventDict) -> EventDict:
    trace = event_dict.pop("exception", [])
    line = {_visible(key): value for key, value in event_dict.items()}
    stack = [text for e in trace for text in (f"  {e['how']} {e['error']}", *map("    {}".format, e["frames"]))]
    return line | {"exception": "\n".join(_visible(text) for text in stack)} if stack else line


def _visible(value: object) -> str:
    text = str(value)
    if text.isprintable():  # nothing of `_UNSAFE` is, and this is told faster
        return text
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _quoted(value: object) -> str:
    if isinstance(value, str) and value and not _SEPARATORS.search(value):
        return _visible(value)
    return _visible(value if type(value) is int else _to_json(value))  # whose JSON is the same
