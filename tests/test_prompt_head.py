from llm_service.prompt_head import SUMMARY_HEADING, PromptHead
from llm_service.token_estimate import TokenEstimate, fewest_tokens, most_tokens


def _head(system_prompt: str = "Be kind.", tokens: int | None = None) -> PromptHead:
    head = PromptHead(system_prompt, TokenEstimate())
    head.tokens = tokens
    return head


def test_a_change_waits_for_the_next_turn() -> None:
    """An open turn's prompt keeps the head that it was made with, and so do its tokens."""
    head = _head(tokens=7)
    head.change("Be brief.", schemas="[]", model="")
    assert ("Be kind.", "Be brief.", 7) == (head.text, head.next_text, head.size)
    head.begin_turn()
    assert ("Be brief.", None) == (head.text, head.tokens)
    assert head.size == head.likely > TokenEstimate().likely("Be brief.")


def test_the_same_again_keeps_what_was_counted() -> None:
    """A configuration that changes nothing of the head leaves the engine's count; another model does not."""
    head = _head(tokens=7)
    head.change("Be kind.", schemas="", model="")
    head.begin_turn()
    assert 7 == head.size
    head.change("Be kind.", schemas="", model="another")
    assert head.tokens is None


def test_the_summary_stands_behind_the_system_prompt() -> None:
    """It is in the text of this turn and the next, or is all of it."""
    head = _head(tokens=7)
    head.summarize("They spoke of boats.")
    assert f"Be kind.\n\n{SUMMARY_HEADING}\nThey spoke of boats." == head.text == head.next_text
    assert head.tokens is None
    bare = _head("")
    bare.summarize("Boats.")
    assert f"{SUMMARY_HEADING}\nBoats." == bare.text


def test_a_summary_left_out_comes_back_unless_the_turn_is_kept() -> None:
    """Left out, it costs nothing; taken back, all is as it was; once the turn is kept it is gone."""
    head = _head()
    assert not head.leave_out_summary()
    head.restore("Be kind.", "", "", "They spoke of boats.", 30)
    assert head.leave_out_summary()
    assert not head.leave_out_summary()
    assert ("Be kind.", None) == (head.text, head.tokens)
    head.take_back_summary()
    assert (30, "They spoke of boats.") == (head.size, head.summary)
    assert head.leave_out_summary()
    head.keep_as_sent()
    head.take_back_summary()
    assert ("", "Be kind.", None) == (head.summary, head.text, head.tokens)


def test_sizes() -> None:
    """What is not counted may be more than it is likely to be, and has no slack once it is counted."""
    head = _head("Grüße, 1234567890!")
    assert most_tokens("Grüße, 1234567890!") == head.size + head.slack
    assert fewest_tokens("Grüße, 1234567890!") == head.fewest
    assert len("Grüße, 1234567890!".encode()) == head.bytes
    head.tokens = 3
    assert (3, 0) == (head.size, head.slack)


def test_restored_it_is_what_it_was() -> None:
    """All of it is taken up, and nothing is waited for."""
    head = _head("")
    head.restore("Be kind.", "[]", "model", "Boats.", 12)
    head.begin_turn()
    assert (12, "model", "Boats.") == (head.size, head.model, head.summary)
    assert f"Be kind.\n\n{SUMMARY_HEADING}\nBoats." == head.text
