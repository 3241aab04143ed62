"""A call that is given up is told from one whose task somebody cancelled."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from llm_service.engines.calls import Call


class Overdue(Exception):
    """What a call that was given up becomes here."""


async def _called(wait: Callable[[], Awaitable[object]], calls: list[Call]) -> None:
    call = Call()
    calls.append(call)
    try:
        await wait()
    except BaseException as error:
        if call.taken_back(error):
            raise Overdue from None
        raise
    finally:
        call.leave()


async def _begun(calls: list[Call], count: int) -> None:
    while len(calls) < count:
        await asyncio.sleep(0)


def _never() -> Awaitable[object]:
    return asyncio.get_running_loop().create_future()


async def test_one_that_is_given_up() -> None:
    """It ends once, however often it is given up, and nothing of the cancel is left in its task."""
    calls: list[Call] = []
    task = asyncio.create_task(_called(_never, calls))
    await _begun(calls, 1)
    calls[0].give_up()
    calls[0].give_up()
    with pytest.raises(Overdue):
        await task
    assert 0 == task.cancelling()


async def test_a_cancel_counts_more() -> None:
    """A task that was cancelled as well is cancelled, whichever came first."""
    for first in ("given up", "cancelled"):
        calls: list[Call] = []
        task = asyncio.create_task(_called(_never, calls))
        await _begun(calls, 1)
        if first == "given up":
            calls[0].give_up()
        task.cancel()
        calls[0].give_up()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_one_within_another() -> None:
    """Of two, one around the other, each is given up by itself; if both are, the outer one tells."""
    for inner, outer in ((True, False), (False, True), (True, True)):
        calls: list[Call] = []
        told: list[str] = []

        async def within(calls: list[Call] = calls, told: list[str] = told) -> None:
            try:
                await _called(_never, calls)
            except Overdue:
                told.append("inner")
                raise

        task = asyncio.create_task(_called(within, calls))
        await _begun(calls, 2)
        if inner:
            calls[1].give_up()
        if outer:
            calls[0].give_up()
        with pytest.raises(Overdue):
            await task
        assert told == ([] if outer else ["inner"])


async def test_another_error() -> None:
    """An error that is no cancel stays what it is, though the call was given up in the same moment."""
    calls: list[Call] = []
    gate = asyncio.Event()

    async def failing() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            raise ValueError("broken") from None

    task = asyncio.create_task(_called(failing, calls))
    await _begun(calls, 1)
    calls[0].give_up()
    with pytest.raises(ValueError, match="broken"):
        await task
    assert 0 == task.cancelling()


async def test_what_comes_in_the_same_moment() -> None:
    """An answer that is there by then, and whose task is only to go on, is not thrown away."""
    calls: list[Call] = []
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def waiting() -> None:
        await answer

    task = asyncio.create_task(_called(waiting, calls))
    await _begun(calls, 1)
    answer.set_result(None)
    calls[0].give_up()
    await task
    assert 0 == task.cancelling()


async def test_one_that_takes_no_notice() -> None:
    """A call that ends well though it was given up leaves no cancel to what its task does next."""
    calls: list[Call] = []

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await _never()

    task = asyncio.create_task(_called(stubborn, calls))
    await _begun(calls, 1)
    calls[0].give_up()
    await task
    assert 0 == task.cancelling()
