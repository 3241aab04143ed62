import copy
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.conversation import Conversation, Prompt
from llm_service.errors import ContextOverflow
from llm_service.generation import Message, ToolCall, Usage
from llm_service.prompt_head import SUMMARY_HEADING
from llm_service.summary import Condensation
from llm_service.token_estimate import TOKENS_PER_MESSAGE
from llm_service.turn import Turn

FUZZ = 20 if os.environ.get("FASTTALK_FUZZ") == "1" else 1


def _conversation(system_prompt: str = "", max_messages: int = 1000) -> Conversation:
    return Conversation(system_prompt=system_prompt, max_messages=max_messages)


def _begin(conversation: Conversation, text: str, window: int = 8192, max_tokens: int = 100) -> Prompt:
    return conversation.begin(text, context_window=window, max_tokens=max_tokens)


def _said(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


def _estimate(text: str, bytes_per_token: float = 3.0) -> int:
    return int(len(text.encode()) / bytes_per_token) + TOKENS_PER_MESSAGE


def test_prompt_of_the_first_turn() -> None:
    """The first prompt is the system prompt and what the user said."""
    prompt = _begin(_conversation("Be kind."), "hello")

    assert [("system", "Be kind."), ("user", "hello")] == _said(prompt)
    assert _estimate("Be kind.") + _estimate("hello") == prompt.tokens
    assert 0 == prompt.dropped_turns


def test_no_system_prompt_is_no_message() -> None:
    """Without a system prompt a prompt begins with the user."""
    assert [("user", "hello")] == _said(_begin(_conversation(), "hello"))


def test_prompt_of_a_later_turn() -> None:
    """A later prompt holds what was said before, in its order."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "one")
    conversation.commit("first")
    _begin(conversation, "two")
    conversation.commit("second", interrupted=True)

    assert [
        ("system", "Be kind."),
        ("user", "one"),
        ("assistant", "first"),
        ("user", "two"),
        ("assistant", "second"),
        ("user", "three"),
    ] == _said(_begin(conversation, "three"))
    assert [False, True] == [turn.interrupted for turn in conversation.turns]


def test_unanswered_users_speak_in_one_message() -> None:
    """Turns cut off before their first word become one message: templates want roles to alternate."""
    conversation = _conversation()
    for text in ("one", "two"):
        _begin(conversation, text)
        conversation.commit("", interrupted=True)

    assert [("user", "one\ntwo\nthree")] == _said(_begin(conversation, "three"))
    conversation.commit("all")
    assert [("user", "one\ntwo\nthree"), ("assistant", "all"), ("user", "four")] == _said(_begin(conversation, "four"))


def test_messages_kept_counts_messages() -> None:
    """A turn without an answer is one message, another is two; the system prompt is none."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "one")
    conversation.commit("")
    _begin(conversation, "two")
    conversation.commit("second")

    assert 3 == conversation.messages_kept


@pytest.mark.parametrize("before", [0, 2])
def test_rollback_leaves_the_history_as_it_was(before: int) -> None:
    """After a turn that failed the same message makes the same prompt again."""
    conversation = _conversation("Be kind.")
    for number in range(before):
        _begin(conversation, f"question {number}")
        conversation.commit("answer", usage=Usage(prompt_tokens=20 + 10 * number, completion_tokens=3))
    turns = conversation.turns
    first = _begin(conversation, "again")
    conversation.rollback()

    assert turns == conversation.turns
    assert first == _begin(conversation, "again")


def test_rollback_brings_back_what_was_dropped() -> None:
    """Turns that a failed turn's prompt left out are not lost: the next prompt may be shorter."""
    conversation = _conversation()
    for _ in range(3):
        _begin(conversation, "x" * 300, window=2000)
        conversation.commit("y" * 300)
    turns = conversation.turns
    dropping = _begin(conversation, "x" * 3000, window=2000, max_tokens=500)

    assert 3 == dropping.dropped_turns
    assert turns == conversation.turns
    conversation.rollback()
    assert dropping == _begin(conversation, "x" * 3000, window=2000, max_tokens=500)
    conversation.rollback()
    assert 0 == conversation.dropped_turns
    assert 7 == len(_begin(conversation, "short", window=2000).messages)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_turn_ends_once(end: str) -> None:
    """A turn is opened before it is ended, and ended before the next is opened."""
    conversation = _conversation()
    finish = conversation.rollback if end == "rollback" else lambda: conversation.commit("x")

    with pytest.raises(RuntimeError, match="no turn is open"):
        finish()
    _begin(conversation, "one")
    with pytest.raises(RuntimeError, match="neither committed nor rolled back"):
        _begin(conversation, "two")
    finish()
    with pytest.raises(RuntimeError, match="no turn is open"):
        finish()


def test_message_too_large_for_the_window() -> None:
    """A message that cannot fit even alone is refused with the figures, and nothing has changed."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "one")
    conversation.commit("first")

    with pytest.raises(ContextOverflow, match=r"about 3\d\d\d tokens.* context window has 2048"):
        _begin(conversation, "x" * 9000, window=2048)
    assert 1 == len(conversation.turns)
    assert 4 == len(_begin(conversation, "two", window=2048).messages)


def test_the_engine_decides_what_is_not_certain() -> None:
    """Where the engine refuses what is too long, only what cannot fit is refused before it is asked."""
    conversation = _conversation()
    prompt = conversation.begin("word " * 1900, context_window=2048, max_tokens=100, engine_counts=True)
    assert prompt.tokens > 2048
    conversation.rollback()
    with pytest.raises(ContextOverflow, match="more than 2500 tokens"):
        conversation.begin("x" * 20_000, context_window=2048, max_tokens=100, engine_counts=True)


def test_an_overflow_is_learnt_from() -> None:
    """After a prompt that the engine found too long the next leaves more out; a turn that fails changes nothing."""
    conversation = _conversation()
    for word in ("one ", "two ", "six "):
        _begin(conversation, word * 50, window=2048)
        conversation.commit(word * 50)
    first = _begin(conversation, "mama " * 300, window=2048)
    second = conversation.retry(context_window=2048, max_tokens=100)
    assert second is not None
    assert len(second.messages) < len(first.messages)
    assert ("user", "mama " * 300) == _said(second)[-1]
    assert 3 == len(conversation.turns)
    conversation.rollback()
    assert 3 == len(conversation.turns)
    assert first == _begin(conversation, "mama " * 300, window=2048)


def test_every_retry_is_shorter_until_nothing_is_left() -> None:
    """Each retry leaves at least half of the rest out; with no history left there is none."""
    conversation = _conversation("Be kind.")
    for number in range(9):
        _begin(conversation, f"question {number}")
        conversation.commit("answer", usage=Usage(prompt_tokens=30 + 10 * number, completion_tokens=3))
    sizes = [len(_begin(conversation, "again").messages)]
    while (prompt := conversation.retry(context_window=8192, max_tokens=100)) is not None:
        sizes.append(len(prompt.messages))
        assert ("system", "Be kind.") == _said(prompt)[0]
    assert [20, 10, 6, 4, 2] == sizes
    conversation.commit("done")
    assert 9 == conversation.dropped_turns


def test_marks_are_shares_of_the_budget() -> None:
    """History is dropped when it passes the high mark, and down to the low one."""
    conversation = Conversation(max_messages=1000, low_water=0.25, high_water=0.75)
    sizes = []
    for number in range(40):
        prompt = _begin(conversation, "question", window=2130, max_tokens=100)  # a budget of 1,997
        sizes.append((prompt.tokens, prompt.dropped_turns))
        conversation.commit("x", usage=Usage(prompt_tokens=prompt.tokens, completion_tokens=100))
        assert number < 5 or prompt.tokens > 0.1 * 1997
    assert max(size for size, _ in sizes) <= 0.75 * 1997
    after = [size for size, dropped in sizes if dropped]
    assert len(after) >= 2
    assert all(0.25 * 1997 - 130 < size <= 0.25 * 1997 for size in after)


def test_what_is_dropped_is_counted_in_tokens() -> None:
    """The tokens of dropped turns are summed up as the engine had counted them."""
    conversation = _conversation(max_messages=6)
    for number in range(3):
        _begin(conversation, "q")
        conversation.commit("a", usage=Usage(prompt_tokens=20 + 30 * number, completion_tokens=10))
    _begin(conversation, "q")
    conversation.commit("a", usage=Usage(prompt_tokens=80, completion_tokens=10))
    gone = {turns: 30 * turns for turns in (1, 2, 3)}[conversation.dropped_turns]
    assert gone - 20 <= conversation.dropped_tokens <= gone


def test_a_dense_message_never_passes_the_window() -> None:
    """History makes room for the most tokens a message can have, not only for the likeliest number."""
    conversation = _conversation()
    for number in range(8):
        _begin(conversation, "q")
        conversation.commit("a", usage=Usage(prompt_tokens=120 * (number + 1) - 20, completion_tokens=20))
    prompt = _begin(conversation, "9" * 1400, window=2048, max_tokens=16)
    kept = 120 * (8 - prompt.dropped_turns)
    assert kept + 1400 <= 2048
    conversation.rollback()
    assert 0 == conversation.begin("9" * 1400, context_window=2048, max_tokens=16, tokens=700).dropped_turns


@pytest.mark.parametrize(("text", "needed"), [("hello", False), ("word " * 200, False), ("7" * 1990, True)])
def test_a_count_is_needed_only_where_it_decides(text: str, needed: bool) -> None:
    """A message that fits even at its most tokens need not be counted."""
    assert needed == _conversation("Be kind.").needs_count(text, context_window=2048, max_tokens=100)


def test_a_counted_message_is_taken_as_counted() -> None:
    """The engine's count of the new message takes the place of the estimate, and of the benefit of the doubt."""
    conversation = _conversation()
    prompt = conversation.begin("word " * 500, context_window=2048, max_tokens=100, tokens=500)
    assert 500 + 2 * TOKENS_PER_MESSAGE == prompt.tokens  # no system prompt has its marks all the same
    conversation.rollback()
    with pytest.raises(ContextOverflow, match="more than 3005 tokens"):
        conversation.begin("word " * 500, context_window=2048, max_tokens=100, tokens=3000, engine_counts=True)


def test_an_answer_is_cut_at_what_was_heard() -> None:
    """Of the newest answer so much stays as was heard; what stands before it is as it was."""
    conversation = _conversation()
    for word in ("one", "two"):
        _begin(conversation, word)
        conversation.commit("a long answer", usage=Usage(prompt_tokens=20, completion_tokens=4))
    conversation.cut(conversation.turns[-1], 6)
    assert [("a long answer", False), ("a long", True)] == [(t.answer, t.interrupted) for t in conversation.turns]
    assert ("assistant", "a long") == _said(_begin(conversation, "three"))[3]
    conversation.rollback()
    conversation.cut(conversation.turns[-1], 0)
    assert [("user", "one"), ("assistant", "a long answer"), ("user", "two\nthree")] == _said(
        _begin(conversation, "three")
    )


def test_a_summary_stands_behind_the_system_prompt() -> None:
    """The summary is part of the system message, and counted anew with the next turn."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "one")
    conversation.commit("first", usage=Usage(prompt_tokens=30, completion_tokens=3))
    conversation.set_summary("They spoke of boats.")
    prompt = _begin(conversation, "two")
    assert ("system", f"Be kind.\n\n{SUMMARY_HEADING}\nThey spoke of boats.") == _said(prompt)[0]
    with pytest.raises(RuntimeError, match="a turn is open"):
        conversation.set_summary("else")
    conversation.commit("second", usage=Usage(prompt_tokens=70, completion_tokens=3))
    assert 73 == conversation.tokens
    conversation.set_system_prompt("")
    assert ("system", f"{SUMMARY_HEADING}\nThey spoke of boats.") == _said(_begin(conversation, "three"))[0]


def test_history_that_nears_the_mark_can_be_condensed() -> None:
    """Past the share given it is all down to the low mark, and still kept; below it there is nothing."""
    conversation = _conversation()
    conversation.dropped_limit = 2048
    for number in range(8):
        _begin(conversation, "q")
        conversation.commit("a", usage=Usage(prompt_tokens=100 * (number + 1) - 20, completion_tokens=20))
    assert [] == conversation.condensable(0.8, context_window=2048, max_tokens=100)
    first = conversation.condensable(0.8, context_window=1024, max_tokens=100)
    assert list(conversation.turns[: len(first)]) == first
    assert 800 - 100 * len(first) <= 0.5 * 924 < 900 - 100 * len(first)
    assert list(conversation.turns[:6]) == conversation.condensable(0.8, context_window=256, max_tokens=100)
    assert (8, 0, []) == (len(conversation.turns), conversation.dropped_turns, conversation.dropped)

    kept = conversation.turns[len(first) :]
    job = Condensation(tuple(first), "", (), 100)
    assert conversation.condensed(job, "They talked.")
    assert (kept, len(first), []) == (conversation.turns, conversation.dropped_turns, conversation.dropped)
    assert not conversation.condensed(job, "Once more.")


def test_a_summary_may_stand_for_dropped_and_kept_turns() -> None:
    """A trim between request and summary moves turns from the kept to the dropped ones; their order stays."""
    conversation = _conversation()
    conversation.dropped_limit = 2048
    for number in range(8):
        _begin(conversation, "q")
        conversation.commit("a", usage=Usage(prompt_tokens=100 * (number + 1) - 20, completion_tokens=20))
    job = Condensation(conversation.turns[:5], "", (), 100)
    conversation.begin("q", context_window=1024, max_tokens=100, tokens=200)
    conversation.commit("a", interrupted=True)
    moved = len(conversation.dropped)
    assert moved == conversation.dropped_turns > 0
    last = conversation.turns[-1]
    assert conversation.condensed(job, "They talked.")
    assert (max(5, moved), max(0, moved - 5)) == (conversation.dropped_turns, len(conversation.dropped))
    assert last is conversation.turns[-1]


def _condensed(turns: int = 4) -> Conversation:
    """A conversation whose first turns are a summary of 600 characters."""
    conversation = _conversation("Be kind.")
    conversation.dropped_limit = 2048
    for _ in range(turns):
        _begin(conversation, "question", 1024)
        conversation.commit("answer")
    job = Condensation(conversation.turns[:2], "", (), 100)
    assert conversation.condensed(job, "They talked. " * 46)
    return conversation


def test_a_summary_gives_way_to_a_message_that_needs_its_room() -> None:
    """It stands for what is older than all that is kept, so it goes first where nothing else is left to go."""
    conversation = _condensed()
    assert 2 == len(conversation.turns)
    prompt = _begin(conversation, "long words " * 240, 1024)
    assert [("system", "Be kind."), ("user", "long words " * 240)] == _said(prompt)
    assert 2 == prompt.dropped_turns
    conversation.commit("well")
    assert "" == conversation.summary
    assert ("system", "Be kind.") == _said(_begin(conversation, "next", 4096))[0]


def test_a_summary_comes_back_with_a_turn_that_is_undone() -> None:
    """As all the history does; nor is it lost to a message that does not fit even without it."""
    conversation = _condensed()
    before = conversation.tokens
    _begin(conversation, "long words " * 240, 1024)
    conversation.rollback()
    assert before == conversation.tokens
    with pytest.raises(ContextOverflow):
        _begin(conversation, "long words " * 1000, 1024)
    assert before == conversation.tokens
    assert SUMMARY_HEADING in _said(_begin(conversation, "short", 1024))[0][1]


def test_a_summary_is_the_last_to_go_after_an_overflow() -> None:
    """The engine found the prompt too long again and again: history goes by halves, then the summary, and no more."""
    conversation = _condensed(6)
    sizes = [len(_begin(conversation, "q").messages)]
    heads = []
    while (prompt := conversation.retry(context_window=8192, max_tokens=100)) is not None:
        sizes.append(len(prompt.messages))
        heads.append(SUMMARY_HEADING in prompt.messages[0].content)
    assert [10, 6, 4, 2, 2] == sizes
    assert [True, True, True, False] == heads


def test_the_size_of_a_prompt_at_most() -> None:
    """Where prompt and answer could pass the window together, each byte counts that may be a token."""
    conversation = _conversation("Be kind.")
    assert 5 + 5 + 26 + 5 == _begin(conversation, "2, 3, 5, 7, 11, 13, 17, 19", 100).most


def _talk(conversation: Conversation, turns: int) -> None:
    """Go on for so many turns of 100 tokens each, no two of them alike, in a window of 1024."""
    for _ in range(turns):
        number = conversation.dropped_turns + len(conversation.turns)
        prompt = conversation.begin(f"q{number}", context_window=1024, max_tokens=100, tokens=76)
        kept = len(conversation.turns) - prompt.dropped_turns
        conversation.commit("a", usage=Usage(prompt_tokens=100 * kept + 80, completion_tokens=20))


def test_what_waits_for_a_summary_has_a_bound() -> None:
    """However long it does: the newest dropped turns of so many tokens are kept, and none where there is no limit."""
    conversation, all_turns = _conversation(), []
    conversation.dropped_limit = 2048
    for _ in range(300):
        _talk(conversation, 1)
        all_turns.append(conversation.turns[-1])
        assert sum(turn.tokens for turn in conversation.dropped) <= 2048
    assert conversation.dropped_turns > 200
    assert all_turns[-len(conversation.turns) - 20 : -len(conversation.turns)] == conversation.dropped

    unwanted = _conversation()
    _talk(unwanted, 20)
    assert ([], True) == (unwanted.dropped, unwanted.dropped_turns > 0)


def test_a_summary_may_stand_for_turns_that_were_forgotten() -> None:
    """While it was made, the oldest of its turns were: it takes the place of those that wait still, and of no other."""
    conversation = _conversation()
    conversation.dropped_limit = 800
    _talk(conversation, 20)
    job = Condensation(tuple(conversation.dropped), "", (), 100)
    assert 8 == len(job.turns)
    while job.turns[0] in conversation.dropped:
        _talk(conversation, 1)
    left = [turn for turn in conversation.dropped if turn not in job.turns]
    assert 0 < len(left) < 8
    before, kept = conversation.dropped_turns, conversation.turns
    assert conversation.condensed(job, "They talked.")
    assert (left, before, kept) == (conversation.dropped, conversation.dropped_turns, conversation.turns)

    job = Condensation(tuple(conversation.dropped), "They talked.", (), 100)
    while any(turn in conversation.dropped for turn in job.turns):
        _talk(conversation, 1)
    assert not conversation.condensed(job, "Too late.")


CALLS = (ToolCall("1", "add", '{"a": 1}'), ToolCall("2", "time", "{}"))


def test_tools_are_part_of_a_turn() -> None:
    """Calls and results stand between the user's message and the answer, in this prompt and in later ones."""
    conversation = _conversation()
    _begin(conversation, "one")
    conversation.ask_tools("Let me see.", CALLS)
    assert not conversation.tool_result("2", "noon")
    assert conversation.tool_result("1", "3")
    said = [("user", "one"), ("assistant", "Let me see."), ("tool", "3"), ("tool", "noon")]
    prompt = conversation.go_on(context_window=2048, max_tokens=100)
    assert said == _said(prompt)
    assert CALLS == prompt.messages[1].tool_calls
    assert [("1", "add"), ("2", "time")] == [(m.tool_call_id, m.tool_name) for m in prompt.messages[2:]]
    conversation.commit("Three, at noon.", usage=Usage(prompt_tokens=60, completion_tokens=6))
    assert [*said, ("assistant", "Three, at noon."), ("user", "two")] == _said(_begin(conversation, "two"))
    assert 5 == conversation.messages_kept


@pytest.mark.parametrize("call", ["3", "1"])
def test_a_result_belongs_to_a_waiting_call(call: str) -> None:
    """A result for a call that was not asked for, or has one, is refused."""
    conversation = _conversation()
    _begin(conversation, "one")
    conversation.ask_tools("", CALLS)
    conversation.tool_result("1", "3")
    with pytest.raises(KeyError):
        conversation.tool_result(call, "4")


def test_no_call_stays_without_its_result() -> None:
    """A turn cut off while a tool works keeps what was said, and not the calls."""
    conversation = _conversation()
    _begin(conversation, "one")
    conversation.ask_tools("", CALLS[:1])
    conversation.tool_result("1", "3")
    conversation.ask_tools("Let me see.", CALLS)
    conversation.tool_result("1", "4")
    conversation.commit("", interrupted=True)
    assert [
        ("user", "one"),
        ("assistant", ""),
        ("tool", "3"),
        ("assistant", "Let me see."),
        ("user", "two"),
    ] == _said(_begin(conversation, "two"))


def test_system_prompt_counts_against_the_window() -> None:
    """The system prompt is never dropped, so it takes from the room of each message."""
    with pytest.raises(ContextOverflow):
        _begin(_conversation("x" * 5000), "y" * 1500, window=2048)


def test_answer_as_long_as_the_window_leaves_half() -> None:
    """With max_tokens of the whole window, half of it is the prompt's."""
    conversation = _conversation()
    _begin(conversation, "x" * 300, window=1024, max_tokens=1024)
    conversation.commit("y" * 300, usage=Usage(prompt_tokens=105, completion_tokens=100))

    assert 0 == _begin(conversation, "x" * 600, window=1024, max_tokens=1024).dropped_turns
    conversation.rollback()
    assert 1 == _begin(conversation, "x" * 1000, window=1024, max_tokens=1024).dropped_turns


def test_trim_goes_down_to_half_at_once() -> None:
    """When the budget is passed, turns go down to half of it, so that the next prompts keep their beginning."""
    conversation = _conversation()
    dropped = []
    for _ in range(100):
        prompt = _begin(conversation, "x" * 100, window=1500, max_tokens=500)
        dropped.append(prompt.dropped_turns)
        conversation.commit("y" * 100, usage=Usage(prompt_tokens=prompt.tokens, completion_tokens=34))

    assert 2 < min(count for count in dropped if count)
    assert 8 > sum(count > 0 for count in dropped[:50])
    assert sum(dropped) == conversation.dropped_turns


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_history_is_bounded_by_messages(limit: int) -> None:
    """No prompt has more messages than allowed, the system prompt not counted."""
    conversation = _conversation("Be kind.", max_messages=limit)
    sizes = []
    for _ in range(30):
        sizes.append(len(_begin(conversation, "q").messages) - 1)
        conversation.commit("a")

    assert limit >= max(sizes)


def test_engine_counts_after_the_first_turn() -> None:
    """After a turn the next prompt's size is the engine's count and an estimate of the new message."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "hello")
    conversation.commit("world", usage=Usage(prompt_tokens=30, completion_tokens=4))
    measured = len(b"Be kind.hello") / 30
    prompt = _begin(conversation, "more")

    assert 34 + _estimate("more", max(measured, 1.0)) == prompt.tokens


def test_ratio_is_learnt_and_bounded() -> None:
    """The bytes of a token are this session's, within what any tokenizer does."""
    for prompt_tokens, expected in ((100, 4.0), (400, 1.0), (2000, 1.0), (1, 6.0)):
        conversation = _conversation()
        _begin(conversation, "x" * 400)
        conversation.commit("", usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=0))
        tokens = _begin(conversation, "y" * 1200).tokens

        assert prompt_tokens + _estimate("y" * 1200, expected) == tokens


