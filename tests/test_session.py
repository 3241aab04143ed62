from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llm_service import events
from llm_service.effects import Condense, Count, Dropped, Effect, Generate, Hush, Send, Stop, StopAsides, Warm
from llm_service.errors import ContextOverflow, EngineTimeout, InvalidJSON
from llm_service.events import (
    Cancel,
    EndSession,
    PartialMessage,
    Played,
    StartSession,
    ToolResult,
    UpdateConfig,
    UserMessage,
)
from llm_service.generation import Delta, Finish, GenerationRequest, SamplingParams, ToolCall, Usage
from llm_service.replay import ReplayRecord
from llm_service.sentences import Chunk
from llm_service.session import Session, SessionState
from llm_service.session_config import SessionConfig, SpeechConfig, ToolSpec
from llm_service.session_defaults import SessionDefaults
from llm_service.speech_choices import SpeechDefaults
from llm_service.turns import MAX_TOOL_STEPS
from tests.sessions import say

DEFAULTS = SessionDefaults(
    provider="scripted",
    model="small",
    models=frozenset({"small", "large"}),
    sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100),
    context_window=1024,
    system_prompt="Be kind.",
    max_history_messages=50,
    max_queued_messages=2,
)
STARTED_1 = events.SessionStarted(session_id="s-1", provider="scripted", model="small")
STARTED_2 = events.SessionStarted(session_id="s-2", provider="scripted", model="small")
STOPPED = Finish("stop")


def _session(**more: Any) -> Session:
    ids: Iterator[str] = (f"s-{number}" for number in range(1, 100))
    return Session(replace(DEFAULTS, **more), new_id=lambda: next(ids), now=0.0)


def _active(config: SessionConfig | None = None) -> Session:
    session = _session()
    session.receive(StartSession(config=config), 0.0)
    return session


def _busy(config: SessionConfig | None = None) -> Session:
    session = _active(config)
    session.receive(UserMessage(text="one", id="u-1"), 1.0)
    say(session, 1, Delta("Hel"), 2.0)
    return session


def _sent(effects: Sequence[Effect]) -> list[events.ServerEvent]:
    return [effect.event for effect in effects if isinstance(effect, Send)]


def _request(effects: Sequence[Effect]) -> GenerationRequest:
    (generate,) = (effect for effect in effects if isinstance(effect, Generate))
    return generate.request


def _error(effects: Sequence[Effect]) -> events.Error:
    (event,) = _sent(effects)
    assert isinstance(event, events.Error)
    return event


def _texts(request: GenerationRequest) -> list[str]:
    return [message.content for message in request.messages]


def _history(session: Session) -> list[tuple[str, str, bool]]:
    return [(turn.user, turn.answer, turn.interrupted) for turn in session.conversation.turns]


# Who speaks first


def test_client_speaks_first() -> None:
    """A client that starts a session at once gets session_started as its answer, and no greeting after it."""
    session = _session()

    assert [Send(STARTED_1)] == session.receive(StartSession(), 0.1)
    assert SessionState.ACTIVE is session.state
    assert [] == session.greet(0.25)


def test_server_speaks_first() -> None:
    """A client that was greeted gets session_configured, with its own configuration, for its start_session."""
    session = _session()

    assert [Send(STARTED_1)] == session.greet(0.25)
    effects = session.receive(StartSession(config=SessionConfig(top_k=5)), 0.3)
    assert [Send(events.SessionConfigured(config={"top_k": 5}, provider="scripted"))] == effects
    assert ("s-1", 5) == (session.id, session.config.top_k)


def test_greeted_client_configures_nothing() -> None:
    """Without a configuration the answer holds an empty one, as FastTalk 1.x's does."""
    session = _session()
    session.greet(0.25)

    assert [Send(events.SessionConfigured(config={}, provider="scripted"))] == session.receive(StartSession(), 0.3)


def test_user_message_first() -> None:
    """A user message before start_session starts a session with the defaults and is answered."""
    session = _session()
    effects = session.receive(UserMessage(text="hi"), 0.1)

    assert [STARTED_1] == _sent(effects)
    assert ["Be kind.", "hi"] == _texts(_request(effects))


def test_update_config_first() -> None:
    """A configuration before start_session is not lost: it is that of the session it starts."""
    session = _session()
    effects = session.receive(UpdateConfig(config=SessionConfig(top_k=5)), 0.1)

    assert [STARTED_1, events.SessionConfigured(config={"top_k": 5}, provider="scripted")] == _sent(effects)
    assert [] == session.greet(0.25)
    assert 5 == _request(session.receive(UserMessage(text="hi"), 0.3)).sampling.top_k


def test_start_again_forgets_the_history() -> None:
    """A second start_session begins a new session: a new id, no history, nothing of the old configuration."""
    session = _busy(SessionConfig(top_k=5))
    session.finished(1, STOPPED, 3.0)

    assert [Send(STARTED_2)] == session.receive(StartSession(), 4.0)
    assert ([], None) == (_history(session), session.config.top_k)


def test_start_again_after_a_greeting() -> None:
    """To a greeted client a second start_session is a second session_configured; the history is gone as well."""
    session = _session()
    session.greet(0.25)
    session.receive(UserMessage(text="one"), 1.0)
    session.finished(1, STOPPED, 2.0)

    assert [Send(events.SessionConfigured(config={}, provider="scripted"))] == session.receive(StartSession(), 3.0)
    assert ("s-1", []) == (session.id, _history(session))


def test_start_while_a_response_runs() -> None:
    """A start_session ends the running response by its terminal event before it is answered."""
    effects = _busy().receive(StartSession(), 3.0)

    assert [Stop(1), Send(events.Cancelled(success=True, id="u-1")), Send(STARTED_2)] == effects


def test_resume_is_refused_with_the_reason() -> None:
    """Who asks for a session that is not known gets a new one and is told so."""
    (event,) = _sent(_session().receive(StartSession(session_id="lost", last_seq=5), 0.1))

    assert isinstance(event, events.SessionStarted)
    assert ("s-1", False) == (event.session_id, event.resumed)
    assert event.reason


@pytest.mark.parametrize(
    ("config", "key"), [(SessionConfig(model="huge"), "model"), (SessionConfig(context_window=2048), "context_window")]
)
def test_refused_config(config: SessionConfig, key: str) -> None:
    """A configuration that cannot be had changes nothing: neither a new session nor a running one."""
    new, busy = _session(), _busy()

    assert "invalid_config" == _error(new.receive(StartSession(config=config), 0.1)).error.code
    assert SessionState.NEW is new.state
    error = _error(busy.receive(StartSession(config=config), 3.0))
    assert f"config.{key}:" in error.error.message
    assert not error.terminal
    assert (1, "s-1") == (busy.running, busy.id)
    assert "invalid_config" == _error(busy.receive(UpdateConfig(config=config), 3.0)).error.code
    assert SessionConfig() == busy.config


# One response


