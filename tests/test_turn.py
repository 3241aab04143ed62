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
    """What was said before calls that never got results stays in the answer."""
    turn = Turn(user="a", answer="!", steps=[ToolStep("hm", (CALL,))])
    turn.drop_open_step()
    assert ("hm!", []) == (turn.answer, turn.steps)
