import json
from typing import Any

import pytest
from pydantic import ValidationError

from llm_service import errors, events
from llm_service.session_config import SessionConfig, SpeechConfig, config_as_sent, merge_config

STATS: dict[str, Any] = {
    "tokens_generated": 12,
    "processing_time_ms": 400.5,
    "tokens_per_second": 29.963,
    "finish_reason": "stop",
    "prompt_tokens": 40,
    "time_to_first_token_ms": 81.25,
    "context": {"used": 52, "limit": 8192, "dropped": 0},
}
SESSION_STATS: dict[str, Any] = {
    "session_id": "s-1",
    "state": "ended",
    "duration_seconds": 10.0,
    "idle_seconds": 2.5,
    "messages_received": 3,
    "messages_sent": 20,
    "tokens_generated": 12,
    "generations_completed": 1,
    "errors_count": 0,
    "config": {},
}


def _response_stats(**more: Any) -> events.ResponseStats:
    context = events.ContextUse(**STATS["context"])
    return events.ResponseStats(**{**STATS, "context": context, **more})


# Each event as it goes out, with its optional fields absent.
SHORT: list[tuple[events.ServerEvent, dict[str, Any]]] = [
    (
        events.SessionStarted(session_id="s-1", provider="ollama", model="m"),
        {"type": "session_started", "session_id": "s-1", "provider": "ollama", "model": "m"},
    ),
    (
        events.SessionConfigured(config={"top_k": 1}, provider="ollama"),
        {"type": "session_configured", "config": {"top_k": 1}, "provider": "ollama"},
    ),
    (events.ResponseStarted(), {"type": "response_started"}),
    (events.Token(data="Hel"), {"type": "token", "data": "Hel"}),
    (events.Thinking(data="hm"), {"type": "thinking", "data": "hm"}),
    (events.Queued(position=1), {"type": "queued", "position": 1}),
    (
        events.ToolCall(id="c", name="add", arguments={"a": 1}),
        {"type": "tool_call", "id": "c", "name": "add", "arguments": {"a": 1}},
    ),
    (
        events.Chunk(id=3, text="Hello.", start=2, end=10),
        {"type": "chunk", "id": 3, "text": "Hello.", "start": 2, "end": 10},
    ),
    (events.Audio(chunk=3, format="mp3"), {"type": "audio", "chunk": 3, "format": "mp3"}),
    (
        events.Context(used=52, limit=8192, dropped=0),
        {"type": "context", "used": 52, "limit": 8192, "dropped": 0},
    ),
    (events.ResponseComplete(stats=_response_stats()), {"type": "response_complete", "stats": STATS}),
    (events.Cancelled(success=False), {"type": "cancelled", "success": False}),
    (
        events.SessionEnded(stats=events.SessionStats(**SESSION_STATS)),
        {"type": "session_ended", "stats": SESSION_STATS},
    ),
    (
        events.error_event(errors.InvalidJSON("the message is not JSON")),
        {
            "type": "error",
            "error": {
                "code": "invalid_json",
                "message": "the message is not JSON",
                "category": "validation",
                "severity": "low",
                "recoverable": True,
                "retry_after": None,
            },
        },
    ),
]
# The optional fields that each may have besides.
LONG: list[tuple[events.ServerEvent, dict[str, Any]]] = [
    (
        events.SessionStarted(session_id="s", provider="p", model="m", resumed=False, reason="gone"),
        {"resumed": False, "reason": "gone"},
    ),
    (events.ResponseStarted(id="u-1"), {"id": "u-1"}),
    (events.Queued(position=2, id="u-1"), {"position": 2, "id": "u-1"}),
    (
        events.ResponseComplete(
            stats=_response_stats(cached_tokens=0, prompt_ms=1.5, load_ms=2.5, estimated=True), id="u-1"
        ),
        {"id": "u-1", "stats": {**STATS, "cached_tokens": 0, "prompt_ms": 1.5, "load_ms": 2.5, "estimated": True}},
    ),
    (
        events.Audio(chunk=3, format="pcm", sample_rate=8000, data=b"\0\1\xff", last=True),
        {"sample_rate": 8000, "data": "AAH/", "last": True},
    ),
    (events.Cancelled(success=True, id="u-1", dropped=2), {"success": True, "id": "u-1", "dropped": 2}),
    (
        events.SessionEnded(stats=events.SessionStats(**SESSION_STATS), reason="expired"),
        {"reason": "expired"},
    ),
    (
        events.error_event(errors.EngineTimeout("slow", retry_after=30.0), id="u-1", terminal=True),
        {"id": "u-1", "terminal": True},
    ),
]