def test_a_response() -> None:
    """A user message is a request; deltas are tokens; the finish is response_complete with the engine's counts."""
    session = _active()
    effects = session.receive(UserMessage(text="hi", id="u-1"), 10.0)
    assert [
        Generate(
            1,
            GenerationRequest(
                model="small",
                messages=_request(effects).messages,
                sampling=DEFAULTS.sampling,
                context_window=1024,
                think=None,
                session_id="s-1",
            ),
        )
    ] == effects
    assert ["Be kind.", "hi"] == _texts(_request(effects))

    assert events.Token(data="Hel") == say(session, 1, Delta("Hel"), 10.5)
    assert events.Token(data="lo") == say(session, 1, Delta("lo"), 11.0)
    effects = session.finished(1, Finish("length", Usage(prompt_tokens=20, completion_tokens=7, cached_tokens=3)), 12.0)
    stats = events.ResponseStats(
        tokens_generated=7,
        processing_time_ms=2000.0,
        tokens_per_second=3.5,
        finish_reason="length",
        prompt_tokens=20,
        time_to_first_token_ms=500.0,
        context=events.ContextUse(used=27, limit=1024, dropped=0),
        cached_tokens=3,
    )
    assert [Send(events.ResponseComplete(stats=stats, id="u-1"))] == effects
    assert [("hi", "Hello", False)] == _history(session)
    assert session.running is None


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_answer_that_is_over_is_kept_in_one_piece(cancelled: bool) -> None:
    """It may still be heard, but its parts and their times are not kept for that; their number is."""
    session = _busy()
    say(session, 1, Delta("lo."), 3.0)
    newest = session._heard.newest
    assert newest is not None
    deltas = newest.deltas
    if cancelled:
        session.receive(Cancel(), 4.0)
    else:
        session.finished(1, STOPPED, 4.0)
    assert (["Hello."], [], 6, deltas) == (newest.pieces, newest.times, newest.chars, newest.deltas)


def test_stats_of_an_engine_that_does_not_count() -> None:
    """Without the engine's count the number of deltas stands there, marked as an estimate."""
    session = _active()
    session.receive(UserMessage(text="hi"), 1.0)
    (event,) = _sent(session.finished(1, STOPPED, 1.0))
    assert isinstance(event, events.ResponseComplete)
    assert (0, None, True, 0.0) == (
        event.stats.tokens_generated,
        event.stats.time_to_first_token_ms,
        event.stats.estimated,
        event.stats.tokens_per_second,
    )

    session.receive(UserMessage(text="hi"), 2.0)
    say(session, 2, Delta("hm", thinking=True), 2.1)
    say(session, 2, Delta("Hello"), 2.2)
    (event,) = _sent(session.finished(2, STOPPED, 3.0))
    assert isinstance(event, events.ResponseComplete)
    assert (2, True) == (event.stats.tokens_generated, event.stats.estimated)


def test_choices_reach_the_engine() -> None:
    """What a client chose is in the request; the engine's window stays the service's, for all sessions alike."""
    config = SessionConfig(
        model="large", temperature=0.0, top_k=1, stop=["END"], seed=3, think=True, context_window=512, system_prompt=""
    )
    request = _request(_active(config).receive(UserMessage(text="hi"), 1.0))

    assert ("large", True, 1024) == (request.model, request.think, request.context_window)
    assert SamplingParams(0.0, 0.9, 1, 100, stop=("END",), seed=3) == request.sampling
    assert ["hi"] == _texts(request)


def _long(turns: int = 4, **more: Any) -> Session:
    """A session with turns of about 200 tokens each."""
    session = _session(**more)
    session.receive(StartSession(config=SessionConfig(max_tokens=10)), 0.0)
    for number in range(turns):
        session.receive(UserMessage(text="aaaa " * 120), 1.0)
        assert session.running is not None
        say(session, session.running, Delta("yes"), 1.5)
        session.finished(session.running, Finish("stop", Usage(205 + 203 * number, 3)), 2.0)
    return session


def test_an_overflow_is_tried_again_with_less_history() -> None:
    """After the engine's context_overflow the same turn is asked again with half the history, until none is left."""
    session = _long()
    first = _request(session.receive(UserMessage(text="bbbb " * 60, id="u"), 3.0))
    assert session.running is not None
    sizes = [len(first.messages)]
    while sizes[-1] > 2:
        shorter = _request(session.failed(session.running, ContextOverflow("too long"), 4.0))
        assert first.messages[-1] == shorter.messages[-1]
        sizes.append(len(shorter.messages))
    assert [4, 2] == sizes

    error = _error(session.failed(session.running, ContextOverflow("too long"), 5.0))
    assert ("context_overflow", "u", True) == (error.error.code, error.id, error.terminal)
    assert 4 == len(session.conversation.turns)


@pytest.mark.parametrize(("text", "left"), [("word " * 20, 949), ("2,3,5,7," * 30, 769)])
def test_an_answer_fits_into_the_window_behind_its_prompt(text: str, left: int) -> None:
    """Where the engine refuses what leaves no room for the longest answer, that one is shortened, and no other."""
    for answer_in_window, longest in ((True, left), (False, 1024)):
        session = _session(answer_in_window=answer_in_window)
        session.receive(StartSession(config=SessionConfig(max_tokens=1024)), 0.0)
        asked = _request(session.receive(UserMessage(text=text), 1.0)).sampling.max_tokens
        assert longest == asked


def test_an_overflow_without_history_is_told_at_once() -> None:
    """Where nothing can be left out, the error is the answer."""
    session = _active()
    session.receive(UserMessage(text="b", id="u"), 3.0)
    error = _error(session.failed(1, ContextOverflow("too long"), 4.0))
    assert ("context_overflow", True) == (error.error.code, error.terminal)
    assert session.running is None


def test_what_is_dropped_is_told() -> None:
    """The stats, the context event and an effect for the metrics tell of turns that were dropped."""
    session = _long()
    session.receive(UpdateConfig(config=SessionConfig(events=["context"])), 2.5)
    session.receive(UserMessage(text="bbbb " * 240), 3.0)
    assert session.running is not None
    effects = session.finished(session.running, Finish("stop", Usage(700, 3)), 4.0)
    complete, context = _sent(effects)
    assert isinstance(complete, events.ResponseComplete)
    assert isinstance(context, events.Context)
    assert complete.stats.context.dropped == context.dropped > 0
    assert [Dropped(session.conversation.dropped_tokens)] == [e for e in effects if isinstance(e, Dropped)]


# Counting


def test_a_message_is_counted_where_it_decides() -> None:
    """Where the engine can count, and a message might not leave room for the history, it is counted first."""
    session = _session(counts_tokens=True)
    session.receive(StartSession(), 0.0)
    assert 2 == len(_request(session.receive(UserMessage(text="hello"), 1.0)).messages)
    session.finished(1, STOPPED, 2.0)

    effects = session.receive(UserMessage(text="7" * 900), 3.0)
    assert [Count(2, "small", "7" * 900)] == effects
    assert 2 == session.running
    assert "hello\n" + "7" * 900 == _request(session.counted(2, 300, 3.1)).messages[-1].content
    assert [] == session.counted(2, 300, 3.2)


def test_a_message_that_is_counted_too_long_is_refused() -> None:
    """The exact count of a message decides whether it fits; None leaves it to the estimate."""
    session = _session(counts_tokens=True)
    session.receive(StartSession(), 0.0)
    session.receive(UserMessage(text="7" * 2000, id="u"), 3.0)
    assert "context_overflow" == _error(session.counted(1, 2000, 3.1)).error.code
    assert session.running is None
    session.receive(UserMessage(text="7" * 2000), 4.0)
    assert 2 == len(_request(session.counted(2, None, 4.1)).messages)


def test_a_cancel_while_the_message_is_counted() -> None:
    """It ends by cancelled, and the message stays as one that nothing answered, as after any cancel."""
    session = _session(counts_tokens=True)
    session.receive(StartSession(), 0.0)
    session.receive(UserMessage(text="7" * 900, id="u"), 3.0)
    assert [Stop(1), Send(events.Cancelled(success=True, id="u"))] == session.receive(Cancel(), 3.1)
    assert [] == session.counted(1, 900, 3.2)
    assert [("7" * 900, "", True)] == _history(session)
    session.receive(UserMessage(text="more"), 4.0)
    assert "\nmore" == _request(session.counted(2, 1, 4.1)).messages[-1].content[900:]

    session.receive(Cancel(), 5.0)
    session.receive(UserMessage(text="7" * 9000), 6.0)
    session.receive(Cancel(), 6.1)
    assert 2 == len(_history(session))  # what no window has room for is not kept


# What was heard


