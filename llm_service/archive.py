"""The store, as a process uses it: its sessions are saved there, and are its own until it gives them up.

With a store that other processes see, a session is claimed by the one that runs it. Whoever wants it asks for it, again
and again, and gets it once its running response is over. A process that was killed loses its claims after
CLAIM_SECONDS.
"""

import asyncio
import contextlib
import hmac
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from itertools import islice
from time import monotonic, time
from weakref import WeakValueDictionary

import structlog

from llm_service import records
from llm_service.errors import FastTalkError, RecordTooLarge, StoreUnavailable
from llm_service.live_session import LiveSession
from llm_service.records import SessionRecord
from llm_service.stores.base import Store

# In seconds.
LOOK_EVERY = 0.25
CLAIM_SECONDS = 10.0
RENEW_EVERY = 3.0
TRY_EVERY = 0.1
ASK_EVERY = 0.5
RETRY_EVERY = 1.0
SAVED_AT_ONCE = 8
# For a session that has just begun in another process to be saved there, or that the store has lost to be saved anew.
UNSAVED_SECONDS = 2.0
# A store that takes longer for a record is one that others may not have got theirs into.
SLOW_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class Archive:
    """Saves, claims and fetches sessions for the process `owner`, a name no other process has.

    What is saved is kept for `ttl` seconds. A fetch waits for another process for up to `patience` seconds after that
    one saved the session last, and for up to `at_most` seconds in all.
    """

    def __init__(self, store: Store, *, owner: str, ttl: float, patience: float, at_most: float) -> None:
        self._store = store
        self._owner = owner
        self._ttl = ttl
        self._patience = patience
        self._at_most = at_most
        self._unsaved: set[LiveSession] = set()
        self._changed = asyncio.Event()
        self._claimed: set[str] = set()
        self._renewed_at = monotonic()
        self._to_claim: set[str] = set()
        self._to_delete: set[str] = set()
        self._arriving: Counter[str] = Counter()  # those that are being fetched
        # Of a session's claims and releases here each waits for the one before it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Archive: {self._store!r}, {len(self._claimed)} claimed, {len(self._unsaved)} to be saved>"

    @property
    def ttl(self) -> float:
        """For how long a session that nobody uses is kept, in seconds."""
        return self._ttl

    def changed(self, live: LiveSession) -> None:
        """Have the session saved before long, where a crash would lose it otherwise."""
        if self._store.shared:
            self._unsaved.add(live)
            self._changed.set()
            if live.known_as not in self._claimed:
                self._to_claim.add(live.known_as)

    def ended(self, live: LiveSession, session_id: str) -> None:
        """Have what was saved under this id deleted: the session is over."""
        self._unsaved.discard(live)
        if session_id:
            self._to_claim.discard(session_id)
            self._to_delete.add(session_id)
            self._changed.set()

    async def put(self, live: LiveSession, leave: Callable[[], bool], saved_at: float | None = None) -> bool:
        """Save the session now and, if `leave()` agrees once it is saved, give it up: its client may find it anywhere.

        Returns whether it was given up.

        Raises:
            StoreError: it could not be saved, and is still ours.
        """
        async with self._lock(live.known_as):
            self._unsaved.discard(live)
            record = live.record(monotonic(), whole=True, saved_at=saved_at)
            await self._store.save(record.id, records.dump(record), ttl=self._ttl)
            if not leave():
                return False
            self._unsaved.discard(live)
            self._to_claim.discard(record.id)
            if record.id in self._claimed:
                self._claimed.discard(record.id)
                # A claim that is not given up runs out.
                with contextlib.suppress(FastTalkError):
                    await self._store.release(record.id, self._owner)
        return True

    async def fetch(self, session_id: str, key: str, wanted: Callable[[], bool]) -> SessionRecord | None:
        """Return a session that rests, or that another process gives up for us; it is claimed then.

        None: there is none of this id that was opened with this key, it could not be had in time, or it is not `wanted`
        any more.

        Raises:
            StoreUnavailable: the store does not answer, or takes no records: there may be such a session.
        """
        self._arriving[session_id] += 1
        try:
            if not await self._is_there(session_id, key) or not await self._claim(session_id, key, wanted):
                return None
            # What was saved meanwhile counts.
            record = await self._load(session_id, key)
            if record is None or not wanted():
                await self._release(session_id)
                return None
            return record
        finally:
            self._arriving[session_id] -= 1
            self._arriving += Counter()  # forgets those at 0

    async def give_up(self, session_id: str) -> None:
        """Let others have the session of this id, which is not here; one that is being fetched is kept."""
        if session_id not in self._arriving:
            await self._release(session_id)

    async def _release(self, session_id: str) -> None:
        async with self._lock(session_id):
            self._claimed.discard(session_id)
            await self._store.release(session_id, self._owner)

    async def _is_there(self, session_id: str, key: str) -> bool:
        until, slow = monotonic() + UNSAVED_SECONDS, False
        while await self._load(session_id, key) is None:
            if slow:
                raise StoreUnavailable(
                    "the session store is slow, and the session may not be saved yet; try again", retry_after=1.0
                )
            if not self._store.shared or monotonic() > until:
                return False
            # What whoever has the session would have to wait for, to save it.
            began = monotonic()
            await self._store.writable()
            slow = monotonic() - began > SLOW_SECONDS
            await asyncio.sleep(TRY_EVERY)
        return True

    async def _claim(self, session_id: str, key: str, wanted: Callable[[], bool]) -> bool:
        """Claim the session, and ask whoever has it for it; returns whether it is ours.

        One whose response runs is saved again and again by its process, and is waited for meanwhile.
        """
        began = monotonic()
        until, end, ask_at, saved_at = began + self._patience, began + self._at_most, 0.0, 0.0
        while wanted() and monotonic() < min(until, end):
            async with self._lock(session_id):
                other = await self._store.claim(session_id, self._owner, ttl=CLAIM_SECONDS)
                if other is None:
                    self._claimed.add(session_id)
                    return True
            if monotonic() >= ask_at:
                ask_at = monotonic() + ASK_EVERY
                await self._store.ask(other, session_id)
                record = await self._load(session_id, key)
                if record is not None and record.saved_at != saved_at:
                    saved_at, until = record.saved_at, monotonic() + self._patience
            await asyncio.sleep(TRY_EVERY)
        return False

    def _lock(self, session_id: str) -> asyncio.Lock:
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()
        return lock

    async def _load(self, session_id: str, key: str) -> SessionRecord | None:
        data = await self._store.load(session_id)
        record = None if data is None else records.load(data)
        if record is None or not hmac.compare_digest(record.key, key):
            return None
        return record

    @contextlib.asynccontextmanager
    async def kept_up(
        self,
        lost: Callable[[str], None],
        forgotten: Callable[[str], None],
        hand_over: Callable[[str], Coroutine[None, None, None]],
    ) -> AsyncGenerator[None, None]:
        """Save and claim in the background until the block is left; `put` what is unsaved before that.

        `lost` gets the ids of sessions that another process took, `forgotten` those that the store knew nothing of any
        more, `hand_over` those that one asks for.
        """
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            works = [self._keep_up(lost, forgotten)]
            if self._store.shared:
                works.append(self._listen(tasks, hand_over))
            for work in works:
                stack.callback(tasks.create_task(work).cancel)
            yield

    async def _keep_up(self, lost: Callable[[str], None], forgotten: Callable[[str], None]) -> None:
        # Claims are renewed in time. Where there are none to be had, nothing is due until something changes.
        every = LOOK_EVERY if self._store.shared else None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._changed.wait()
            self._changed.clear()
            async with self._forgiven("session_store_behind"):
                if monotonic() - self._renewed_at > RENEW_EVERY:
                    await self._renew(lost, forgotten)
                await self._save_changed(lost)
                await self._delete_ended()

    async def _renew(self, lost: Callable[[str], None], forgotten: Callable[[str], None]) -> None:
        began = monotonic()
        renewed = await self._store.renew(tuple(self._claimed), self._owner, ttl=CLAIM_SECONDS)
        # Only now: one that fails is tried again before long, since claims run out.
        self._renewed_at = began
        for session_id in renewed.lost:
            self._claimed.discard(session_id)
            lost(session_id)
        for session_id in renewed.anew:
            forgotten(session_id)

    async def _claim_new(self, session_id: str, lost: Callable[[str], None]) -> None:
        """Claim a session that was not claimed when it changed, unless it has left meanwhile."""
        async with self._lock(session_id):
            if session_id not in self._to_claim:
                return
            if await self._store.claim(session_id, self._owner, ttl=CLAIM_SECONDS) is None:
                self._claimed.add(session_id)
            else:
                lost(session_id)
            self._to_claim.discard(session_id)

    async def _save_changed(self, lost: Callable[[str], None]) -> None:
        while self._unsaved:
            some = tuple(islice(self._unsaved, SAVED_AT_ONCE))
            ends = await asyncio.gather(*(self._save(live, lost) for live in some), return_exceptions=True)
            for error in filter(None, ends):
                raise error

    async def _save(self, live: LiveSession, lost: Callable[[str], None]) -> None:
        # Claimed first: whoever finds it in the store takes it if it is nobody's.
        await self._claim_new(live.known_as, lost)
        if live not in self._unsaved or not live.known_as:
            self._unsaved.discard(live)
            return
        record = live.record(monotonic(), whole=False, saved_at=time())
        self._unsaved.discard(live)
        try:
            await self._store.save(record.id, records.dump(record), ttl=self._ttl)
        except RecordTooLarge as error:
            # It would be too large the next time, too, and the others wait behind it.
            _log.warning("session_not_saved", session_id=record.id, code=error.code, reason=error.message)
        except FastTalkError:
            if live.known_as:
                self._unsaved.add(live)
            raise

    async def _delete_ended(self) -> None:
        while self._to_delete:
            session_id = next(iter(self._to_delete))
            await self._store.delete(session_id)
            await self._release(session_id)
            self._to_delete.discard(session_id)

    async def _listen(self, tasks: asyncio.TaskGroup, hand_over: Callable[[str], Coroutine[None, None, None]]) -> None:
        while True:
            async with self._forgiven("session_store_deaf"):
                try:
                    async for session_id in self._store.asked(self._owner):
                        tasks.create_task(self._handed_over(session_id, hand_over))
                finally:
                    # A store that was away may come back empty: what is claimed is looked for as soon as it is there.
                    self._renewed_at = float("-inf")
                    self._changed.set()

    async def _handed_over(self, session_id: str, hand_over: Callable[[str], Coroutine[None, None, None]]) -> None:
        async with self._forgiven("session_not_handed_over"):
            await hand_over(session_id)

    @contextlib.asynccontextmanager
    async def _forgiven(self, event: str) -> AsyncGenerator[None, None]:
        """Log a store that fails, and wait a little: it is tried again."""
        try:
            yield
        except FastTalkError as error:
            _log.warning(event, code=error.code, reason=error.message)
            await asyncio.sleep(RETRY_EVERY)
