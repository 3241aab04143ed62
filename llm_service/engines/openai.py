"""Everything that speaks OpenAI's chat completions over server-sent events: vLLM, llama-server, LM Studio, TGI."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from llm_service.engines.continuation import left_open
from llm_service.engines.openai_answer import Answer
from llm_service.engines.refusals import UNREADABLE, Refusal, refused
from llm_service.engines.tool_calls import functions, spelled, unreadable
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
from llm_service.generation import Finish, GenerationRequest, Message, Sink

# llama-server's error type and OpenAI's error code; vLLM has neither, its messages begin like these.
_OVERFLOW_KINDS = ("exceed_context_size_error", "context_length_exceeded")
_OVERFLOW_TEXTS = (
    "This model's maximum context length is",
    "'max_tokens' or 'max_completion_tokens' is too large",
)

# What llama-server's parsers say of what the model wrote, with status 500; common/chat.cpp, of this year and the last.
_BAD_CALLS = ("The model produced output that does not match the expected", "Failed to parse input at pos")


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
                answer = Answer(self._label, self._refused, sink, limit, begun=_begun(request))
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
            "messages": spelled(request.messages, _with_tools),
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
