"""Every error a client, an operator or another module can meet.

    FastTalkError
     ├── ClientError                the client's fault: repeat the message corrected
     │    ├── InvalidJSON
     │    ├── InvalidMessage
     │    ├── UnknownMessageType
     │    ├── EmptyMessage
     │    ├── InvalidConfig
     │    ├── UnsupportedFrame
     │    ├── ResponseInProgress
     │    ├── ContextOverflow
     │    ├── UnexpectedToolResult
     │    ├── UnknownChunk
     │    ├── NoFirstMessage
     │    ├── Unauthorized
     │    ├── OriginNotAllowed
     │    ├── HostNotAllowed
     │    ├── HeadersTooLarge
     │    ├── BodyTooLarge
     │    └── TooManyInvalidMessages
     ├── CapacityError              a limit of this service: come back later
     │    ├── TooManyConnections
     │    ├── ShuttingDown
     │    ├── RateLimited
     │    ├── QueueFull
     │    └── Overloaded
     ├── StoreError                 where sessions rest failed: what is here goes on
     │    ├── StoreUnavailable
     │    └── RecordTooLarge
     ├── EngineError                what generates failed: the turn is undone, send it again
     │    ├── EngineUnreachable
     │    ├── EngineTimeout
     │    ├── LoadTimeout
     │    ├── FirstTokenTimeout
     │    ├── StreamStalled
     │    ├── ResponseTimeout
     │    ├── CircuitOpen
     │    ├── EngineRejected
     │    ├── ModelNotFound
     │    ├── GenerationFailed
     │    ├── InvalidToolCall
     │    ├── ToolResultsOverdue
     │    └── TooManyToolCalls
     ├── SpeechError                what speaks failed: the text goes on alone
     │    ├── SpeechUnavailable
     │    ├── SpeechTimeout
     │    ├── SpeechFailed
     │    ├── SpeechRejected
     │    └── SpeechTooSlow
     ├── StartupError               the operator's fault: the service does not start
     │    ├── ConfigurationError
     │    ├── DeviceUnavailable
     │    └── EngineUnavailable
     └── InternalError              our fault

A class carries what never differs between two of its errors (the code clients branch on, the category,
the severity, whether the session goes on); an instance carries the words and, where waiting helps, for
how long. Names of categories and severities are those of FastTalk 1.x, and `speech`.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

Category = Literal[
    "connection", "processing", "resource", "configuration", "system", "gpu", "timeout", "validation", "speech"
]
Severity = Literal["low", "medium", "high", "critical"]


class FastTalkError(Exception):
    """Base of all errors of this service.

    `message` is for people: it says what happened and what to do next, and never holds a secret, the text
    of a user or the wording of a Python exception. `retry_after` is in seconds; None means that waiting
    changes nothing or that nobody knows how long.
    """

    code: ClassVar[str] = "internal_error"
    category: ClassVar[Category] = "system"
    severity: ClassVar[Severity] = "high"
    recoverable: ClassVar[bool] = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class ClientError(FastTalkError):
    """The client sent something this service cannot use; nothing was changed by it."""

    category: ClassVar[Category] = "validation"
    severity: ClassVar[Severity] = "low"


class InvalidJSON(ClientError):
    """The frame is not JSON, or is nested too deeply, or holds too large an integer."""

    code = "invalid_json"


class InvalidMessage(ClientError):
    """The JSON is not a message of the protocol: the error names the field."""

    code = "invalid_message"


class UnknownMessageType(ClientError):
    """The message has no type, or one that is not in the protocol."""

    code = "unknown_message_type"


class EmptyMessage(ClientError):
    """A user message without text."""

    code = "empty_message"


class InvalidConfig(ClientError):
    """A configuration key that is unknown, out of bounds, or not offered by this service."""

    code = "invalid_config"
    category = "configuration"


class UnsupportedFrame(ClientError):
    """A binary frame."""

    code = "unsupported_frame"


class ResponseInProgress(ClientError):
    """A user message came while a response was running, and `on_busy` is `reject`."""

    code = "response_in_progress"
    category = "processing"


class ContextOverflow(ClientError):
    """The message does not fit into the context window, even without any history."""

    code = "context_overflow"


class UnexpectedToolResult(ClientError):
    """A result for a tool call that does not wait for one."""

    code = "unexpected_tool_result"


class UnknownChunk(ClientError):
    """`played` names a chunk that was not sent."""

    code = "unknown_chunk"


class NoFirstMessage(ClientError):
    """No message came in time after the connection was opened; it is closed with 3502."""

    code = "no_first_message"
    category = "timeout"
    recoverable = False


class OriginNotAllowed(ClientError):
    """The handshake came from a web page whose origin is not in ALLOWED_ORIGINS; HTTP 403."""

    code = "origin_not_allowed"
    category = "connection"
    severity = "high"
    recoverable = False


class HostNotAllowed(ClientError):
    """The request names a host that is not in ALLOWED_HOSTS and could be anybody's; HTTP 403."""

    code = "host_not_allowed"
    category = "connection"
    severity = "high"
    recoverable = False


