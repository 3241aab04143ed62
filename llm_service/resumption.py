"""Sessions whose client lost its connection: they rest here for a while, then in the store, and are found again."""

import asyncio
import hmac
from collections.abc import Callable, Coroutine
from itertools import takewhile
from time import monotonic, time

import pydantic
import structlog

from llm_service.archive import ASK_EVERY, Archive
from llm_service.errors import FastTalkError, InvalidConfig
from llm_service.events import StartSession
from llm_service.live_session import Listener, LiveSession, is_worth_keeping
from llm_service.metrics import Metrics
from llm_service.records import SessionRecord
from llm_service.session import Session, SessionState
from llm_service.session_manager import SessionManager

# How often a session that is handed over is asked whether its response is over, in seconds.
HAND_OVER_EVERY = 0.05
# A session that its client came to so lately, in seconds, may have been asked for before that: its client went on from
# there to here. Whoever still wants it asks again.
JUST_CAME = 1.0
# A session that another process asked for so lately, in seconds, has a client that waits for it there.
WAITED_FOR = 4 * ASK_EVERY
# While the store fails so many times MAX_RESTING_SESSIONS rest here; past it those that rest longest are dropped.
MOST_UNSAVED = 2
# For all sessions to be saved at the stop, in seconds.
SAVE_SECONDS = 10.0

_log = structlog.get_logger(__name__)


