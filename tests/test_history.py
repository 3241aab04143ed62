from llm_service.generation import Message
from llm_service.history import History
from llm_service.turn import Turn


def _history(*turns: Turn) -> History:
    history = History()
    for turn in turns:
        history.append(turn)
    return history


def test_messages_and_sums_are_those_of_the_turns() -> None:
    """What is kept ready is what the turns say, added one by one or counted anew."""
    history = _history(Turn("a", "b", tokens=4, counted=True), Turn("c", tokens=3), Turn("d", "é", tokens=2))
    said = [Message("user", "a"), Message("assistant", "b"), Message("user", "c\nd"), Message("assistant", "é")]
    for _ in range(2):
        assert said == history.said
        assert (9, 4, 6, 5) == (history.tokens, history.counted, history.bytes, history.messages)
        history.changed()


def test_unanswered_users_wait_for_the_next() -> None:
    """What nothing answered stands before what is said next."""
    history = _history(Turn("a"), Turn("b"))
    assert "a\nb\nc" == history.joined("c")
    assert "b\nc" == history.without(1).joined("c")
    assert 2 == len(history.turns)


def test_dropped_turns_are_handed_out() -> None:
    """Turns go from the front, and what is left is counted anew."""
    first, second = Turn("a", "b", tokens=4), Turn("c", "d", tokens=5)
    history = _history(first, second)
    assert [] == history.drop(0)
    assert [first] == history.drop(1)
    assert (5, [Message("user", "c"), Message("assistant", "d")]) == (history.tokens, history.said)
