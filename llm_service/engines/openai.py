"""Everything that speaks OpenAI's chat completions over server-sent events: vLLM, llama-server, LM Studio, TGI."""

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import msgspec

from llm_service.engines.continuation import left_open
from llm_service.engines.refusals import UNREADABLE, Refusal, error_fields, refused
from llm_service.engines.sse import SSEDecoder
from llm_service.engines.think_tags import ThinkTags
from llm_service.engines.tool_calls import ToolCalls, functions, unreadable
from llm_service.engines.transport import EngineClient, display_name
from llm_service.errors import (
    ConfigurationError,
    ContextOverflow,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    ModelNotFound,
)
from llm_service.generation import Delta, Finish, GenerationRequest, Message, Sink, TakeDelta, Usage

# Seconds for the usage and the stream's end to follow the word that the answer is over.
USAGE_SECONDS = 1.0

_NO_ERROR = (b"", b"null")

# llama-server's error type and OpenAI's error code; vLLM has neither, its messages begin like these.
_OVERFLOW_KINDS = ("exceed_context_size_error", "context_length_exceeded")
_OVERFLOW_TEXTS = (
    "This model's maximum context length is",
    "'max_tokens' or 'max_completion_tokens' is too large",
)

# What llama-server's parsers say of what the model wrote, with status 500; common/chat.cpp, of this year and the last.
_BAD_CALLS = ("The model produced output that does not match the expected", "Failed to parse input at pos")


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


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = msgspec.Raw()
    object: str = ""


class _Meta(msgspec.Struct):
    n_ctx: int | None = None
    n_ctx_train: int | None = None


class _Model(msgspec.Struct):
    id: str
    aliases: list[str] | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Tokenized(msgspec.Struct):
    """An answer to /tokenize: vLLM counts, llama-server lists."""

    count: int | None = None
    tokens: list[int] | None = None


class _Rendered(msgspec.Struct):
    """An answer to llama-server's /apply-template, and to vLLM's /detokenize."""

    prompt: str


_decode_rendered = msgspec.json.Decoder(_Rendered).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_models = msgspec.json.Decoder(_Models).decode
_decode_tokenized = msgspec.json.Decoder(_Tokenized).decode
_encode = msgspec.json.Encoder().encode


