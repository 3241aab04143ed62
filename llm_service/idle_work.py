"""Work for an engine that no user waits for: summaries, and prompts read ahead.

One piece at a time, only while no turn is being answered, and stopped at once when one begins: an engine that is
busy with it would let a user wait.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class Preempted(Exception):
    """A turn began before the work was done."""


class IdleWork:
    """The idle time of one engine, in one process."""

    def __init__(self) -> None:
        self._turns = 0
        self._job: asyncio.Task[Any] | None = None
        self._free = asyncio.Event()
        self._free.set()

    def __repr__(self) -> str:
        return f"<IdleWork: {self._turns} turns, {'a job' if self._job is not None else 'no job'}>"

    @property
    def idle(self) -> bool:
        """Whether neither a turn is being answered nor a job is done."""
        return not self._turns and self._job is None

    def turn(self) -> AbstractContextManager[None]:
        """Return what stands around the answering of a turn: `with idle_work.turn():`."""
        return self

    def __enter__(self) -> None:
        if not self._turns:
            self._free.clear()
        self._turns += 1
        if self._job is not None:
            self._job.cancel()

    def __exit__(self, *_: object) -> None:
        self._turns -= 1
        if not self._turns:
            self._look()

    async def run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Wait for idle time, then do the work. Cancelling this stops it.

        Raises:
            Preempted: a turn began, and nobody cancelled this; what was done is lost.
        """
        while not self.idle:
            await self._free.wait()
        self._free.clear()
        job = self._job = asyncio.create_task(work())
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            owner = asyncio.current_task()
            # Whose owner was cancelled as well is not to begin anew.
            if job.cancelled() and (owner is None or not owner.cancelling()):
                with suppress(asyncio.CancelledError):
                    job.exception()  # until somebody asks for it, job and error hold each other
                raise Preempted from None
            job.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await job
            raise
        finally:
            self._job = None
            self._look()

    def _look(self) -> None:
        if self.idle:
            self._free.set()
