"""A session at rest: what the store keeps of it. Pure.

msgpack, never pickle: a store that others can write to must not be able to run anything here.
"""

from typing import Any

import msgspec

from llm_service.counters import Counters
from llm_service.replay import ReplayRecord
from llm_service.turn import Turn

# Of the layout below; a record of another version is not read.
VERSION = 1


class ConversationRecord(msgspec.Struct):
    """The finished turns of a conversation and what is known of their sizes, in tokens; no turn that is open."""

    turns: list[Turn]
    dropped: list[Turn]
    system_prompt: str
    schemas: str
    model: str
    summary: str
    system_tokens: int | None
    bytes_per_token: float
    dropped_turns: int
    dropped_tokens: int


class EndedResponse(msgspec.Struct):
    """The newest response, while acks of its playback may still come; `chars` is its length."""

    number: int
    id: str | None
    chars: int
    heard: int | None
    interrupted: bool
    silenced: bool = False


class SessionRecord(msgspec.Struct):
    """One session. `key` is the digest of the API key it was opened with, "" where none was asked for.

    `whole` says that nothing was said or asked after it was saved; it is false of what a crash left behind.
    `saved_at` is in seconds since the epoch; `age` and `idle` are in seconds at that time.
    """

    version: int
    id: str
    key: str
    whole: bool
    saved_at: float
    age: float
    idle: float
    config: dict[str, Any]
    counters: Counters
    last_response: int
    calls: int
    dropped_before: int
    conversation: ConversationRecord
    ended: EndedResponse | None
    replay: ReplayRecord
    chunks: int = 0  # that its answers were cut into; not in records of before there was speech


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionRecord)


def dump(record: SessionRecord) -> bytes:
    """Write a record for the store."""
    return _encoder.encode(record)


def load(data: bytes) -> SessionRecord | None:
    """Read a record of the store; None: it is of another version, or none at all."""
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return record if record.version == VERSION else None
