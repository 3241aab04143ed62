"""Which sessions there are."""

import itertools

import pytest

from llm_service.errors import TooManyConnections
from llm_service.events import EndSession, StartSession, UserMessage
from llm_service.generation import Delta, Finish, SamplingParams, Usage
from llm_service.session import Session
from llm_service.session_defaults import SessionDefaults
from llm_service.session_manager import SessionManager
from tests.sessions import say


def manager(max_connections: int = 2) -> SessionManager:
    ids = itertools.count(1)
    defaults = SessionDefaults(
        provider="scripted",
        model="m",
        models=frozenset({"m"}),
        sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100),
        context_window=2048,
        system_prompt="",
        max_history_messages=50,
        max_queued_messages=2,
    )
    return SessionManager(defaults, max_connections=max_connections, new_id=lambda: f"s{next(ids)}")


def answer(session: Session, now: float) -> None:
    session.receive(UserMessage(text="hello"), now)
    number = session.running
    assert number is not None
    say(session, number, Delta("hi"), now + 0.5)
    session.finished(number, Finish("stop", Usage(prompt_tokens=5, completion_tokens=7)), now + 1)


def test_the_limit_is_told() -> None:
    """One connection more than allowed is refused and told when to come again; one that leaves makes room."""
    sessions = manager()
    first = sessions.admit(0.0)
    sessions.admit(0.0)
    with pytest.raises(TooManyConnections) as caught:
        sessions.admit(0.0)
    assert 5.0 == caught.value.retry_after
    assert "2 connections" in caught.value.message
    sessions.forget(first, 1.0)
    with pytest.raises(TooManyConnections):
        sessions.admit(1.0)  # it is the connection that counts: its session may rest
    sessions.leave()
    assert "s3" == sessions.admit(1.0).id


def test_who_has_no_key_yet_takes_no_place() -> None:
    """Whatever their number, they keep nobody out; once the key has come the limit holds for them as for others."""
    sessions = manager()
    for _ in range(5):
        sessions.admit(0.0, known=False)
    sessions.admit(0.0)
    sessions.let_in()
    assert 2 == sessions.active_connections
    with pytest.raises(TooManyConnections):
        sessions.let_in()
    sessions.leave(known=False)
    with pytest.raises(TooManyConnections):
        sessions.let_in()
    sessions.leave()
    sessions.let_in()
    assert 2 == sessions.active_connections


def test_totals_hold_the_living_and_the_gone() -> None:
    """Messages, tokens and generations are counted while a connection lives, and kept when it is gone."""
    sessions = manager()
    session = sessions.admit(0.0)
    answer(session, 1.0)
    living = sessions.statistics(4.0, circuit_breakers={})
    sessions.forget(session, 4.0)
    sessions.leave()
    gone = sessions.statistics(100.0, circuit_breakers={})
    assert {
        "active_connections": 1,
        "max_connections": 2,
        "utilization_percent": 50.0,
        "total_connections": 1,
        "total_disconnections": 0,
        "total_messages_received": 1,
        "total_messages_sent": 0,
        "total_tokens_generated": 7,
        "total_generations_completed": 1,
        "total_generations_cancelled": 0,
        "average_session_duration_seconds": 4.0,
    } == living["connections"]
    assert (
        living["connections"]
        | {
            "active_connections": 0,
            "utilization_percent": 0.0,
            "total_disconnections": 1,
        }
        == gone["connections"]
    )
    assert {"active_sessions": 1, "running_responses": 0, "total_turns": 1, "total_tokens_generated": 7} == living[
        "conversations"
    ]
    assert {"active_sessions": 0, "running_responses": 0, "total_turns": 1, "total_tokens_generated": 7} == gone[
        "conversations"
    ]


def test_active_sessions_are_those_that_started() -> None:
    """A connection whose session has not started, or has ended, is no active session."""
    sessions = manager()
    session = sessions.admit(0.0)
    assert 0 == sessions.active_sessions
    session.receive(StartSession(), 1.0)
    assert 1 == sessions.active_sessions
    session.receive(EndSession(), 2.0)
    assert 0 == sessions.active_sessions


def test_errors_are_counted_by_category_and_the_last_are_kept() -> None:
    """All eight categories are there from the start; ten recent errors are kept."""
    sessions = manager()
    for number in range(12):
        sessions.note_error(code=f"code{number}", category="timeout", severity="low", at=float(number))
    errors = sessions.statistics(0.0, circuit_breakers={"ollama": {}})["errors"]
    assert isinstance(errors, dict)
    assert 12 == errors["total_errors"]
    assert {
        "connection": 0,
        "processing": 0,
        "resource": 0,
        "configuration": 0,
        "system": 0,
        "gpu": 0,
        "timeout": 12,
        "validation": 0,
        "speech": 0,
    } == errors["by_category"]
    assert [f"code{number}" for number in range(2, 12)] == [error["code"] for error in errors["recent_errors"]]
    assert {"code": "code11", "category": "timeout", "severity": "low", "at": 11.0} == errors["recent_errors"][-1]
