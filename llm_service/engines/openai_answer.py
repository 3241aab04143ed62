"""The stream of one answer in OpenAI's protocol: bytes in, deltas and the end out."""

import asyncio
from collections.abc import Callable
from time import monotonic

import msgspec

from llm_service.engines.answer import AnswerReader
from llm_service.engines.refusals import UNREADABLE, Refusal, error_fields
from llm_service.engines.sse import SSEDecoder
from llm_service.errors import EngineRejected, FastTalkError, GenerationFailed
from llm_service.generation import Delta, Finish, Sink, Usage

# Seconds for the usage and the stream's end to follow the word that the answer is over.
USAGE_SECONDS = 1.0

_NO_ERROR = msgspec.Raw()


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _CallPart(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallPart] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Timings(msgspec.Struct, gc=False):
    """llama-server's: tokens of the prompt found in its cache, evaluated (in milliseconds), and generated."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float | None = None
    predicted_n: int = 0


class _Chunk(msgspec.Struct, gc=False):
    """What is looked for in every event: each field more costs every token."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = _NO_ERROR


class _Kind(msgspec.Struct):
    object: str = ""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode


class Answer(AnswerReader):
    """Reads one answer: bytes in, deltas out to `sink`, and the end. `refused` makes the error of an error event.

    `limit` is around the reading of the stream: it is set once the answer is over.
    """

    __slots__ = ("_events", "_limit", "_reason", "_refused", "_usage")

    def __init__(
        self,
        label: str,
        refused: Callable[[Refusal], FastTalkError],
        sink: Sink,
        limit: asyncio.Timeout,
        *,
        begun: bool = False,
    ) -> None:
        super().__init__(label, sink, begun=begun)
        self._limit = limit
        self._refused = refused
        self._events = SSEDecoder()
        self._reason = ""
        self._usage: Usage | None = None

    @property
    def over(self) -> bool:
        """Whether the engine said that all of the text, and of the calls, is there."""
        return bool(self._reason)

    def feed(self, data: bytes) -> bool:  # noqa: C901 - in one: it runs for every token
        """Take what was read; return whether that was the end of the answer."""
        for payload in self._events.feed(data):
            if payload == b"[DONE]":
                return True
            try:
                part = _decode_chunk(payload)
            except UNREADABLE:
                raise self._unreadable() from None
            if part.error is not _NO_ERROR or not part.choices:
                self._check(part, payload)
            if part.usage is not None or part.timings is not None:
                self._usage = _usage(part)
            for choice in part.choices or ():
                delta = choice.delta
                if delta is not None and choice.index == 0:
                    if thought := delta.reasoning_content or delta.reasoning:
                        self._take(Delta(thought, thinking=True))
                    if delta.content:
                        take = self._take
                        take(Delta(delta.content))
                    if delta.tool_calls:
                        self._call(delta.tool_calls)
                if choice.finish_reason:
                    self._finish(choice.finish_reason)
        return False

    def end(self) -> Finish:
        """Return how the answer ended; call it when the stream is over."""
        self._end_text()
        if not self._reason:
            raise GenerationFailed(f"{self._label} broke off in the middle of its answer.")
        if self._reason == "content_filter":
            # What the filter withheld is missing from the text: an answer that is not whole is not one.
            raise EngineRejected(f"{self._label} withheld the rest of the answer: its content filter stepped in.")
        return self._whole(self._usage, cut=self._reason == "length")

    def _call(self, parts: list[_CallPart]) -> None:
        joined = self._calling()
        for part in parts:
            function = part.function or _Function()
            joined.add(part.index, part.id or "", function.name or "", function.arguments or "")

    def _finish(self, reason: str) -> None:
        if not self._reason:
            # The wait for the usage is no silence either.
            self._sink.progress_at = monotonic()
            self._limit.reschedule(asyncio.get_running_loop().time() + USAGE_SECONDS)
        self._reason = reason

    def _check(self, part: _Chunk, payload: bytes) -> None:
        """Raise the error that an event may be, in either of the shapes that there are."""
        says = bytes(part.error) not in (b"", b"null")
        if part.choices and not says:
            return  # some servers send `null` with every token
        try:
            says = says or _decode_kind(payload).object == "error"
        except UNREADABLE:
            raise self._unreadable() from None
        if says:
            raise self._refused(Refusal(500, *error_fields(payload)))

    def _unreadable(self) -> GenerationFailed:
        return GenerationFailed(f"{self._label} sent an event that can't be read.")


def _usage(part: _Chunk) -> Usage | None:
    usage, timings = part.usage, part.timings
    seconds = None if timings is None or timings.prompt_ms is None else timings.prompt_ms / 1000
    if usage is not None:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        if cached is None and timings is not None:
            cached = timings.cache_n
        return Usage(usage.prompt_tokens, usage.completion_tokens, cached, seconds)
    if timings is not None:
        return Usage(timings.cache_n + timings.prompt_n, timings.predicted_n, timings.cache_n, seconds)
    return None