def test_an_interrupted_answer_ends_where_it_was_heard() -> None:
    """With acks the history holds what was played; one that comes after the cancel counts, too."""
    session = _busy()
    say(session, 1, Delta("lo there"), 2.5)
    assert [] == session.receive(Played(chars=7), 2.6)
    session.receive(Cancel(), 3.0)
    assert [("one", "Hello t", True)] == _history(session)
    session.receive(Played(chars=9), 3.1)
    assert [("one", "Hello the", True)] == _history(session)
    session.receive(UserMessage(text="two"), 4.0)
    session.receive(Played(chars=1), 4.1)
    session.receive(Cancel(), 5.0)
    assert [("one", "Hello the", True), ("two", "", True)] == _history(session)


def test_a_playback_can_be_cancelled_after_the_answer() -> None:
    """An answer that is whole, but was not heard to its end, ends in the history where the client cancels."""
    session = _busy()
    session.finished(1, STOPPED, 3.0)
    session.receive(Played(chars=2), 3.1)
    assert [("one", "Hel", False)] == _history(session)
    assert [Send(events.Cancelled(success=False))] == session.receive(Cancel(), 3.2)
    assert [("one", "He", True)] == _history(session)


def test_an_answer_heard_whole_is_not_cut() -> None:
    """A cancel after all was played changes nothing, nor does one without acks."""
    for played in (3, 300, None):
        session = _busy()
        session.finished(1, STOPPED, 3.0)
        if played is not None:
            session.receive(Played(chars=played), 3.1)
        session.receive(Cancel(), 3.2)
        assert [("one", "Hel", False)] == _history(session)


def test_an_ack_behind_the_cancel_of_a_playback_counts() -> None:
    """The text was whole, its sound was not: what the client tells of it afterwards is where the answer ends."""
    session = _busy()
    session.finished(1, STOPPED, 3.0)
    session.receive(Cancel(), 3.1)
    session.receive(Played(chars=2), 3.2)
    assert [("one", "He", True)] == _history(session)
    session.receive(Played(chars=3), 3.3)
    assert [("one", "Hel", True)] == _history(session)


def test_an_ack_of_all_behind_a_cancel_cuts_nothing() -> None:
    """Who cancels what was over, and says so, interrupted nothing."""
    session = _busy()
    session.finished(1, STOPPED, 3.0)
    session.receive(Cancel(), 3.1)
    session.receive(Played(chars=3), 3.2)
    assert [("one", "Hel", False)] == _history(session)


def test_unknown_chunk() -> None:
    """A chunk that was never sent is an error; an ack of nothing is none."""
    assert "unknown_chunk" == _error(_busy().receive(Played(chunk=3, chars=1), 2.5)).error.code
    assert [] == _active().receive(Played(chars=1), 2.5)


# Tools

TOOLS = [ToolSpec.model_validate({"type": "function", "function": {"name": "add"}})]
# Of the session, not of the engine, whose ids may be those of an earlier answer.
FIRST, SECOND = "000000001", "000000002"
CALLS = (ToolCall("c-1", "add", '{"a": 1}'), ToolCall("c-2", "add", '{"a": 2}'))


def _asking() -> Session:
    session = _active(SessionConfig(tools=TOOLS))
    request = _request(session.receive(UserMessage(text="one", id="u-1"), 1.0))
    assert ["add"] == [tool.name for tool in request.tools]
    say(session, 1, Delta("Hm. "), 2.0)
    effects = session.finished(1, Finish("tool_calls", Usage(10, 4), CALLS), 2.5)
    assert [
        Send(events.ToolCall(id=FIRST, name="add", arguments={"a": 1})),
        Send(events.ToolCall(id=SECOND, name="add", arguments={"a": 2})),
    ] == effects
    assert 1 == session.running
    return session


def test_a_response_goes_on_behind_its_tools() -> None:
    """Once all results are there the engine goes on; one terminal event ends the whole, with the sum of tokens."""
    session = _asking()
    assert [] == session.receive(ToolResult(id=SECOND, content="4"), 3.0)
    request = _request(session.receive(ToolResult(id=FIRST, content="2"), 3.1))
    assert ["Be kind.", "one", "Hm. ", "2", "4"] == _texts(request)
    say(session, 1, Delta("Six."), 3.5)
    (complete,) = _sent(session.finished(1, Finish("stop", Usage(40, 3)), 4.0))
    assert isinstance(complete, events.ResponseComplete)
    assert (7, 40, "u-1") == (complete.stats.tokens_generated, complete.stats.prompt_tokens, complete.id)
    assert ["Be kind.", "one", "Hm. ", "2", "4", "Six.", "two"] == _texts(
        _request(session.receive(UserMessage(text="two"), 5.0))
    )


def test_a_cancelled_turn_holds_no_call_without_its_result() -> None:
    """What was said stays, the calls do not; heard characters count from the beginning of the answer."""
    session = _asking()
    session.receive(ToolResult(id=FIRST, content="2"), 3.0)
    session.receive(Cancel(), 3.1)
    request = _request(session.receive(UserMessage(text="two"), 4.0))
    assert ["Be kind.", "one", "Hm. ", "two"] == _texts(request)
    assert not any(message.tool_calls for message in request.messages)

    session = _asking()
    session.receive(ToolResult(id=FIRST, content="2"), 3.0)
    session.receive(ToolResult(id=SECOND, content="4"), 3.0)
    say(session, 1, Delta("Six."), 3.5)
    session.receive(Played(chars=6), 3.6)
    session.receive(Cancel(), 3.7)
    assert ["Be kind.", "one", "Hm. ", "2", "4", "Si", "two"] == _texts(
        _request(session.receive(UserMessage(text="two"), 5.0))
    )


@pytest.mark.parametrize("call", ["c-1", FIRST])
def test_results_nobody_waits_for(call: str) -> None:
    """A result of an unknown call, or a second one, is an error, and the response still waits."""
    session = _asking()
    session.receive(ToolResult(id=FIRST, content="2"), 3.0)
    assert "unexpected_tool_result" == _error(session.receive(ToolResult(id=call, content="2"), 3.1)).error.code
    assert 1 == session.running
    assert "unexpected_tool_result" == _error(_active().receive(ToolResult(id=FIRST, content="2"), 3.0)).error.code


def test_results_that_do_not_come() -> None:
    """After TOOL_TIMEOUT the turn is undone; before it nothing happens, nor while the engine works."""
    session = _asking()
    assert [] == session.overdue(62.0)
    error = _error(session.overdue(63.0))
    assert ("tool_results_overdue", "u-1", True) == (error.error.code, error.id, error.terminal)
    assert ([], None) == (_history(session), session.running)
    assert [] == _busy().overdue(1000.0)


def test_a_model_that_only_asks_for_tools() -> None:
    """It is stopped after a bound, by an error."""
    session = _active(SessionConfig(tools=TOOLS))
    session.receive(UserMessage(text="one"), 1.0)
    for number in range(MAX_TOOL_STEPS):
        session.finished(1, Finish("tool_calls", None, CALLS[:1]), 2.5)
        session.receive(ToolResult(id=f"{number + 1:09d}", content="2"), 3.0)
    assert "too_many_tool_calls" == _error(session.finished(1, Finish("tool_calls", None, CALLS[:1]), 4.0)).error.code


def test_two_calls_never_have_one_id() -> None:
    """A late result of a cancelled call is refused, whatever number the engine gave both."""
    session = _asking()
    session.receive(Cancel(), 3.0)
    session.receive(UserMessage(text="two"), 4.0)
    (call, _) = _sent(session.finished(2, Finish("tool_calls", None, CALLS), 4.5))
    assert isinstance(call, events.ToolCall)
    assert "000000003" == call.id
    assert "unexpected_tool_result" == _error(session.receive(ToolResult(id=FIRST, content="2"), 5.0)).error.code


