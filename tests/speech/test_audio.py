"""What is a WAV, how it is taken apart, and what is none."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.errors import SpeechFailed
from llm_service.speech.audio import WavReader, container, wav_header

SAMPLES = struct.pack("<6h", 0, 1, -1, 300, 32767, -32768)


def riff(fmt: bytes, data: bytes, *, size: int | None = None, before: bytes = b"") -> bytes:
    length = len(data) if size is None else size
    return b"RIFF\0\0\0\0WAVE" + before + fmt + b"data" + struct.pack("<I", length) + data


def fmt(kind: int = 1, channels: int = 1, rate: int = 22_050, bits: int = 16) -> bytes:
    frame = channels * bits // 8
    return b"fmt " + struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * frame, frame, bits)


@given(st.lists(st.integers(0, 80), max_size=8))
def test_a_wav_in_any_parts_is_the_same(cuts: list[int]) -> None:
    """However the file is cut on its way, the samples come whole and in order."""
    file = wav_header(16_000, len(SAMPLES)) + SAMPLES
    bounds = [0, *sorted(min(cut, len(file)) for cut in cuts), len(file)]
    reader = WavReader()

    parts = [reader.feed(file[start:end]) for start, end in pairwise(bounds)]
    reader.finish()

    assert SAMPLES == b"".join(parts)
    assert all(len(part) % 2 == 0 for part in parts)
    assert 16_000 == reader.sample_rate


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_length_that_was_not_known(size: int) -> None:
    """Who streams a WAV writes no length, or about the largest: it ends with the stream."""
    reader = WavReader()

    assert SAMPLES == reader.feed(riff(fmt(), SAMPLES, size=size))
    reader.finish()


def test_other_parts_of_a_file_are_left_out() -> None:
    """Lists before the samples, odd in length, and what stands behind them are no sound."""
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    reader = WavReader()

    assert SAMPLES == reader.feed(riff(fmt(), SAMPLES, before=note) + b"LIST\4\0\0\0noise")
    reader.finish()


def test_floats_become_integers() -> None:
    """32-bit floats, as torchaudio saves them, become 16-bit samples; what is too loud is clipped."""
    floats = struct.pack("<4f", 0.0, 1.0, -1.0, 7.5)
    reader = WavReader()

    assert struct.pack("<4h", 0, 32767, -32767, 32767) == reader.feed(riff(fmt(kind=3, bits=32), floats))


def test_of_two_channels_the_first_is_heard() -> None:
    """A client gets one channel."""
    stereo = struct.pack("<6h", 1, 9, 2, 9, 3, 9)
    reader = WavReader()

    assert struct.pack("<3h", 1, 2, 3) == reader.feed(riff(fmt(channels=2), stereo))


@pytest.mark.parametrize(
    "file",
    [
        riff(fmt(bits=24), b"123"),
        riff(fmt(kind=6, bits=8), b"123"),
        riff(fmt(rate=1), SAMPLES),
        riff(fmt(channels=0), SAMPLES),
        riff(b"", SAMPLES),
        riff(fmt(kind=3, bits=32), struct.pack("<f", float("nan"))),
        b"RIFF\0\0\0\0AVI " + SAMPLES,
        b"RIFF\0\0\0\0WAVE" + b"JUNK\xff\xff\xff\x0f" + bytes(70_000),
    ],
)
def test_what_cannot_be_used_is_refused(file: bytes) -> None:
    """Another kind of samples, or a file that has none, is an error, not noise."""
    with pytest.raises(SpeechFailed):
        WavReader().feed(file)


@pytest.mark.parametrize("length", [0, 30, 44, 50])
def test_half_a_wav_is_told(length: int) -> None:
    """A file that ends before its header says so has broken off."""
    reader = WavReader()
    reader.feed((wav_header(8000, len(SAMPLES)) + SAMPLES)[:length])

    with pytest.raises(SpeechFailed, match="broke off"):
        reader.finish()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"OggS\0\2\0\0\0\0\0\0", "opus"),
        (b"ID3\4\0\0\0\0\0\0\0\0", "mp3"),
        (b"\xff\xfb\x90\x64", "mp3"),
        (b"\xff\xf3\x40\xc4", "mp3"),
        (b"\xff\xff\xff\xff", None),
        (b"\xff", None),
        (b'{"code": 400', None),
        (b"", None),
    ],
)
def test_a_file_is_told_by_its_beginning(head: bytes, expected: str | None) -> None:
    """The first bytes say what it is, whatever the Content-Type said."""
    assert expected == container(head)
