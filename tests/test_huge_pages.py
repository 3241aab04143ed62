"""The heap's way into huge pages: what is moved, what is not, and that nothing is changed by it."""

import asyncio
import ctypes
import errno
import mmap
import platform
import re
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from llm_service import huge_pages
from llm_service.engines.scripted import ScriptedEngine
from llm_service.huge_pages import HugePages
from tests.live import live_service

PIECE = 2 * 1024 * 1024
KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) if sys.platform == "linux" else (0, 0)
pytestmark = pytest.mark.skipif(
    KERNEL < (6, 1) or huge_pages._page_size() != PIECE, reason="no Linux from 6.1 on with huge pages of 2 MiB"
)


@pytest.fixture
def memory() -> Generator[mmap.mmap, None, None]:
    """Memory of which nothing is in use yet; at least four pieces of it are whole."""
    with closing(mmap.mmap(-1, 5 * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as area:
        yield area


def move_all(pages: HugePages) -> int:
    """Move until nothing is left; returns the bytes."""
    moved = 0
    # What is found lies within the next calls: a few pieces are looked at in each.
    for _ in range(1000):
        piece = pages.find()
        moved += PIECE * (piece is not None and pages.move(piece))
    return moved


def refused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let nothing be moved; returns the list of what was tried."""
    tried: list[int] = []

    def refuse(piece: int, _: int) -> bool:
        tried.append(piece)
        return False

    monkeypatch.setattr(huge_pages, "_collapse", refuse)
    return tried


def huge() -> int:
    """Return how many bytes of this process are in huge pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_what_is_in_use_is_moved(memory: mmap.mmap) -> None:
    """All of it, one piece at a time, and the bytes are the same behind it; then there is nothing to find."""
    pages = HugePages()
    move_all(pages)
    before = huge()
    content = bytes(range(256)) * (5 * PIECE // 256)
    memory[:] = content
    moved = move_all(pages)
    assert pages.find() is None
    assert moved >= 4 * PIECE
    assert huge() >= before + 4 * PIECE
    assert content == memory[:]


def test_few_pieces_are_looked_at_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the process is: the next call goes on where the last one ended, and each is looked at once."""
    looked_at: list[int] = []

    def empty(piece: int, *_: object) -> bool:
        looked_at.append(piece)
        return False

    pages = HugePages()
    monkeypatch.setattr(huge_pages, "_filled", empty)
    monkeypatch.setattr(HugePages, "_pieces", lambda _: iter(range(100)))
    assert [pages.find() for _ in range(4)] == [None] * 4
    assert sorted(looked_at) == list(range(100))
    assert pages.find() is None
    assert len(looked_at) == 100


def test_what_is_mostly_empty_stays(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, it would take its whole size: half of each piece's pages are not enough, and all of one's are."""
    tried = refused(monkeypatch)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = -address % PIECE
    for start in range(first, 5 * PIECE, PIECE):
        half = memory[start : start + PIECE // 2]
        memory[start : start + PIECE // 2] = b"a" * len(half)
    memory[first : first + PIECE] = b"a" * PIECE
    move_all(HugePages())
    assert [address + first] == [piece for piece in tried if address <= piece < address + 5 * PIECE]


def test_addresses_that_others_got_are_moved_again(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was moved, and is no longer there or in use when it is looked at next, is found once it is in use again."""
    tried = refused(monkeypatch)
    pages = HugePages()
    move_all(pages)
    own = sorted(tried)
    mapped = [*range(0, 4 * PIECE, PIECE)]
    in_use = set(mapped)
    monkeypatch.setattr(HugePages, "_pieces", lambda _: iter(mapped))
    monkeypatch.setattr(huge_pages, "_filled", lambda piece, *_: piece in in_use)

    def found() -> list[int]:
        pages._looked_at = 0
        del tried[:]
        move_all(pages)
        return sorted(tried)

    assert own
    assert [0, PIECE, 2 * PIECE, 3 * PIECE] == found()
    assert [] == found()
    mapped.remove(PIECE)
    in_use.remove(2 * PIECE)
    assert [] == found()
    mapped.append(PIECE)
    in_use.add(2 * PIECE)
    assert [PIECE, 2 * PIECE] == found()


def test_without_a_free_file_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks after all connections goes on doing so when the process has no file left to open."""

    def none_left() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    pages = HugePages()
    monkeypatch.setattr(huge_pages, "_resident", none_left)
    assert pages.find() is None


def test_without_huge_pages_nothing_is_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system that has none is left alone."""
    monkeypatch.setattr(huge_pages, "_PAGE_SIZE_FILE", tmp_path / "none")
    assert HugePages().find() is None


def test_what_cannot_be_moved_is_tried_once(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older kernel refuses: nothing is moved, and no piece is found again."""
    tried = refused(monkeypatch)
    memory[:] = b"a" * len(memory)
    pages = HugePages()
    assert 0 == move_all(pages) == move_all(pages)
    assert len(tried) == len(set(tried)) >= 4


async def test_the_service_moves_its_memory() -> None:
    """While it serves, as long as there is something to move."""
    moved: list[int] = []
    waiting = [3, 2, 1]

    class Counting(HugePages):
        def find(self) -> int | None:
            return waiting.pop() if waiting else None

        def move(self, piece: int) -> bool:
            moved.append(piece)
            return True

    async with live_service(ScriptedEngine(tokens_per_second=1000)) as live:
        live.service.huge_pages = Counting()
        async with asyncio.timeout(5):
            while len(moved) < 3:
                await asyncio.sleep(0.05)
    assert [1, 2, 3] == moved
