"""The wire of `/ws/llm`: every message either side may send; `parsing` reads them, `encode` writes them.

Client events are pydantic models, since a wrong one must be answered with the place and the bounds; server
events are msgspec structs, since one is written for every token. The AsyncAPI document and the JSON Schemas
in docs/ are made from this module alone.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from llm_service.audio_format import AudioFormat
from llm_service.errors import Category, FastTalkError, Severity
from llm_service.session_config import SessionConfig

MAX_INTEGER = 10**18

# ---------------------------------------------------------------------------------------------------------
# Client to server


class _ClientModel(BaseModel):
    # Unknown fields of a message are left for newer clients; a configuration refuses them.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class StartSession(_ClientModel):
    """Start a session, or start it anew: the history is empty afterwards. With session_id, take one up again."""

    type: Literal["start_session"] = "start_session"
    config: SessionConfig | None = None
    session_id: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="a session to take up again, after its connection was lost"
    )
    last_seq: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(
        None, description="seq of the last event received of it: those behind it follow the answer"
    )
    api_key: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="where the service asks for a key and the handshake brought none"
    )


class UserMessage(_ClientModel):
    """What the user said; answered by tokens and one terminal event."""

    type: Literal["user_message"] = "user_message"
    text: str = Field(description="not empty, nor white space alone", json_schema_extra={"pattern": r"\S"})
    id: Annotated[str, Field(max_length=128)] | None = Field(None, description="given back in this response's events")


class Cancel(_ClientModel):
    """Stop the running response and forget the waiting ones; answered by `cancelled`."""

    type: Literal["cancel"] = "cancel"


class EndSession(_ClientModel):
    """End the session; the connection stays open for another."""

    type: Literal["end_session"] = "end_session"


class UpdateConfig(_ClientModel):
    """Change some of this session's configuration, from the next response on."""

    type: Literal["update_config"] = "update_config"
    config: SessionConfig


class Played(_ClientModel):
    """How much of the answer was really spoken: where it ends in the history if it is cut off there."""

    type: Literal["played"] = "played"
    chunk: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(
        None, description="id of the chunk being played; none: chars count from the beginning of the answer"
    )
    chars: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = Field(
        description="characters heard so far: of the chunk's text, or of the answer"
    )


class PartialMessage(_ClientModel):
    """What the user is still saying: warms the engine's prompt cache where config.warm is set; not answered."""

    type: Literal["partial_message"] = "partial_message"
    text: str


class ToolResult(_ClientModel):
    """The result of a `tool_call`; the response goes on once all calls of it have theirs."""

    type: Literal["tool_result"] = "tool_result"
    id: Annotated[str, Field(max_length=128)] = Field(description="the call's")
    content: str = Field(description="what the model is told: text, or JSON as text; of a failure its reason")


ClientEvent = Annotated[
    StartSession | UserMessage | Cancel | EndSession | UpdateConfig | Played | PartialMessage | ToolResult,
    Field(discriminator="type"),
]
CLIENT_EVENTS: tuple[type[_ClientModel], ...] = (
    StartSession,
    UserMessage,
    Cancel,
    EndSession,
    UpdateConfig,
    Played,
    PartialMessage,
    ToolResult,
)

# The union as a type, for the functions that take one.
ClientMessage = StartSession | UserMessage | Cancel | EndSession | UpdateConfig | Played | PartialMessage | ToolResult

# ---------------------------------------------------------------------------------------------------------
# Server to client


class _ServerEvent(msgspec.Struct, tag_field="type", omit_defaults=True, kw_only=True):
    """`seq` numbers the events of a session from 1, set as the event goes out. The answer to a client that comes back
    has the number it gave: the events behind that one follow.
    """

    seq: int = -1


class SessionStarted(_ServerEvent, tag="session_started"):
    """A session exists. `resumed` is there when the client asked to take one up again, with the reason if it is false.

    True: all events behind `last_seq` follow, and numbers go on. False: numbers begin at 1; with the same `session_id`
    the conversation is kept and only events were lost, with another it is a new one.
    """

    session_id: str
    provider: str
    model: str
    resumed: bool | None = None
    reason: str | None = None


class SessionConfigured(_ServerEvent, tag="session_configured"):
    """The configuration was taken; `config` is the object as the client sent it. `resumed` as in session_started."""

    config: dict[str, Any]
    provider: str
    resumed: bool | None = None
    reason: str | None = None


class ResponseStarted(_ServerEvent, tag="response_started"):
    """On request. The engine was asked; `id` is the user message's, where it had one."""

    id: str | None = None


class Token(_ServerEvent, tag="token", gc=False):
    """Text of the answer: append it to what came before. Not always one token of the model."""

    data: str


class Thinking(_ServerEvent, tag="thinking"):
    """On request. Text of the model's reasoning, which is no part of the answer."""

    data: str