def test_what_was_heard_before_a_call_stays() -> None:
    """An ack of the text before the calls keeps just that text, cancelled while the tools work or afterwards."""
    for chars, kept in ((4, "Hm. "), (100, "Hm. "), (2, "Hm")):
        session = _asking()
        session.receive(Cancel(), 3.0)
        session.receive(Played(chars=chars), 3.1)
        assert [("one", kept, True)] == _history(session)
    session = _asking()
    session.receive(ToolResult(id=FIRST, content="2"), 3.0)
    session.receive(ToolResult(id=SECOND, content="4"), 3.0)
    say(session, 1, Delta("Six."), 3.5)
    session.receive(Played(chars=2), 3.6)
    session.receive(Cancel(), 3.7)
    assert [("one", "Hm", True)] == _history(session)


def test_a_cancel_before_the_word_behind_the_results() -> None:
    """No prompt has a tool's message before a user's: chat templates refuse that."""
    session = _asking()
    session.receive(ToolResult(id=FIRST, content="2"), 3.0)
    session.receive(ToolResult(id=SECOND, content="4"), 3.0)
    session.receive(Cancel(), 3.1)
    assert ["Be kind.", "one", "Hm. ", "two"] == _texts(_request(session.receive(UserMessage(text="two"), 4.0)))


def test_a_response_keeps_what_held_when_it_began() -> None:
    """A change of the configuration while tools work is for the next response."""
    session = _asking()
    session.receive(UpdateConfig(config=SessionConfig(tools=[], temperature=0.1)), 3.0)
    session.receive(ToolResult(id=FIRST, content="2"), 3.1)
    request = _request(session.receive(ToolResult(id=SECOND, content="4"), 3.2))
    assert (["add"], 0.7) == ([tool.name for tool in request.tools], request.sampling.temperature)
    session.finished(1, STOPPED, 4.0)
    request = _request(session.receive(UserMessage(text="two"), 5.0))
    assert ((), 0.1) == (request.tools, request.sampling.temperature)


def test_results_that_make_the_prompt_too_long() -> None:
    """They take the room of history; what fits into no window ends the turn by context_overflow."""
    session = _long(3)
    session.receive(UpdateConfig(config=SessionConfig(tools=TOOLS)), 3.0)
    for number, size in enumerate((200, 10_000)):
        session.receive(UserMessage(text="ask", id="u"), 4.0)
        assert session.running is not None
        session.finished(session.running, Finish("tool_calls", None, CALLS[:1]), 5.0)
        effects = session.receive(ToolResult(id=f"{number + 1:09d}", content="aaaa " * size), 6.0)
        if number == 0:
            assert len(_request(effects).messages) < 2 + 6 + 2
            say(session, session.running, Delta("so"), 6.5)
            session.finished(session.running, STOPPED, 7.0)
            assert session.conversation.dropped_turns > 0
    error = _error(effects)
    assert ("context_overflow", "u", True, None) == (error.error.code, error.id, error.terminal, session.running)


def test_an_overflow_behind_tools_is_tried_again() -> None:
    """Words before the calls are no reason not to: of this generation nothing has been said."""
    session = _long(3)
    session.receive(UpdateConfig(config=SessionConfig(tools=TOOLS)), 3.0)
    session.receive(UserMessage(text="ask"), 4.0)
    assert session.running is not None
    say(session, session.running, Delta("Hm. "), 4.5)
    session.finished(session.running, Finish("tool_calls", None, CALLS[:1]), 5.0)
    first = _request(session.receive(ToolResult(id=FIRST, content="2"), 6.0))
    session.taker(session.running, lambda _: None, lambda _: None, lambda: 6.0, [])
    shorter = _request(session.failed(session.running, ContextOverflow("too long"), 7.0))
    assert len(shorter.messages) < len(first.messages)


def test_reasoning_takes_no_room_in_the_history() -> None:
    """Of the tokens an engine generated only the answer's share is held: reasoning is in no prompt."""
    session = _active()
    session.receive(UserMessage(text="hi"), 1.0)
    for _ in range(99):
        say(session, 1, Delta("hm", thinking=True), 1.5)
    say(session, 1, Delta("Hello"), 2.0)
    session.finished(1, Finish("stop", Usage(20, 800)), 3.0)
    assert 28 == session.conversation.tokens


# Warming


def test_a_partial_message_warms_where_it_is_asked_for() -> None:
    """It makes the prompt of the message to come, for one token; otherwise, and while a response runs, nothing."""
    session = _active(SessionConfig(warm=True))
    session.receive(UserMessage(text="one"), 1.0)
    assert [] == session.receive(PartialMessage(text="two"), 1.5)
    session.finished(1, STOPPED, 2.0)
    (warm,) = session.receive(PartialMessage(text="and"), 2.5)
    assert isinstance(warm, Warm)
    assert (["Be kind.", "one\nand"], 1) == (_texts(warm.request), warm.request.sampling.max_tokens)
    real = _request(session.receive(UserMessage(text="and now"), 3.0))
    assert "".join(_texts(real)).startswith("".join(_texts(warm.request)))
    session.finished(2, STOPPED, 4.0)
    assert [] == session.receive(PartialMessage(text="  "), 5.0)
    assert [] == session.receive(PartialMessage(text="9" * 3000), 5.0)

    assert [] == _active().receive(PartialMessage(text="two"), 1.5)
    assert [] == _session(warm=True).receive(PartialMessage(text="two"), 1.5)
    by_default = _session(warm=True)
    by_default.receive(StartSession(), 0.0)
    assert [Warm] == [type(effect) for effect in by_default.receive(PartialMessage(text="two"), 1.5)]


# Summaries


def _condensing(config: SessionConfig | None = None) -> tuple[Session, Condense]:
    session = _long(3, context_strategy="summarize")
    if config is not None:
        session.receive(UpdateConfig(config=config), 2.5)
    session.receive(UserMessage(text="aaaa " * 100), 3.0)
    assert session.running is not None
    effects = session.finished(session.running, Finish("stop", Usage(814, 3)), 4.0)
    (condense,) = (effect for effect in effects if isinstance(effect, Condense))
    return session, condense


def test_what_is_dropped_is_condensed() -> None:
    """History that nears the high mark stays until its summary can stand for it, behind the system prompt."""
    session, condense = _condensing()
    assert 1024 // 8 == condense.request.sampling.max_tokens
    before = session.conversation.turns
    count = len(condense.job.turns)
    assert before[:count] == condense.job.turns
    (dropped,) = session.condensed(condense.job, "They said a lot.")
    assert Dropped(session.conversation.dropped_tokens) == dropped  # told now: there may be no other turn
    assert before[count:] == session.conversation.turns
    request = _request(session.receive(UserMessage(text="two"), 5.0))
    assert request.messages[0].content.endswith("They said a lot.")
    assert request.messages[0].content.startswith("Be kind.")


def test_how_much_waits_for_a_summary() -> None:
    """Two of the session's own windows full, and nothing where it wants no summaries."""
    session = _session(context_strategy="summarize")
    assert 2 * 1024 == session.conversation.dropped_limit
    session.receive(StartSession(config=SessionConfig(context_window=512)), 0.0)
    assert 2 * 512 == session.conversation.dropped_limit
    session.receive(UpdateConfig(config=SessionConfig(context_strategy="trim")), 1.0)
    assert 0 == session.conversation.dropped_limit


def test_a_summary_waits_for_the_end_of_a_turn() -> None:
    """One that is ready while a response runs stands in the prompt after it."""
    session, condense = _condensing()
    session.receive(UserMessage(text="two"), 5.0)
    assert [] == session.condensed(condense.job, "They said a lot.")
    assert "" == session.conversation.summary
    assert session.running is not None
    later = session.finished(session.running, STOPPED, 6.0)
    assert "They said a lot." == session.conversation.summary
    assert Dropped(session.conversation.dropped_tokens) in later


