"""Slots for work, and the queue of those that wait for one."""

from collections.abc import Callable

import trio

from planton_executor._run import Run


class Slots:
    """Counts the slots that are taken; whoever waits gets the next free one in order.

    Args:
        count: How many there are.
        start: Called with each run that gets one.
    """

    def __init__(self, count: int, start: Callable[[Run], None]) -> None:
        self.count = count
        self._start = start
        self.taken = 0
        self._waiting: dict[Run, trio.lowlevel.Task] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take(self, run: Run) -> bool:
        """Take a slot if one is free; return whether one was."""
        if self.taken >= self.count:
            return False
        self.taken += 1
        self._start(run)
        return True

    async def wait(self, run: Run) -> None:
        """Wait until it is started, or turned away.

        If it is cancelled there is none: a slot is never given to a caller that has left.
        """
        self._waiting[run] = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(lambda _: self._leave(run))

    def _leave(self, run: Run) -> trio.lowlevel.Abort:
        # A run that was answered already is not among them, and takes the answer.
        if self._waiting.pop(run, None) is None:
            return trio.lowlevel.Abort.FAILED
        return trio.lowlevel.Abort.SUCCEEDED

    def free(self) -> None:
        """Give a slot back, or to the first that waits."""
        for run in self._waiting:
            self._start(run)
            self.turn_away(run)
            return
        self.taken -= 1

    def turn_away(self, run: Run) -> None:
        """Let it wait no longer, if it waits."""
        if run in self._waiting:
            trio.lowlevel.reschedule(self._waiting.pop(run))

    def turn_all_away(self) -> None:
        """Let nobody wait any longer."""
        for run in list(self._waiting):
            self.turn_away(run)
