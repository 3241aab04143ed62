"""Permits to ask an engine, and the line of those who wait for one. Pure: who waits in an event loop is told by calls.

    free permit ──take──▶ taken ──give_back──▶ free, or handed to the next in line

A permit is only free while nobody waits for it, so that whoever finds one free may take it without a look at the
line. Sessions come by turns, however much each of them asks for. Who had a permit of an engine that failed comes first:
it was let in before all who wait; what no user waits for comes last.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from llm_service.errors import Overloaded

# Bounds of what a client is told to wait for, in seconds.
LEAST_RETRY = 1.0
LONGEST_RETRY = 60.0
Rank = Literal["again", "turn", "background"]

# How much the newest answer counts in the length of a typical one.
_NEWEST = 0.1


class Permits:
    """Of one engine: `limit` answers may be asked of it at once, `taken` are.

    `typical_seconds` is how long a permit is held, about, as far as that is known. `silent` says that the engine is
    known to answer nothing: nobody is let wait for it. Of those that are taken, `unwanted` are kept for prompts
    that the engine reads though nobody waits for them any more.
    """

    __slots__ = ("_lost", "_lost_at", "limit", "silent", "taken", "typical_seconds", "unwanted")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.silent = False
        self.unwanted = 0
        self._lost = 0.0
        self._lost_at = 0.0
        self.typical_seconds = 0.0

    def __repr__(self) -> str:
        return f"<Permits: {self.taken} of {self.limit} taken>"

    def held(self, seconds: float) -> None:
        """Take note how long one was held."""
        typical = self.typical_seconds
        self.typical_seconds = typical + _NEWEST * (seconds - typical) if typical else seconds

    def keep(self, change: int, now: float) -> None:
        """Keep one more for a prompt that nobody waits for, or (-1) one less."""
        self._lost, self._lost_at = self.lost(now), now
        self.unwanted += change

    def lost(self, now: float) -> float:
        """Return how many seconds were lost by now to such prompts, those of each permit added up."""
        return self._lost + self.unwanted * (now - self._lost_at)


class Waiter:
    """One in line: for a permit that it `wants`, handed to `granted`; `moved` hears its position, 1 is next.

    Neither call may raise or wait. `rank` "again" is for one that had a permit already.
    """

    __slots__ = ("granted", "moved", "position", "rank", "session", "wants")

    def __init__(
        self,
        session: str,
        *,
        wants: Callable[[Permits], bool],
        granted: Callable[[Permits], None],
        moved: Callable[[int], None] | None = None,
        rank: Rank = "turn",
    ) -> None:
        self.session = session
        self.wants = wants
        self.granted = granted
        self.moved = moved
        self.rank = rank
        self.position = 0


class Line:
    """Those who wait for permits of the same engines: at most `limit` of them, and those who had one already."""

    __slots__ = ("_lanes", "_listeners", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self._listeners = 0
        # By session, in the order in which they are served.
        self._lanes: dict[Rank, dict[str, deque[Waiter]]] = {"again": {}, "turn": {}, "background": {}}

    def __repr__(self) -> str:
        return f"<Line: {self.waiting} of {self.limit}>"

    def join(self, waiter: Waiter, engines: Iterable[Permits]) -> None:
        """Wait behind the others; `granted` is called once, unless `leave` is called before.

        `engines` are those it may get, none of which has a permit free.

        Raises:
            Overloaded: too many wait already.
        """
        if self.waiting >= self.limit and waiter.rank != "again":
            raise Overloaded(
                f"{self.waiting} messages wait for the engine already (MAX_WAITING); send this one again later",
                retry_after=self.retry_after(engines),
            )
        self._lanes[waiter.rank].setdefault(waiter.session, deque()).append(waiter)
        self.waiting += 1
        self._listeners += waiter.moved is not None
        self._tell()

    def leave(self, waiter: Waiter) -> None:
        """Wait no longer; one that does not wait is passed over."""
        lane = self._lanes[waiter.rank]
        waiters = lane.get(waiter.session)
        if waiters is None or waiter not in waiters:
            return
        self._remove(lane, waiter)
        self._tell()

    def give_back(self, permits: Permits) -> None:
        """Free a permit, or hand it to the next in line who wants one of this engine's."""
        permits.taken -= 1
        if self.waiting:
            self.offer(permits)

    def offer(self, permits: Permits) -> None:
        """Hand free permits to those who want them; call it when somebody may want what they did not before."""
        while self.waiting and permits.taken < permits.limit:
            waiter = self._next(permits)
            if waiter is None:
                return
            permits.taken += 1
            waiter.granted(permits)
            self._tell()

    def retry_after(self, engines: Iterable[Permits]) -> float:
        """Return after how many seconds one who comes now would have had a permit of these, about."""
        each = [(permits.limit, permits.typical_seconds) for permits in engines]
        pace = sum(limit / seconds for limit, seconds in each if seconds)
        seconds = (self.waiting + 1) / pace if pace else LEAST_RETRY
        return round(min(max(seconds, LEAST_RETRY), LONGEST_RETRY), 1)

    def _next(self, permits: Permits) -> Waiter | None:
        for lane in self._lanes.values():
            for waiters in lane.values():
                waiter = next((each for each in waiters if each.wants(permits)), None)
                if waiter is not None:
                    self._remove(lane, waiter)
                    if waiters:
                        # The session has had its turn.
                        lane[waiter.session] = lane.pop(waiter.session)
                    return waiter
        return None

    def _remove(self, lane: dict[str, deque[Waiter]], waiter: Waiter) -> None:
        waiters = lane[waiter.session]
        waiters.remove(waiter)
        if not waiters:
            del lane[waiter.session]
        self.waiting -= 1
        self._listeners -= waiter.moved is not None

    def _tell(self) -> None:
        """Tell those who want to know it where they are now."""
        if not self._listeners:
            return
        moved = []
        for position, waiter in enumerate(self._order(), 1):
            if waiter.moved is not None and waiter.position != position:
                waiter.position = position
                moved.append((waiter.moved, position))
        for tell, position in moved:
            tell(position)

    def _order(self) -> Iterator[Waiter]:
        for lane in self._lanes.values():
            left = [iter(waiters) for waiters in lane.values()]
            while left:
                after = []
                for waiters in left:
                    waiter = next(waiters, None)
                    if waiter is not None:
                        yield waiter
                        after.append(waiters)
                left = after
