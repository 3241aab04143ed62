"""What every store can do."""

from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple, Protocol

from llm_service.errors import RecordTooLarge

# In bytes, unless MAX_RECORD_BYTES says something else.
MAX_RECORD_BYTES = 8_388_608


class Renewed(NamedTuple):
    """What came of claims that were renewed: `lost` are the ids that another has, `anew` those that nobody had."""

    lost: list[str]
    anew: list[str]


class Store(Protocol):
    """Where sessions rest: records under their sessions' ids, and which process runs which session.

    A record is bytes nobody here reads. Times are in seconds. Each method raises a
    `llm_service.errors.StoreUnavailable` and nothing else when what stands behind the store fails, within the
    store's timeout. What failed may have been done all the same: do it again, all of these can be.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes see the same sessions, and a restart leaves them there."""
        ...

    async def save(self, session_id: str, record: bytes, *, ttl: float) -> None:
        """Keep a record for `ttl`, in the place of the session's last one.

        Raises:
            RecordTooLarge: it is larger than the store takes; the last one stays.
        """
        ...

    async def load(self, session_id: str) -> bytes | None:
        """Return the session's record; None: there is none, or its time is over."""
        ...

    async def delete(self, session_id: str) -> None:
        """Forget the session's record, if there is one."""
        ...

    async def claim(self, session_id: str, owner: str, *, ttl: float) -> str | None:
        """Make the session `owner`'s for `ttl` if it is nobody's, or its already, and return None; else whose it is."""
        ...

    async def renew(self, session_ids: Iterable[str], owner: str, *, ttl: float) -> Renewed:
        """Make these claims of `owner` last for `ttl` from now on.

        One that is another's stays so. One that is nobody's is claimed anew: it has run out, or what stands behind the
        store was started anew and has forgotten it, and the records as well.
        """
        ...

    async def release(self, session_id: str, owner: str) -> None:
        """Let the session be nobody's, if it is `owner`'s; its record stays."""
        ...

    async def ask(self, owner: str, session_id: str) -> None:
        """Ask `owner` to release the session. An owner that does not listen now finds it within the next minute."""
        ...

    def asked(self, owner: str) -> AsyncIterator[str]:
        """Yield the ids of sessions that `owner` is asked for, as long as somebody iterates, each ask once."""
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def writable(self) -> None:
        """Return if the store would take a record now, as soon as it would: it may answer, and yet take none."""
        ...

    async def aclose(self) -> None:
        """Close what stands behind it. A second call does nothing."""
        ...


def check_size(record: bytes, limit: int) -> None:
    """Refuse a record of more than `limit` bytes.

    Raises:
        RecordTooLarge: it has more.
    """
    if len(record) > limit:
        raise RecordTooLarge(
            f"the session takes {len(record)} bytes and MAX_RECORD_BYTES is {limit}: it was not saved; raise "
            "MAX_RECORD_BYTES, or lower MAX_HISTORY_LENGTH or RESUME_BUFFER_BYTES"
        )
