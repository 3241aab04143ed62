"""Moves the process's heap into huge pages, where Linux can: 6.1 or newer, whatever its setting for all programs is.

Between two words of one session those of all others pass, so that the processor has forgotten where its memory lies:
with pages of 4 KiB nearly every object that a turn touches is looked up in the page tables anew, in a virtual machine
in two of them. With 100 sessions a word takes about 6 % less CPU time from huge pages.

See madvise(2), MADV_COLLAPSE, and the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

import ctypes
import io
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_MADV_COLLAPSE = 25
_PAGE_MAP = "/proc/self/pagemap"
_PAGE_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# Of its pages that a piece must have in use, so that moving it takes hardly more memory. Stacks of threads are mostly
# empty.
_IN_USE = 0.9
# Bytes by which the process must have grown until its memory is looked through again.
_GROWN = 512 * 1024
# Pieces that are looked at in one call, at some 10 µs each.
_LOOKS = 32
# The highest bit of an entry of pagemap says that the page is there. Of the entries' highest bytes these are left out,
# so that the number of the others is that of the pages.
_ABSENT = bytes(range(0x80))


class HugePages:
    """Finds what the process has allocated and may be moved, piece by piece: `find`, then `move`, and so on."""

    def __init__(self) -> None:
        self._size = _page_size()
        self._moved: set[int] = set()
        self._left: list[int] = []  # pieces that are still to be looked at
        self._looked_at = 0

    def find(self) -> int | None:
        """Return the address of a piece to be moved; None: there is none for now. To be called a few times a second."""
        try:
            return self._find()
        except OSError:
            return None  # no file can be opened for now: there are more urgent things then

    def _find(self) -> int | None:
        if not self._left:
            if not self._size or (resident := _resident()) < self._looked_at + _GROWN:
                return None
            self._looked_at = resident
            self._left = list(self._pieces())
            self._moved.intersection_update(self._left)  # others may get the addresses of those that are gone
        with open(_PAGE_MAP, "rb", buffering=0) as file:
            for _ in range(min(_LOOKS, len(self._left))):
                piece = self._left.pop()
                if not _filled(piece, self._size, file):
                    self._moved.discard(piece)
                elif piece not in self._moved:
                    self._moved.add(piece)  # what can't be moved, as nothing can on an older kernel, is tried once
                    return piece
        return None

    def move(self, piece: int) -> bool:
        """Move it, which takes up to milliseconds, in any thread: Python's lock is free. Returns whether it was."""
        return _collapse(piece, self._size)

    def _pieces(self) -> Iterator[int]:
        """Yield the addresses of what may be moved: whole pieces of memory that is no file's, and can be written."""
        for line in Path("/proc/self/maps").read_bytes().splitlines():
            area, rights, _, _, inode, *name = line.split()
            if rights == b"rw-p" and inode == b"0" and name in ([], [b"[heap]"]):
                begin, end = (int(address, 16) for address in area.split(b"-"))
                yield from range(-(-begin // self._size) * self._size, end - self._size + 1, self._size)


def _page_size() -> int:
    """Return a huge page's bytes, or 0 where there are none, or no word of what the process's memory is."""
    try:
        size = int(_PAGE_SIZE_FILE.read_text())
        _resident()
        with open(_PAGE_MAP, "rb", buffering=0) as file:
            _filled(0, size, file)
    except (OSError, ValueError):
        return 0
    return size


def _resident() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def _filled(address: int, size: int, page_map: io.FileIO) -> bool:
    """Whether nearly all of a piece's pages are in use."""
    pages = size // mmap.PAGESIZE
    entries = os.pread(page_map.fileno(), pages * 8, address // mmap.PAGESIZE * 8)
    return len(entries[7::8].translate(None, _ABSENT)) >= _IN_USE * pages


def _collapse(address: int, size: int) -> bool:
    """Move a piece; returns whether it was."""
    failed = ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_COLLAPSE)
    return not failed
