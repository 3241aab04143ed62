"""Lines come out of bytes, however those are split."""

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.ndjson import NDJSONDecoder
from llm_service.errors import GenerationFailed

# FASTTALK_FUZZ=1 looks longer.
EXAMPLES = 500 if os.environ.get("FASTTALK_FUZZ") == "1" else 15

LINES = st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=20).map(str.encode))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=EXAMPLES, deadline=None)
@given(LINES, st.lists(st.integers(min_value=0)), st.booleans())
def test_however_the_bytes_are_split(lines: list[bytes], cuts: list[int], ended: bool) -> None:
    """The same lines come out, in order and whole, with or without a line end at the end."""
    decoder = NDJSONDecoder()
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    got = [line for piece in pieces(data, cuts) for line in decoder.feed(piece)] + decoder.flush()
    assert [line for line in lines if line and not line.isspace()] == got


def test_a_line_comes_when_it_is_complete() -> None:
    """Half a line waits, a whole one does not."""
    decoder = NDJSONDecoder()
    assert decoder.feed(b'{"a":') == []
    assert decoder.feed(b"1}\n{") == [b'{"a":1}']
    assert decoder.flush() == [b"{"]
    assert decoder.flush() == []


@pytest.mark.parametrize("data", [b"x" * 11, b"x" * 11 + b"\n", b"a\n" + b"x" * 11, b"x" * 11 + b"\na\n"])
def test_a_line_has_a_bound(data: bytes) -> None:
    """A line that is too long is an error, whether or not its end has come."""
    with pytest.raises(GenerationFailed):
        NDJSONDecoder(10).feed(data)


def test_a_line_that_grows_has_a_bound() -> None:
    """The bound holds over many reads, and many short lines in one read are not one long line."""
    decoder = NDJSONDecoder(10)
    assert decoder.feed((b"x" * 10 + b"\n") * 3) == [b"x" * 10] * 3
    decoder.feed(b"x" * 6)
    with pytest.raises(GenerationFailed):
        decoder.feed(b"x" * 6)
