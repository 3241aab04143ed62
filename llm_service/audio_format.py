"""The formats that speech comes in: pcm is raw 16-bit mono samples, little-endian; opus is in an Ogg."""

from typing import Final, Literal, get_args

AudioFormat = Literal["pcm", "wav", "mp3", "opus"]
FORMATS: Final[tuple[AudioFormat, ...]] = get_args(AudioFormat)
