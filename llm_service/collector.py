"""Python's collector of garbage in cycles, kept from stopping every stream.

Left to itself it looks through whatever was made since it looked last, at any moment, and now and then through all
there is: with a thousand sessions that takes 100 ms in which no word is passed on. Nearly all here is freed by its
reference count, a session and its connection included, so that there is little to find. It is looked for when no answer
runs; while some do only where much has been made that is still there, of which a running answer is a part as well.
"""

import contextlib
import gc
from collections.abc import Generator

# Objects that hold others, made and still there since the last look, that make another due. About 100 of an answer's
# are gone when it is over; of a session 300 stay. Looking through so many takes 10 ms.
PORTION = 50_000
# The same while no answer runs.
IDLE_PORTION = 500
# So many made and still there since all was looked through make that due, or as many as there were then.
GROWN = 200_000
# While answers run all is looked through only when it is due so many times over.
OVERDUE = 4


class Collector:
    """Looks for cycles when it is told that there is time; until it is `in_charge`, Python does by itself."""

    def __init__(self) -> None:
        self._in_charge = False
        self._grown = 0
        self._due = GROWN

    @contextlib.contextmanager
    def in_charge(self) -> Generator[None, None, None]:
        """Take over until the block is left; what there is by now is taken to live as long as the process."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._in_charge = True
        self._grown, self._due = 0, GROWN
        try:
            yield
        finally:
            self._in_charge = False
            gc.enable()

    def look(self, *, busy: bool) -> None:
        """Look for cycles if enough was made; called a few times a second. `busy` says that answers run."""
        if not self._in_charge:
            return
        made = gc.get_count()[0]
        if made >= (PORTION if busy else IDLE_PORTION):
            found = gc.collect(0)
            self._grown += max(0, made - found)
        if self._grown >= self._due * (OVERDUE if busy else 1):
            gc.collect()
            self._grown, self._due = 0, max(GROWN, len(gc.get_objects()))
