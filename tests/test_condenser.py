from dataclasses import replace

import pytest

from llm_service.condenser import MAX_FAILED, Condenser
from llm_service.conversation import Conversation
from llm_service.generation import SamplingParams, Usage
from llm_service.session_config import SessionConfig
from llm_service.session_defaults import Choices, SessionDefaults
from llm_service.summary import Condensation

CHOICES = SessionDefaults(
    provider="scripted",
    model="small",
    models=frozenset({"small"}),
    sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100),
    context_window=1024,
    system_prompt="",
    max_history_messages=50,
    max_queued_messages=2,
    context_strategy="summarize",
).choices(SessionConfig())


class Talk:
    """A conversation of turns of 100 tokens each, and its condenser."""

    def __init__(self, turns: int) -> None:
        self.conversation = Conversation(max_messages=1000)
        self.conversation.dropped_limit = 2048
        self.condenser = Condenser(self.conversation, max_tokens=100)
        for number in range(turns):
            self.conversation.begin("q", context_window=1024, max_tokens=100)
            usage = Usage(prompt_tokens=100 * (number + 1) - 20, completion_tokens=20)
            self.conversation.commit("answer " * 10, usage=usage)

    def job(self, choices: Choices = CHOICES) -> Condensation:
        job = self.condenser.next(choices)
        assert job is not None
        return job


def test_nothing_to_do_below_the_mark() -> None:
    """History far from the high mark is left alone, and so is any under the other strategy."""
    assert None is Talk(4).condenser.next(CHOICES)
    full = Talk(8)
    assert None is full.condenser.next(replace(CHOICES, summarizes=False))
    assert 8 == len(full.conversation.turns)


def test_one_request_at_a_time() -> None:
    """While one is out there is no other; its summary stands from the next settling on."""
    talk = Talk(8)
    job = talk.job()
    assert None is talk.condenser.next(CHOICES)
    talk.condenser.answered(job, "They talked.")
    assert "" == talk.conversation.summary
    talk.condenser.settle()
    assert "They talked." == talk.conversation.summary
    assert [] == talk.conversation.dropped


def test_an_answer_to_another_request_is_nobodys() -> None:
    """What was asked for another history changes nothing."""
    talk, other = Talk(8), Talk(8)
    talk.job()
    talk.condenser.answered(other.job(), "They talked.")
    talk.condenser.settle()
    assert "" == talk.conversation.summary


@pytest.mark.parametrize("text", ["", "x" * 5000])
def test_after_failures_in_a_row_the_turns_are_let_go(text: str) -> None:
    """They are asked for again until then; a summary in between begins the count anew."""
    talk = Talk(8)
    for _ in range(MAX_FAILED):
        talk.condenser.answered(talk.job(), text)
        talk.condenser.settle()
    assert None is talk.condenser.next(CHOICES)
    assert (8, "") == (len(talk.conversation.turns), talk.conversation.summary)

    talk.conversation.begin("q", context_window=1024, max_tokens=100, tokens=300)
    talk.conversation.commit("a", usage=Usage(prompt_tokens=600, completion_tokens=20))
    dropped = talk.conversation.dropped_turns
    assert dropped > 0
    job = talk.job()
    assert dropped == len(job.turns)  # what is dropped is tried, what is kept is left alone
    talk.condenser.answered(job, "They talked.")
    talk.condenser.settle()
    assert "They talked." == talk.conversation.summary


def test_what_is_forgotten_is_not_taken() -> None:
    """Once summaries are not wanted any more, one that comes is nobody's, and what waited is let go."""
    talk = Talk(8)
    job = talk.job()
    talk.condenser.forget()
    talk.condenser.answered(job, "They talked.")
    talk.condenser.settle()
    assert ("", [], 8) == (talk.conversation.summary, talk.conversation.dropped, len(talk.conversation.turns))


def test_what_is_skipped_is_left_until_more_is_dropped() -> None:
    """It counts as no failure; once a trim has dropped turns, these are to be condensed."""
    talk = Talk(8)
    job = talk.job()
    talk.condenser.skipped(job)
    for _ in range(MAX_FAILED + 1):
        talk.condenser.settle()
        assert None is talk.condenser.next(CHOICES)
    talk.condenser.answered(job, "They talked.")
    talk.condenser.settle()
    assert ("", 8) == (talk.conversation.summary, len(talk.conversation.turns))

    talk.conversation.begin("q", context_window=1024, max_tokens=100, tokens=300)
    talk.conversation.commit("a", usage=Usage(prompt_tokens=600, completion_tokens=20))
    again = talk.job()
    assert talk.conversation.dropped == list(again.turns)
    talk.condenser.skipped(job)  # one of before says nothing of this one
    assert None is talk.condenser.next(CHOICES)
    talk.condenser.answered(again, "They talked.")
    talk.condenser.settle()
    assert "They talked." == talk.conversation.summary


def test_a_window_too_small_to_read_them_in() -> None:
    """Turns that no request has room for are left as they are."""
    talk = Talk(4)
    assert None is talk.condenser.next(replace(CHOICES, window=256))
    assert (4, []) == (len(talk.conversation.turns), talk.conversation.dropped)
