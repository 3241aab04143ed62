"""What engines speak: a request in; deltas and one finish out.

Instances are made once a token, hence msgspec structs: a fifth of the cost of a frozen dataclass.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(msgspec.Struct, frozen=True):
    """A call the model asks for. `arguments` is the text of a JSON object, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Tool(msgspec.Struct, frozen=True):
    """A function the model may ask for; `parameters` is a JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a prompt.

    An assistant's may ask for `tool_calls`; a tool's answers the one of `tool_call_id`, a call of `tool_name`.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""


class SamplingParams(msgspec.Struct, frozen=True):
    """How the next token is chosen. `max_tokens` bounds the answer; `seed` None means a random one."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int | None = None


class GenerationRequest(msgspec.Struct, frozen=True):
    """One response to be generated.

    `context_window` is in tokens and holds prompt and answer. `think` asks a reasoning model to think
    (True), not to (False) or leaves it to the model (None). `session_id` lets an engine with several
    prompt caches find the one that has this session's prefix. `background` is work that no user waits for. `patience`
    is in seconds, beyond the engine's deadlines for a first token: it may still be busy with what nobody wants. `spent`
    is what of the whole response's deadline another engine has used up, in seconds.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    context_window: int
    think: bool | None = None
    session_id: str = ""
    tools: tuple[Tool, ...] = ()
    background: bool = False
    patience: float = 0.0
    spent: float = 0.0


class Delta(msgspec.Struct, frozen=True, gc=False):
    """Text as the engine emits it; `thinking` marks reasoning, which is no part of the answer."""

    text: str
    thinking: bool = False


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the engine counted them; `prompt_tokens` are all of the prompt's, those found in a cache included.

    `cached_tokens`, the `prompt_seconds` the engine took to read what was not cached, and the `load_seconds` before
    that until the model was there for it, are None where it does not tell.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    prompt_seconds: float | None = None
    load_seconds: float | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The end of a generation. `usage` is None where the engine did not count; `tool_calls` are whole."""

    reason: FinishReason
    usage: Usage | None = None
    tool_calls: tuple[ToolCall, ...] = ()


TakeDelta = Callable[[Delta], None]
"""Gets a delta, from within the read that brought it: it must not wait, and it returns soon."""


class Sink(msgspec.Struct):
    """Where a generation's deltas go: each to `take`, which appends the time to `times` (`time.monotonic`, seconds).

    Whoever must know whether an answer has begun, or when it last went on, looks at `times`. To stand in the way
    of each delta instead would cost a token a call more. `waits` hears the request's position in the line for the
    engine whenever it changes, 1 is next, and 0 when the engine is asked after all; never of one that need not wait.
    `said` returns the whole answer so far; None if it is not text alone, so that nobody else could go on with it.
    `asks` hears the name of the engine whenever one of several is asked. `progress_at` is when the engine last went on
    without a delta, as within a tool call, which is handed over whole; 0 if it never did.
    """

    take: TakeDelta
    times: list[float]
    waits: Callable[[int], None] | None = None
    said: Callable[[], str | None] | None = None
    asks: Callable[[str], None] | None = None
    progress_at: float = 0.0
