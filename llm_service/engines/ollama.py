"""Ollama, through its native API: the OpenAI-compatible one can't say num_ctx, truncate or shift."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import httpx
import msgspec
import ollama

from llm_service.engines.continuation import left_open
from llm_service.engines.ollama_answer import Answer
from llm_service.engines.ollama_errors import refusal_error, unsaid
from llm_service.engines.refusals import UNREADABLE, Refusal, cleaned
from llm_service.engines.tool_calls import functions, spelled
from llm_service.engines.transport import (
    QUICK_SECONDS,
    EngineClient,
    display_name,
    tls,
    translating,
)
from llm_service.errors import FastTalkError, GenerationFailed
from llm_service.generation import Finish, GenerationRequest, Message, Sink


class _Prompt(msgspec.Struct):
    rendered_template: str


class _Rendered(msgspec.Struct):
    debug: _Prompt = msgspec.field(name="_debug_info")


class PullProgress(msgspec.Struct, frozen=True):
    """How far a download is: `completed` of `total` bytes of one layer, None where Ollama tells neither."""

    status: str
    completed: int | None = None
    total: int | None = None


_decode_rendered = msgspec.json.Decoder(_Rendered).decode
_encode = msgspec.json.Encoder().encode


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
            refuse=lambda refusal: refusal_error(unsaid(refusal), self._label),
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
        answer = Answer(self._label, sink, begun=request.messages[-1].role == "assistant")
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
        answer = Answer(self._label, Sink(lambda _: None, []))
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
            "messages": spelled(request.messages, _with_tools),
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
            raise refusal_error(refusal, self._label, model) from None
        except (ValueError, TypeError, AttributeError, RecursionError, ollama.RequestError):
            # The package takes an answer for the JSON it expects; what it runs into otherwise is not its own.
            raise GenerationFailed(f"{self._label} sent an answer that can't be read.") from None


def _with_tools(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_name": message.tool_name, "content": message.content}
    calls = [
        {"function": {"name": call.name, "arguments": msgspec.Raw(call.arguments.encode())}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}
