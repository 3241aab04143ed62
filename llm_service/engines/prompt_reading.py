"""How long an engine goes on reading a prompt that nobody waits for any more, reckoned from those it has read.

Ollama stops at once when its client leaves while tokens flow, but not while it reads the prompt. It reads only what
is new to its cache; how fast, it tells after each answer.
"""

from collections import deque

from llm_service.generation import Message

# How much all earlier prompts count beside the newest.
_EARLIER = 0.7

Messages = tuple[Message, ...]


class PromptReading:
    """Of one engine with `caches` prompt caches. Pure: seconds are told to it."""

    __slots__ = ("_cached", "_chars", "_seconds")

    def __init__(self, caches: int) -> None:
        self._cached: deque[Messages] = deque(maxlen=caches)
        self._seconds = 0.0
        self._chars = 0.0

    def read(self, messages: Messages, seconds: float | None) -> None:
        """Take note of a prompt that the engine has read in so many seconds; None: it was not told."""
        if seconds is not None:
            # Sums, so that a short prompt, which takes long for its length, says little.
            self._seconds = _EARLIER * self._seconds + seconds
            self._chars = _EARLIER * self._chars + self._new(messages)
        self._cached.append(messages)

    def seconds(self, messages: Messages) -> float | None:
        """Return how long the engine reads this prompt; None if nothing is known of it."""
        if not self._chars:
            return None
        return self._new(messages) * self._seconds / self._chars

    def _new(self, messages: Messages) -> int:
        """Return how many characters are not in a cache."""
        known = max((_shared(messages, cached) for cached in self._cached), default=0)
        # What follows a prompt that was read is what the engine said to it.
        if 0 < known < len(messages) and messages[known].role == "assistant":
            known += 1
        return sum(len(message.content) for message in messages[known:])


def _shared(messages: Messages, cached: Messages) -> int:
    """Return how many messages both begin with."""
    count = 0
    for message, other in zip(messages, cached, strict=False):
        if message != other:
            break
        count += 1
    return count
