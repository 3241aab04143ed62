"""Payloads come out of an event stream as WHATWG's standard says, however the bytes are split."""

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.sse import SSEDecoder
from llm_service.errors import GenerationFailed

# FASTTALK_FUZZ=1 looks longer.
EXAMPLES = 500 if os.environ.get("FASTTALK_FUZZ") == "1" else 15

TEXT = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=10).map(str.encode)
NOISE = st.sampled_from([b"", b": a comment", b"event: x", b"id", b"retry: 5", b"dat: no", b"Data: no"])
END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream and its payloads."""
    stream, payloads = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])), []
    for values in draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5)):
        for value in values:
            noise = draw(NOISE)
            stream += noise + draw(END) if noise else b""
            stream += b"data: " + value + draw(END)
        # A lone CR before an LF would be one line end: the blank line repeats neither half of it.
        stream += b"\n" if stream.endswith(b"\n") else draw(st.sampled_from([b"\r", b"\r\n"]))
        payloads.append(b"\n".join(values))
    return stream, payloads


def decode(data: bytes, cuts: list[int]) -> list[bytes]:
    decoder = SSEDecoder()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [payload for start, end in itertools.pairwise(edges) for payload in decoder.feed(data[start:end])]


@settings(max_examples=EXAMPLES, deadline=None)
@given(streams(), st.lists(st.integers(min_value=0)))
def test_however_the_bytes_are_split(stream: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    """The same payloads come out, whole and in order."""
    assert stream[1] == decode(stream[0], cuts)


@settings(max_examples=EXAMPLES, deadline=None)
@given(streams())
def test_byte_by_byte(stream: tuple[bytes, list[bytes]]) -> None:
    """Nor does it matter when every byte comes alone."""
    assert stream[1] == decode(stream[0], list(range(len(stream[0]))))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(), st.lists(st.integers(min_value=0)))
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    """Whatever the bytes are, splitting them changes nothing."""
    assert decode(data, []) == decode(data, cuts)


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data\n\n", [b""]),
        (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n\n\n", []),
        (b"data: cut off\n", []),
        (b"data: a\r\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a:b\n\n", [b"a:b"]),
        ("data: \u2028 and \x0b\x1c stay\n\n".encode(), ["\u2028 and \x0b\x1c stay".encode()]),
    ],
)
def test_the_standard(stream: bytes, payloads: list[bytes]) -> None:
    """The rules of the standard, one by one."""
    assert payloads == decode(stream, [])


@pytest.mark.parametrize(
    "data", [b"data: 0123456789", b"data: 01234\ndata: 01234\n", b": 0123456789\rdata: 0123456789"]
)
def test_an_event_has_a_bound(data: bytes) -> None:
    """An event or a line that is too long is an error before it is complete."""
    with pytest.raises(GenerationFailed):
        SSEDecoder(10).feed(data)


def test_the_bound_is_per_event() -> None:
    """Any number of short events is no long one."""
    assert SSEDecoder(14).feed(b"data: 01234567\n\n" * 100) == [b"01234567"] * 100