class Queued(_ServerEvent, tag="queued"):
    """On request. The message waits: for a response that runs (on_busy queue), or for an engine. `position` 1 is next;
    another one follows when it changes.
    """

    position: int
    id: str | None = None


class ToolCall(_ServerEvent, tag="tool_call"):
    """The model asks for a tool of config.tools; answer with `tool_result` by this id. The response goes on then."""

    id: str
    name: str
    arguments: dict[str, Any]


class Chunk(_ServerEvent, tag="chunk"):
    """On request, with config.speech. A piece of the answer to be spoken: `text` as it is heard, without markup, for
    the answer's characters from `start` up to `end`. Spans follow each other; what is not for the ear has no text. All
    chunks of a response come before its terminal event.
    """

    id: int
    text: str
    start: int
    end: int


class Audio(_ServerEvent, tag="audio"):
    """On request, with config.speech. The sound of a chunk: its `data`, in base64, joined up to the `last` event, which
    has none, is in `format`. `sample_rate` in Hz comes with pcm and wav. Audio follows the text at its own pace, behind
    the terminal event, too.

    It is not kept for a client that comes back, and has no number of its own: `seq` is that of the event before it.
    """

    chunk: int
    format: AudioFormat
    sample_rate: int | None = None
    data: bytes = b""
    last: bool = False


class ContextUse(msgspec.Struct):
    """`used` of `limit` tokens of the window, prompt and answer; `dropped` turns so far in this session."""

    used: int
    limit: int
    dropped: int


class Context(_ServerEvent, tag="context"):
    """On request. The window after a response."""

    used: int
    limit: int
    dropped: int


class ResponseStats(msgspec.Struct, omit_defaults=True):
    """Of one response. Token counts are the engine's; `estimated` marks those of an engine that does not count.

    `cached_tokens` of the prompt's were in the engine's cache; `prompt_ms` is what it took to read the others, and
    `load_ms` what passed before that until the model was there: seconds where it had to be loaded. None of them is
    there where the engine does not tell.
    """

    tokens_generated: int
    processing_time_ms: float
    tokens_per_second: float
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    time_to_first_token_ms: float | None
    context: ContextUse
    cached_tokens: int | None = None
    prompt_ms: float | None = None
    load_ms: float | None = None
    estimated: bool = False


class ResponseComplete(_ServerEvent, tag="response_complete"):
    """Terminal: the answer is whole, or as long as was allowed (`finish_reason` length)."""

    stats: ResponseStats
    id: str | None = None


class Cancelled(_ServerEvent, tag="cancelled"):
    """Terminal for a running response, if there was one (`success`). `dropped` messages had been waiting."""

    success: bool
    id: str | None = None
    dropped: int = 0


class SessionStats(msgspec.Struct):
    """Of one session, in seconds and counts."""

    session_id: str
    state: str
    duration_seconds: float
    idle_seconds: float
    messages_received: int
    messages_sent: int
    tokens_generated: int
    generations_completed: int
    errors_count: int
    config: dict[str, Any]


EndReason = Literal["end_session", "expired"]


class SessionEnded(_ServerEvent, tag="session_ended"):
    """The session is over and its history gone; the next start_session or user_message begins another."""

    stats: SessionStats
    reason: EndReason = "end_session"


class ErrorBody(msgspec.Struct):
    """`code` is stable, `message` is for people; `retry_after` in seconds, null where waiting does not help."""

    code: str
    message: str
    category: Category
    severity: Severity
    recoverable: bool
    retry_after: float | None


class Error(_ServerEvent, tag="error"):
    """Something failed. Terminal for the running response if `terminal`; else the response goes on."""

    error: ErrorBody
    id: str | None = None
    terminal: bool = False


ServerEvent = (
    SessionStarted
    | SessionConfigured
    | ResponseStarted
    | Token
    | Thinking
    | Queued
    | ToolCall
    | Chunk
    | Audio
    | Context
    | ResponseComplete
    | Cancelled
    | SessionEnded
    | Error
)
SERVER_EVENTS: tuple[type[_ServerEvent], ...] = (
    SessionStarted,
    SessionConfigured,
    ResponseStarted,
    Token,
    Thinking,
    Queued,
    ToolCall,
    Chunk,
    Audio,
    Context,
    ResponseComplete,
    Cancelled,
    SessionEnded,
    Error,
)

encode: Final[Callable[[ServerEvent], bytes]] = msgspec.json.Encoder().encode
"""Writes one server event as the text of a frame, in UTF-8."""


def error_event(error: FastTalkError, *, id: str | None = None, terminal: bool = False) -> Error:  # noqa: A002
    """Tell a client of an error, with all that its class and it carry."""
    body = ErrorBody(
        code=error.code,
        message=error.message,
        category=error.category,
        severity=error.severity,
        recoverable=error.recoverable,
        retry_after=error.retry_after,
    )
    return Error(error=body, id=id, terminal=terminal)
