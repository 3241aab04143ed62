"""Audio as binary frames: twelve bytes, then the data. Pure.

    0       1       2       3       4               8               12
    | 1     | flags | format| 0     | chunk         | sample rate   | data …

All numbers are big-endian. The first byte is the layout's version. `flags`: 1 marks the last frame of the chunk, which
has no data. `format`: 0 pcm, 1 wav, 2 mp3, 3 opus. The sample rate is in Hz, and 0 where the format tells it itself.
"""

import struct
from typing import Final

from llm_service.audio_format import FORMATS
from llm_service.events import Audio

VERSION: Final = 1
LAST: Final = 1
HEADER: Final = struct.Struct("!BBBxII")


def binary_frame(audio: Audio) -> bytes:
    """Return an audio event as the data of a binary frame."""
    flags = LAST if audio.last else 0
    header = HEADER.pack(VERSION, flags, FORMATS.index(audio.format), audio.chunk & 0xFFFFFFFF, audio.sample_rate or 0)
    return header + audio.data


def read_frame(data: bytes) -> Audio:
    """Read the data of a binary frame, as a client does.

    Raises:
        ValueError: it is of another version, or no such frame.
    """
    if len(data) < HEADER.size or data[0] != VERSION or data[2] >= len(FORMATS):
        raise ValueError("not an audio frame of this version")
    _, flags, form, chunk, rate = HEADER.unpack_from(data)
    return Audio(
        chunk=chunk, format=FORMATS[form], sample_rate=rate or None, data=data[HEADER.size :], last=bool(flags & LAST)
    )
