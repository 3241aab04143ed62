"""Tells audio from what is none, and takes a WAV apart as it comes. Pure.

What TTS servers send is not always what was asked for, or audio at all: some have no Content-Type, give a WAV for
every format, or answer an error as JSON with HTTP 200. The first bytes decide.
"""

import struct
from array import array
from sys import byteorder
from typing import Literal

from llm_service.errors import SpeechFailed

Container = Literal["wav", "mp3", "opus"]

# Of one chunk, decoded or not: minutes of speech. More is a TTS that does not stop.
MAX_AUDIO_BYTES = 8_388_608
WAV_HEADER_BYTES = 44
SAMPLE_BYTES = 2

_MAX_HEADER_BYTES = 65_536
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Who streams a WAV does not know its length: none, or about as much as fits.
_UNTOLD = 0x7FFF0000


def container(head: bytes) -> Container | None:
    """Return what a file that begins so is; None if it is no audio that is known here. Needs twelve bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"OggS":
        return "opus"
    # An ID3 tag, or eleven bits of frame synchronisation with the bits of layer III.
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 == 0xE2):
        return "mp3"
    return None


def wav_header(sample_rate: int, data_bytes: int) -> bytes:
    """Return the header of a WAV of 16-bit mono samples."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        WAV_HEADER_BYTES - 8 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        _PCM,
        1,
        sample_rate,
        sample_rate * SAMPLE_BYTES,
        SAMPLE_BYTES,
        8 * SAMPLE_BYTES,
        b"data",
        data_bytes,
    )


class WavReader:
    """Makes 16-bit mono samples, little-endian, of a WAV that comes in parts.

    It takes 16-bit and 32-bit float samples; of several channels the first.
    """

    __slots__ = ("_channels", "_float", "_left", "_rate", "_waiting", "sample_rate")

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._channels = 0
        self._float = False
        self._rate = 0
        self._left: int | None = None  # bytes of samples that are still to come; None: not told
        self.sample_rate = 0  # in Hz; 0: not known yet

    def feed(self, data: bytes) -> bytes:
        """Return the samples that are whole by now.

        Raises:
            SpeechFailed: it is no WAV, or one of another kind.
        """
        self._waiting += data
        if not self.sample_rate and not self._read_header():
            return b""
        frame = (4 if self._float else SAMPLE_BYTES) * self._channels
        size = len(self._waiting) if self._left is None else min(len(self._waiting), self._left)
        size -= size % frame
        part = bytes(self._waiting[:size])
        del self._waiting[:size]
        if self._left is not None:
            self._left -= size
        return self._mono(part)

    def finish(self) -> None:
        """Take note that nothing more comes.

        Raises:
            SpeechFailed: it ended before its samples did.
        """
        if not self.sample_rate or self._left:
            raise SpeechFailed("the audio of the TTS broke off in the middle")

    def _read_header(self) -> bool:
        """Read up to the samples; returns whether they have begun."""
        held = self._waiting
        if len(held) > 12 and container(bytes(held[:12])) != "wav":
            raise SpeechFailed("the TTS sent something that is no WAV")
        at = 12
        while len(held) >= at + 8:
            name, size = struct.unpack_from("<4sI", held, at)
            if name == b"data":
                if not self._channels:
                    raise SpeechFailed("the TTS sent a WAV that does not say its format")
                self._left = None if size == 0 or size >= _UNTOLD else size
                self.sample_rate = self._rate
                del held[: at + 8]
                return True
            if name == b"fmt " and len(held) >= at + 24:
                self._read_format(at + 8)
            at += 8 + size + size % 2
        if len(held) > _MAX_HEADER_BYTES:
            raise SpeechFailed("the TTS sent a WAV without samples")
        return False

    def _read_format(self, at: int) -> None:
        kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", self._waiting, at)
        if kind == _EXTENSIBLE:
            kind = _FLOAT if bits == 32 else _PCM
        if (kind, bits) not in ((_PCM, 16), (_FLOAT, 32)) or not 1 <= channels <= 8 or not 4000 <= rate <= 192_000:
            raise SpeechFailed("the TTS sent a WAV that is neither of 16-bit samples nor of 32-bit floats")
        self._float, self._channels, self._rate = kind == _FLOAT, channels, rate

    def _mono(self, part: bytes) -> bytes:
        if not self._float and self._channels == 1:
            return part
        samples: array[float] | array[int] = array("f" if self._float else "h", part)
        swap = byteorder == "big"
        if swap:
            samples.byteswap()
        first = samples[:: self._channels]
        try:
            made = array("h", [round(32767 * min(max(each, -1.0), 1.0)) for each in first] if self._float else first)
        except ValueError:
            raise SpeechFailed("the TTS sent a WAV whose samples are no numbers") from None
        if swap:
            made.byteswap()
        return made.tobytes()
