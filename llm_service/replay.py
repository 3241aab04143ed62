"""The numbered events of a session that a client may have missed. Pure.

Tokens are kept as their text alone, so that one costs a list append and no frame of its own; a run of them that is
over is one text with the tokens' lengths. They are written anew for whoever missed them.
"""

from collections.abc import Iterator

import msgspec

from llm_service.events import Token, encode

# Bytes an entry weighs beside its text, and a token within a run.
_OVERHEAD = 64
_TOKEN_OVERHEAD = 8


class Run(msgspec.Struct, array_like=True, gc=False):
    """Tokens without another event between them: `text` is all of them, `lengths` in characters."""

    text: str
    lengths: list[int]


class ReplayRecord(msgspec.Struct, array_like=True):
    """A replay at rest: `seq` is the newest number; an entry is its first number with a frame, or with a run."""

    seq: int
    entries: list[tuple[int, bytes | Run]]


class Replay:
    """The newest events of a session, about `max_bytes` of them.

    `tokens` are those since the newest other event, in their order; whoever numbers a token appends its text there.
    """

    __slots__ = ("_bytes", "_entries", "_first", "_max_bytes", "tokens")

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # A list: an empty deque is 0.7 KiB, and few entries are ever dropped from the front.
        self._entries: list[tuple[int, bytes | Run]] = []
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
        self.tokens.clear()

    def add(self, frame: bytes) -> None:
        """Keep the newest event, which is no token."""
        tokens = self.tokens
        if tokens:
            self._keep(self._first, self._run())
            self._first += len(tokens)
            tokens.clear()
        self._keep(self._first, frame)
        self._first += 1
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
            entries.append((self._first, self._run()))
        return ReplayRecord(self.seq, entries)

    def restore(self, record: ReplayRecord, *, events: bool) -> None:
        """Take up where another left; without `events` only the numbers go on."""
        self.restart()
        if events:
            for first, entry in record.entries:
                self._keep(first, entry)
        self._first = record.seq + 1

    def _run(self) -> Run:
        return Run("".join(self.tokens), list(map(len, self.tokens)))

    def _keep(self, first: int, entry: bytes | Run) -> None:
        self._entries.append((first, entry))
        self._bytes += _weight(entry)

    def _drop_oldest(self) -> None:
        """Give up the oldest event; of a run of tokens about a sixteenth of the bound at once, or all of it."""
        first, entry = self._entries.pop(0)
        self._bytes -= _weight(entry)
        if isinstance(entry, Run):
            gone = count = 0
            while count < len(entry.lengths) and gone + count * _TOKEN_OVERHEAD < self._max_bytes / 16:
                gone += entry.lengths[count]
                count += 1
            if lengths := entry.lengths[count:]:
                rest = Run(entry.text[gone:], lengths)
                self._entries.insert(0, (first + count, rest))
                self._bytes += _weight(rest)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        for first, entry in (*self._entries, (self._first, self._run())):
            if isinstance(entry, bytes):
                yield first, entry
                continue
            begin = 0
            for number, length in enumerate(entry.lengths, start=first):
                yield number, encode(Token(seq=number, data=entry.text[begin : begin + length]))
                begin += length


def _weight(entry: bytes | Run) -> int:
    if isinstance(entry, bytes):
        return _OVERHEAD + len(entry)
    # Characters, not bytes: a bound need not be exact, and counting bytes would encode all of it.
    return _OVERHEAD + len(entry.text) + _TOKEN_OVERHEAD * len(entry.lengths)
