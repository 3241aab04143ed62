"""One timer that goes on while there is something to look after."""

import asyncio

from llm_service.engines.rounds import Rounds


async def test_rounds_end_and_begin_anew() -> None:
    """`look` is called until it has nothing more to look after, and not again before the next `begin`."""
    loop = asyncio.get_running_loop()
    left = [True, True, False]
    idle = loop.create_future()

    def look() -> bool:
        goes_on = left.pop(0)
        if not goes_on:
            idle.set_result(loop.time())
        return goes_on

    rounds = Rounds(look, every=0.01)
    began = loop.time()
    rounds.begin()
    async with asyncio.timeout(5):
        ended = await idle
    assert ended - began >= 0.03 - 0.002, "uvloop's and the system's timers round to a millisecond"
    assert (None, []) == (rounds._timer, left)
    left.append(False)
    idle = loop.create_future()
    rounds.begin()
    async with asyncio.timeout(5):
        await idle
    assert (None, []) == (rounds._timer, left)


async def test_one_timer_however_often_it_is_begun() -> None:
    """A second `begin` sets no second timer."""
    rounds = Rounds(lambda: False, every=0.01)
    rounds.begin()
    timer = rounds._timer
    rounds.begin()
    assert timer is not None
    assert timer is rounds._timer
