"""Sessions at rest in this process: gone with it, and nobody else's."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from time import monotonic

from llm_service.stores.base import MAX_RECORD_BYTES, Renewed, check_size

# Bytes a record weighs beside its own.
_OVERHEAD = 256


class MemoryStore:
    """At most `max_bytes` of records; past it those saved longest ago go first."""

    shared = False

    def __init__(
        self, *, max_bytes: int, max_record_bytes: int = MAX_RECORD_BYTES, clock: Callable[[], float] = monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_record_bytes = max_record_bytes
        self._clock = clock
        self._bytes = 0
        self._records: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._records)} records, {self._bytes} bytes>"

    async def save(self, session_id: str, record: bytes, *, ttl: float) -> None:
        """Keep a record for `ttl` seconds, as long as there is room."""
        check_size(record, self._max_record_bytes)
        self._pop(session_id)
        self._records[session_id] = (self._clock() + ttl, record)
        self._bytes += len(record) + _OVERHEAD
        while self._bytes > self._max_bytes:
            self._pop(next(iter(self._records)))

    async def load(self, session_id: str) -> bytes | None:
        """Return the session's record, if it is still there."""
        until, record = self._records.get(session_id, (0.0, None))
        if record is not None and self._clock() >= until:
            self._pop(session_id)
            return None
        return record

    async def delete(self, session_id: str) -> None:
        """Forget the session's record, if there is one."""
        self._pop(session_id)

    async def claim(self, session_id: str, owner: str, *, ttl: float) -> str | None:  # noqa: ARG002
        """None: there is nobody else."""
        return None

    async def renew(self, session_ids: Iterable[str], owner: str, *, ttl: float) -> Renewed:  # noqa: ARG002
        """Nothing is ever another's."""
        return Renewed([], [])

    async def release(self, session_id: str, owner: str) -> None:
        """Do nothing: there is nobody else."""

    async def ask(self, owner: str, session_id: str) -> None:
        """Do nothing: there is nobody else."""

    async def asked(self, owner: str) -> AsyncGenerator[str, None]:  # noqa: ARG002
        """Wait for ever: nobody asks."""
        await asyncio.Event().wait()
        yield ""

    async def ping(self) -> None:
        """It is always there."""

    async def writable(self) -> None:
        """It takes all."""

    async def aclose(self) -> None:
        """Forget all."""
        self._records.clear()
        self._bytes = 0

    def _pop(self, session_id: str) -> None:
        gone = self._records.pop(session_id, None)
        if gone is not None:
            self._bytes -= len(gone[1]) + _OVERHEAD