def test_a_dense_first_message_is_not_taken_for_the_system_prompt() -> None:
    """What a first message has more of than was estimated goes when its turn goes."""
    conversation = _conversation()
    _begin(conversation, "\u1019" * 1500, window=8192)
    conversation.commit("a", usage=Usage(prompt_tokens=4000, completion_tokens=1))

    prompt = _begin(conversation, "y" * 6000, window=8192)
    assert 1 == prompt.dropped_turns
    assert prompt.tokens < 6000 + 100


def test_system_prompt_taken_for_too_much_is_put_right() -> None:
    """What the system prompt was wrongly held for is gone with the first count that shows it."""
    conversation = _conversation()
    _begin(conversation, "a")
    conversation.commit("b" * 300, interrupted=True)
    _begin(conversation, "a")
    conversation.commit("", usage=Usage(prompt_tokens=323, completion_tokens=0))
    assert 2 == _begin(conversation, "a", window=256).dropped_turns
    conversation.commit("", usage=Usage(prompt_tokens=12, completion_tokens=0))

    assert 12 + _estimate("a", 1.0) == _begin(conversation, "a").tokens


def test_engine_that_counts_nothing_leaves_the_estimates() -> None:
    """A count of no prompt tokens is no count: some servers say it for a prompt found in their cache."""
    conversation = _conversation()
    _begin(conversation, "x" * 300)
    conversation.commit("y" * 300, usage=Usage(prompt_tokens=0, completion_tokens=90))

    assert _estimate("") + 3 * _estimate("x" * 300) == _begin(conversation, "x" * 300).tokens


