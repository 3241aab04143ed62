"""Several TTS servers as one: the first healthy one speaks, and the next where it fails before the first audio."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

import msgspec
import structlog

from llm_service.audio_format import AudioFormat
from llm_service.engines.breaker import Breaker
from llm_service.errors import CircuitOpen, SpeechError, SpeechFailed, SpeechRejected, SpeechTimeout, SpeechUnavailable
from llm_service.metrics import BreakerState
from llm_service.pacing import Tempo
from llm_service.speech.base import Synthesizer, Utterance
from llm_service.speech.convert import can_convert
from llm_service.speech.rendering import GiveAudio, Rendering
from llm_service.speech_metrics import SpeechMetrics

# In seconds
PROBE_EVERY = 10.0
PROBE_TIMEOUT = 3.0
# For one chunk, however lively its TTS is meanwhile.
CHUNK_TIMEOUT = 60.0
# A TTS that does not say how long its audio is, is taken to speak so many characters a second.
CHARACTERS_PER_SECOND = 15.0

_ALL: frozenset[AudioFormat] = frozenset({"pcm", "wav", "mp3", "opus"})

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Endpoint:
    """One TTS. `name` is its place in the configuration and its kind; `problem` what its last probe said, if not well.

    `last_result` is how its last chunk went, for people. `running` chunks are being spoken; `gave_at` is when it last
    gave audio, in seconds of the monotonic clock.
    """

    name: str
    synthesizer: Synthesizer
    breaker: Breaker = field(default_factory=Breaker)
    healthy: bool = True  # until it was asked
    problem: str | None = None
    last_result: str = "nothing was spoken yet"
    running: int = 0
    gave_at: float = float("-inf")

    @property
    def gives_audio(self) -> bool:
        """Whether its audio comes back here; a webhook's goes elsewhere."""
        return bool(self.synthesizer.formats)

    @property
    def works(self) -> bool:
        """Whether it speaks for us, or did a moment ago: many a TTS answers nothing else meanwhile."""
        return self.running > 0 or monotonic() - self.gave_at < PROBE_EVERY


@dataclass(frozen=True, slots=True)
class Spoken:
    """How a chunk went: the kind of TTS that spoke it, what it took and how long it lasts, in seconds."""

    kind: str
    took: float
    seconds: float


