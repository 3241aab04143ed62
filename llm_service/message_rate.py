"""How often a client may speak. Pure: times are in seconds of a clock that never goes back.

What makes the engine or the store work costs 1. The rest costs so little that a voice client may say several times a
second what its user is just saying; a cancel is for its caller to let through.
"""

from collections.abc import Callable

from llm_service.events import Cancel, ClientMessage, EndSession, PartialMessage, Played, ToolResult

LIGHT = 0.05
# By the class itself: pydantic makes `isinstance` cost as much as reading the message.
_LIGHT_MESSAGES = frozenset({Cancel, EndSession, PartialMessage, Played, ToolResult})


def cost(event: ClientMessage) -> float:
    """Return what a message takes of the allowance."""
    return LIGHT if type(event) in _LIGHT_MESSAGES else 1.0


class TokenBucket:
    """An allowance that grows by `per_second`, up to `burst`."""

    __slots__ = ("_at", "_burst", "_held", "_per_second")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._held = burst
        self._at: float | None = None

    def __repr__(self) -> str:
        return f"<TokenBucket: {self._held:.2f} of {self._burst:g}>"

    def take(self, cost: float, now: float) -> float:
        """Take so much and return 0; or take nothing, and return the seconds until there will be enough."""
        if self._at is not None:
            self._held = min(self._burst, self._held + (now - self._at) * self._per_second)
        self._at = now
        if self._held >= cost:
            self._held -= cost
            return 0.0
        return (cost - self._held) / self._per_second


class MessageRates:
    """One allowance a key, whatever the number of its connections; one a connection where there are no keys.

    `per_minute` 0 means that there is no limit. Keys stand here as digests, and only such as were accepted.
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self.per_minute = per_minute
        self._burst = burst
        self._of_keys: dict[str, TokenBucket] = {}

    def __repr__(self) -> str:
        return f"<MessageRates: {self.per_minute:g} a minute, {len(self._of_keys)} keys>"

    def bucket(self, key: str) -> TokenBucket | None:
        """Return what a connection with this key draws on, or None if it may say as much as it wants."""
        if not self.per_minute:
            return None
        if not key:
            return TokenBucket(self.per_minute / 60, self._burst)
        found = self._of_keys.get(key)
        if found is None:
            found = self._of_keys[key] = TokenBucket(self.per_minute / 60, self._burst)
        return found

    def forget(self, gone: Callable[[str], bool]) -> None:
        """Forget the keys that `gone` says are none any more."""
        self._of_keys = {key: bucket for key, bucket in self._of_keys.items() if not gone(key)}
