"""Ollama, through its native API: the OpenAI-compatible one can't say num_ctx, truncate or shift."""

import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import Any

import httpx
import msgspec
import ollama

from llm_service.engines.continuation import left_open
from llm_service.engines.ndjson import LineBuffer
from llm_service.engines.refusals import UNREADABLE, Refusal, cleaned, error_fields, refused
from llm_service.engines.think_tags import ThinkTags
from llm_service.engines.tool_calls import ToolCalls, functions, unreadable
from llm_service.engines.transport import (
    QUICK_SECONDS,
    EngineClient,
    display_name,
    tls,
    translating,
)
from llm_service.errors import (
    ContextOverflow,
    EngineError,
    EngineRejected,
    FastTalkError,
    GenerationFailed,
    ModelNotFound,
)
from llm_service.generation import Delta, Finish, GenerationRequest, Message, Sink, TakeDelta, Usage

# runner/ollamarunner/runner.go and runner/llamarunner/runner.go, `errorInputTooLong`, answered with
# status 400. Ollama gives no code with it, so that its wording is all there is.
_OVERFLOW = "the input length exceeds the context length"
# types/model/capability.go and server/images.go, likewise with status 400 and no code.
_NO_TOOLS = "does not support tools"
# What Ollama quotes in these is a name, of a model or of what a model is made of.
_NAMING = re.compile(
    r"""model '([\w.:/@-]+)' not found(?:, try pulling it first)?|"?[\w.:/@-]+"? does not support \w+"""
    r"""|[\w :]*unknown model architecture: '[\w.-]+'"""
)
# What its parsers say of a call that the model wrote, with status 500 or in the stream: harmony/harmonyparser.go, and
# model/parsers/*.go, which hand on the words of Go's encoding/json and encoding/xml.
_BAD_CALLS = (
    "error parsing tool call", "failed to parse JSON", "empty function name", "XML syntax error",
    "expected element type", "invalid character", "unexpected end of JSON input", "json: cannot unmarshal",
)  # fmt: skip
# Otherwise text of the model or the user may begin here: harmony/harmonyparser.go says "error parsing tool call:
# raw='…', err=…", and model/parsers/qwen3coder.go what encoding/xml does: "XML syntax error on line 1: element <…".
_SAID = re.compile(r"raw=|(?<=syntax error)|(?<=tool call):|[\"'`<>{}\[\]&«»\u2018-\u201f]")


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
    """What the line that is `done` has as well; `prompt_eval_duration` is in nanoseconds."""

    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None


class _Prompt(msgspec.Struct):
    rendered_template: str


class _Rendered(msgspec.Struct):
    debug: _Prompt = msgspec.field(name="_debug_info")


class PullProgress(msgspec.Struct, frozen=True):
    """How far a download is: `completed` of `total` bytes of one layer, None where Ollama tells neither."""

    status: str
    completed: int | None = None
    total: int | None = None


_decode_lines = msgspec.json.Decoder(_Line).decode_lines
_decode_last_lines = msgspec.json.Decoder(_Last).decode_lines
_decode_rendered = msgspec.json.Decoder(_Rendered).decode
_encode = msgspec.json.Encoder().encode
_LINE_END = ord("\n")


