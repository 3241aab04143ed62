"""The rest of an answer from another engine."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.engines.base import timed
from llm_service.engines.continuation import Continuation, left_open
from llm_service.generation import Delta, Finish, Message, Sink, Usage
from tests.engines.requests import WEATHER, a_request


class Client:
    """One that hears an answer, some of it already."""

    def __init__(self, said: str, deltas: int = 3) -> None:
        self.text = said
        self.sink: Sink = timed(self.take)
        self.sink.said = lambda: self.text
        self.sink.times += [1.0] * deltas

    def take(self, delta: Delta) -> None:
        self.text += delta.text


@pytest.mark.parametrize(
    ("said", "prefix", "rest", "whole"),
    [
        ("one two", "one two", [" three", "."], "one two three."),
        ("one two ", "one two", [" three", "."], "one two three."),
        ("one two ", "one two", [" ", "three"], "one two three"),
        ("one\n\n", "one", ["\n", "\n", "two"], "one\n\ntwo"),
        ("one\n\n", "one", ["\n", " two"], "one\n\n two"),
        ("one ", "one", ["two"], "one two"),
        ("one ", "one", ["\ntwo"], "one \ntwo"),
        ("one t", "one t", ["wo", " three"], "one two three"),
    ],
)
def test_the_seam(said: str, prefix: str, rest: list[str], whole: str) -> None:
    """Space that was said is in no prompt, and not said twice; nothing else is left out."""
    client = Client(said)
    going_on = Continuation(a_request(), said, client.sink)
    for text in rest:
        going_on.sink.take(Delta(text))
    assert Message("assistant", prefix) == going_on.request.messages[-1]
    assert whole == client.text
    assert len(going_on.sink.times) == len(client.sink.times) - 3


@given(st.text("ab \n"), st.integers(0, 20), st.lists(st.integers(1, 3), max_size=20))
def test_any_cut(text: str, cut: int, sizes: list[int]) -> None:
    """Wherever an answer is cut, and in whatever pieces its rest comes, the whole is the whole."""
    said = text[:cut]
    client = Client(said)
    going_on = Continuation(a_request(), said, client.sink)
    left = text[len(said.rstrip()) :]
    for size in [*sizes, len(text)]:
        piece, left = left[:size], left[size:]
        if piece:
            going_on.sink.take(Delta(piece))
    assert text == client.text


def test_nothing_but_space() -> None:
    """Then the answer is begun anew, and its space not said again."""
    client = Client(" \n")
    going_on = Continuation(a_request(), " \n", client.sink)
    assert a_request().messages == going_on.request.messages
    going_on.sink.take(Delta(" one"))
    assert " \none" == client.text


def test_reasoning_goes_through() -> None:
    """It is no part of the answer, nor of its space."""
    heard: list[Delta] = []
    sink = timed(heard.append)
    sink.times.append(1.0)
    going_on = Continuation(a_request(), "one ", sink)
    going_on.sink.take(Delta(" hm", thinking=True))
    going_on.sink.take(Delta(" two"))
    assert [Delta(" hm", thinking=True), Delta("two")] == heard


def test_the_end_counts_both_parts() -> None:
    """Tokens said before are completion, not prompt; an engine that does not count is left at that."""
    going_on = Continuation(a_request(max_tokens=16), "one two three", Client("").sink)
    finish = Finish("length", Usage(53, 10, cached_tokens=5))
    assert Finish("length", Usage(50, 13, cached_tokens=5)) == going_on.whole(finish)
    assert Finish("stop") == going_on.whole(Finish("stop"))
    assert 13 == going_on.request.sampling.max_tokens
    assert 1 == Continuation(a_request(max_tokens=2), "a", Client("").sink).request.sampling.max_tokens


@pytest.mark.parametrize(
    ("said", "deltas", "left"),
    [
        ("one two three", 3, 97),
        ("Donaudampfschiff ist ", 4, 96),
        ("one two three four five six ", 2, 90),  # 28 bytes in two deltas are no two tokens
        ("one two " * 100, 10, 1),
    ],
)
def test_deltas_of_several_tokens(said: str, deltas: int, left: int) -> None:
    """An engine that bundles tokens leaves no more than the client's limit does; its tokens are guessed."""
    going_on = Continuation(a_request(max_tokens=100), said, Client(said, deltas).sink)
    assert left == going_on.request.sampling.max_tokens


@pytest.mark.parametrize(("counted", "tokens"), [(7, 7), (2, 3)])
def test_a_count_of_what_was_said(counted: int, tokens: int) -> None:
    """An engine's count stands instead of the guess, unless there were more deltas: each has a token at least."""
    said = "one two three four five six seven "
    going_on = Continuation(a_request(max_tokens=100), said, Client(said, 3).sink)
    assert 100 - tokens == going_on.counted(going_on.request, counted).sampling.max_tokens
    assert Finish("stop", Usage(50, tokens + 1)) == going_on.whole(Finish("stop", Usage(50 + tokens, 1)))


def test_what_can_be_gone_on_with() -> None:
    """Text, whose whole is known; no tools, and no reasoning."""
    client = Client("one")
    assert Continuation.of(a_request(), client.sink) is not None
    assert Continuation.of(msgspec.structs.replace(a_request(), tools=(WEATHER,)), client.sink) is None
    client.sink.said = lambda: None
    assert Continuation.of(a_request(), client.sink) is None
    client.sink.said = None
    assert Continuation.of(a_request(), client.sink) is None


@pytest.mark.parametrize(
    ("rendered", "is_open"),
    [
        ("<|im_start|>assistant\nThe sea", True),
        ("<|im_start|>assistant\nThe sea<|im_end|>", False),
        ("<|im_start|>assistant\nThe sea<|im_end|>\n<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\nThe sea", True),
        ("<|im_start|>assistant\n<think>\nThe sea", False),
        ("", False),
    ],
)
def test_left_open(rendered: str, is_open: bool) -> None:
    """A prompt must end with the message, and not within reasoning."""
    assert is_open == left_open(rendered, "The sea")
