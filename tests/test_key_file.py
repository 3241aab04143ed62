"""A file of API keys, and what it looks like while somebody writes it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import structlog

from llm_service import key_file
from llm_service.errors import ConfigurationError
from llm_service.key_file import KeyFile

CANARY = "canary-7f3a"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\ntwo\n", ("one", "two")),
        (b"one", ("one",)),
        (b"\xef\xbb\xbfone\r\n\r\n  two  \r\n", ("one", "two")),
        ("# für Anna\none\n  # gone: two\n".encode(), ("one",)),
        (b"a#b=c,d\n", ("a#b=c,d",)),
        (b"# nobody any more\n", ()),
    ],
    ids=["two", "no newline", "from Windows", "comments", "odd but legal", "comments alone"],
)
def test_what_a_file_holds(path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    """One key a line; empty lines, comments and spaces around are left out."""
    path.write_bytes(content)
    assert expected == KeyFile(path).load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"one\n" + CANARY.encode() + b" # Anna\n", "line 2 is no key"),
        ("one\ntwo\nschlüssel\n".encode(), "line 3 is no key"),
        (CANARY.encode() + b"\x00\n", "line 1 is no key"),
        (CANARY.encode("utf-16"), "no text in UTF-8"),
        (b"k\n" * (key_file.MAX_KEYS + 1), "more than 10000 keys"),
        (b"#" * (key_file.MAX_BYTES + 1), "more than 1048576 bytes"),
    ],
    ids=["empty", "blank", "two words", "not ASCII", "a NUL", "UTF-16", "too many", "too long"],
)
def test_a_broken_file(path: Path, content: bytes, problem: str) -> None:
    """What is no file of keys is an error that names the file and the line, and nothing of what is in it."""
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        KeyFile(path).load()
    assert f"API_KEYS_FILE={path}: " in caught.value.message
    assert CANARY not in caught.value.message


def test_no_file(path: Path) -> None:
    """A file that is missing, a folder, a pipe and a name that is none are told apart from a file of keys."""
    with pytest.raises(ConfigurationError, match=r"cannot be read \(No such file or directory\)"):
        KeyFile(path).load()
    with pytest.raises(ConfigurationError, match="is no file"):
        KeyFile(path.parent).load()
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="is no file"):
        KeyFile(path).load()
    with pytest.raises(ConfigurationError, match=r"cannot be read \(not a path\)"):
        KeyFile(Path("a\0b")).load()


def put(path: Path, content: str) -> None:
    """Write a file at once, as nobody reads a half of it."""
    other = path.with_name("other")
    other.write_text(content)
    other.replace(path)


class Watched:
    """What a file's watch told so far."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()

    async def next(self) -> tuple[str, ...]:
        async with asyncio.timeout(10):
            return await self.told.get()


@contextlib.asynccontextmanager
async def watched(file: KeyFile) -> AsyncGenerator[Watched, None]:
    """Watch the file until the block is left."""
    found = Watched()
    task = asyncio.create_task(file.watch(found.told.put_nowait))
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def logged(lines: list[structlog.typing.EventDict], count: int) -> None:
    """Wait until so many lines are logged."""
    async with asyncio.timeout(10):
        while len(lines) < count:
            await asyncio.sleep(0.005)


async def test_changes_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new content is told once: written in place, put in its place, and of the same size and time."""
    monkeypatch.setattr(key_file, "EVERY", 0.01)
    path.write_text("one\n")
    file = KeyFile(path)
    file.load()
    async with watched(file) as changes:
        path.write_text("one\ntwo\n")
        assert ("one", "two") == await changes.next()
        other = path.with_name("other")
        other.write_text("six\nten\n")
        before = path.stat()
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(path)
        assert ("six", "ten") == await changes.next()
        path.write_text("# nobody\n")
        assert () == await changes.next()
        assert changes.told.empty()


async def test_a_half_that_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last line without an end counts only if the next look finds the same: no part of a key is a key meanwhile."""
    monkeypatch.setattr(key_file, "EVERY", 0.001)
    path.write_text("one\nbert\n")
    file = KeyFile(path)
    file.load()
    looks = iter(
        [b"one\nbe", b"one\nbert", b"one\nbert\n", b"", b"six", b"one\nbert\n", b"six", b"ten\n", b"one", b"one"]
    )
    monkeypatch.setattr(file, "_read", lambda: next(looks, b"end\n"))
    with structlog.testing.capture_logs() as lines:
        async with watched(file) as changes:
            assert [("ten",), ("one",), ("end",)] == [await changes.next() for _ in range(3)]
    assert not [line for line in lines if line["event"] == "api_keys_file_broken"]


async def test_a_file_that_breaks_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that breaks or goes away changes nothing; each reason is logged once, without what is in the file."""
    monkeypatch.setattr(key_file, "EVERY", 0.01)
    path.write_text("one\n")
    file = KeyFile(path)
    file.load()
    with structlog.testing.capture_logs() as lines:
        async with watched(file) as changes:
            for count, content in enumerate([f"{CANARY} {CANARY}\n", ""], 1):
                put(path, content)
                await logged(lines, count)
            path.unlink()
            await logged(lines, 3)
            put(path, "two\n")
            assert ("two",) == await changes.next()
            assert changes.told.empty()
            path.unlink()
            await logged(lines, 4)
    reasons = [line["reason"].partition("keys: ")[2].partition(";")[0] for line in lines]
    missing = "cannot be read (No such file or directory)"
    assert ["line 1 is no key: printable ASCII without spaces", "is empty", missing, missing] == reasons
    assert CANARY not in str(lines)