def test_engine_that_counts_only_what_is_new_is_not_believed() -> None:
    """A count far below what is known of the history leaves the history's size as it was."""
    conversation = _conversation()
    _begin(conversation, "x" * 6000)
    conversation.commit("first", usage=Usage(prompt_tokens=2000, completion_tokens=2))
    _begin(conversation, "two")
    conversation.commit("second", usage=Usage(prompt_tokens=9, completion_tokens=2))

    assert _begin(conversation, "three").tokens > 2002


def test_system_prompt_changes_with_the_next_turn() -> None:
    """A new system prompt is in the next prompt and counted as new."""
    conversation = _conversation("short")
    _begin(conversation, "one")
    conversation.commit("first", usage=Usage(prompt_tokens=20, completion_tokens=5))
    conversation.set_system_prompt("x" * 3000)
    prompt = _begin(conversation, "two")

    assert ("system", "x" * 3000) == _said(prompt)[0]
    assert prompt.tokens >= 3000 / 6


def test_system_prompt_changed_while_a_turn_is_open() -> None:
    """The engine's count of a running turn is not taken for that of the prompt that follows."""
    conversation = _conversation()
    _begin(conversation, "one")
    conversation.set_system_prompt("x" * 6000)
    assert "x" * 6000 == conversation.system_prompt
    conversation.commit("first", usage=Usage(prompt_tokens=12, completion_tokens=5))

    assert _begin(conversation, "two").tokens >= 6000 / 6
    conversation.rollback()
    with pytest.raises(ContextOverflow):
        _begin(conversation, "two", window=512)


