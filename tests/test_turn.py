from llm_service.generation import Message, ToolCall
from llm_service.turn import ToolStep, Turn

CALL = ToolCall("1", "add", '{"a": 1}')


def test_a_step_is_whole_with_all_results() -> None:
    """A step's messages are its calls and their results."""
    step = ToolStep("hm", (CALL,))
    found = [step.whole]
    step.results["1"] = "2"
    assert [False, True] == [*found, step.whole]
    assert [
        Message("assistant", "hm", tool_calls=(CALL,)),
        Message("tool", "2", tool_call_id="1", tool_name="add"),
    ] == list(step.messages())


def test_a_turn_knows_its_size() -> None:
    """Messages and bytes are those of the user, the tools and the answer."""
    turn = Turn(user="é", answer="yes", steps=[ToolStep("hm", (CALL,), {"1": "22"})])
    assert (4, 2 + 3 + 2 + 2 + 3 + 8) == (turn.messages, turn.bytes)
    assert (1, 1, False) == (Turn("a").messages, Turn("a").bytes, Turn("a").answered)


def test_an_open_step_leaves_its_text() -> None:
    """What was said before calls that nothing was made of stays in the answer: those without results, or an answer."""
    turn = Turn(user="a", answer="!", steps=[ToolStep("hm", (CALL,))])
    turn.fold()
    assert ("hm!", []) == (turn.answer, turn.steps)
    turn = Turn(user="a", steps=[ToolStep("", (CALL,), {"1": "2"}), ToolStep("hm", (CALL,), {"1": "2"})])
    turn.fold()
    assert ("hm", ["2"]) == (turn.answer, [message.content for message in turn.reply() if message.role == "tool"])
    turn = Turn(user="a", steps=[ToolStep("", (CALL,), {"1": "2"})])
    turn.fold()
    assert not turn.answered


def test_a_cut_is_a_place_in_all_that_was_said() -> None:
    """It counts from the first word on, before the calls as well; a later ack may tell that more was heard."""
    turn = Turn(user="a", answer="done.", steps=[ToolStep("let me see. ", (CALL,), {"1": "2"})])
    turn.cut(3)
    assert ("let", []) == (turn.answer, turn.steps)
    turn.cut(14)
    assert ("do", ["let me see. "]) == (turn.answer, [step.text for step in turn.steps])
    turn.cut(100)
    assert "done." == turn.answer
    turn.cut(0)
    assert not turn.answered
