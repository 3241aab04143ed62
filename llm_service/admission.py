"""What one connection may say: nothing before its key, and then so many messages a minute. Pure."""

from llm_service.access import AccessPolicy
from llm_service.errors import RateLimited, Unauthorized
from llm_service.events import Cancel, ClientMessage, StartSession
from llm_service.message_rate import MessageRates, TokenBucket, cost


class Admission:
    """Decides of each message of a connection, with the key that its handshake brought and that was accepted, or None.

    `key` is the digest that its sessions are kept with; "" before the key has come, and where none is asked for.
    """

    __slots__ = ("_access", "_allowance", "_rates", "_waits", "key")

    def __init__(self, access: AccessPolicy, rates: MessageRates, key: str | None) -> None:
        self._access = access
        self._rates = rates
        self._waits = access.needs_key and key is None
        self.key = access.digest(key)
        self._allowance: TokenBucket | None = None if self._waits else rates.bucket(self.key)

    @property
    def waits_for_key(self) -> bool:
        """Whether the client has yet to say who it is: until then it is told nothing."""
        return self._waits

    def check_key(self, event: ClientMessage) -> None:
        """Look for the key in the first message of a client that brought none in its handshake.

        Raises:
            Unauthorized: it brings none, or none of ours.
        """
        key = event.api_key if isinstance(event, StartSession) else None
        if not self._access.accepts_key(key):
            if key:
                raise Unauthorized("this key is not known; see API_KEYS and API_KEYS_FILE")
            raise Unauthorized(
                "this service asks for a key: send it as the header 'Authorization: Bearer KEY', or as api_key in "
                "a first start_session message"
            )
        self._waits = False
        self.key = self._access.digest(key)
        self._allowance = self._rates.bucket(self.key)

    def check_rate(self, event: ClientMessage, now: float, *, running: bool) -> None:
        """Count the message; `running` says whether a response runs, that a cancel would stop.

        Raises:
            RateLimited: it is one too many.
        """
        wait = 0.0 if self._allowance is None else self._allowance.take(cost(event), now)
        # What frees the engine is not held up.
        if wait and not (running and isinstance(event, Cancel)):
            raise RateLimited(
                f"more than {self._rates.per_minute:g} messages a minute (MESSAGE_RATE); send this one again after "
                "retry_after seconds",
                retry_after=round(wait + 0.005, 2),
            )