def test_same_system_prompt_again_changes_nothing() -> None:
    """Setting what already stands keeps the engine's count of it."""
    conversation = _conversation("Be kind.")
    _begin(conversation, "one")
    conversation.commit("first", usage=Usage(prompt_tokens=50, completion_tokens=5))
    before = _begin(conversation, "two").tokens
    conversation.rollback()
    conversation.set_system_prompt("Be kind.")

    assert before == _begin(conversation, "two").tokens


def test_repr_is_a_snapshot() -> None:
    """A conversation tells where it stands, and not what was said."""
    conversation = _conversation("secret")
    _begin(conversation, "secret")

    assert "<Conversation: 0 turns, open turn, 0 dropped>" == repr(conversation)
    conversation.commit("secret")
    assert "<Conversation: 1 turns, no open turn, 0 dropped>" == repr(conversation)


# ---------------------------------------------------------------------------------------------------------
# Any conversation


@dataclass(frozen=True)
class Say:
    """One turn: what is said, how large the window is, and how the turn ends."""

    text: str
    answer: str
    end: str
    window: int
    max_tokens: int


# A letter and how often: as varied in size as texts, and much cheaper to make.
_texts = st.builds(lambda char, count: char * count, st.sampled_from("aé日🙂"), st.sampled_from([1, 2, 7, 40, 300]))
_answers = st.just("") | _texts
_turns = st.lists(
    st.builds(
        Say,
        text=_texts,
        answer=_answers,
        end=st.sampled_from(["counted", "counted", "uncounted", "interrupted", "failed"]),
        window=st.sampled_from([256, 600, 600, 8192]),
        max_tokens=st.sampled_from([1, 100, 10_000]),
    ),
    min_size=1,
    max_size=12,
)
_systems = st.sampled_from(["", "Be kind.", "x" * 200])
_limits = st.sampled_from([1, 2, 5, 8, 1000])


