"""A call of an engine that somebody beside its task may end, and the task then tells from a cancel of its own."""

import asyncio


class Call:
    """One that runs in the current task. To cancel that and take it back costs a turn less than `asyncio.timeout`.

    It is of one `try` block, which asks `taken_back` of whatever error it ends by.
    """

    __slots__ = ("_before", "_given_up", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._given_up = False

    def give_up(self) -> None:
        """End it, once."""
        if not self._given_up:
            self._given_up = True
            self._task.cancel()

    def taken_back(self, error: BaseException) -> bool:
        """Whether this error is its having been given up, and nobody else cancelled the task; the cancel is taken back.

        To be asked once.
        """
        return self._given_up and self._task.uncancel() <= self._before and isinstance(error, asyncio.CancelledError)
