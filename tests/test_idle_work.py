import asyncio

import pytest

from llm_service.idle_work import IdleWork, Preempted


class Job:
    """Work that lasts until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.stopped = False

    async def run(self) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return "done"


async def test_work_is_done_when_no_turn_runs() -> None:
    """It begins at once on an idle engine, and after the last turn on a busy one."""
    idle, job = IdleWork(), Job()
    job.go_on.set()
    assert "done" == await idle.run(job.run)
    job.begun.clear()
    with idle.turn():
        waiting = asyncio.create_task(idle.run(job.run))
        await asyncio.sleep(0)
        with idle.turn():
            assert not idle.idle
        await asyncio.sleep(0)
        assert not job.begun.is_set()
    assert "done" == await waiting
    assert idle.idle


async def test_a_turn_stops_the_work() -> None:
    """What runs is cancelled as soon as a turn begins, and its owner is told."""
    idle, job = IdleWork(), Job()
    running = asyncio.create_task(idle.run(job.run))
    await job.begun.wait()
    with idle.turn():
        with pytest.raises(Preempted):
            await running
        assert job.stopped
        assert "<IdleWork: 1 turns, no job>" == repr(idle)
    assert idle.idle


async def test_one_piece_of_work_at_a_time() -> None:
    """A second piece waits for the first."""
    idle, first, second = IdleWork(), Job(), Job()
    one, two = asyncio.create_task(idle.run(first.run)), asyncio.create_task(idle.run(second.run))
    await first.begun.wait()
    await asyncio.sleep(0)
    assert not second.begun.is_set()
    first.go_on.set()
    assert "done" == await one
    await second.begun.wait()
    second.go_on.set()
    assert "done" == await two


@pytest.mark.parametrize("begun", [True, False])
async def test_its_owner_can_stop_it(begun: bool) -> None:
    """Cancelling who waits for the work stops the work, and leaves the engine idle."""
    idle, job = IdleWork(), Job()
    running = asyncio.create_task(idle.run(job.run))
    if begun:
        await job.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert begun == job.stopped
    assert idle.idle


async def test_a_cancelled_owner_is_not_told_of_a_turn() -> None:
    """Who is cancelled after a turn stopped the work, and before it could hear of that, is cancelled."""
    idle, job = IdleWork(), Job()
    running = asyncio.create_task(idle.run(job.run))
    await job.begun.wait()
    with idle.turn():
        while not job.stopped:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert running.cancelled()
    assert idle.idle


async def test_an_owner_cancelled_with_the_work() -> None:
    """Both at once are a cancellation, whichever comes first."""
    for turn_first in (True, False):
        idle, job = IdleWork(), Job()
        running = asyncio.create_task(idle.run(job.run))
        await job.begun.wait()
        if not turn_first:
            running.cancel()
        with idle.turn():
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert (True, True) == (job.stopped, idle.idle)


async def test_what_the_work_raises_comes_out() -> None:
    """A failure is its owner's, and the next piece can run."""
    idle = IdleWork()

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await idle.run(fail)
    assert idle.idle