class OllamaEngine:
    """One Ollama server.

    `keep_alive` is a number of seconds or a Go duration such as "5m". `options` go to Ollama as they are with
    every request (num_gpu, main_gpu, num_thread): two requests that differ in them, or in their context window,
    make Ollama load the model again. Times are in seconds; `read_timeout` also covers the time Ollama takes to
    load a model.
    """

    def __init__(
        self,
        base_url: str,
        *,
        keep_alive: str = "5m",
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
        options: Mapping[str, int] | None = None,
    ) -> None:
        self._label = display_name("Ollama", base_url)
        # Ollama reads "-1" and "300" as Go durations and misses the unit; as numbers they are seconds.
        self._keep_alive = int(keep_alive) if keep_alive.lstrip("-").isdigit() else keep_alive
        self._options = dict(options or {})
        self._http = EngineClient(
            base_url,
            engine=self._label,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            refuse=lambda refusal: _refused(_unsaid(refusal), self._label),
        )
        self._base_url = base_url
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._api = self._open_api(QUICK_SECONDS)

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER."""
        return "ollama"

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink` as it comes; cancelling aborts Ollama's work.

        Raises:
            ContextOverflow: the prompt is longer than the context window; nothing was generated.
            EngineError: anything else.
        """
        answer = _Answer(self._label, sink, begun=request.messages[-1].role == "assistant")
        await self._http.stream("/api/chat", _encode(self._chat(request)), answer.feed)
        return answer.end()

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether the model's template leaves the request's last message open: Ollama renders it for us."""
        # One that does not know the option would answer: with one token.
        one = msgspec.structs.replace(request.sampling, max_tokens=1)
        chat = self._chat(msgspec.structs.replace(request, sampling=one))
        body = {**chat, "stream": False, "_debug_render_only": True}
        try:
            rendered = _decode_rendered(await self._http.post("/api/chat", _encode(body)))
        except (FastTalkError, *UNREADABLE):
            return False
        return left_open(rendered.debug.rendered_template, request.messages[-1].content)

    async def load(self, model: str, context_window: int) -> None:
        """Load the model as `generate` will ask for it; returns when it is in memory."""
        options = {**self._options, "num_ctx": context_window}
        body = {"model": model, "messages": [], "stream": False, "keep_alive": self._keep_alive, "options": options}
        answer = _Answer(self._label, Sink(lambda _: None, []))
        await self._http.stream("/api/chat", _encode(body), answer.feed)
        answer.end()

    async def ping(self) -> None:
        """Return if Ollama answers, within about five seconds."""
        # Not with the package, whose call costs as much as a turn: this is asked every few seconds.
        await self._http.get("/api/ps")

    async def models(self) -> list[str]:
        """Names of the models that are on Ollama's disk."""
        with self._errors():
            listed = await self._api.list()
        return [entry.model for entry in listed.models if entry.model]

    async def context_window(self, model: str) -> int | None:
        """The window the model was trained for, in tokens."""
        with self._errors(model):
            shown = await self._api.show(model)
        info = shown.modelinfo or {}
        window = info.get(f"{info.get('general.architecture')}.context_length")
        return window if isinstance(window, int) else None

    async def count_tokens(self, model: str, text: str) -> int | None:  # noqa: ARG002
        """None: Ollama has no way to ask."""
        return None

    async def loaded(self) -> dict[str, int]:
        """The models in memory, each with the context window it was loaded with, in tokens."""
        with self._errors():
            running = await self._api.ps()
        return {entry.model: entry.context_length or 0 for entry in running.models if entry.model}

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download a model, yielding progress; ends when the model can be used. Closing it stops the download."""
        with self._errors(model):
            # A client of its own: checking what was downloaded may take longer than any answer.
            async with self._open_api(self._read_timeout) as api:
                updates = await api.pull(model, stream=True)
                async with aclosing(updates):
                    async for update in updates:
                        yield PullProgress(update.status or "", update.completed, update.total)

    async def aclose(self) -> None:
        """Close all connections. A second call does nothing."""
        await self._http.aclose()
        await self._api.close()  # type: ignore[no-untyped-call]

    def _open_api(self, read_timeout: float) -> ollama.AsyncClient:
        connect = min(self._connect_timeout, read_timeout)
        with translating(self._label):
            return ollama.AsyncClient(
                self._base_url,
                verify=tls(),
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(read_timeout, connect=connect, pool=connect),
            )

    def _chat(self, request: GenerationRequest) -> dict[str, Any]:
        sampling = request.sampling
        options: dict[str, Any] = {
            **self._options,
            "num_ctx": request.context_window,
            "num_predict": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "stop": sampling.stop,
        }
        if sampling.seed is not None:
            options["seed"] = sampling.seed
        chat: dict[str, Any] = {
            "model": request.model,
            "messages": [
                message if not message.tool_calls and message.role != "tool" else _with_tools(message)
                for message in request.messages
            ],
            "stream": True,
            # Otherwise Ollama drops the oldest messages of a long prompt, and of a long answer, silently.
            "truncate": False,
            "shift": False,
            "keep_alive": self._keep_alive,
            "options": options,
        }
        if request.think is not None:
            chat["think"] = request.think
        if request.tools:
            chat["tools"] = functions(request.tools)
        return chat

    @contextmanager
    def _errors(self, model: str = "") -> Iterator[None]:
        """Translate what the ollama package raises."""
        try:
            with translating(self._label):
                yield
        except ollama.ResponseError as error:
            refusal = Refusal(max(error.status_code, 0) or 500, cleaned(str(error.error)))
            raise _refused(refusal, self._label, model) from None
        except (ValueError, TypeError, AttributeError, RecursionError, ollama.RequestError):
            # The package takes an answer for the JSON it expects; what it runs into otherwise is not its own.
            raise GenerationFailed(f"{self._label} sent an answer that can't be read.") from None


class _Answer:
    """Reads one answer: bytes in, deltas out to `sink`, and the end."""

    __slots__ = (
        "_calls",
        "_label",
        "_last",
        "_lines",
        "_sink",
        "_tags",
        "_take",
    )

    def __init__(self, label: str, sink: Sink, *, begun: bool = False) -> None:
        self._label = label
        self._sink = sink
        # The rest of an answer begins with what it begins with, be it space.
        self._tags: ThinkTags | None = None if begun else ThinkTags(sink.take, self._settle)
        self._take: TakeDelta = sink.take if self._tags is None else self._tags.take
        self._lines = LineBuffer()
        self._calls: ToolCalls | None = None
        self._last: _Last | None = None

    def feed(self, data: bytes) -> bool:
        """Take what was read; return whether that was the end of the answer."""
        # Nearly every read is whole lines, and one call less is a twentieth of what a token costs here.
        lines = data if data and data[-1] == _LINE_END and not self._lines.rest else self._lines.feed(data)
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
                text = _without_said(cleaned(part.error))
                if text.startswith(_BAD_CALLS):
                    raise unreadable(self._label, f" ({text})")
                raise GenerationFailed(f"{self._label} failed{text and ': ' + text}")
            if part.done:
                self._last = self._read_last(lines)
                return True
        return False

    def end(self) -> Finish:
        """Return how the answer ended; call it when the stream is over."""
        if self._last is None:
            self.feed(b"\n")  # the last line may lack its end
        if self._tags is not None:
            self._tags.end()
        last = self._last
        if last is None:
            raise GenerationFailed(f"{self._label} broke off in the middle of its answer.")
        cut = last.done_reason == "length"
        if self._calls is not None:
            return Finish("tool_calls", _usage(last), self._calls.whole(cut=cut))
        return Finish("length" if cut else "stop", _usage(last))

    def _settle(self) -> None:
        self._take = self._sink.take
        self._tags = None

    def _call(self, calls: list[_Call]) -> None:
        self._sink.progress_at = monotonic()
        if self._calls is None:
            self._calls = ToolCalls(self._label)
        for call in calls:
            # What is not UTF-8 is no JSON, and found out when the call is read.
            arguments = bytes(call.function.arguments).decode(errors="replace")
            # Each is whole, and so a call of its own even where it has no name.
            self._calls.add(self._calls.count, call.id, call.function.name, arguments)

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
                text = _without_said(error_fields(line)[0])
                raise GenerationFailed(f"{self._label} sent a line that can't be read{text and ': ' + text}.") from None


def _usage(last: _Last) -> Usage | None:
    if last.prompt_eval_count is None and last.eval_count is None:
        return None
    seconds = None if last.prompt_eval_duration is None else last.prompt_eval_duration / 1e9
    return Usage(last.prompt_eval_count or 0, last.eval_count or 0, prompt_seconds=seconds)


def _with_tools(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_name": message.tool_name, "content": message.content}
    calls = [
        {"function": {"name": call.name, "arguments": msgspec.Raw(call.arguments.encode())}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def _refused(refusal: Refusal, label: str, model: str = "") -> FastTalkError:
    if refusal.status == 400 and refusal.text.startswith(_OVERFLOW):
        return ContextOverflow("The conversation is longer than the model's context window.")
    if refusal.status == 400 and refusal.text.endswith(_NO_TOOLS):
        return EngineRejected(f"{label}: {refusal.text}. Choose a model that can call tools, or send none.")
    if refusal.status == 500 and refusal.text.startswith(_BAD_CALLS):
        return unreadable(label, f" ({refusal.text})")
    if refusal.status == 404:
        named = _NAMING.fullmatch(refusal.text)
        wanted = model or (named and named[1]) or "NAME"
        return ModelNotFound(f"{label} has no model '{wanted}'. Fetch it: ollama pull {wanted}")
    # What was said is not in `text` any more, or was never sent: only a chat holds such.
    error: EngineError = refused(refusal, label, quote=True)
    return error


def _unsaid(refusal: Refusal) -> Refusal:
    return msgspec.structs.replace(refusal, text=_without_said(refusal.text))


def _without_said(text: str) -> str:
    """Return what Ollama says up to where it may quote the model or the user."""
    if _NAMING.fullmatch(text):
        return text
    return _SAID.split(text, maxsplit=1)[0].rstrip(" :,(")
