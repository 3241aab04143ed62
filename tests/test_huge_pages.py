"""The heap's way into huge pages: what is moved, what is not, and that nothing is changed by it."""

import asyncio
import ctypes
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
    while step := pages.move():
        moved += step
    return moved


def is_due(pages: HugePages) -> bool:
    """Ask anew each time."""
    return pages.due


def huge() -> int:
    """Return how many bytes of this process are in huge pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_what_is_in_use_is_moved(memory: mmap.mmap) -> None:
    """All of it, one piece at a time, and the bytes are the same behind it; then nothing is due."""
    pages = HugePages()
    assert is_due(pages)
    move_all(pages)
    before = huge()
    content = bytes(range(256)) * (5 * PIECE // 256)
    memory[:] = content
    assert is_due(pages)
    assert PIECE == pages.move()
    moved = PIECE + move_all(pages)
    assert not is_due(pages)
    assert 0 == pages.move()
    assert moved >= 4 * PIECE
    assert huge() >= before + 4 * PIECE
    assert content == memory[:]


def test_what_is_mostly_empty_stays(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, it would take its whole size: half of each piece's pages are not enough, and all of one's are."""
    tried: list[int] = []
    monkeypatch.setattr(huge_pages, "_collapse", lambda piece, _: tried.append(piece))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = -address % PIECE
    for start in range(first, 5 * PIECE, PIECE):
        half = memory[start : start + PIECE // 2]
        memory[start : start + PIECE // 2] = b"a" * len(half)
    memory[first : first + PIECE] = b"a" * PIECE
    move_all(HugePages())
    assert [address + first] == [piece for piece in tried if address <= piece < address + 5 * PIECE]


def test_without_huge_pages_nothing_is_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system that has none is left alone."""
    monkeypatch.setattr(huge_pages, "_PAGE_SIZE_FILE", tmp_path / "none")
    assert not HugePages().due


def test_what_cannot_be_moved_is_tried_once(memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older kernel refuses: nothing is moved, and nothing is due until the process has grown."""
    tried: list[int] = []
    monkeypatch.setattr(huge_pages, "_collapse", lambda piece, _: tried.append(piece))
    memory[:] = b"a" * len(memory)
    pages = HugePages()
    assert 0 == pages.move()
    assert not is_due(pages)
    assert 0 == pages.move()
    assert len(tried) == len(set(tried)) >= 4


async def test_the_service_moves_its_memory() -> None:
    """While it serves, as long as there is something to move."""
    moved = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Counting(HugePages):
        due = True

        def move(self) -> int:
            self.due = False
            loop.call_soon_threadsafe(moved.set)
            return 0

    async with live_service(ScriptedEngine(tokens_per_second=1000)) as live:
        live.service.huge_pages = Counting()
        async with asyncio.timeout(5):
            await moved.wait()
