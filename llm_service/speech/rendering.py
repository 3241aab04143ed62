"""From what a TTS sends to what a client asked for: raw samples as they come, a file once it is whole."""

import asyncio
from collections.abc import Callable

from llm_service.audio_format import AudioFormat
from llm_service.errors import SpeechFailed
from llm_service.speech.audio import MAX_AUDIO_BYTES, SAMPLE_BYTES, WavReader, container, wav_header
from llm_service.speech.convert import can_convert, convert

GiveAudio = Callable[[bytes, int | None], None]
"""Gets a part of the audio in the format asked for, and its sample rate in Hz, where the format does not tell it."""

_HEAD_BYTES = 12


class Rendering:
    """The audio of one utterance: `feed` all that comes, then `finish`.

    pcm, mp3 and opus are given as they come where the TTS has them; a wav, and what must be converted, once it is
    whole, since its header tells how long it is.
    """

    __slots__ = ("_give", "_head", "_held", "_received", "_wanted", "_wav", "given", "samples")

    def __init__(self, wanted: AudioFormat, give: GiveAudio) -> None:
        self._wanted = wanted
        self._give = give
        self._head: bytearray | None = bytearray()  # None: it is known what it is
        self._held = bytearray()
        self._wav: WavReader | None = None
        self._received = 0
        self.samples = 0  # counted so far; 0 for what is passed on without a look into it
        self.given = False

    @property
    def seconds(self) -> float | None:
        """The length so far; None where the file is not looked into."""
        wav = self._wav
        return None if wav is None or not wav.sample_rate else self.samples / wav.sample_rate

    def feed(self, data: bytes) -> None:
        """Take a part of what the TTS sends.

        Raises:
            SpeechFailed: it is not audio, not of a kind that can be used, or too much.
        """
        self._received += len(data)
        if self._received > MAX_AUDIO_BYTES:
            raise SpeechFailed(f"the TTS sent more than {MAX_AUDIO_BYTES} bytes for one chunk")
        if self._head is not None:
            self._head += data
            if len(self._head) < _HEAD_BYTES:
                return
            data = self._recognised()
        if self._wav is None:
            self._pass_on(data)
            return
        samples = self._wav.feed(data)
        self.samples += len(samples) // SAMPLE_BYTES
        if self._wanted == "pcm":
            self._pass_on(samples)
        else:
            self._held += samples

    async def finish(self) -> None:
        """Give the rest.

        Raises:
            SpeechFailed: there was no audio, or it broke off.
        """
        if self._head is not None:
            self._recognised()  # shorter than any audio: it says what it is instead
        wav = self._wav
        if wav is None:
            return
        wav.finish()
        if not self.samples:
            raise SpeechFailed("the TTS answered without audio")
        if self._wanted == "wav":
            self._pass_on(wav_header(wav.sample_rate, len(self._held)) + bytes(self._held))
        elif self._wanted != "pcm":
            samples = bytes(self._held)
            self._pass_on(await asyncio.to_thread(convert, samples, wav.sample_rate, self._wanted))

    def _pass_on(self, data: bytes) -> None:
        if data:
            self.given = True
            rated = self._wanted in ("pcm", "wav") and self._wav is not None
            self._give(data, self._wav.sample_rate if rated and self._wav is not None else None)

    def _recognised(self) -> bytes:
        """See what it is, and return what has come of it."""
        assert self._head is not None
        head, self._head = bytes(self._head), None
        found = container(head)
        if found == "wav":
            if self._wanted in ("mp3", "opus") and not can_convert():
                raise SpeechFailed(
                    f"the TTS gave a WAV in the place of {self._wanted}, and PyAV is not here to convert it"
                )
            self._wav = WavReader()
        elif found is None:
            text = head.lstrip()[:1] in (b"{", b"<")
            raise SpeechFailed(
                "the TTS answered with an error in the place of audio: see its log"
                if text
                else "the TTS answered without audio"
                if not head
                else "the TTS sent something that is no audio"
            )
        elif found != self._wanted:
            raise SpeechFailed(f"the TTS gave {found} in the place of {self._wanted}")
        return head
