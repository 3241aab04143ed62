"""One timer for many things that have deadlines.

A timer for each would be made and cancelled at every turn, nearly always for nothing.
"""

import asyncio
from collections.abc import Callable


class Rounds:
    """Calls `look` every so many seconds from `begin` on, until it returns False: nothing is left to look after."""

    __slots__ = ("_every", "_look", "_timer")

    def __init__(self, look: Callable[[], bool], *, every: float) -> None:
        self._look = look
        self._every = every
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Go on rounds from now on; nothing changes if that is done already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._go)

    def _go(self) -> None:
        self._timer = None
        if self._look():
            self.begin()
