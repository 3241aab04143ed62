"""The Prometheus collectors of speech; labels are kinds and endpoints of the configuration, never a client's word."""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# In seconds
BUCKETS: Final = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40)


class SpeechMetrics:
    """The collectors, registered with `registry`; one instance a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def timing(name: str, text: str) -> Histogram:
            return Histogram(f"fasttalk_speech_{name}_seconds", text, buckets=BUCKETS, registry=registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"fasttalk_speech_{name}_total", text, labels, registry=registry)

        self.first_chunk = timing("time_to_first_chunk", "From asking the engine to the first speakable chunk")
        self.first_audio = timing("time_to_first_audio", "From asking the engine to the first audio for the client")
        self.chunks = counter("chunks", "Chunks cut to be spoken")
        self.unspoken = counter("unspoken_characters", "Characters of chunks that were dropped or failed unspoken")
        self._synthesis = counter("synthesis_seconds", "Time that TTS servers took for what they spoke", ("kind",))
        self._audio = counter("audio_seconds", "Length of what was spoken", ("kind",))
        self._failures = counter("failures", "Chunks that a TTS failed at", ("kind",))
        self._hook_drops = counter("hook_drops", "Chunks that the on_chunk hook was too slow for, or failed at")
        self._healthy = Gauge(
            "fasttalk_speech_endpoint_healthy", "1 if the TTS answered when last asked, else 0", ["endpoint"],
            registry=registry, multiprocess_mode="livemin",
        )  # fmt: skip

    def know_kind(self, kind: str) -> None:
        """Have this kind's series from the start on, at 0."""
        for family in (self._synthesis, self._audio, self._failures):
            family.labels(kind)

    def count_spoken(self, kind: str, *, took: float, seconds: float) -> None:
        """Count a chunk that was spoken: how long it took and how long it lasts, in seconds."""
        self._synthesis.labels(kind).inc(took)
        self._audio.labels(kind).inc(seconds)

    def count_failure(self, kind: str) -> None:
        """Count a chunk that a TTS failed at."""
        self._failures.labels(kind).inc()

    def count_hook_drop(self) -> None:
        """Count a chunk that the hook did not get, or did not take."""
        self._hook_drops.inc()

    def set_healthy(self, endpoint: str, healthy: bool) -> None:
        """Say whether a TTS answered when it was last asked."""
        self._healthy.labels(endpoint).set(healthy)