class Resumption:
    """Keeps the live sessions of one process by their ids.

    Times in seconds. For `window` after a connection's end a client gets what it missed; a response that runs then is
    stopped after `generate` unless its client waits for it in another process, or at once if the client said goodbye.
    At most `max_resting` sessions wait here. `employ` makes a session live.
    """

    def __init__(
        self,
        manager: SessionManager,
        archive: Archive,
        metrics: Metrics,
        employ: Callable[[Session, str], LiveSession],
        *,
        window: float,
        generate: float,
        max_resting: int,
    ) -> None:
        self._manager = manager
        self._archive = archive
        self._metrics = metrics
        self._employ = employ
        self._window = window
        self._generate = generate
        self._max_resting = max_resting
        self._known: dict[str, LiveSession] = {}
        self._resting: dict[LiveSession, float] = {}  # since when, the longest first
        self._alone: set[LiveSession] = set()  # of those, the ones whose response runs
        self._asked_for: set[LiveSession] = set()  # by another process
        self._leaving: set[LiveSession] = set()  # those that are being saved to be given up
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Resumption: {len(self._known)} sessions, {len(self._resting)} of them rest>"

    @property
    def resting(self) -> int:
        """Sessions that wait here for their client."""
        return len(self._resting)

    @property
    def busy(self) -> bool:
        """Whether a response runs that nobody listens to, or a session is being ended."""
        return bool(self._ending or self._alone)

    def started(self, live: LiveSession) -> None:
        """Take note that a session has begun: by its id it can be found from now on."""
        if live.known_as != live.session.id:
            self._unknow(live)
        if self._window:
            live.known_as = live.session.id
            self._known[live.known_as] = live
            self._archive.changed(live)

    def ended(self, live: LiveSession) -> None:
        """Take note that the session is over: nobody finds it any more."""
        self._unknow(live)

    def changed(self, live: LiveSession) -> None:
        """Take note that the session is another than it was saved."""
        if live.known_as:
            self._archive.changed(live)

    # Looking for one

    def find(self, session_id: str, key: str) -> LiveSession | None:
        """Return the session if it is here and was opened with the same key."""
        live = self._known.get(session_id)
        if live is None or live.session.state is not SessionState.ACTIVE:
            return None
        return live if hmac.compare_digest(live.key, key) else None

    async def fetch(self, session_id: str, key: str, wanted: Callable[[], bool]) -> LiveSession | None:
        """Return the session from the store, or from another process, if it was opened with the same key.

        It is left where it is once it is not `wanted` any more.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if not self._window or session_id in self._known:
            record = None
        else:
            try:
                record = await self._archive.fetch(session_id, key, wanted)
            except FastTalkError:
                self._metrics.count_resume("failed")
                raise
        # Two connections may look for the same one.
        found = self.find(session_id, key) or (None if record is None else self._restored(record))
        if found is None:
            self._metrics.count_resume("unknown")
        return found

    def refusal(self, event: StartSession) -> InvalidConfig | None:
        """Return why the session cannot have the configuration that its client comes back with, or None."""
        return self._manager.refusal(event)

    def resume(self, live: LiveSession, listener: Listener, event: StartSession, now: float, *, greeted: bool) -> None:
        """Let the session speak to this connection, from the event on that its client missed."""
        self._wake(live)
        whole = live.resume(listener, event, now, greeted=greeted)
        self.changed(live)
        self._metrics.count_resume("whole" if whole else "gap")
        _log.info("session_resumed", session_id=live.session.id, whole=whole)

    def _restored(self, record: SessionRecord) -> LiveSession | None:
        now, wall = monotonic(), time()
        try:
            session = self._manager.restore(record, now, wall=wall)
        except pydantic.ValidationError:
            return None  # it was saved by another version
        live = self._employ(session, record.key)
        live.outbox.restore(record.replay, events=wall - record.saved_at <= self._window)
        live.whole = record.whole
        live.known_as = record.id
        self._known[record.id] = live
        self._resting[live] = now
        return live

    # Letting one rest

    def rest(self, live: LiveSession, now: float, *, goodbye: bool) -> None:
        """Keep a session whose connection is gone, if there is anything to keep."""
        if not live.known_as or not is_worth_keeping(live.session):
            self.drop(live, now)
            return
        self._resting[live] = now
        if goodbye or not self._generate:
            live.desert()
        elif live.session.running is not None:
            self._alone.add(live)
        self._archive.changed(live)
        while len(self._resting) > self._max_resting:
            self._let_go(next(iter(self._resting)), now)

    def watch(self, now: float) -> None:
        """Stop what nobody comes back for, and make room; called a few times a second."""
        for live in tuple(self._alone):
            live.watch(now)
            if now - self._resting[live] > self._patience(live) or live.outbox.lost:
                live.desert()
                self._archive.changed(live)
            if live.session.running is None:
                self._alone.discard(live)
        # The longest come first: as long as nobody is due, all that rest together cost one look.
        for live in tuple(takewhile(lambda live: now - self._resting[live] > self._window, self._resting)):
            self._let_go(live, now)

    def _patience(self, live: LiveSession) -> float:
        """For how long a response goes on without a client, in seconds."""
        return max(self._generate, WAITED_FOR) if live in self._asked_for else self._generate

    def revoke(self, revoked: Callable[[str], bool]) -> None:
        """Stop the responses whose client is away, and whose key's digest `revoked` says is of no use any more."""
        for live in [each for each in self._alone if revoked(each.key)]:
            live.desert()
            self._archive.changed(live)

    def drop(self, live: LiveSession, now: float) -> None:
        """Forget a session that is over."""
        self._unknow(live)
        self._forget(live, now)
        self._spawn(live.closed())

    def lost(self, session_id: str) -> None:
        """Forget a session that another process has taken, since this one was too slow to renew its claim."""
        live = self._known.pop(session_id, None)
        if live is not None:
            live.known_as = ""
            _log.warning("session_lost", session_id=session_id)
            if live.listener is not None:
                live.listener.displaced()
            else:
                self._forget(live, monotonic())
                self._spawn(live.closed())

    def forgotten(self, session_id: str) -> None:
        """Have a session that the store knew nothing of any more saved there anew."""
        live = self._known.get(session_id)
        if live is not None:
            self._archive.changed(live)

    async def hand_over(self, session_id: str) -> None:
        """Give a session up for another process, once its response is over. One that cannot be saved stays.

        While it is asked for again and again its client waits there: its response goes on, and it is saved, by which
        the other sees that it is worth waiting.

        Raises:
            StoreUnavailable: the claim of a session that is not here could not be given up.
        """
        live = self._known.get(session_id)
        if live is None:
            await self._archive.give_up(session_id)
            return
        if live in self._resting and live.session.running is not None:
            del self._resting[live]  # to the end of them
            self._resting[live] = monotonic()
            self._archive.changed(live)
        if live not in self._asked_for:
            self._asked_for.add(live)
            try:
                await self._give(live)
            finally:
                self._asked_for.discard(live)

    async def _give(self, live: LiveSession) -> None:
        if live.listener is not None:
            if monotonic() - live.attached_at < JUST_CAME:
                return
            live.listener.displaced()
            live.detach()
            self._resting[live] = monotonic()
            if live.session.running is not None:
                self._alone.add(live)
        while live.session.running is not None and live.listener is None:  # noqa: ASYNC110 - `watch` ends it
            await asyncio.sleep(HAND_OVER_EVERY)
        if live.known_as and live.listener is None:
            await self._put_away(live)
            if not live.known_as:
                self._metrics.handovers.inc()

    async def aclose(self) -> None:
        """Save what can be found again after a restart, and end every session."""
        until = monotonic() + SAVE_SECONDS
        while self._known:
            live = next(iter(self._known.values()))
            if live.listener is not None:
                live.detach()
            live.desert()
            try:
                async with asyncio.timeout(max(0.0, until - monotonic())):
                    await self._archive.put(live, lambda: True)
            except (FastTalkError, TimeoutError) as error:
                _not_saved(live, error)
            self._known.pop(live.known_as, None)
            live.known_as = ""
            if live in self._resting:
                self._forget(live, monotonic())
            await live.closed()
        while self._ending:
            await asyncio.wait(self._ending)

    def _let_go(self, live: LiveSession, now: float) -> None:
        """Leave a session to the store alone."""
        since = self._resting[live]
        self._wake(live)
        self._spawn(self._put_away(live, saved_at=time() - (now - since)))

    async def _put_away(self, live: LiveSession, saved_at: float | None = None) -> None:
        """Save the session and forget it, unless its client is quicker; one that cannot be saved stays."""
        if live in self._leaving:
            return
        self._leaving.add(live)
        live.desert()
        try:
            gone = await self._archive.put(live, lambda: self._leave(live), saved_at)
        except FastTalkError as error:
            _not_saved(live, error)
            self._keep(live, monotonic())
            return
        finally:
            self._leaving.discard(live)
        if gone:
            await live.closed()
        elif live.known_as:
            self._archive.changed(live)

    def _leave(self, live: LiveSession) -> bool:
        """Forget a session that is saved, if it is still here and nobody listens; returns whether it is."""
        if live.listener is not None or not live.known_as:
            return False
        del self._known[live.known_as]
        live.known_as = ""
        self._forget(live, monotonic())
        return True

    def _keep(self, live: LiveSession, now: float) -> None:
        """Let a session that could not be saved rest here for another while, within bounds of room and time."""
        if live.listener is not None or not live.known_as:
            return
        self._resting[live] = now
        oldest = next(iter(self._resting))
        if live.session.idle_seconds(now) > self._archive.ttl:
            self.drop(live, now)
        elif len(self._resting) > MOST_UNSAVED * self._max_resting:
            _log.warning("session_dropped", session_id=oldest.session.id, resting=len(self._resting))
            self.drop(oldest, now)

    def _unknow(self, live: LiveSession) -> None:
        if live.known_as and self._known.get(live.known_as) is live:
            del self._known[live.known_as]
            self._archive.ended(live, live.known_as)
        live.known_as = ""

    def _wake(self, live: LiveSession) -> None:
        """Take note that it rests here no longer, if it did."""
        self._resting.pop(live, None)
        self._alone.discard(live)

    def _forget(self, live: LiveSession, now: float) -> None:
        self._wake(live)
        self._manager.forget(live.session, now)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _not_saved(live: LiveSession, error: FastTalkError | TimeoutError) -> None:
    code, reason = (error.code, error.message) if isinstance(error, FastTalkError) else ("timeout", "no time is left")
    _log.warning("session_not_saved", session_id=live.session.id, code=code, reason=reason)