class OpenAIEngine:
    """One server with an OpenAI-compatible API.

    `base_url` includes the version, as in http://localhost:8000/v1. With `extended_sampling` requests carry
    top_k and, for reasoning models, the template's enable_thinking, which vLLM, llama-server, LM Studio and
    TGI take or ignore; a strict server needs it off. `extra` is added to every request's body. The context
    window is the server's own: it can't be asked for. Times are in seconds.

    Raises:
        ConfigurationError: the API key can't stand in a header.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str = "",
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
        extended_sampling: bool = True,
        name: str = "openai",
        extra: Mapping[str, object] | None = None,
    ) -> None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise ConfigurationError("The API key for the engine holds characters that no HTTP header may hold.")
        self._name = name
        self._label = display_name("The engine", base_url)
        self._extended_sampling = extended_sampling
        self._extra = dict(extra or {})
        self._tokenizes: bool | None = None  # None: not found out yet
        self._http = EngineClient(
            base_url,
            engine=self._label,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            refuse=self._refused,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER."""
        return self._name

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink` as it comes; cancelling aborts the engine's work.

        Once the engine has given its `finish_reason` the answer is whole, whatever becomes of the stream: the usage
        is waited for shortly, and None if it does not come.

        Raises:
            ContextOverflow: the prompt is longer than the engine's window; nothing was generated.
            EngineError: anything else.
        """
        chat = _encode(self._chat(request))
        try:
            async with asyncio.timeout(None) as limit:
                answer = _Answer(self._label, self._refused, sink, limit, begun=_begun(request))
                await self._http.stream("/chat/completions", chat, answer.feed)
        except (EngineError, TimeoutError):
            if not answer.over:
                raise
        return answer.end()

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether the model's template leaves the request's last message open.

        llama-server tells how it renders a prompt, vLLM the tokens that it makes of one; of others nothing is known.
        """
        chat = self._chat(request)
        try:
            try:
                rendered = await self._rendered(chat)
            except EngineRejected:
                rendered = await self._detokenized(chat)
        except (FastTalkError, *UNREADABLE):
            return False
        return left_open(rendered, request.messages[-1].content)

    async def _rendered(self, chat: dict[str, Any]) -> str:
        return _decode_rendered(await self._http.post("/apply-template", _encode(chat), below_base=False)).prompt

    async def _detokenized(self, chat: dict[str, Any]) -> str:
        kept = ("model", "messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
        body = {key: chat[key] for key in kept if key in chat}
        tokens = _decode_tokenized(await self._http.post("/tokenize", _encode(body), below_base=False)).tokens
        body = {"model": chat["model"], "tokens": tokens}
        return _decode_rendered(await self._http.post("/detokenize", _encode(body), below_base=False)).prompt

    async def load(self, model: str, context_window: int) -> None:
        """Do nothing: such a server has its model in memory before it answers at all."""

    async def ping(self) -> None:
        """Return if the engine lists its models: vLLM, llama-server, LM Studio and TGI have that in common."""
        await self._http.get("/models")

    async def models(self) -> list[str]:
        """Names of the models the engine serves."""
        return [model.id for model in await self._served()]

    async def context_window(self, model: str) -> int | None:
        """The window the engine was started with (vLLM, llama-server), else None, in tokens."""
        served = await self._served()
        named = [entry for entry in served if model == entry.id or model in (entry.aliases or ())]
        # llama-server answers for its one model whatever name it is asked by.
        entry = (named or served)[0] if named or len(served) == 1 else None
        if entry is None or entry.max_model_len is not None or entry.meta is None:
            return entry.max_model_len if entry else None
        return entry.meta.n_ctx or entry.meta.n_ctx_train

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone, from /tokenize at the server's root: llama-server and vLLM have it.

        A server that refuses the first such request is not asked again.
        """
        if self._tokenizes is False:
            return None
        # One body for both: each takes its own keys and passes over the other's.
        body = {
            "content": text,
            "add_special": False,
            "model": model,
            "prompt": text,
            "add_special_tokens": False,
        }
        try:
            count = _count(await self._http.post("/tokenize", _encode(body), below_base=False))
        except (EngineUnreachable, EngineTimeout):
            return None
        except FastTalkError:
            count = None
        if self._tokenizes is None:
            self._tokenizes = count is not None
        return count

    async def document(self, path: str) -> bytes:
        """GET what the same server has beside OpenAI's API, such as llama-server's /slots."""
        return await self._http.get(path, below_base=False)

    async def aclose(self) -> None:
        """Close all connections. A second call does nothing."""
        await self._http.aclose()

    async def _served(self) -> list[_Model]:
        document = await self._http.get("/models")
        try:
            return _decode_models(document).data
        except UNREADABLE:
            raise GenerationFailed(f"{self._label} sent a list of models that can't be read.") from None

    def _chat(self, request: GenerationRequest) -> dict[str, Any]:
        sampling = request.sampling
        chat: dict[str, Any] = {
            "model": request.model,
            "messages": [
                message if not message.tool_calls and message.role != "tool" else _with_tools(message)
                for message in request.messages
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **self._extra,
        }
        if _begun(request):
            # vLLM's names, which llama-server knows, too.
            chat |= {"add_generation_prompt": False, "continue_final_message": True}
        if request.tools:
            chat["tools"] = functions(request.tools)
        if sampling.stop:
            chat["stop"] = sampling.stop
        if sampling.seed is not None:
            chat["seed"] = sampling.seed
        if self._extended_sampling:
            chat["top_k"] = sampling.top_k
            if request.think is not None:
                chat["chat_template_kwargs"] = {"enable_thinking": request.think}
        return chat

    def _refused(self, refusal: Refusal) -> FastTalkError:
        if refusal.kind in _OVERFLOW_KINDS or refusal.text.startswith(_OVERFLOW_TEXTS):
            return ContextOverflow("The conversation is longer than the model's context window.")
        if refusal.status == 500 and refusal.text.startswith(_BAD_CALLS):
            return unreadable(self._label)
        if refusal.status == 404 and ("model" in refusal.text.lower() or refusal.kind == "model_not_found"):
            return ModelNotFound(f"{self._label} does not serve that model; GET /models lists those it does.")
        if refusal.status == 404:
            return EngineRejected(f"{self._label} does not know the path: its URL usually ends with /v1.")
        # Messages of these engines are not quoted: vLLM's repeat the request, and with it the prompt.
        return refused(refusal, self._label, quote=False)


class _Answer:
    """Reads one answer: bytes in, deltas out to `sink`, and the end. `refused` makes the error of an error event.

    `limit` is around the reading of the stream: it is set once the answer is over.
    """

    __slots__ = (
        "_calls",
        "_events",
        "_label",
        "_limit",
        "_reason",
        "_refused",
        "_sink",
        "_tags",
        "_take",
        "_usage",
    )

    def __init__(
        self,
        label: str,
        refused: Callable[[Refusal], FastTalkError],
        sink: Sink,
        limit: asyncio.Timeout,
        *,
        begun: bool = False,
    ) -> None:
        self._label = label
        self._limit = limit
        self._refused = refused
        self._sink = sink
        # The rest of an answer begins with what it begins with, be it space.
        self._tags: ThinkTags | None = None if begun else ThinkTags(sink.take, self._settle)
        self._take: TakeDelta = sink.take if self._tags is None else self._tags.take
        self._events = SSEDecoder()
        self._calls: ToolCalls | None = None
        self._reason = ""
        self._usage: Usage | None = None

    @property
    def over(self) -> bool:
        """Whether the engine said that all of the text, and of the calls, is there."""
        return bool(self._reason)

    def feed(self, data: bytes) -> bool:
        """Take what was read; return whether that was the end of the answer."""
        for payload in self._events.feed(data):
            if payload == b"[DONE]":
                return True
            self._read(self._decode(payload))
        return False

    def end(self) -> Finish:
        """Return how the answer ended; call it when the stream is over."""
        if self._tags is not None:
            self._tags.end()
        if not self._reason:
            raise GenerationFailed(f"{self._label} broke off in the middle of its answer.")
        if self._reason == "content_filter":
            # What the filter withheld is missing from the text: an answer that is not whole is not one.
            raise EngineRejected(f"{self._label} withheld the rest of the answer: its content filter stepped in.")
        cut = self._reason == "length"
        if self._calls is not None:
            return Finish("tool_calls", self._usage, self._calls.whole(cut=cut))
        return Finish("length" if cut else "stop", self._usage)

    def _settle(self) -> None:
        self._take = self._sink.take
        self._tags = None

    def _call(self, parts: list[_CallPart]) -> None:
        self._sink.progress_at = monotonic()
        if self._calls is None:
            self._calls = ToolCalls(self._label)
        for part in parts:
            function = part.function or _Function()
            self._calls.add(part.index, part.id or "", function.name or "", function.arguments or "")

    def _read(self, part: _Chunk) -> None:
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

    def _finish(self, reason: str) -> None:
        if not self._reason:
            # The wait for the usage is no silence either.
            self._sink.progress_at = monotonic()
            self._limit.reschedule(asyncio.get_running_loop().time() + USAGE_SECONDS)
        self._reason = reason

    def _decode(self, payload: bytes) -> _Chunk:
        try:
            part = _decode_chunk(payload)
        except UNREADABLE:
            raise GenerationFailed(f"{self._label} sent an event that can't be read.") from None
        if bytes(part.error) not in _NO_ERROR or part.object == "error":
            raise self._refused(Refusal(500, *error_fields(payload)))
        return part


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


def _begun(request: GenerationRequest) -> bool:
    """Whether the request is for the rest of an answer."""
    return request.messages[-1].role == "assistant"


def _count(document: bytes) -> int | None:
    try:
        tokenized = _decode_tokenized(document)
    except UNREADABLE:
        return None
    if tokenized.count is None and tokenized.tokens is not None:
        return len(tokenized.tokens)
    return tokenized.count


def _with_tools(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}