def test_a_summary_asks_for_text_alone() -> None:
    """The engine neither thinks nor calls a tool for it, whatever the session's answers do."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    config = SessionConfig.model_validate({"max_tokens": 10, "think": True, "tools": tools})
    _, condense = _condensing(config)
    request = condense.request
    assert (False, (), "") == (request.think, request.tools, request.session_id)


def test_a_summary_that_is_not_to_be_asked_for() -> None:
    """Nothing changes, and the engine is not asked again until more turns are dropped."""
    session, condense = _condensing()
    assert [] == session.condensed(condense.job, None)
    assert ("", 4, 0) == (
        session.conversation.summary,
        len(session.conversation.turns),
        session.conversation.dropped_turns,
    )
    for attempt in range(5):  # more often than failures are suffered
        session.receive(UserMessage(text="two"), 5.0 + attempt)
        assert session.running is not None
        later = session.finished(session.running, STOPPED, 5.5 + attempt)
        assert not any(isinstance(effect, Condense) for effect in later)
    session.receive(UserMessage(text="aaaa " * 100), 11.0)
    assert session.running is not None
    later = session.finished(session.running, STOPPED, 12.0)
    (again,) = (effect for effect in later if isinstance(effect, Condense))
    assert session.conversation.dropped[0] is again.job.turns[0]


@pytest.mark.parametrize("text", ["", "  ", "x" * 3000])
def test_a_summary_that_is_none_changes_nothing(text: str) -> None:
    """What is empty, or longer than what it stands for, is not taken; the engine is asked again after a later turn."""
    session, condense = _condensing()
    session.condensed(condense.job, text)
    assert "" == session.conversation.summary
    assert (4, 0) == (len(session.conversation.turns), session.conversation.dropped_turns)
    session.receive(UserMessage(text="two"), 5.0)
    assert session.running is not None
    later = session.finished(session.running, STOPPED, 6.0)
    assert [condense.job.turns] == [effect.job.turns for effect in later if isinstance(effect, Condense)]


def test_a_summary_of_another_history_is_not_taken() -> None:
    """A summary that comes after the session was begun anew is of nobody's history."""
    session, condense = _condensing()
    session.receive(StartSession(), 5.0)
    session.condensed(condense.job, "They said a lot.")
    assert "" == session.conversation.summary


def test_a_session_that_ends_wants_no_summary() -> None:
    """Whatever ends it, or the strategy, stops what is asked of the engine; a summary that comes late is nobody's."""
    for event in (EndSession(), StartSession(), UpdateConfig(config=SessionConfig(context_strategy="trim"))):
        session, condense = _condensing()
        assert 1 == sum(isinstance(effect, StopAsides) for effect in session.receive(event, 5.0))
        session.condensed(condense.job, "They said a lot.")
        assert "" == session.conversation.summary
        assert not any(isinstance(effect, StopAsides) for effect in session.receive(event, 6.0))


def test_summaries_that_fail_again_and_again_are_given_up() -> None:
    """After three failures in a row history is only trimmed, as under the strategy trim."""
    session, condense = _condensing()
    for attempt in range(3):
        assert [] == session.condensed(condense.job, "")
        session.receive(UserMessage(text="two"), 5.0 + attempt)
        assert session.running is not None
        later = session.finished(session.running, STOPPED, 6.0)
        found = [effect for effect in later if isinstance(effect, Condense)]
        if attempt < 2:
            (condense,) = found
    assert [] == found
    assert [] == session.conversation.dropped


def test_own_window_bounds_the_prompts() -> None:
    """The session's own window decides what is dropped and what is too large."""
    error = _error(_active(SessionConfig(context_window=256)).receive(UserMessage(text="x" * 900, id="u"), 1.0))

    assert ("context_overflow", "u", True) == (error.error.code, error.id, error.terminal)


def test_message_too_large_leaves_the_session_idle() -> None:
    """A message that cannot fit is answered by its error; the next one is answered as usual."""
    session = _active()

    assert "context_overflow" == _error(session.receive(UserMessage(text="x" * 9000), 1.0)).error.code
    assert session.running is None
    assert ["Be kind.", "hi"] == _texts(_request(session.receive(UserMessage(text="hi"), 2.0)))


def test_thinking_is_neither_said_nor_remembered() -> None:
    """Reasoning is no part of the answer: no token, no history, not the time of the first token."""
    session = _active()
    session.receive(UserMessage(text="hi"), 1.0)

    assert say(session, 1, Delta("hm", thinking=True), 1.5) is None
    say(session, 1, Delta("Hello"), 2.0)
    (event,) = _sent(session.finished(1, STOPPED, 3.0))
    assert isinstance(event, events.ResponseComplete)
    assert 1000.0 == event.stats.time_to_first_token_ms
    assert [("hi", "Hello", False)] == _history(session)


def test_thinking_on_request() -> None:
    """A client that asked for it hears the reasoning, as such."""
    session = _active(SessionConfig(events=["thinking"]))
    session.receive(UserMessage(text="hi"), 1.0)

    assert events.Thinking(data="hm") == say(session, 1, Delta("hm", thinking=True), 1.5)
    session.finished(1, STOPPED, 3.0)
    assert [("hi", "", False)] == _history(session)


def test_optional_events_on_request() -> None:
    """Each optional event comes at its place to those who named it."""
    session = _active(SessionConfig(events=["response_started", "queued", "context"], on_busy="queue"))
    effects = session.receive(UserMessage(text="hi", id="u-1"), 1.0)
    assert Send(events.ResponseStarted(id="u-1")) == effects[0]
    assert isinstance(effects[1], Generate)

    effects = session.receive(UserMessage(text="more", id="u-2"), 1.5)
    assert [Send(events.Queued(position=1, id="u-2"))] == effects

    effects = session.finished(1, Finish("stop", Usage(prompt_tokens=20, completion_tokens=7)), 2.0)
    sent = _sent(effects)
    assert [events.ResponseComplete, events.Context, events.ResponseStarted] == [type(event) for event in sent]
    assert events.Context(used=27, limit=1024, dropped=0) == sent[1]


def test_failed_turn_leaves_the_history() -> None:
    """A failure is told with its waiting time and ends the response; the turn never was."""
    session = _busy()
    session.finished(1, STOPPED, 3.0)
    first = _texts(_request(session.receive(UserMessage(text="two", id="u-2"), 4.0)))
    say(session, 2, Delta("Wor"), 5.0)
    error = _error(session.failed(2, EngineTimeout("too slow", retry_after=30.0), 6.0))

    assert ("engine_timeout", "too slow", 30.0) == (error.error.code, error.error.message, error.error.retry_after)
    assert ("u-2", True) == (error.id, error.terminal)
    assert [("one", "Hel", False)] == _history(session)
    assert first == _texts(_request(session.receive(UserMessage(text="two"), 7.0)))


def test_unreadable_message_changes_nothing() -> None:
    """The answer to what could not be read is its error; a running response goes on."""
    session = _busy()
    error = _error(session.reject(InvalidJSON("the message is not JSON"), 3.0))

    assert ("invalid_json", False) == (error.error.code, error.terminal)
    assert events.Token(data="lo") == say(session, 1, Delta("lo"), 4.0)


# Busy


def test_busy_rejects_by_default() -> None:
    """A message during a response is refused; the response goes on."""
    session = _busy()
    error = _error(session.receive(UserMessage(text="two", id="u-2"), 3.0))

    assert ("response_in_progress", "u-2", False) == (error.error.code, error.id, error.terminal)
    assert 1 == session.running


