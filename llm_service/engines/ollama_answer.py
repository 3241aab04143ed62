"""The stream of one answer of Ollama's: bytes in, deltas and the end out."""

from collections.abc import Iterable, Iterator

import msgspec

from llm_service.engines.answer import AnswerReader
from llm_service.engines.ndjson import LineBuffer
from llm_service.engines.ollama_errors import stream_error, without_said
from llm_service.engines.refusals import UNREADABLE, error_fields
from llm_service.errors import GenerationFailed
from llm_service.generation import Delta, Finish, Sink, Usage

_LINE_END = ord("\n")


class _Function(msgspec.Struct, gc=False):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw()


class _Call(msgspec.Struct, gc=False):
    function: _Function
    id: str = ""


class _Message(msgspec.Struct, gc=False):
    content: str = ""
    thinking: str = ""
    tool_calls: list[_Call] | None = None


class _Line(msgspec.Struct, gc=False):
    """What is looked for in every line: each field more costs every token."""

    message: _Message | None = None
    done: bool = False
    error: str = ""


class _Last(msgspec.Struct):
    """What the line that is `done` has as well; durations are in nanoseconds."""

    done: bool = False
    done_reason: str = ""
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None


_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_last_lines = msgspec.json.Decoder(_Last).decode_lines


class Answer(AnswerReader):
    """Reads one answer: bytes in, deltas out to `sink`, and the end."""

    __slots__ = ("_last", "_lines")

    def __init__(self, label: str, sink: Sink, *, begun: bool = False) -> None:
        super().__init__(label, sink, begun=begun)
        self._lines: LineBuffer | None = None  # while it holds a part of a line
        self._last: _Last | None = None

    def feed(self, data: bytes) -> bool:
        """Take what was read; return whether that was the end of the answer."""
        # Nearly every read is whole lines, and one call less is a twentieth of what a token costs here.
        lines = data if self._lines is None and data and data[-1] == _LINE_END else self._whole_lines(data)
        try:
            parts: Iterable[_Line] = _decode_lines(lines)
        except UNREADABLE:
            parts = self._one_by_one(lines)
        for part in parts:
            message = part.message
            if message is not None:
                if message.thinking:
                    self._take(Delta(message.thinking, thinking=True))
                if message.content:
                    take = self._take
                    take(Delta(message.content))
                if message.tool_calls:
                    self._call(message.tool_calls)
            if part.error:
                raise stream_error(part.error, self._label)
            if part.done:
                self._last = self._read_last(lines)
                return True
        return False

    def end(self) -> Finish:
        """Return how the answer ended; call it when the stream is over."""
        if self._last is None:
            self.feed(b"\n")  # the last line may lack its end
        self._end_text()
        last = self._last
        if last is None:
            raise GenerationFailed(f"{self._label} broke off in the middle of its answer.")
        return self._whole(_usage(last), cut=last.done_reason == "length")

    def _whole_lines(self, data: bytes) -> bytes:
        buffer = LineBuffer() if self._lines is None else self._lines
        lines = buffer.feed(data)
        self._lines = buffer if buffer.rest else None
        return lines

    def _call(self, calls: list[_Call]) -> None:
        joined = self._calling()
        for call in calls:
            # What is not UTF-8 is no JSON, and found out when the call is read.
            arguments = bytes(call.function.arguments).decode(errors="replace")
            # Each is whole, and so a call of its own even where it has no name.
            joined.add(joined.count, call.id, call.function.name, arguments)

    def _read_last(self, lines: bytes) -> _Last:
        try:
            return next(last for last in _decode_last_lines(lines) if last.done)
        except UNREADABLE:
            raise GenerationFailed(f"{self._label} sent a last line that can't be read.") from None

    def _one_by_one(self, lines: bytes) -> Iterator[_Line]:
        """Decode the lines up to the one that can't be read."""
        for line in lines.split(b"\n"):
            try:
                yield from _decode_lines(line)
            except UNREADABLE:
                # An error in another shape than a string is an error still.
                text = without_said(error_fields(line)[0])
                raise GenerationFailed(f"{self._label} sent a line that can't be read{text and ': ' + text}.") from None


def _usage(last: _Last) -> Usage | None:
    if last.prompt_eval_count is None and last.eval_count is None:
        return None
    return Usage(
        last.prompt_eval_count or 0,
        last.eval_count or 0,
        prompt_seconds=_seconds(last.prompt_eval_duration),
        load_seconds=_seconds(last.load_duration),
    )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9