@dataclass
class Engine:
    """Counts as tokenizers do: a head for the template, and for each message its marks and its bytes."""

    bytes_per_token: int
    head: int = 7
    marks: int = 4

    def text(self, text: str) -> int:
        return -(-len(text.encode()) // self.bytes_per_token)

    def prompt(self, messages: tuple[Message, ...]) -> int:
        return self.head + sum(self.marks + self.text(message.content) for message in messages)


_engines = st.builds(Engine, st.sampled_from([1, 3, 8]))


@dataclass
class Book:
    """Everything that was ever said and not undone, for comparison."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0


def _end(conversation: Conversation, say: Say, usage: Usage) -> None:
    match say.end:
        case "failed":
            conversation.rollback()
        case "counted":
            conversation.commit(say.answer, usage=usage)
        case _:
            conversation.commit(say.answer, interrupted=say.end == "interrupted")


def _state(conversation: Conversation) -> tuple[tuple[Turn, ...], str, int]:
    return copy.deepcopy(conversation.turns), repr(conversation), conversation.messages_kept


@settings(max_examples=15 * FUZZ, deadline=None)
@given(_turns, _systems, _limits, _engines)
def test_any_conversation(turns: list[Say], system: str, limit: int, engine: Engine) -> None:
    """System prompt and newest message are always there, roles alternate, and nothing is lost unseen."""
    conversation = _conversation(system, limit)
    book = Book()
    for say in turns:
        before = _state(conversation)
        try:
            prompt = _begin(conversation, say.text, say.window, say.max_tokens)
        except ContextOverflow:
            assert before == _state(conversation)
            continue
        roles = [message.role for message in prompt.messages]
        if system:
            assert Message("system", system) == prompt.messages[0]
            del roles[0]
        assert ["user", "assistant"] * (len(roles) // 2) + ["user"] == roles
        assert prompt.messages[-1].content.split("\n")[-1] == say.text
        assert before[0] == conversation.turns

        usage = Usage(prompt_tokens=engine.prompt(prompt.messages), completion_tokens=engine.text(say.answer))
        _end(conversation, say, usage)
        if say.end == "failed":
            assert before == _state(conversation)
        else:
            book.turns.append((say.text, say.answer))
            book.dropped += prompt.dropped_turns
            assert book.dropped == conversation.dropped_turns
        assert book.turns[book.dropped :] == [(turn.user, turn.answer) for turn in conversation.turns]
        assert limit + 1 >= conversation.messages_kept


@settings(max_examples=12 * FUZZ, deadline=None)
@given(_turns, _systems, _limits, _engines)
def test_prefix_is_kept_between_trims(turns: list[Say], system: str, limit: int, engine: Engine) -> None:
    """Unless turns are dropped, a prompt begins with all of the one before but its newest message."""
    conversation = _conversation(system, limit)
    last: tuple[Message, ...] = ()
    for say in turns:
        try:
            prompt = _begin(conversation, say.text, say.window, say.max_tokens)
        except ContextOverflow:
            continue
        if prompt.dropped_turns == 0:
            assert last[:-1] == prompt.messages[: len(last[:-1])]
        usage = Usage(prompt_tokens=engine.prompt(prompt.messages), completion_tokens=engine.text(say.answer))
        _end(conversation, say, usage)
        if say.end != "failed" or prompt.dropped_turns == 0:
            last = prompt.messages


@settings(max_examples=15 * FUZZ, deadline=None)
@given(_turns, _systems, _engines)
def test_accounting_is_exact(turns: list[Say], system: str, engine: Engine) -> None:
    """After a counted turn the next prompt's size is the engine's count, and an estimate of the new message."""
    conversation = _conversation(system)
    for say in turns:
        try:
            prompt = _begin(conversation, say.text, say.window, say.max_tokens)
        except ContextOverflow:
            continue
        usage = Usage(prompt_tokens=engine.prompt(prompt.messages), completion_tokens=engine.text(say.answer))
        _end(conversation, say, usage)
        if say.end == "counted":
            size = _begin(conversation, "more", 10**7, 1).tokens - conversation._estimate("more")
            conversation.rollback()
            assert usage.prompt_tokens + usage.completion_tokens == size
        assert all(turn.tokens >= 0 for turn in conversation.turns)
        assert 0 <= conversation._head.size


@settings(max_examples=10 * FUZZ, deadline=None)
@given(st.lists(_texts, min_size=2, max_size=30), _systems, _engines)
def test_prompts_fit_where_the_engine_counts(texts: list[str], system: str, engine: Engine) -> None:
    """With an engine that counts, prompts after the first have the room that was promised to the answer."""
    conversation = _conversation(system)
    counted = False
    for text in texts:
        prompt = _begin(conversation, text, 4096, 512)
        real = engine.prompt(prompt.messages)
        if counted and engine.bytes_per_token > 1:
            assert 4096 - 512 >= real
        conversation.commit(text, usage=Usage(prompt_tokens=real, completion_tokens=engine.text(text)))
        counted = True


_steps = st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=3)


@settings(max_examples=15 * FUZZ, deadline=None)
@given(st.lists(st.tuples(_texts, _steps, _answers, st.booleans()), min_size=1, max_size=10), _engines)
def test_any_conversation_with_tools(turns: list[tuple[str, Any, str, bool]], engine: Engine) -> None:
    """Every call in a prompt is followed by its result, whatever was cut off, and the prefix stays between trims."""
    conversation = _conversation("Be kind.")
    last: tuple[Message, ...] = ()
    for text, steps, answer, interrupted in turns:
        prompt = _begin(conversation, text, 4096, 512)
        if prompt.dropped_turns == 0:
            assert last == prompt.messages[: len(last)]
        whole = True
        for number, (calls, answered) in enumerate(steps):
            asked = tuple(ToolCall(f"{number}-{call}", "add", "{}") for call in range(calls))
            conversation.ask_tools("hm", asked)
            for call in asked[: None if answered else -1]:
                whole = conversation.tool_result(call.id, "a result")
            if not answered:
                whole = False
                break
            prompt = conversation.go_on(context_window=4096, max_tokens=512)
        if whole and not interrupted:
            usage = Usage(prompt_tokens=engine.prompt(prompt.messages), completion_tokens=engine.text(answer))
            conversation.commit(answer, usage=usage)
        else:
            conversation.commit(answer, interrupted=True)
        waiting: list[str] = []
        for message in prompt.messages:
            assert message.role == "tool" or not waiting
            if message.role == "tool":
                assert waiting.pop(0) == message.tool_call_id
            waiting += [call.id for call in message.tool_calls]
        assert not waiting
        following = conversation.peek("", context_window=10**6, max_tokens=1)
        assert following is not None
        last = following[:-1]
        assert len(turns) >= len(conversation.turns) + conversation.dropped_turns


def test_tools_are_weighed_when_the_first_prompt_is_counted() -> None:
    """A long result in the first turn is not taken for the system prompt, nor schemas for the user's message."""
    conversation = _conversation("Be kind.")
    conversation.begin("hi", context_window=4096, max_tokens=100)
    conversation.ask_tools("", CALLS[:1])
    conversation.tool_result("1", "word " * 1500)
    conversation.go_on(context_window=4096, max_tokens=100)
    conversation.commit("so", usage=Usage(prompt_tokens=1530, completion_tokens=2))
    assert conversation._head.size < 30

    conversation = _conversation()
    conversation.set_system_prompt("", schemas="word " * 1000)
    _begin(conversation, "hi", window=4096)
    conversation.commit("so", usage=Usage(prompt_tokens=1210, completion_tokens=2))
    assert conversation._head.size > 1150
    conversation.set_system_prompt("", schemas="word " * 1000, model="other")
    assert 0 < _begin(conversation, "more " * 1000, window=4096).tokens - 1000


def test_what_no_engine_counted_is_held_for_the_most_it_can_be() -> None:
    """Answers that were cut off, and a system prompt no engine has seen, leave the window its room in any script."""
    conversation = _conversation()
    for _ in range(4):
        _begin(conversation, "再说一遍", window=1024)
        conversation.commit("今天天气很好，我们去公园散步吧。" * 12, interrupted=True)
    prompt = _begin(conversation, "好", window=1024)
    assert sum(len(message.content.encode()) for message in prompt.messages) <= 1024
    assert prompt.dropped_turns > 0
    conversation.commit("好", usage=Usage(prompt_tokens=300, completion_tokens=1))
    assert (301, 301) == (conversation._at_most(0), conversation.tokens)
