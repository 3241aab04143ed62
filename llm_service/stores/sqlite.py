"""Sessions at rest in one file, for the processes of one machine."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import TypeVar

from llm_service.errors import StoreUnavailable
from llm_service.stores.base import MAX_RECORD_BYTES, Renewed, check_size
from llm_service.stores.sqlite_file import open_file

Result = TypeVar("Result")

_CLAIM = """
INSERT INTO claims VALUES (:id, :owner, :until) ON CONFLICT (id) DO UPDATE SET owner = :owner, until = :until
WHERE owner = :owner OR until <= :now
"""
_SAVE = """
INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record, until = excluded.until
"""
# Seconds between two looks for what others ask for, and that an ask waits for an owner that does not look.
_LOOK_EVERY = 0.1
_ASK_SECONDS = 60.0
# For which another process may hold the file before it counts as one that takes no records.
_WRITABLE_MILLISECONDS = 250
# So often, in saves, what has had its time is swept out, and so many rows of it at once.
_SWEEP_EVERY = 64
_SWEPT_AT_ONCE = 256
# Calls that the thread has before it; more wait outside, so that those whose time is over are not there.
_BEGUN_AT_ONCE = 64


class SQLiteStore:
    """A file in WAL mode, used by one thread. `timeout` is what any call may take, in seconds.

    A crash of the machine may lose what was saved in its last moments, and never more: the file stays whole.
    `clock` gives seconds since the epoch, the same to all processes.
    """

    shared = True

    def __init__(
        self,
        database: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        *,
        timeout: float,
        max_record_bytes: int = MAX_RECORD_BYTES,
        clock: Callable[[], float] = time,
    ) -> None:
        self._database = database
        self._thread = thread
        self._timeout = timeout
        self._max_record_bytes = max_record_bytes
        self._clock = clock
        self._saves = 0
        self._room = asyncio.Semaphore(_BEGUN_AT_ONCE)
        self._closed = False

    def __repr__(self) -> str:
        return f"<SQLiteStore: {'closed' if self._closed else 'open'}>"

    @classmethod
    async def open(
        cls,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109 - of the calls to come, too
        max_record_bytes: int = MAX_RECORD_BYTES,
        clock: Callable[[], float] = time,
    ) -> "SQLiteStore":
        """Open the file, or make it.

        Raises:
            ConfigurationError: it cannot be opened, is damaged or another program's, or was written by a newer version.
        """
        thread = ThreadPoolExecutor(1, "sqlite")
        try:
            opening = asyncio.get_running_loop().run_in_executor(thread, lambda: open_file(path, timeout=timeout))
            database = await opening
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(database, thread, timeout=timeout, max_record_bytes=max_record_bytes, clock=clock)

    async def save(self, session_id: str, record: bytes, *, ttl: float) -> None:
        """Keep a record for `ttl` seconds, in the place of the last one."""
        check_size(record, self._max_record_bytes)
        now = self._clock()
        sweep = self._saves % _SWEEP_EVERY == 0
        self._saves += 1

        def work(database: sqlite3.Connection) -> None:
            database.execute(_SAVE, (session_id, record, now + ttl))
            if sweep:
                _sweep(database, now)

        await self._run(work)

    async def load(self, session_id: str) -> bytes | None:
        """Return the session's record, if its time is not over."""
        query, parameters = "SELECT record FROM records WHERE id = ? AND until > ?", (session_id, self._clock())
        found = await self._run(lambda database: database.execute(query, parameters).fetchone())
        return None if found is None else bytes(found[0])

    async def delete(self, session_id: str) -> None:
        """Forget the session's record, if there is one."""
        await self._run(lambda database: database.execute("DELETE FROM records WHERE id = ?", (session_id,)))

    async def claim(self, session_id: str, owner: str, *, ttl: float) -> str | None:
        """Make the session the owner's, or return whose it is."""
        (before,) = await self._claim([session_id], owner, ttl)
        return None if before in {"", owner} else before

    async def renew(self, session_ids: Iterable[str], owner: str, *, ttl: float) -> Renewed:
        """Renew all of these that are not another's."""
        ids = list(session_ids)
        before = dict(zip(ids, await self._claim(ids, owner, ttl) if ids else [], strict=True))
        return Renewed(
            [session_id for session_id, whose in before.items() if whose not in {"", owner}],
            [session_id for session_id, whose in before.items() if not whose],
        )

    async def release(self, session_id: str, owner: str) -> None:
        """Let the session be nobody's, if it is the owner's."""
        statement, parameters = "DELETE FROM claims WHERE id = ? AND owner = ?", (session_id, owner)
        await self._run(lambda database: database.execute(statement, parameters))

    async def ask(self, owner: str, session_id: str) -> None:
        """Leave a note that the owner finds when it looks next."""
        row = (owner, session_id, self._clock() + _ASK_SECONDS)
        await self._run(lambda database: database.execute("INSERT OR REPLACE INTO asks VALUES (?, ?, ?)", row))

    async def asked(self, owner: str) -> AsyncGenerator[str, None]:
        """Yield the ids of sessions that the owner is asked for."""
        look = "SELECT 1 FROM asks WHERE owner = ?"
        take = "DELETE FROM asks WHERE owner = ? RETURNING id, until"
        while True:
            # Looking takes no lock; only what is there has to be taken away.
            if await self._run(lambda database: database.execute(look, (owner,)).fetchone()):
                notes = await self._run(lambda database: database.execute(take, (owner,)).fetchall())
                for session_id, until in notes:
                    if until > self._clock():
                        yield session_id
            await asyncio.sleep(_LOOK_EVERY)

    async def ping(self) -> None:
        """Return if the file can be read."""
        await self._run(lambda database: database.execute("SELECT 1 FROM records LIMIT 1").fetchone())

    async def writable(self) -> None:
        """Return if the file can be written to: who reads it does not wait for those who write."""

        def work(database: sqlite3.Connection) -> None:
            patience = database.execute("PRAGMA busy_timeout").fetchone()[0]
            # Those who read wait behind this.
            database.execute(f"PRAGMA busy_timeout = {min(patience, _WRITABLE_MILLISECONDS)}")
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            finally:
                database.execute(f"PRAGMA busy_timeout = {patience}")

        await self._run(work)

    async def aclose(self) -> None:
        """Close the file, when what was begun is done. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=False)
        await asyncio.wait([closing], timeout=self._timeout)

    async def _claim(self, ids: list[str], owner: str, ttl: float) -> list[str]:
        """Claim what can be; return whose each of them was before, "" for nobody's."""
        now = self._clock()
        rows = [{"id": session_id, "owner": owner, "until": now + ttl, "now": now} for session_id in ids]
        whose = "SELECT owner FROM claims WHERE id = ? AND until > ?"

        def work(database: sqlite3.Connection) -> list[str]:
            database.execute("BEGIN IMMEDIATE")
            try:
                before = [database.execute(whose, (session_id, now)).fetchone() for session_id in ids]
                database.executemany(_CLAIM, rows)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            return ["" if found is None else found[0] for found in before]

        return await self._run(work)

    async def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            async with asyncio.timeout(self._timeout):
                await self._room.acquire()
                running = asyncio.wrap_future(self._thread.submit(work, self._database))
                running.add_done_callback(lambda _: self._room.release())
                # What was begun is done whether or not somebody waits for it, so that saves keep their order.
                return await asyncio.shield(running)
        except TimeoutError:
            raise StoreUnavailable(
                f"the session store did not answer within {self._timeout:g} seconds; try again", retry_after=1.0
            ) from None
        except sqlite3.Error as error:
            kind = getattr(error, "sqlite_errorname", type(error).__name__)
            raise StoreUnavailable(f"the session store failed ({kind}); try again", retry_after=1.0) from None
        except RuntimeError:  # of a thread that takes no more work
            raise StoreUnavailable("the session store is closed: the service is stopping") from None


def _sweep(database: sqlite3.Connection, now: float) -> None:
    for table in ("records", "claims"):
        chosen = f"SELECT id FROM {table} WHERE until <= ? LIMIT {_SWEPT_AT_ONCE}"  # noqa: S608 - names of ours
        database.execute(f"DELETE FROM {table} WHERE id IN ({chosen})", (now,))  # noqa: S608
    database.execute("DELETE FROM asks WHERE until <= ?", (now,))
