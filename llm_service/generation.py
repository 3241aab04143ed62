"""What engines speak: a request in; deltas and one finish out.

Instances are made once a token, hence msgspec structs: a fifth of the cost of a frozen dataclass.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


class Message(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: Role
    content: str


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
    prompt caches find the one that has this session's prefix.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    context_window: int
    think: bool | None = None
    session_id: str = ""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """Text as the engine emits it; `thinking` marks reasoning, which is no part of the answer."""

    text: str
    thinking: bool = False


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the engine counted them. `cached_tokens` is None where the engine does not tell."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The end of a generation. `usage` is None where the engine did not count."""

    reason: FinishReason
    usage: Usage | None = None


TakeDelta = Callable[[Delta], None]
"""Gets a delta, from within the read that brought it: it must not wait, and it returns soon."""