def test_busy_interrupts() -> None:
    """A barge-in ends the running response first; what the client had been sent is the history."""
    session = _busy(SessionConfig(on_busy="interrupt"))
    effects = session.receive(UserMessage(text="two", id="u-2"), 3.0)

    assert [Stop(1), Send(events.Cancelled(success=True, id="u-1"))] == effects[:2]
    assert ["Be kind.", "one", "Hel", "two"] == _texts(_request(effects))
    assert [("one", "Hel", True)] == _history(session)
    assert 2 == session.running


def test_busy_interrupted_before_the_first_word() -> None:
    """A response cut off before its first word leaves what the user said, joined to the next message."""
    session = _active(SessionConfig(on_busy="interrupt"))
    session.receive(UserMessage(text="one"), 1.0)

    assert ["Be kind.", "one\ntwo"] == _texts(_request(session.receive(UserMessage(text="two"), 1.1)))


def test_busy_queues() -> None:
    """Waiting messages are answered in their order, each when the one before has ended, however it ended."""
    session = _busy(SessionConfig(on_busy="queue"))
    assert [] == session.receive(UserMessage(text="two", id="u-2"), 3.0)
    assert [] == session.receive(UserMessage(text="three", id="u-3"), 3.0)
    error = _error(session.receive(UserMessage(text="four", id="u-4"), 3.0))
    assert ("queue_full", "u-4", False, 2) == (error.error.code, error.id, error.terminal, session.queued)

    effects = session.finished(1, STOPPED, 4.0)
    assert [events.ResponseComplete] == [type(event) for event in _sent(effects)]
    assert ["Be kind.", "one", "Hel", "two"] == _texts(_request(effects))
    effects = session.failed(2, EngineTimeout("too slow"), 5.0)
    assert ["u-2"] == [event.id for event in _sent(effects) if isinstance(event, events.Error)]
    assert ["Be kind.", "one", "Hel", "three"] == _texts(_request(effects))
    assert (3, 0) == (session.running, session.queued)


def test_what_was_said_so_far() -> None:
    """Text alone can be gone on with elsewhere: not reasoning, not an answer that asked for tools, not another's."""
    session = _active(SessionConfig())
    session.receive(events.UserMessage(text="hello"), 0.0)
    take = session.taker(1, lambda _: None, lambda _: None, lambda: 1.0, [])
    assert "" == session.said(1)
    take(Delta("Hel"))
    take(Delta("lo "))
    assert ("Hello ", None) == (session.said(1), session.said(2))
    take(Delta("hm", thinking=True))
    assert session.said(1) is None
    session.receive(events.Cancel(), 1.0)
    assert session.said(1) is None


def test_waiting_for_the_engine() -> None:
    """The place in line is told on request, of the running response alone."""
    session = _active(SessionConfig(events=["queued"]))
    session.receive(events.UserMessage(text="hello", id="u-1"), 0.0)
    assert [Send(events.Queued(position=3, id="u-1"))] == session.waits(1, 3)
    assert [] == session.waits(2, 3)
    quiet = _active(SessionConfig())
    quiet.receive(events.UserMessage(text="hello"), 0.0)
    assert [] == quiet.waits(1, 3)


def test_queued_message_too_large() -> None:
    """A waiting message that cannot fit gets its error when its turn comes, and the one behind it is answered."""
    session = _busy(SessionConfig(on_busy="queue"))
    session.receive(UserMessage(text="x" * 9000, id="u-2"), 3.0)
    session.receive(UserMessage(text="three", id="u-3"), 3.0)
    effects = session.finished(1, STOPPED, 4.0)

    assert [events.ResponseComplete, events.Error] == [type(event) for event in _sent(effects)]
    assert ["Be kind.", "one", "Hel", "three"] == _texts(_request(effects))


def test_cancel_running() -> None:
    """A cancel stops the engine, then tells the client; the history holds what the client was sent."""
    session = _busy()

    assert [Stop(1), Send(events.Cancelled(success=True, id="u-1"))] == session.receive(Cancel(), 3.0)
    assert [("one", "Hel", True)] == _history(session)
    assert session.running is None


def test_cancel_forgets_the_waiting() -> None:
    """A cancel is for the waiting messages as well, and says how many there were."""
    session = _busy(SessionConfig(on_busy="queue"))
    session.receive(UserMessage(text="two"), 3.0)

    assert [events.Cancelled(success=True, id="u-1", dropped=1)] == _sent(session.receive(Cancel(), 4.0))
    assert 0 == session.queued


@pytest.mark.parametrize("session", [_session(), _active()], ids=["new", "active"])
def test_cancel_idle(session: Session) -> None:
    """A cancel with nothing to cancel is answered, without success."""
    assert [Send(events.Cancelled(success=False))] == session.receive(Cancel(), 1.0)


def test_late_words_of_the_engine_are_ignored() -> None:
    """Whatever the engine still says of an ended response changes and says nothing."""
    session = _busy()
    session.receive(Cancel(), 3.0)
    session.receive(UserMessage(text="two"), 4.0)

    assert say(session, 1, Delta("lo"), 5.0) is None
    assert [] == session.finished(1, STOPPED, 5.0)
    assert [] == session.failed(1, EngineTimeout("too slow"), 5.0)
    assert 2 == session.running
    assert [("one", "Hel", True)] == _history(session)


def test_late_words_of_thinking_are_ignored() -> None:
    """Reasoning of an ended response is not said either."""
    session = _busy(SessionConfig(events=["thinking"]))
    session.receive(Cancel(), 3.0)

    assert say(session, 1, Delta("hm", thinking=True), 5.0) is None


# Configuration


def test_update_config_merges() -> None:
    """Given keys change, keys not given stay, a null takes the service's default; the answer has what was given."""
    session = _active(SessionConfig(top_k=5, temperature=0.1))
    effects = session.receive(UpdateConfig(config=SessionConfig(temperature=None, seed=3)), 1.0)

    assert [Send(events.SessionConfigured(config={"temperature": None, "seed": 3}, provider="scripted"))] == effects
    sampling = _request(session.receive(UserMessage(text="hi"), 2.0)).sampling
    assert SamplingParams(0.7, 0.9, 5, 100, seed=3) == sampling


def test_update_config_is_for_the_next_response() -> None:
    """A running response ends as it began; the next has the new configuration, on the same history."""
    session = _busy()
    session.receive(UpdateConfig(config=SessionConfig(system_prompt="Be short.", model="large")), 3.0)
    assert events.Token(data="lo") == say(session, 1, Delta("lo"), 4.0)
    session.finished(1, Finish("stop", Usage(prompt_tokens=20, completion_tokens=2)), 5.0)
    request = _request(session.receive(UserMessage(text="two"), 6.0))

    assert ("large", ["Be short.", "one", "Hello", "two"]) == (request.model, _texts(request))


def test_refused_update_keeps_the_old() -> None:
    """One key that cannot be had refuses the whole update."""
    session = _active(SessionConfig(top_k=5))
    session.receive(UpdateConfig(config=SessionConfig(top_k=6, model="huge")), 1.0)

    assert 5 == session.config.top_k


# The end


def test_end_session() -> None:
    """The end is told with the session's figures; the next message begins another session."""
    session = _busy()
    say(session, 1, Delta("lo"), 2.5)
    session.finished(1, Finish("stop", Usage(prompt_tokens=20, completion_tokens=7)), 3.0)
    session.reject(InvalidJSON("the message is not JSON"), 4.0)
    (event,) = _sent(session.receive(EndSession(), 10.0))

    stats = events.SessionStats(
        session_id="s-1",
        state="ended",
        duration_seconds=10.0,
        idle_seconds=0.0,
        messages_received=4,
        messages_sent=0,
        tokens_generated=7,
        generations_completed=1,
        errors_count=1,
        config={},
    )
    assert events.SessionEnded(stats=stats) == event
    assert SessionState.ENDED is session.state

    effects = session.receive(UserMessage(text="hi"), 11.0)
    assert [STARTED_2] == _sent(effects)
    assert ["Be kind.", "hi"] == _texts(_request(effects))


