"""Sessions that rest in one file: several processes on it, crashes, and files that are refused."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_service.errors import ConfigurationError, StoreUnavailable
from llm_service.stores import sqlite_file
from llm_service.stores.sqlite import SQLiteStore
from tests.processes import ROOT
from tests.stores.test_contract import LONG

TIMEOUT = 2.0


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


@contextlib.asynccontextmanager
async def a_store(
    path: Path, *, patience: float = TIMEOUT, clock: Callable[[], float] = time.time
) -> AsyncGenerator[SQLiteStore, None]:
    store = await SQLiteStore.open(str(path), timeout=patience, clock=clock)
    try:
        yield store
    finally:
        await store.aclose()


def a_process(body: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that has the file named by its first argument open as `store`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    program = (
        "import asyncio, sys\nfrom llm_service.stores.sqlite import SQLiteStore\nasync def main():\n"
        f"    store = await SQLiteStore.open(sys.argv[1], timeout=5.0)\n{lines}\n    await store.aclose()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


class TestProcesses:
    def test_two_on_one_file(self, path: Path) -> None:
        """Of two processes that claim the same sessions at once each session is exactly one's, and no call fails."""
        body = """
for number in range(300):
    session_id = f"session {number}"
    other = await store.claim(session_id, sys.argv[2], ttl=60.0)
    await store.save(f"{sys.argv[2]} {number}", sys.argv[2].encode(), ttl=60.0)
    assert await store.load(f"{sys.argv[2]} {number}") == sys.argv[2].encode()
    print(f"{number} {other or sys.argv[2]}")
"""
        processes = [a_process(body, path, owner) for owner in ("first", "second")]
        first, second = (process.communicate(timeout=30)[0].splitlines() for process in processes)
        assert [0, 0] == [process.returncode for process in processes]
        assert first == second
        assert 300 == len(first)

    def test_killed_at_any_moment(self, path: Path) -> None:
        """What was saved before a process is killed is in the file, whole, and the next one opens it."""
        body = """
number = 0
while True:
    await store.save(f"session {number % 50}", str(number).encode() * 1000, ttl=60.0)
    print(number, flush=True)
    number += 1
"""
        saved = -1
        for round_ in range(3):
            process = a_process(body, path)
            assert process.stdout is not None
            for line in process.stdout:
                saved = int(line)
                if saved >= 60 + 17 * round_:
                    process.send_signal(signal.SIGKILL)
                    break
            saved = max([saved, *(int(line) for line in process.stdout)])
            process.wait()
            process.stdout.close()
            self.whole(path, saved)

    @staticmethod
    def whole(path: Path, saved: int) -> None:
        """Check every record: the last one told of, or the one that was being saved."""

        async def look() -> None:
            async with a_store(path) as store:
                for number in range(50):
                    last = max(each for each in range(saved + 1) if each % 50 == number)
                    record = await store.load(f"session {number}")
                    assert record in (str(last).encode() * 1000, str(last + 50).encode() * 1000)

        asyncio.run(look())

    def test_many_make_it_at_once(self, path: Path) -> None:
        """Workers that start together make one file, and all have it."""
        with ThreadPoolExecutor(8) as threads:
            databases = list(threads.map(lambda _: sqlite_file.open_file(str(path), timeout=5.0), range(24)))
        for database in databases:
            assert (sqlite_file.VERSION,) == database.execute("PRAGMA user_version").fetchone()
            database.close()