class Endpoints:
    """The TTS servers of TTS_ENDPOINTS, in their order; `tempo` is what sessions begin with: that of the last ones."""

    def __init__(self, synthesizers: Sequence[Synthesizer], metrics: SpeechMetrics) -> None:
        self._metrics = metrics
        self.tempo = Tempo()
        self.all = tuple(Endpoint(f"{number}-{each.kind}", each) for number, each in enumerate(synthesizers, start=1))
        for endpoint in self.all:
            endpoint.breaker = Breaker(_telling(endpoint.name))
            metrics.know_kind(endpoint.synthesizer.kind)

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def formats(self) -> frozenset[AudioFormat]:
        """What clients can be given whichever TTS speaks; none where no audio comes back."""
        audible = [endpoint for endpoint in self.all if endpoint.gives_audio]
        if not audible:
            return frozenset()
        if can_convert():
            return _ALL
        return frozenset.intersection(*(endpoint.synthesizer.formats for endpoint in audible))

    def serves(self, *, audio: bool) -> bool:
        """Whether there is anything to hand a chunk to: with `audio` one that gives some, else a webhook."""
        return next(self._candidates(audio), None) is not None

    async def speak(self, utterance: Utterance, give: GiveAudio, *, audio: bool) -> Spoken:
        """Have a chunk spoken, `give` its audio in the utterance's format as it comes; without `audio` none is.

        Cancelling the task that waits here aborts what runs.

        Raises:
            SpeechError: nobody could, or the one that had begun broke off.
        """
        failure: SpeechError | None = None
        for endpoint in self._candidates(audio):
            try:
                call = endpoint.breaker.admit(monotonic())
            except CircuitOpen as resting:
                failure = failure or SpeechUnavailable(
                    "the TTS failed too often and is left alone; the text goes on alone",
                    retry_after=resting.retry_after,
                )
                continue
            rendering = Rendering(utterance.format, give)
            started = monotonic()
            endpoint.running += 1
            try:
                await self._synthesize(endpoint, utterance, rendering)
            except SpeechError as error:
                self._failed(endpoint, call, error, chosen=utterance.chosen)
                if rendering.given:
                    raise
                failure = error
                continue
            except BaseException:
                endpoint.breaker.neutral(call)
                raise
            finally:
                endpoint.running -= 1
                if rendering.given:
                    endpoint.gave_at = monotonic()
            return self._spoke(endpoint, call, utterance, rendering, monotonic() - started)
        raise failure or SpeechUnavailable("there is no TTS that gives audio: see TTS_ENDPOINTS")

    async def check(self) -> None:
        """Probe each; none of them is made to speak."""
        await asyncio.gather(*(self._check(endpoint) for endpoint in self.all))

    async def watch(self) -> None:
        """Probe each now, and every PROBE_EVERY seconds until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(PROBE_EVERY)

    async def aclose(self) -> None:
        """Release what they hold. A second call does nothing."""
        for endpoint in self.all:
            await endpoint.synthesizer.aclose()

    def _candidates(self, audio: bool) -> Iterator[Endpoint]:
        """Yield those that give audio, or those that give none: healthy ones first, the others may have come back."""
        for healthy in (True, False):
            for endpoint in self.all:
                if endpoint.healthy is healthy and endpoint.gives_audio is audio:
                    yield endpoint

    async def _synthesize(self, endpoint: Endpoint, utterance: Utterance, rendering: Rendering) -> None:
        synthesizer = endpoint.synthesizer
        if utterance.format not in synthesizer.formats:
            utterance = msgspec.structs.replace(utterance, format="wav")  # which can be converted
        try:
            async with asyncio.timeout(CHUNK_TIMEOUT):
                await synthesizer.synthesize(utterance, rendering.feed)
        except TimeoutError:
            raise SpeechTimeout(f"{synthesizer.address} took more than {CHUNK_TIMEOUT:g} seconds for a chunk") from None
        if endpoint.gives_audio:
            await rendering.finish()

    def _failed(self, endpoint: Endpoint, call: int, error: SpeechError, *, chosen: bool) -> None:
        endpoint.last_result = error.message
        self._metrics.count_failure(endpoint.synthesizer.kind)
        _log.warning("speech_failed", endpoint=endpoint.name, code=error.code, reason=error.message)
        # What a client chose must not take the TTS away from everyone else.
        if isinstance(error, SpeechRejected) or (chosen and isinstance(error, SpeechFailed)):
            endpoint.breaker.neutral(call)
        else:
            endpoint.breaker.failed(call, monotonic())

    def _spoke(self, endpoint: Endpoint, call: int, utterance: Utterance, rendering: Rendering, took: float) -> Spoken:
        endpoint.breaker.succeeded(call)
        endpoint.last_result = "WORKING"
        kind, seconds = endpoint.synthesizer.kind, rendering.seconds
        if seconds is None:
            seconds = len(utterance.text) / CHARACTERS_PER_SECOND if endpoint.gives_audio else 0.0
        self._metrics.count_spoken(kind, took=took, seconds=seconds)
        return Spoken(kind, took, seconds)

    async def _check(self, endpoint: Endpoint) -> None:
        problem: str | None = None
        worked = endpoint.works
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await endpoint.synthesizer.ping()
        except TimeoutError:
            problem = f"no answer within {PROBE_TIMEOUT:g} seconds"
        except SpeechError as error:
            problem = error.message
        except Exception:  # noqa: BLE001 - a bug of ours must end neither the probes nor the service
            _log.exception("tts_probe_crashed", endpoint=endpoint.name)
            problem = "the service failed to ask it"
        # Whether one that works for us is well, its chunks tell: the breaker hears of those that fail.
        if problem is not None and (worked or endpoint.works):
            problem = endpoint.problem
        if endpoint.healthy is not (problem is None):
            _log.warning("tts_health", endpoint=endpoint.name, healthy=problem is None, problem=problem)
        endpoint.healthy, endpoint.problem = problem is None, problem
        self._metrics.set_healthy(endpoint.name, problem is None)


def _telling(name: str) -> Callable[[BreakerState], None]:
    def changed(state: BreakerState) -> None:
        _log.warning("tts_breaker", endpoint=name, state=state)

    return changed