def test_figures_are_of_one_session() -> None:
    """What an earlier session of the connection did is not counted again; the connection's totals go on."""
    session = _busy()
    session.finished(1, Finish("stop", Usage(prompt_tokens=20, completion_tokens=7)), 3.0)
    session.receive(StartSession(), 20.0)
    (event,) = _sent(session.receive(EndSession(), 30.0))

    assert isinstance(event, events.SessionEnded)
    stats = event.stats
    assert ("s-2", 10.0, 2) == (stats.session_id, stats.duration_seconds, stats.messages_received)
    assert (0, 0, 0) == (stats.tokens_generated, stats.generations_completed, stats.errors_count)
    assert (4, 7) == (session.counters.messages_received, session.counters.tokens_generated)


@pytest.mark.parametrize("message", [StartSession(), UserMessage(text="hi"), UpdateConfig(config=SessionConfig())])
def test_after_the_end_another_begins(message: events.ClientMessage) -> None:
    """After the end, whatever needs a session begins a new one, by session_started."""
    session = _active(SessionConfig(top_k=5))
    session.receive(EndSession(), 1.0)

    assert STARTED_2 == _sent(session.receive(message, 2.0))[0]
    assert (SessionState.ACTIVE, None) == (session.state, session.config.top_k)


def test_end_while_a_response_runs() -> None:
    """The running response ends by its terminal event before the session does."""
    effects = _busy().receive(EndSession(), 3.0)

    assert [Stop(1), Send(events.Cancelled(success=True, id="u-1"))] == effects[:2]
    assert [events.Cancelled, events.SessionEnded] == [type(event) for event in _sent(effects)]


def test_expire() -> None:
    """A session that was silent for too long ends, and says why."""
    session = _active()
    (event,) = _sent(session.expire(4000.0))

    assert isinstance(event, events.SessionEnded)
    assert ("expired", 4000.0) == (event.reason, event.stats.idle_seconds)


def test_expire_needs_a_session() -> None:
    """Where no session is active, none ends: nothing is said."""
    new, ended = _session(), _active()
    ended.receive(EndSession(), 1.0)

    assert [] == new.expire(4000.0)
    assert [] == ended.expire(4000.0)


def test_idle_is_when_both_are_silent() -> None:
    """Time runs towards the end of a session only while neither client nor engine says anything."""
    session = _active()
    assert 5.0 == session.idle_seconds(5.0)
    session.receive(UserMessage(text="hi"), 5.0)
    assert 0.0 == session.idle_seconds(500.0)
    session.finished(1, STOPPED, 500.0)
    assert 1.0 == session.idle_seconds(501.0)


def test_a_deserted_session_frees_the_engine() -> None:
    """Nobody listens any more: the engine is stopped, what was said is kept, and whoever comes back is told."""
    session = _busy(SessionConfig(on_busy="queue"))
    session.receive(UserMessage(text="two"), 3.0)

    stopped, cancelled = session.desert()
    assert (Stop(1), Send(events.Cancelled(success=True, id="u-1", dropped=1))) == (stopped, cancelled)
    assert (0, [("one", "Hel", True)]) == (session.queued, _history(session))
    assert [] == session.desert()


def test_counters() -> None:
    """The counters tell what happened: a failed turn is none."""
    session = _busy(SessionConfig(on_busy="interrupt"))
    session.receive(UserMessage(text="two"), 3.0)
    session.failed(2, EngineTimeout("too slow"), 4.0)
    session.receive(UserMessage(text="three"), 5.0)
    session.finished(3, Finish("stop", Usage(prompt_tokens=20, completion_tokens=7)), 6.0)
    counters = session.counters

    assert (4, 2, 1) == (counters.messages_received, counters.turns, counters.errors)
    assert (1, 1, 8) == (counters.generations_completed, counters.generations_cancelled, counters.tokens_generated)


def test_repr_is_a_snapshot() -> None:
    """A session tells where it stands."""
    assert "<Session s-1: new, idle, 0 queued>" == repr(_session())
    assert "<Session s-1: active, response 1 runs, 0 queued>" == repr(_busy())


SPOKEN = SessionConfig(speech=SpeechConfig(enabled=True), events=["chunk"])
# "**Good** morning." of which the marks are not heard.
BOLD = Chunk(0, "Good morning.", 0, 17, pieces=((0, 2), (4, 4), (0, 2), (9, 9)))


def _speaking(**config: Any) -> tuple[Session, int]:
    session = _session(speech=SpeechDefaults(formats=frozenset({"wav"})))
    session.receive(StartSession(config=SPOKEN.model_copy(update=config)), 0.0)
    session.receive(UserMessage(text="Hello"), 1.0)
    assert session.running is not None
    say(session, session.running, Delta("**Good** morning."), 2.0)
    return session, session.running


def _spoken(**config: Any) -> Session:
    """The same with the answer, the session's first, whole and cut into one chunk."""
    session, number = _speaking(**config)
    session.cut(number, BOLD)
    session.finished(number, STOPPED, 3.0)
    return session