class TestBounds:
    async def test_another_that_holds_the_file(self, path: Path) -> None:
        """While another process writes, reading goes on and writing fails in time; afterwards it works again."""
        async with a_store(path, patience=0.3) as store:
            await store.save("a", b"1", ttl=LONG)
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match=r"SQLITE_BUSY|within"):
                    await store.save("a", b"2", ttl=LONG)
                assert b"1" == await store.load("a")
                with pytest.raises(StoreUnavailable, match=r"SQLITE_BUSY|within"):
                    await store.claim("a", "me", ttl=LONG)
                await store.ping()
                assert time.monotonic() - began < 1.5
                with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                    await store.writable()
                assert time.monotonic() - began < 2.0
                other.execute("ROLLBACK")
            await store.writable()
            await store.save("a", b"3", ttl=LONG)
            assert b"3" == await store.load("a")

    async def test_whether_it_can_be_written_to_is_known_soon(self, path: Path) -> None:
        """Who only wants to know is told long before a save gives up, and a save waits as long as before."""
        async with a_store(path, patience=5.0) as store:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                began = time.monotonic()
                with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                    await store.writable()
                assert time.monotonic() - began < 2.0
                saving = asyncio.ensure_future(store.save("a", b"1", ttl=LONG))
                await asyncio.sleep(0.6)
                assert not saving.done()
                other.execute("ROLLBACK")
                await saving
            await store.writable()

    async def test_what_was_given_up_keeps_its_place(self, path: Path) -> None:
        """A save that was cancelled while it waited does not come after one that was called later."""
        async with a_store(path, patience=1.0) as store:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                first = asyncio.ensure_future(store.save("a", b"first", ttl=LONG))
                await asyncio.sleep(0.05)
                first.cancel()
                second = asyncio.ensure_future(store.save("a", b"second", ttl=LONG))
                await asyncio.sleep(0.05)
                other.execute("ROLLBACK")
            await second
            assert first.cancelled()
            assert b"second" == await store.load("a")

    async def test_what_has_had_its_time_is_swept_out(self, path: Path) -> None:
        """Saving sweeps out records, claims and asks whose time is over, a part at once, until none is left."""
        clock = Clock()
        async with a_store(path, clock=clock) as store:
            for number in range(600):
                await store.save(f"old {number}", b"1", ttl=10.0)
            await store.renew([f"old {number}" for number in range(600)], "me", ttl=10.0)
            await store.ask("me", "old 1")
            clock.now += 100.0
            with contextlib.closing(sqlite3.connect(path)) as other:

                def left() -> list[int]:
                    return [
                        other.execute(f"SELECT count(*) FROM {table} WHERE until <= ?", (clock.now,)).fetchone()[0]
                        for table in ("records", "claims", "asks")
                    ]

                assert [600, 600, 1] == left()
                for number in range(64):
                    await store.save(f"new {number}", b"2", ttl=1000.0)
                assert [600 - 256, 600 - 256, 0] == left()
                for number in range(128):
                    await store.save(f"new {number}", b"2", ttl=1000.0)
                assert [0, 0, 0] == left()
            assert b"2" == await store.load("new 127")

    async def test_a_deleted_conversation_cannot_be_read_in_the_file(self, path: Path) -> None:
        """Nothing of what was deleted is left in the file, which is its user's alone."""
        secret = b"what the user said " * 3000
        async with a_store(path) as store:
            await store.save("a", secret, ttl=LONG)
            await store.delete("a")
        assert b"what the user said" not in path.read_bytes()
        assert [path.name] == [each.name for each in path.parent.iterdir()]
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)


class TestOpening:
    @staticmethod
    async def refused(path: Path) -> str:
        with pytest.raises(ConfigurationError) as caught:
            await SQLiteStore.open(str(path), timeout=TIMEOUT)
        assert caught.value.message.startswith(f"SQLITE_PATH={path}: ")
        return caught.value.message

    async def test_the_folder_is_made(self, tmp_path: Path) -> None:
        """The file's folder need not be there."""
        async with a_store(tmp_path / "a" / "b" / "sessions") as store:
            await store.ping()

    async def test_a_name_is_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No name has a meaning of its own: what SQLite calls memory is a file here."""
        monkeypatch.chdir(tmp_path)
        async with a_store(Path(":memory:")) as store:
            await store.save("a", b"1", ttl=LONG)
        async with a_store(Path(":memory:")) as store:
            assert b"1" == await store.load("a")

    async def test_a_newer_versions_file(self, path: Path) -> None:
        """A file of a newer version is refused as it is, with both versions told."""
        async with a_store(path):
            pass
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 7")
        before = path.read_bytes()
        assert "version 7, this one knows 1" in await self.refused(path)
        assert before == path.read_bytes()

    async def test_another_programs_database(self, path: Path) -> None:
        """A database that is not ours is refused and left as it was."""
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE theirs (a)")
            database.commit()
        before = path.read_bytes()
        assert "another program" in await self.refused(path)
        assert before == path.read_bytes()

    @pytest.mark.parametrize("content", [b"no database at all\n" * 400, b"SQLite format 3\x00" + b"\xff" * 8192])
    async def test_no_database(self, path: Path, content: bytes) -> None:
        """A file that is no database is refused and left as it was."""
        path.write_bytes(content)
        assert "move this one away" in await self.refused(path)
        assert content == path.read_bytes()

    async def test_a_damaged_one(self, path: Path) -> None:
        """A file of ours with a damaged page is refused at the start, not found out later."""
        async with a_store(path) as store:
            for number in range(200):
                await store.save(str(number), os.urandom(2000), ttl=LONG)
        content = bytearray(path.read_bytes())
        content[4096 * 8 : 4096 * 12] = os.urandom(4096 * 4)
        path.write_bytes(content)
        assert re.search(r"damaged|malformed", await self.refused(path))

    async def test_a_folder(self, tmp_path: Path) -> None:
        """A folder is no file."""
        assert "directory" in await self.refused(tmp_path)
