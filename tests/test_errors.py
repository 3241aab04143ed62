from typing import get_args

import pytest

from llm_service import errors
from llm_service.errors import Category, FastTalkError, Severity

# What clients branch on: a code is never renamed, and one that is gone is never given to another error.
CODES = {
    "CircuitOpen": "circuit_open",
    "ConfigurationError": "configuration_error",
    "ContextOverflow": "context_overflow",
    "DeviceUnavailable": "device_unavailable",
    "EmptyMessage": "empty_message",
    "EngineRejected": "engine_rejected",
    "EngineTimeout": "engine_timeout",
    "FirstTokenTimeout": "first_token_timeout",
    "LoadTimeout": "load_timeout",
    "StreamStalled": "stream_stalled",
    "ResponseTimeout": "response_timeout",
    "EngineUnavailable": "engine_unavailable",
    "EngineUnreachable": "engine_unreachable",
    "GenerationFailed": "generation_failed",
    "InvalidToolCall": "invalid_tool_call",
    "InternalError": "internal_error",
    "InvalidConfig": "invalid_config",
    "InvalidJSON": "invalid_json",
    "InvalidMessage": "invalid_message",
    "ModelNotFound": "model_not_found",
    "NoFirstMessage": "no_first_message",
    "OriginNotAllowed": "origin_not_allowed",
    "HostNotAllowed": "host_not_allowed",
    "HeadersTooLarge": "headers_too_large",
    "BodyTooLarge": "body_too_large",
    "RateLimited": "rate_limited",
    "QueueFull": "queue_full",
    "Overloaded": "overloaded",
    "RecordTooLarge": "record_too_large",
    "ResponseInProgress": "response_in_progress",
    "ShuttingDown": "shutting_down",
    "StoreUnavailable": "store_unavailable",
    "TooManyConnections": "max_connections",
    "TooManyInvalidMessages": "too_many_invalid_messages",
    "TooManyToolCalls": "too_many_tool_calls",
    "SpeechUnavailable": "speech_unavailable",
    "SpeechTimeout": "speech_timeout",
    "SpeechFailed": "speech_failed",
    "SpeechRejected": "speech_rejected",
    "SpeechTooSlow": "speech_too_slow",
    "ToolResultsOverdue": "tool_results_overdue",
    "Unauthorized": "unauthorized",
    "UnexpectedToolResult": "unexpected_tool_result",
    "UnknownChunk": "unknown_chunk",
    "UnknownMessageType": "unknown_message_type",
    "UnsupportedFrame": "unsupported_frame",
}


def _tree(error: type[FastTalkError]) -> list[type[FastTalkError]]:
    below = [each for each in error.__subclasses__() if each.__module__ == errors.__name__]
    return [error, *(found for each in below for found in _tree(each))]


TREE = _tree(FastTalkError)
LEAVES = [error for error in TREE if error.__name__ in CODES]


def test_codes_are_stable() -> None:
    """Each error has the code that clients know it by."""
    inner = {
        "FastTalkError",
        "ClientError",
        "CapacityError",
        "StoreError",
        "EngineError",
        "SpeechError",
        "StartupError",
    }

    assert CODES == {error.__name__: error.code for error in TREE if error.__name__ not in inner}


def test_codes_are_unique() -> None:
    """No two errors share a code."""
    assert len(LEAVES) == len({error.code for error in LEAVES})


def test_codes_of_fasttalk_1x_are_kept() -> None:
    """The codes that FastTalk 1.x sends, and that still can happen, are sent by this service too."""
    assert {"max_connections", "invalid_json", "unknown_message_type", "empty_message"} <= set(CODES.values())


def test_tree_is_drawn() -> None:
    """The drawing at the top of the module has every class below its base, and no other."""
    drawn: dict[str, str] = {}
    above = ["FastTalkError"]
    for line in (errors.__doc__ or "").splitlines():
        mark = max(line.find("├── "), line.find("└── "))
        if mark >= 0:
            name = line[mark + 4 :].split()[0]
            del above[mark // 5 :]
            drawn[name] = above[-1]
            above.append(name)

    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in TREE[1:]}


def test_names_are_those_of_fasttalk_1x() -> None:
    """Categories and severities have FastTalk 1.x's names; speech, which it had not, is one more."""
    theirs = {"connection", "processing", "resource", "configuration", "system", "gpu", "timeout", "validation"}
    assert theirs | {"speech"} == set(get_args(Category))
    assert ("low", "medium", "high", "critical") == get_args(Severity)


@pytest.mark.parametrize("error", LEAVES)
def test_class_is_told_in_known_words(error: type[FastTalkError]) -> None:
    """Category and severity of each error are among the known ones, and its code is one word of a label."""
    assert error.category in get_args(Category)
    assert error.severity in get_args(Severity)
    assert error.code.replace("_", "").isalpha()
    assert error.code == error.code.lower()


@pytest.mark.parametrize(
    ("base", "recoverable"),
    [
        (errors.EngineError, {True}),
        (errors.StartupError, {False}),
    ],
)
def test_recoverability_follows_the_branch(base: type[FastTalkError], recoverable: set[bool]) -> None:
    """A session survives each failure of the engine; a service that did not start has no sessions."""
    assert recoverable == {error.recoverable for error in LEAVES if issubclass(error, base)}


def test_instance_carries_words_and_waiting() -> None:
    """An error keeps its message and, where waiting helps, for how long; by default nobody knows."""
    error = errors.EngineTimeout("no token for 600 seconds", retry_after=30.0)

    assert ("no token for 600 seconds", 30.0) == (error.message, error.retry_after)
    assert "no token for 600 seconds" == str(error)
    assert errors.InvalidJSON("the message is not JSON").retry_after is None