class TestSpeech:
    def test_chunks_are_numbered_through_the_session(self) -> None:
        """No two chunks of a session share an id, and spans count from the beginning of the answer."""
        session, number = _speaking()

        assert events.Chunk(id=1, text="Good morning.", start=0, end=17) == session.cut(number, BOLD)
        session.finished(number, STOPPED, 3.0)
        assert session.cut(number, BOLD) is None
        session.receive(UserMessage(text="Again"), 4.0)
        assert session.running is not None
        again = session.cut(session.running, BOLD)
        assert again is not None
        assert 2 == again.id

    @pytest.mark.parametrize(
        ("chars", "kept"), [(0, ""), (4, "**Good"), (8, "**Good** mor"), (99, "**Good** morning.")]
    )
    def test_an_ack_of_a_chunk_is_led_back_to_the_answer(self, chars: int, kept: str) -> None:
        """What was heard counts in the chunk's text, and the history is cut in the answer's own characters."""
        session, number = _speaking()
        session.cut(number, BOLD)

        session.receive(Played(chunk=1, chars=chars), 3.0)
        session.receive(Cancel(), 4.0)

        last = session.conversation.last
        assert last is not None
        assert kept == last.answer

    def test_an_ack_that_comes_too_late_is_no_mistake(self) -> None:
        """Of a chunk of an earlier answer nothing is cut any more; one that was never sent is a mistake."""
        session, number = _speaking()
        session.cut(number, BOLD)
        session.receive(Cancel(), 3.0)
        session.receive(UserMessage(text="Again"), 4.0)

        assert [] == session.receive(Played(chunk=1, chars=3), 5.0)
        (refusal,) = session.receive(Played(chunk=2, chars=3), 5.0)
        assert isinstance(refusal, Send)
        assert isinstance(refusal.event, events.Error)
        assert "unknown_chunk" == refusal.event.error.code

    def test_at_rest_a_session_forgets_what_its_chunks_were(self) -> None:
        """From a store an ack of an earlier answer's chunk is ignored, one that counts in the answer is not."""
        session, number = _speaking()
        session.cut(number, BOLD)
        session.receive(Cancel(), 3.0)
        record = session.record(key="", whole=True, replay=ReplayRecord(0, []), now=4.0, wall=1000.0)
        restored = Session.restore(record, DEFAULTS, new_id=lambda: "new", now=0.0, wall=1000.0)

        for ack, kept in ((Played(chunk=1, chars=4), "**Good** morning."), (Played(chars=4), "**Go")):
            assert [] == restored.receive(ack, 1.0)
            last = restored.conversation.last
            assert last is not None
            assert kept == last.answer

    @pytest.mark.parametrize("event", [Cancel(), EndSession(), StartSession(), UserMessage(text="Stop")])
    def test_whoever_speaks_stops_what_is_heard_of_a_whole_answer(self, event: events.ClientMessage) -> None:
        """The text is over and its sound is not: a barge-in of any kind is silence."""
        session = _spoken()

        assert Hush() in session.receive(event, 4.0)

    def test_under_queue_nobody_is_interrupted(self) -> None:
        """A message that waits for the text's end waits behind the sound, too."""
        session = _spoken(on_busy="queue")

        assert Hush() not in session.receive(UserMessage(text="And then?"), 4.0)

    def test_what_failed_is_spoken_no_more(self) -> None:
        """Whatever undoes a turn ends its sound, and no other's, before the error is told: missing tool results too."""
        session = _session()
        session.receive(StartSession(config=SPOKEN.model_copy(update={"tools": TOOLS})), 0.0)
        session.receive(UserMessage(text="Hello"), 1.0)
        session.finished(1, Finish("tool_calls", Usage(10, 4), CALLS[:1]), 3.0)
        overdue = session.overdue(1000.0)
        session.receive(UserMessage(text="Hello"), 1001.0)

        assert Hush(1) == overdue[0]
        assert Hush(2) == session.failed(2, EngineTimeout("late"), 1002.0)[0]

    def test_interrupting_the_sound_cuts_what_was_not_heard(self) -> None:
        """Under `interrupt` a message within the sound of a whole answer is what a cancel and a message are."""
        session = _spoken(on_busy="interrupt")
        session.receive(Played(chunk=1, chars=8), 4.0)

        *_, ask = session.receive(UserMessage(text="Stop"), 5.0)

        assert isinstance(ask, Generate)
        assert "**Good** mor" == ask.request.messages[2].content

    @pytest.mark.parametrize(
        ("sounds", "kept"), [(True, "**Good** mor"), (False, "**Good** morning.")], ids=["still heard", "over"]
    )
    def test_speaking_over_the_sound_is_an_interruption(self, sounds: bool, kept: str) -> None:
        """Without `on_busy` a message stops the sound: if it is not over, the answer ends where it was heard."""
        session = _spoken()
        session.receive(Played(chunk=1, chars=8), 4.0)

        *_, ask = session.receive(UserMessage(text="Stop"), 5.0, sounds=sounds)

        assert isinstance(ask, Generate)
        assert kept == ask.request.messages[2].content

    def test_under_queue_the_sound_is_not_interrupted(self) -> None:
        """The next answer is heard behind this one, of which nothing is cut."""
        session = _spoken(on_busy="queue")
        session.receive(Played(chunk=1, chars=8), 4.0)

        *_, ask = session.receive(UserMessage(text="And then?"), 5.0, sounds=True)

        assert isinstance(ask, Generate)
        assert "**Good** morning." == ask.request.messages[2].content

    def test_an_answer_behind_the_one_that_is_heard_is_interrupted_with_it(self) -> None:
        """Under `queue`: the one that sounds ends where it was heard, and of the one behind it nothing was."""
        session = _spoken(on_busy="queue")
        session.receive(UserMessage(text="And then?"), 4.0, sounds=True)
        say(session, 2, Delta("Then this."), 4.5)
        assert [] == session.receive(Played(chunk=1, chars=8), 5.0)
        assert [("Hello", "**Good** morning.", False)] == _history(session)
        session.receive(Cancel(), 6.0)

        assert [("Hello", "**Good** mor", True), ("And then?", "", True)] == _history(session)
        session.receive(Played(chunk=1, chars=11), 6.1)
        assert [("Hello", "**Good** mornin", True), ("And then?", "", True)] == _history(session)

    def test_answers_that_are_both_whole_end_at_one_place(self) -> None:
        """Under `queue` a cancel may stop the sound of an answer that another, whole as well, lies behind."""
        session = _spoken(on_busy="queue")
        session.receive(UserMessage(text="And then?"), 4.0, sounds=True)
        say(session, 2, Delta("**Good** morning."), 4.5)
        session.cut(2, BOLD)
        session.finished(2, STOPPED, 5.0)
        session.receive(Played(chunk=1, chars=4), 5.0)
        session.receive(Cancel(), 6.0)

        assert [("Hello", "**Good", True), ("And then?", "", True)] == _history(session)
        session.receive(Played(chunk=2, chars=4), 6.1)
        assert [("Hello", "**Good** morning.", True), ("And then?", "**Good", True)] == _history(session)

    @pytest.mark.parametrize("sounds", [True, False])
    def test_what_sounds_no_more_was_heard(self, sounds: bool) -> None:
        """A client need not tell of the last words: once no sound of ours is left, an answer is over."""
        session = _spoken(on_busy="queue", events=["audio"])
        session.receive(Played(chunk=1, chars=4), 3.5)
        session.receive(UserMessage(text="And then?"), 4.0, sounds=sounds)
        say(session, 2, Delta("Then this."), 4.5)
        session.receive(Cancel(), 6.0)

        kept = [("Hello", "**Good", True), ("And then?", "", True)]
        whole = [("Hello", "**Good** morning.", False), ("And then?", "Then this.", True)]
        assert (kept if sounds else whole) == _history(session)

    @pytest.mark.parametrize(
        ("chars", "kept"),
        [(0, ""), (12, "**Good** morning"), (13, "**Good** morning.```x``` 🙂"), (99, "**Good** morning.```x``` 🙂")],
    )
    @pytest.mark.parametrize("whole", [True, False], ids=["text whole", "text cut off"])
    @pytest.mark.parametrize("first", [True, False], ids=["ack first", "cancel first"])
    def test_what_is_for_nobodys_ear_is_heard_with_what_is_before_it(
        self, first: bool, whole: bool, chars: int, kept: str
    ) -> None:
        """A code block or an emoji behind the last words that were heard stays in the history, in whatever order."""
        session, number = _speaking()
        say(session, number, Delta("```x``` 🙂"), 2.1)
        for chunk in (BOLD, Chunk(1, "", 17, 25), Chunk(2, "", 25, 26)):
            session.cut(number, chunk)
        if whole:
            session.finished(number, STOPPED, 3.0)
        else:
            say(session, number, Delta(" And more."), 2.2)

        for event in (Played(chunk=1, chars=chars), Cancel()) if first else (Cancel(), Played(chunk=1, chars=chars)):
            session.receive(event, 4.0)

        last = session.conversation.last
        assert last is not None
        assert (kept, not whole or chars < 13) == (last.answer, last.interrupted)

    def test_spans_behind_a_tool_step_count_from_the_beginning_of_the_answer(self) -> None:
        """What was said before the calls stands before the chunks that follow them, told and led back alike."""
        session = _session()
        session.receive(StartSession(config=SPOKEN.model_copy(update={"tools": TOOLS})), 0.0)
        session.receive(UserMessage(text="Hello"), 1.0)
        say(session, 1, Delta("Let me see."), 2.0)
        session.cut(1, Chunk(0, "Let me see.", 0, 11, pieces=((11, 11),)))
        session.finished(1, Finish("tool_calls", Usage(10, 4), CALLS[:1]), 3.0)
        session.receive(ToolResult(id=FIRST, content="4"), 3.5)
        say(session, 1, Delta("**Good** morning."), 4.0)

        assert events.Chunk(id=2, text="Good morning.", start=11, end=28) == session.cut(1, BOLD)
        session.receive(Played(chunk=2, chars=4), 5.0)
        session.receive(Cancel(), 5.1)

        last = session.conversation.last
        assert last is not None
        assert (["Let me see."], "**Good") == ([step.text for step in last.steps], last.answer)

    def test_a_session_that_speaks_nothing_has_no_more_effects(self) -> None:
        """Without speech a cancel, a message and an end are what they were."""
        session = _session()
        session.receive(StartSession(), 0.0)

        assert [Send(events.Cancelled(success=False))] == session.receive(Cancel(), 1.0)
        assert session.speech is None
