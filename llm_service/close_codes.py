"""Why this service closes a WebSocket."""

from enum import IntEnum
from typing import Self


class CloseCode(IntEnum):
    """3000 to 3499: connect again; 3500 to 3999: do not, before something was changed. As Centrifugo has them."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    EXPIRED = 1000, "the session expired: `session_ended` came before"
    INVALID_UTF8 = 1007, "text that is not UTF-8"
    TOO_LONG = 1009, "a message of more than 64 KiB"
    SHUTDOWN = 3001, "the service shuts down; connect again"
    SLOW_CLIENT = 3008, "the client was too slow to read; connect again"
    NO_PONG = 3012, "a ping was not answered; connect again"
    TOO_MANY_REFUSED = 3013, "too many messages in a row that were invalid, or too many"
    BAD_KEY = 3500, "the key is missing, wrong or revoked"
    STALE = 3502, "no first message came in time"
    CONNECTION_LIMIT = 3504, "too many connections"
