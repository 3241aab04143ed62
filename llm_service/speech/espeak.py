"""espeak-ng: a voice on this machine, offline, in a hundred languages. One short-lived process an utterance."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncGenerator

from llm_service.audio_format import AudioFormat
from llm_service.errors import SpeechRejected, SpeechTimeout, SpeechUnavailable
from llm_service.speech.base import Kind, TakeAudio, Utterance

PROGRAM = "espeak-ng"
DEFAULT_VOICE = "en"
# Its own default, and the bounds it takes.
WORDS_PER_MINUTE = 175
SLOWEST, FASTEST = 80, 450

_READ_BYTES = 16_384
_BRACKETS = re.compile(r"\[(?=\[)")


class EspeakSynthesizer:
    """Speaks with `program`. Times in seconds; `silence` is the longest one within an utterance."""

    kind: Kind = "espeak"
    formats: frozenset[AudioFormat] = frozenset({"pcm", "wav"})
    address = "espeak-ng on this machine"

    def __init__(self, *, voice: str, silence: float, program: str = PROGRAM) -> None:
        """`voice` is the one for sessions that name none; empty: the language's own."""
        self._voice = voice
        self._silence = silence
        self._program = self.url = program

    async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
        """Hand the audio over as it comes.

        Raises:
            SpeechError: it could not be had.
        """
        speed = min(max(round(WORDS_PER_MINUTE * utterance.speed), SLOWEST), FASTEST)
        voice = utterance.voice or self._voice or utterance.language.lower() or DEFAULT_VOICE
        # The text by standard input: arguments are for everyone on the machine to see.
        async with _process(self._program, "--stdin", "--stdout", "-b", "1", "-v", voice, "-s", str(speed)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(ConnectionError):  # it ended first: its status says why
                # Between double brackets it would read phonemes.
                process.stdin.write(_BRACKETS.sub("[ ", utterance.text).encode())
                process.stdin.close()
            try:
                while True:
                    async with asyncio.timeout(self._silence):
                        data = await process.stdout.read(_READ_BYTES)
                    if not data:
                        break
                    take(data)
                async with asyncio.timeout(self._silence):
                    status = await process.wait()
            except TimeoutError:
                raise SpeechTimeout(f"{self.address} said nothing for {self._silence:g} seconds") from None
            if status:
                raise SpeechRejected(f"{self.address} refused: it may not have the voice; see espeak-ng --voices")

    async def ping(self) -> None:
        """Return if the program is there.

        Raises:
            SpeechUnavailable: it is not.
        """
        if shutil.which(self._program) is None:
            raise SpeechUnavailable(_missing(self._program))

    async def aclose(self) -> None:
        """Do nothing: its processes end with their utterances."""


def _missing(program: str) -> str:
    return f"{program} is not installed on this machine: apt-get install espeak-ng, or brew install espeak-ng"


@contextlib.asynccontextmanager
async def _process(*command: str) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a program for the time of the block; what still runs then is killed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SpeechUnavailable(_missing(command[0])) from None
    except OSError as error:
        raise SpeechUnavailable(f"{command[0]} cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
