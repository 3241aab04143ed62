"""The numbered events of a session that a client may have missed. Pure.

Tokens are kept as their texts alone, so that one costs a list append and no frame of its own: they are written
anew for whoever missed them.
"""

from collections.abc import Iterator

import msgspec

from llm_service.events import Token, encode

# Bytes an entry weighs beside its text.
_OVERHEAD = 64


class ReplayRecord(msgspec.Struct, array_like=True):
    """A replay at rest: `seq` is the newest number; an entry is its first number with its tokens, or with its frame."""

    seq: int
    entries: list[tuple[int, list[str] | bytes]]


class Replay:
    """The newest events of a session, about `max_bytes` of them.

    `tokens` are those since the newest other event, in their order; whoever numbers a token appends its text there.
    """

    __slots__ = ("_bytes", "_entries", "_first", "_max_bytes", "tokens")

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # A list: an empty deque is 0.7 KiB, and few entries are ever dropped from the front.
        self._entries: list[tuple[int, list[str] | bytes]] = []
        self._bytes = 0
        self._first = 1  # the number of the first of `tokens`
        self.tokens: list[str] = []

    def __repr__(self) -> str:
        return f"<Replay: {self.oldest} to {self.seq}, {self._bytes} bytes>"

    @property
    def seq(self) -> int:
        """The newest event's number; 0: there was none."""
        return self._first + len(self.tokens) - 1

    @property
    def oldest(self) -> int:
        """The number of the oldest event that is kept."""
        return self._entries[0][0] if self._entries else self._first

    def restart(self) -> None:
        """Forget all: numbers begin at 1 again."""
        self._entries.clear()
        self._bytes = 0
        self._first = 1
        self.tokens = []

    def add(self, frame: bytes) -> None:
        """Keep the newest event, which is no token."""
        number = self.seq + 1
        self._end_run()
        self._entries.append((number, frame))
        self._bytes += _OVERHEAD + len(frame)
        self._first = number + 1
        while self._bytes > self._max_bytes:
            self._drop_oldest()

    def after(self, seq: int) -> list[bytes] | None:
        """Return the frames of all events behind this one; None if some are not kept any more, or never were."""
        if not self.oldest - 1 <= seq <= self.seq:
            return None
        return [frame for number, frame in self._frames() if number > seq]

    def record(self) -> ReplayRecord:
        """Return what `restore` takes."""
        entries = list(self._entries)
        if self.tokens:
            entries.append((self._first, list(self.tokens)))
        return ReplayRecord(self.seq, entries)

    def restore(self, record: ReplayRecord, *, events: bool) -> None:
        """Take up where another left; without `events` only the numbers go on."""
        self.restart()
        if events:
            self._entries.extend(record.entries)
            self._bytes = sum(_weight(entry) for _, entry in record.entries)
        self._first = record.seq + 1

    def _end_run(self) -> None:
        if self.tokens:
            self._entries.append((self._first, self.tokens))
            self._bytes += _weight(self.tokens)
            self.tokens = []

    def _drop_oldest(self) -> None:
        """Give up the oldest event; of a run of tokens a sixteenth of the bound at once, or all of it."""
        first, entry = self._entries.pop(0)
        self._bytes -= _weight(entry)
        if isinstance(entry, list):
            gone = count = 0
            while count < len(entry) and gone < self._max_bytes / 16:
                gone += _OVERHEAD + len(entry[count])
                count += 1
            if rest := entry[count:]:
                self._entries.insert(0, (first + count, rest))
                self._bytes += _weight(rest)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        for first, entry in (*self._entries, (self._first, self.tokens)):
            if isinstance(entry, bytes):
                yield first, entry
            else:
                for number, text in enumerate(entry, start=first):
                    yield number, encode(Token(seq=number, data=text))


def _weight(entry: list[str] | bytes) -> int:
    if isinstance(entry, bytes):
        return _OVERHEAD + len(entry)
    # Characters, not bytes: a bound need not be exact, and counting bytes would encode all of it.
    return sum(map(len, entry)) + _OVERHEAD * len(entry)