class HeadersTooLarge(ClientError):
    """The request has more than 128 headers, or more than 32 KiB of them; HTTP 431."""

    code = "headers_too_large"
    category = "connection"
    recoverable = False


class BodyTooLarge(ClientError):
    """The request's body is longer than MAX_BODY_BYTES; HTTP 413."""

    code = "body_too_large"
    category = "connection"
    recoverable = False


class Unauthorized(ClientError):
    """The service asks for a key and got none, a wrong one, or one that was revoked; HTTP 401, or closed with 3500."""

    code = "unauthorized"
    category = "connection"
    severity = "high"
    recoverable = False


class TooManyInvalidMessages(ClientError):
    """Message after message was refused; the connection is closed with 3013."""

    code = "too_many_invalid_messages"
    severity = "high"
    recoverable = False


class CapacityError(FastTalkError):
    """A limit of this service was reached."""

    category: ClassVar[Category] = "resource"
    severity: ClassVar[Severity] = "high"


class TooManyConnections(CapacityError):
    """LLM_MAX_CONNECTIONS are open, or wait for their key; the connection is closed with 3504."""

    code = "max_connections"
    recoverable = False


class ShuttingDown(CapacityError):
    """The service is stopping: HTTP 503, or a response that outlasted the drain, then closed with 3001."""

    code = "shutting_down"
    severity = "medium"
    recoverable = False


class RateLimited(CapacityError):
    """More messages came than MESSAGE_RATE and MESSAGE_BURST allow; one after another, they close with 3013."""

    code = "rate_limited"
    severity = "low"


class QueueFull(CapacityError):
    """MAX_QUEUED_MESSAGES wait already under `on_busy` `queue`."""

    code = "queue_full"
    severity = "medium"


class Overloaded(CapacityError):
    """MAX_WAITING messages wait for the engine already, or this one waited for QUEUE_TIMEOUT; the turn is undone."""

    code = "overloaded"
    severity = "medium"


class StoreError(FastTalkError):
    """Where sessions rest failed; sessions that are in memory go on."""

    category: ClassVar[Category] = "resource"
    severity: ClassVar[Severity] = "medium"


class StoreUnavailable(StoreError):
    """Where sessions rest does not answer, or takes no records: there may be such a session; ask for it again."""

    code = "store_unavailable"


class RecordTooLarge(StoreError):
    """A session is larger than MAX_RECORD_BYTES and was not saved; no client ever sees this."""

    code = "record_too_large"


class EngineError(FastTalkError):
    """What generates failed; the turn is undone, so that the same message can be sent again."""

    category: ClassVar[Category] = "processing"
    severity: ClassVar[Severity] = "high"


class EngineUnreachable(EngineError):
    """The engine cannot be connected to, or broke the connection."""

    code = "engine_unreachable"
    category = "connection"


class EngineTimeout(EngineError):
    """The engine was silent for too long."""

    code = "engine_timeout"
    category = "timeout"
    severity = "medium"


