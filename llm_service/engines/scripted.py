"""An engine that says what it is told to, at the speed it is told to: for tests and demonstrations."""

import asyncio
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import msgspec

from llm_service.errors import EngineError, EngineUnreachable, ModelNotFound
from llm_service.generation import Delta, Finish, FinishReason, GenerationRequest, Sink, ToolCall, Usage

Ending = Literal["finished", "failed", "closed"]

_T = TypeVar("_T")
_WORD = re.compile(r"\s*\S+")
_CALL = re.compile(r"\s*call\s+(\S+)\s+(?=\{)")
_REMEMBERED = 1000


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong with one generation, before token number `after_tokens` (0: before the first).

    With `error` it fails with that. Without, it says nothing for `pause` seconds and then goes on, or for
    ever where that is None.
    """

    after_tokens: int = 0
    error: EngineError | None = None
    pause: float | None = None


def default_answer(request: GenerationRequest) -> list[str]:
    """Return a paragraph, word by word, that depends on the last user message and on nothing else.

    A tool's result, where one is the last message, is repeated.
    """
    if request.messages and request.messages[-1].role == "tool":
        return _WORD.findall(request.messages[-1].content)
    said = _last_said(request)
    words = said.split()
    text = (
        f"You said: {' '.join(words)[:200]} That is {len(words)} words and {len(said)} characters, and its "
        f"checksum is {zlib.crc32(said.encode('utf-8', 'replace')):08x}. I am a script and not a model, so I "
        "understand none of it, but I answer every word of yours with words of my own, one after the other, "
        "at an even pace, until this sentence ends."
    )
    return _WORD.findall(text)


def _last_said(request: GenerationRequest) -> str:
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")


def _wanted_call(request: GenerationRequest) -> ToolCall | None:
    """Return the call that the last user message tells the engine to make, unless a tool has answered it."""
    if not request.tools or not request.messages or request.messages[-1].role == "tool":
        return None
    said = _last_said(request)
    begin = _CALL.match(said)
    if begin is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(said, begin.end())
    except (ValueError, RecursionError):
        return None
    return ToolCall("call_0", begin[1], said[begin.end() : end])


class ScriptedEngine:
    """The double of an engine, with the same interface and no machine behind it.

    `answer` gives the tokens of a request's answer. Tokens come `tokens_per_second`, the first after `ttft`
    seconds, on a schedule that is fixed when the generation starts: a late one does not delay the next.
    Each generation takes the next of `faults`; when there are none, nothing goes wrong. `models` empty
    means that every name is known. While `down` is set, everything raises EngineUnreachable.
    Where a request has tools and its last user message begins with `call NAME {"a": "JSON object"}`, it ends with
    that call and says nothing; a tool's result as the last message is given to `answer` as any other. Where the last
    message is an assistant's, and it `continues`, its answer is what comes behind that.

    `requests`, `endings` and `loads` (the last thousand of each), `running` and `most_running` at once record
    what happened. `tokens_per_second` may
    be changed; it is read when a generation starts.
    """

    def __init__(
        self,
        answer: Callable[[GenerationRequest], Iterable[str]] = default_answer,
        *,
        tokens_per_second: float = 50.0,
        ttft: float = 0.0,
        models: Iterable[str] = ("scripted",),
        window: int | None = None,
        faults: Iterable[Fault | None] = (),
        name: str = "scripted",
        continues: bool = True,
    ) -> None:
        self._answer = answer
        self.tokens_per_second = tokens_per_second
        self._ttft = ttft
        self._models = list(models)
        self._window = window
        self._name = name
        self._continues = continues
        self.faults: deque[Fault | None] = deque(faults)
        self.down = False
        self.requests: list[GenerationRequest] = []
        self.endings: list[Ending] = []
        self.loads: list[str] = []
        self.running = 0
        self.most_running = 0
        self.closed = False

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER."""
        return self._name

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the script's answer to `sink`, cut at the request's max_tokens."""
        _record(self.requests, request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        ending: Ending = "closed"
        try:
            self._check(request.model)
            finish = await self._say(request, sink)
            ending = "finished"
        except Exception:
            ending = "failed"
            raise
        finally:
            self.running -= 1
            _record(self.endings, ending)
        return finish

    def fail(self, error: EngineError, *, after: int = 0) -> None:
        """Make the next generation that has no fault yet fail after so many tokens."""
        self.faults.append(Fault(after, error))

    async def continues(self, request: GenerationRequest) -> bool:  # noqa: ARG002
        """What it was made with: whether it goes on with an answer that begins as its own would."""
        self._check()
        return self._continues

    async def load(self, model: str, context_window: int) -> None:  # noqa: ARG002
        """Note the model's name."""
        self._check(model)
        _record(self.loads, model)

    async def ping(self) -> None:
        """Return unless the engine is down."""
        self._check()

    async def models(self) -> list[str]:
        """The names the engine was made with."""
        self._check()
        return list(self._models)

    async def context_window(self, model: str) -> int | None:
        """The window the engine was made with."""
        self._check(model)
        return self._window

    async def count_tokens(self, model: str, text: str) -> int | None:  # noqa: ARG002
        """The words of the text, as in the counts of an answer; None while the engine is down."""
        return None if self.down else len(text.split())

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _say(self, request: GenerationRequest, sink: Sink) -> Finish:
        fault = self.faults.popleft() if self.faults else None
        clock = asyncio.get_running_loop().time
        due, interval = clock() + self._ttft, 1.0 / self.tokens_per_second
        count, limit = 0, request.sampling.max_tokens
        call = _wanted_call(request)
        reason: FinishReason = "stop" if call is None else "tool_calls"
        # A call takes as many tokens as it has words, and they come at the same pace, in silence.
        tokens = self._rest(request) if call is None else [""] * (1 + len(call.arguments.split()))
        for token in tokens:
            if count == limit:
                reason = "length"
                break
            if fault is not None and count == fault.after_tokens:
                await _suffer(fault)
            await asyncio.sleep(max(0.0, due + count * interval - clock()))
            count += 1
            if token:
                sink.take(Delta(token))
        if fault is not None and count == fault.after_tokens:
            await _suffer(fault)
        prompt_tokens = sum(len(message.content.split()) for message in request.messages)
        calls = () if call is None or reason == "length" else (call,)
        return Finish(reason, Usage(prompt_tokens, count), calls)

    def _rest(self, request: GenerationRequest) -> Iterable[str]:
        """Return the tokens of the answer that the request's last message, if it is an assistant's, lacks."""
        if request.messages[-1:] == () or request.messages[-1].role != "assistant":
            return self._answer(request)
        said = request.messages[-1].content
        return _after(said, self._answer(msgspec.structs.replace(request, messages=request.messages[:-1])))

    def _check(self, model: str | None = None) -> None:
        if self.down:
            raise EngineUnreachable("The scripted engine was told to be down.")
        if model is not None and self._models and model not in self._models:
            raise ModelNotFound(f"The scripted engine has no model '{model}'.")


def _record(records: list[_T], record: _T) -> None:
    records.append(record)
    del records[:-_REMEMBERED]


def _after(said: str, tokens: Iterable[str]) -> Iterator[str]:
    for token in tokens:
        if said:
            begin, said = said[: len(token)], said[len(token) :]
            token = token.removeprefix(begin)  # noqa: PLW2901
        if token:
            yield token


async def _suffer(fault: Fault) -> None:
    if fault.error is not None:
        raise fault.error
    if fault.pause is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(fault.pause)
