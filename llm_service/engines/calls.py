"""A call of an engine that somebody beside its task may end, and the task then tells from a cancel of its own."""

import asyncio


class Call:
    """One that runs in the current task. To cancel that and take it back costs a turn less than `asyncio.timeout`.

    It is of one `try` block, which asks `taken_back` of an error it ends by, and calls `leave` at its end in any case.
    """

    __slots__ = ("_before", "_cancelled", "_given_up", "_left", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._given_up = False
        self._cancelled = False
        self._left = False

    def give_up(self) -> None:
        """End it, unless what came in this turn of the event loop ends it; once."""
        if not self._given_up:
            self._given_up = True
            # Behind the task, where it is to go on already: what it waited for is there, and is not thrown away.
            self._task.get_loop().call_soon(self._cancel)

    def taken_back(self, error: BaseException) -> bool:
        """Whether this error is its having been given up, and nobody else cancelled the task; the cancel is taken back.

        To be asked once.
        """
        return self._take_back() and isinstance(error, asyncio.CancelledError)

    def leave(self) -> None:
        """Take note that the block is left, and leave no cancel behind."""
        self._left = True
        if self._cancelled:
            self._take_back()

    def _cancel(self) -> None:
        if not self._left:
            self._cancelled = self._task.cancel()

    def _take_back(self) -> bool:
        if not self._cancelled:
            return False
        self._cancelled = False
        return self._task.uncancel() <= self._before