class LoadTimeout(EngineError):
    """The model was not in memory, and was not loaded within LOAD_TIMEOUT."""

    code = "load_timeout"
    category = "timeout"
    severity = "medium"


class FirstTokenTimeout(EngineError):
    """The engine took the request and did not begin to answer within FIRST_TOKEN_TIMEOUT."""

    code = "first_token_timeout"
    category = "timeout"
    severity = "medium"


class StreamStalled(EngineError):
    """The engine began to answer, and then said nothing for TOKEN_TIMEOUT."""

    code = "stream_stalled"
    category = "timeout"
    severity = "medium"


class ResponseTimeout(EngineError):
    """The answer was not whole within RESPONSE_TIMEOUT."""

    code = "response_timeout"
    category = "timeout"
    severity = "medium"


class CircuitOpen(EngineError):
    """The engine failed too often in a row: it is left alone for `retry_after` seconds, or tried meanwhile."""

    code = "circuit_open"
    category = "connection"
    severity = "medium"


class EngineRejected(EngineError):
    """The engine refused the request."""

    code = "engine_rejected"


class ModelNotFound(EngineError):
    """The engine does not have the model."""

    code = "model_not_found"
    category = "configuration"


class GenerationFailed(EngineError):
    """The engine failed while generating, or ended without saying why."""

    code = "generation_failed"


class InvalidToolCall(EngineError):
    """The model wrote a tool call that can't be read; the engine itself is well."""

    code = "invalid_tool_call"
    severity = "medium"


class ToolResultsOverdue(EngineError):
    """The results of tool calls did not come within TOOL_TIMEOUT."""

    code = "tool_results_overdue"
    category = "timeout"
    severity = "low"


class TooManyToolCalls(EngineError):
    """The model asked for tools again and again instead of answering."""

    code = "too_many_tool_calls"
    severity = "medium"


class SpeechError(FastTalkError):
    """What speaks failed; the text of the response goes on, and the next response is spoken again."""

    category: ClassVar[Category] = "speech"
    severity: ClassVar[Severity] = "low"


class SpeechUnavailable(SpeechError):
    """No TTS of TTS_ENDPOINTS can be reached, or all are left alone for now."""

    code = "speech_unavailable"


class SpeechTimeout(SpeechError):
    """The TTS was silent for TTS_TIMEOUT."""

    code = "speech_timeout"


class SpeechFailed(SpeechError):
    """The TTS failed at a chunk, broke off within it, or sent what is no audio."""

    code = "speech_failed"


class SpeechRejected(SpeechError):
    """The TTS refused a chunk: it may not know the voice or the language."""

    code = "speech_rejected"


class SpeechTooSlow(SpeechError):
    """More chunks wait for the TTS than may wait."""

    code = "speech_too_slow"


class StartupError(FastTalkError):
    """The service cannot start; no client ever sees these."""

    category: ClassVar[Category] = "configuration"
    severity: ClassVar[Severity] = "critical"
    recoverable = False


class ConfigurationError(StartupError):
    """An environment variable has a value that is not allowed, or an address is taken."""

    code = "configuration_error"


class DeviceUnavailable(StartupError):
    """COMPUTE_DEVICE names a device that is not there."""

    code = "device_unavailable"
    category = "gpu"


class EngineUnavailable(StartupError):
    """The engine that was asked for cannot be had."""

    code = "engine_unavailable"
    category = "connection"


class InternalError(FastTalkError):
    """A defect of this service; its log has the traceback."""

    severity = "critical"


def told_to_clients() -> Iterator[type[FastTalkError]]:
    """Yield the errors a client can meet, in the tree's order: its leaves, but for those of the start and of saving."""
    waiting: list[type[FastTalkError]] = [
        InternalError, SpeechError, EngineError, StoreUnavailable, CapacityError, ClientError,
    ]  # fmt: skip
    while waiting:
        error = waiting.pop()
        below = [each for each in error.__subclasses__() if each.__module__ == __name__]
        waiting.extend(reversed(below))
        if not below:
            yield error