@pytest.mark.parametrize(("event", "expected"), SHORT, ids=lambda value: type(value).__name__)
def test_encode(event: events.ServerEvent, expected: dict[str, Any]) -> None:
    """A server event is written with its number and type, and nothing for what it does not have."""
    event.seq = 7

    assert {"seq": 7, **expected} == json.loads(events.encode(event))


@pytest.mark.parametrize(("event", "expected"), LONG, ids=lambda value: type(value).__name__)
def test_encode_with_optional_fields(event: events.ServerEvent, expected: dict[str, Any]) -> None:
    """Optional fields are there when they have something to say."""
    dumped = json.loads(events.encode(event))

    assert expected == {key: dumped[key] for key in expected}


def test_every_server_event_is_covered() -> None:
    """The tables above and the list that the documents are made from have every server event."""
    assert set(events.SERVER_EVENTS) == {type(event) for event, _ in SHORT} == set(events.ServerEvent.__args__)


def test_encode_is_one_line_of_any_script() -> None:
    """Text of any script goes out as it is; line breaks in it do not break the frame."""
    text = 'a "quote", 日本語, 🙂,\n\u2028\x00'
    dumped = events.encode(events.Token(data=text, seq=1))

    assert text == json.loads(dumped)["data"]
    assert b"\n" not in dumped


def test_error_event_carries_class_and_instance() -> None:
    """An error reaches the client with what its class says and with its own words and waiting time."""
    event = events.error_event(errors.EngineTimeout("no token for 600 seconds", retry_after=30.0))

    assert (
        events.ErrorBody(
            code="engine_timeout",
            message="no token for 600 seconds",
            category="timeout",
            severity="medium",
            recoverable=True,
            retry_after=30.0,
        )
        == event.error
    )


def test_config_as_sent_has_the_given_keys_only() -> None:
    """What was not given is not said back; what was given as null is."""
    assert {"top_k": 5, "model": None} == config_as_sent(SessionConfig(top_k=5, model=None))
    assert {} == config_as_sent(SessionConfig())


def test_merge_config_lays_new_over_old() -> None:
    """Given keys replace, keys not given stay, a null takes the default again."""
    old = SessionConfig(top_k=5, temperature=0.1, seed=1)
    merged = merge_config(old, SessionConfig(temperature=1.0, seed=None))

    assert SessionConfig(top_k=5, temperature=1.0) == merged
    assert {"top_k": 5, "temperature": 1.0, "seed": None} == config_as_sent(merged)


def test_merge_config_merges_speech_too() -> None:
    """Of speech as well the given keys replace, and the others stay."""
    old = SessionConfig(speech=SpeechConfig(enabled=True, voice="a", speed=2.0))

    merged = merge_config(old, SessionConfig(speech=SpeechConfig(voice="b", speed=None)))

    assert SpeechConfig(enabled=True, voice="b") == merged.speech
    assert merge_config(old, SessionConfig(speech=None)).speech is None
    assert old.speech == merge_config(SessionConfig(), old).speech == merge_config(old, SessionConfig()).speech


def test_merge_config_leaves_both_as_they_were() -> None:
    """Configurations are values: merging changes neither."""
    old, new = SessionConfig(top_k=5), SessionConfig(top_k=6)
    merge_config(old, new)

    assert (5, 6) == (old.top_k, new.top_k)
    with pytest.raises(ValidationError):
        old.top_k = 7  # type: ignore[misc]
