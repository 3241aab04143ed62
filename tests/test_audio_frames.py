"""Audio as binary frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.audio_format import FORMATS, AudioFormat
from llm_service.audio_frames import binary_frame, read_frame
from llm_service.events import Audio


def test_layout() -> None:
    """Version, flags, format, a zero, then chunk and rate in network order, then the data."""
    frame = binary_frame(Audio(chunk=258, format="mp3", sample_rate=None, data=b"xy"))

    assert b"\x01\x00\x02\x00\x00\x00\x01\x02\x00\x00\x00\x00xy" == frame
    assert b"\x01\x01\x00\x00\x00\x00\x00\x01\x00\x00\x5d\xc0" == binary_frame(
        Audio(chunk=1, format="pcm", sample_rate=24_000, last=True)
    )


@given(
    chunk=st.integers(0, 2**32 - 1),
    form=st.sampled_from(FORMATS),
    rate=st.one_of(st.none(), st.integers(1, 192_000)),
    data=st.binary(max_size=40),
    last=st.booleans(),
)
def test_what_is_written_is_read(chunk: int, form: AudioFormat, rate: int | None, data: bytes, last: bool) -> None:
    """Nothing of an audio event is lost on the way."""
    audio = Audio(chunk=chunk, format=form, sample_rate=rate, data=data, last=last)

    assert audio == read_frame(binary_frame(audio))


@pytest.mark.parametrize("data", [b"", b"\x01" * 11, b"\x02" + bytes(11), b"\x01\x00\x04" + bytes(9)])
def test_other_frames_are_refused(data: bytes) -> None:
    """A frame of another version, or too short, is no audio."""
    with pytest.raises(ValueError, match="not an audio frame"):
        read_frame(data)
