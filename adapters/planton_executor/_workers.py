"""Slots, and the trio tasks that work in them: one serves many runs, one after the other."""

import contextvars
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from planton.storage import failure_of
from planton_executor._run import Run

# Seconds after which a worker lets the event loop turn, if its handlers never wait.
_TURN = 0.002


class Workers:
    """Starts workers on demand, `count` at most, and keeps them for the next runs.

    Each handles a run, whose scope is cancelled to break that off, and settles it in any case.
    """

    def __init__(
        self, count: int, handle: Callable[[Run], Awaitable[None]], settle: Callable[[Run], None]
    ) -> None:
        self._count = count
        self._handle = handle
        self._settle = settle
        self._queue: deque[Run] = deque()
        self._idle: dict[trio.lowlevel.Task, None] = {}
        self._started = self._woken = 0
        self._turns_at = 0.0
        self._context = contextvars.copy_context()
        self._nursery: trio.Nursery

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def put(self, run: Run) -> None:
        self._queue.append(run)
        if not self._woken:
            self._wake(1)

    def _wake(self, count: int) -> None:
        """Wake or start workers; each wakes two more if there is more to do."""
        for _ in range(min(count, len(self._queue))):
            if self._idle:
                task, _ = self._idle.popitem()
                trio.lowlevel.reschedule(task)
            elif self._started < self._count:
                self._started += 1
                # Not in the context of whoever submitted: a worker serves many.
                self._context.copy().run(self._nursery.start_soon, self._work)
            else:
                return
            self._woken += 1

    async def _work(self) -> None:
        """Work until cancelled, or until a handler leaves other context variables behind."""
        self._note_wake()
        try:
            while contextvars.copy_context() == self._context:
                await self._work_in_one_scope()
        finally:
            self._started -= 1
        if self._queue and not self._woken:
            self._wake(1)

    async def _work_in_one_scope(self) -> None:
        """Work until a run is broken off or fails: one scope for many costs far less than many."""
        run = None
        try:
            with trio.CancelScope() as scope:
                while contextvars.copy_context() == self._context:
                    run = None
                    if not self._queue or time.monotonic() > self._turns_at:
                        await self._rest()
                    run = self._queue.popleft()
                    run.scope = scope
                    await self._handle(run)
                    if _is_cancelled(run, scope):
                        break
                    self._settle(run)
                else:
                    return
        except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
            if run is None:
                raise
            run.fail(failure_of(raised))
        assert run is not None, "its scope is cancelled only while a run has it"
        self._settle(run)

    async def _rest(self) -> None:
        """Wait until there is something to do; let the event loop turn in any case."""
        if self._queue:
            await trio.lowlevel.checkpoint()
            self._turns_at = time.monotonic() + _TURN
        while not self._queue:
            await self._park()
            self._note_wake()

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._idle[task] = None

        def leave(_: object) -> trio.lowlevel.Abort:
            if task not in self._idle:
                return trio.lowlevel.Abort.FAILED
            del self._idle[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def _note_wake(self) -> None:
        self._turns_at = time.monotonic() + _TURN
        self._woken -= 1
        self._wake(2)


def _is_cancelled(run: Run, scope: trio.CancelScope) -> bool:
    """Return whether the scope was cancelled; else it may serve the next run."""
    if run.broken_off:
        return True
    if scope.deadline < math.inf and not scope.cancel_called:
        scope.deadline = math.inf
    return scope.deadline < math.inf


class Slots:
    """Counts the slots that are taken; whoever waits gets the next free one in order."""

    def __init__(self, count: int, start: Callable[[Run], None]) -> None:
        self.count = count
        self._start = start
        self.taken = 0
        self._waiting: dict[Run, trio.lowlevel.Task] = {}

    @property
    def waiting(self) -> int:
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
        for run in list(self._waiting):
            self.turn_away(run)
