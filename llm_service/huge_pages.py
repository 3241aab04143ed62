"""Moves the process's heap into huge pages, where Linux can: 6.1 or newer, whatever its setting for all programs is.

Between two words of one session those of all others pass, so that the processor has forgotten where its memory lies:
with pages of 4 KiB nearly every object that a turn touches is looked up in the page tables anew, in a virtual machine
in two of them. With 100 sessions a word takes about 6 % less CPU time from huge pages.

See madvise(2), MADV_COLLAPSE, and the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_MADV_COLLAPSE = 25
_PAGE_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# Of its pages that a piece must have in use, so that moving it takes hardly more memory. Stacks of threads are mostly
# empty.
_IN_USE = 0.9
# Bytes by which the process must have grown until its memory is looked through again.
_GROWN = 512 * 1024
# The highest bit of an entry of pagemap says that the page is there. Of the entries' highest bytes these are left out,
# so that the number of the others is that of the pages.
_ABSENT = bytes(range(0x80))


class HugePages:
    """Moves what the process has allocated, piece by piece. `move` may take milliseconds, and runs in any thread."""

    def __init__(self) -> None:
        self._size = _page_size()
        self._moved: set[int] = set()
        self._looked_at = 0

    @property
    def due(self) -> bool:
        """Whether there may be something to move: the process has grown, or not all was moved yet."""
        return bool(self._size) and _resident() >= self._looked_at + _GROWN

    def move(self) -> int:
        """Move one piece more; returns how many bytes were moved, 0 when there is nothing to move for now."""
        pieces = list(self._pieces())
        for piece in pieces:
            if piece not in self._moved and _filled(piece, self._size):
                self._moved.add(piece)  # one that can't be moved, as none can on an older kernel, is not tried again
                if _collapse(piece, self._size):
                    return self._size
        self._moved.intersection_update(piece for piece in pieces if _filled(piece, self._size))
        self._looked_at = _resident()
        return 0

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
        _filled(0, size)
    except (OSError, ValueError):
        return 0
    return size


def _resident() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE


def _filled(address: int, size: int) -> bool:
    """Whether nearly all of a piece's pages are in use."""
    pages = size // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        entries = os.pread(file.fileno(), pages * 8, address // mmap.PAGESIZE * 8)
    return len(entries[7::8].translate(None, _ABSENT)) >= _IN_USE * pages


def _collapse(address: int, size: int) -> bool:
    """Move a piece; returns whether it was."""
    failed = ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_COLLAPSE)
    return not failed
