"""Reasoning between tags at the beginning of an answer is told apart, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.engines.think_tags import MAX_HELD, ThinkTags
from llm_service.generation import Delta, TakeDelta

# Made of what tags are made of, so that nearly every text has one, or nearly one.
TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<",
            "<th",
            "ink>",
            "</",
            "think",
            ">",
            " ",
            "\n",
            "\u200b",
            "a",
            "ü",
            " " * 2000,
            "a" * 2000,
        ]
    )
).map("".join)


class Answer:
    """What an engine does with the splitter, and what came out of it."""

    def __init__(self) -> None:
        self.got: list[Delta] = []
        self.tags = ThinkTags(self.got.append, self._settle)
        self.take: TakeDelta = self.tags.take
        self.settled = 0

    def _settle(self) -> None:
        self.settled += 1
        self.take = self.got.append

    def split(self, *texts: str) -> tuple[str, str]:
        for text in texts:
            self.take(Delta(text))
        self.tags.end()
        assert all(delta.text for delta in self.got), "an empty delta"
        thoughts = "".join(delta.text for delta in self.got if delta.thinking)
        return thoughts, "".join(delta.text for delta in self.got if not delta.thinking)


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>hm</think>Hello.", "hm", "Hello."),
        ("\n <think>\nhm\n</think>\n\nHello.\n", "\nhm\n", "Hello.\n"),
        ("<think></think>Hello.", "", "Hello."),
        ("<think>hm", "hm", ""),
        ("<think>hm</thi", "hm</thi", ""),
        ("<think>a < b, </b></thing></think>c", "a < b, </b></thing>", "c"),
        ("<think>a<</think>b", "a<", "b"),
        ("<think>a</think>", "a", ""),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
        ("<think><think>a</think>b", "<think>a", "b"),
        ("Hello <think>no</think>", "", "Hello <think>no</think>"),
        ("<thinking>no", "", "<thinking>no"),
        (" <thin", "", " <thin"),
        (" <b>", "", " <b>"),
        ("</think>a", "", "</think>a"),
        (" \n", "", " \n"),
        (" " * MAX_HELD + "<think>a", "a", ""),
        (" " * MAX_HELD + " <think>a", "", " " * MAX_HELD + " <think>a"),
        ("\ufeff\u200b\n<think>a</think>\u200bb", "a", "b"),
        ("<think>a</think><think>b</think>Hello", "ab", "Hello"),
        ("<think>a</think>\n\n<think>b</think>\n<think></think> \n<think>c</think>\nHello", "abc", "Hello"),
        ("<think>a</think>\n<think>b", "ab", ""),
        ("<think>a</think>\n<thi", "a", "<thi"),
        ("<think>a</think>\n<b>", "a", "<b>"),
        ("<think>a<think>b</think>c</think>Hello", "a<think>b</think>c", "Hello"),
        ("<think>a<think>b</think>\n</think>\nHello", "a<think>b</think>\n", "Hello"),
        ("<think>a<think>b<think>c</think>d</think>e</think>f", "a<think>b<think>c</think>d</think>e", "f"),
        ("<think>a<think>b</think>c<think>d</think>e</think>f", "a<think>b</think>c<think>d</think>e", "f"),
        ("<think>\n<think>a</think>b", "\n<think>a", "b"),
        ("<think><think>a</think></think>b", "<think>a", "b"),
        ("<think>The tag <think>?</think>\nIt begins", "The tag <think>?", "It begins"),
        ("<think>a<think>b</think>" + "c" * MAX_HELD + "d", "a<think>b", "c" * MAX_HELD + "d"),
        ("<think>a<think>b</think>" + "c" * MAX_HELD + "</think>d", "a<think>b", "c" * MAX_HELD + "</think>d"),
        ("<think>a<think>b</think>" + " " * MAX_HELD + " c", "a<think>b", "c"),
        ("Sure. <think>x</think>Hello", "", "Sure. <think>x</think>Hello"),
        ("x</think>Hello", "", "x</think>Hello"),
        ("<think></think>" * 5000 + "a", "", "a"),
    ],
)
def test_what_is_told_apart(text: str, thoughts: str, answer: str) -> None:
    """Reasoning at the beginning counts, in one block or several; all else is the answer, unchanged."""
    assert (thoughts, answer) == Answer().split(text)
    assert (thoughts, answer) == Answer().split(*text)


@given(TEXTS, st.data())
def test_any_cut(text: str, data: st.DataObject) -> None:
    """However the text is cut into deltas, reasoning and answer are the same, and nothing of them is lost."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True) if start < end]
    answer = Answer()
    split = answer.split(*pieces)
    assert split == Answer().split(text)
    assert answer.settled <= 1
    if not text.lstrip(" \n\u200b").startswith("<think>"):
        assert ("", text) == split


def test_it_steps_aside() -> None:
    """From the first text on that can be no tag it is called no more."""
    answer = Answer()
    answer.take(Delta(" <thi"))
    assert ([], 0) == (answer.got, answer.settled)
    answer.take(Delta("s"))
    assert ([Delta(" <this")], 1) == (answer.got, answer.settled)
    answer = Answer()
    answer.split("<think>a</think>", " b", "c")
    assert ([Delta("a", thinking=True), Delta("b"), Delta("c")], 1) == (answer.got, answer.settled)


def test_thoughts_flow() -> None:
    """Reasoning is not held back but for what may be the beginning of its end."""
    answer = Answer()
    for text, got in (("<think>a", ["a"]), (" b<", ["a", " b"]), ("/c", ["a", " b", "</c"])):
        answer.take(Delta(text))
        assert got == [delta.text for delta in answer.got]


def test_an_answer_flows_after_reasoning_that_began_twice() -> None:
    """A second tag right behind the first does not let the answer wait, and one within the reasoning only at first."""
    answer = Answer()
    for text in ("<think>", "\n<think>", "a</think>", "b"):
        answer.take(Delta(text))
    assert (Delta("b"), 1) == (answer.got[-1], answer.settled)
    answer = Answer()
    for text in ("<think>a<think>", "a</think>", "b" * MAX_HELD):
        answer.take(Delta(text))
    assert 0 == answer.settled
    answer.take(Delta("b"))
    assert (Delta("b" * MAX_HELD + "b"), 1) == (answer.got[-1], answer.settled)


def test_who_goes_on_calling_it() -> None:
    """It hands on what comes and is settled once."""
    answer = Answer()
    for text in ("a", "<think>", "b"):
        answer.tags.take(Delta(text))
    answer.tags.end()
    assert ([Delta("a"), Delta("<think>"), Delta("b")], 1) == (answer.got, answer.settled)


def test_an_engine_that_tells_reasoning_itself() -> None:
    """Its reasoning passes, what was held back goes before it, and its answer is not looked at."""
    answer = Answer()
    answer.take(Delta(" <"))
    answer.take(Delta("hm", thinking=True))
    assert ([Delta(" <"), Delta("hm", thinking=True)], 1) == (answer.got, answer.settled)
    assert ("hm", " <<think>a") == answer.split("<think>a")
    answer = Answer()
    answer.take(Delta("hm", thinking=True))
    assert ([Delta("hm", thinking=True)], 1) == (answer.got, answer.settled)
    answer = Answer()
    for delta in (Delta("<think>a"), Delta("b", thinking=True)):
        answer.take(delta)
    assert ("abc", "d") == answer.split("c</think>d")
