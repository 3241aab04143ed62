"""Lines come out of bytes, however those are split."""

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.ndjson import LineBuffer
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
    """The same bytes come out, in whole lines, with or without a line end at the end."""
    buffer = LineBuffer()
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    got = [buffer.feed(piece) for piece in pieces(data, cuts)]
    assert all(whole.endswith(b"\n") for whole in got if whole)
    assert data == b"".join(got) + buffer.flush()


def test_a_line_comes_when_it_is_complete() -> None:
    """Half a line waits, a whole one does not."""
    buffer = LineBuffer()
    assert (buffer.feed(b'{"a":'), bytes(buffer.rest)) == (b"", b'{"a":')
    assert (buffer.feed(b"1}\n{"), bytes(buffer.rest)) == (b'{"a":1}\n', b"{")
    assert buffer.flush() == b"{"
    assert buffer.flush() == b""


@pytest.mark.parametrize("data", [b"x" * 11, b"x" * 11 + b"\n", b"a\n" + b"x" * 11, b"x" * 11 + b"\na\n"])
def test_a_line_has_a_bound(data: bytes) -> None:
    """A line that is too long is an error, whether or not its end has come."""
    with pytest.raises(GenerationFailed):
        LineBuffer(10).feed(data)


def test_a_line_that_grows_has_a_bound() -> None:
    """The bound holds over many reads, and many short lines in one read are not one long line."""
    buffer = LineBuffer(10)
    assert buffer.feed((b"x" * 10 + b"\n") * 3) == (b"x" * 10 + b"\n") * 3
    buffer.feed(b"x" * 6)
    with pytest.raises(GenerationFailed):
        buffer.feed(b"x" * 6)
