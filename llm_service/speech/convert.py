"""Makes MP3 and Opus of samples, with PyAV where it is installed: `pip install av`, or the extra `speech`."""

import importlib.util
import io
from fractions import Fraction
from functools import cache
from typing import Any

from llm_service.errors import SpeechFailed
from llm_service.speech.audio import Container

# Opus knows five rates; this one is what its decoders give back.
OPUS_RATE = 48_000
_BIT_RATE = {"mp3": 64_000, "opus": 32_000}
_CODEC = {"mp3": ("mp3", "libmp3lame"), "opus": ("ogg", "libopus")}


@cache
def can_convert() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def convert(samples: bytes, sample_rate: int, to: Container) -> bytes:
    """Return a file of the format, made of 16-bit mono samples. Takes milliseconds for a second of speech.

    Raises:
        SpeechFailed: it cannot be made.
    """
    import av

    name, codec = _CODEC[to]
    output = io.BytesIO()
    try:
        with av.open(output, "w", format=name) as container:
            rate = OPUS_RATE if to == "opus" else sample_rate
            stream: Any = container.add_stream(codec, rate=rate)
            stream.layout = "mono"
            stream.bit_rate = _BIT_RATE[to]
            frame: Any = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
            frame.planes[0].update(samples[: frame.planes[0].buffer_size].ljust(frame.planes[0].buffer_size, b"\0"))
            frame.sample_rate = sample_rate
            frame.time_base = Fraction(1, sample_rate)
            frame.pts = 0
            resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
            for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
                for packet in stream.encode(resampled):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise SpeechFailed(f"the audio could not be made {to}: {type(error).__name__}") from None
    return output.getvalue()
