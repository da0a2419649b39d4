"""The trio tasks that call handlers: one serves many runs, one after the other."""

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
        self,
        nursery: trio.Nursery,
        count: int,
        handle: Callable[[Run], Awaitable[None]],
        settle: Callable[[Run], None],
    ) -> None:
        self._nursery = nursery
        self._count = count
        self._handle = handle
        self._settle = settle
        self._queue: deque[Run] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._started = self._woken = 0
        self._turns_at = 0.0
        self._context = contextvars.copy_context()

    def put(self, run: Run) -> None:
        self._queue.append(run)
        if not self._woken:
            self._wake(1)

    def _wake(self, count: int) -> None:
        """Wake or start workers; each wakes two more if there is more to do."""
        for _ in range(min(count, len(self._queue))):
            if self._idle:
                self._idle.unpark()
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
            while self._is_context_clean():
                await self._work_in_one_scope()
        finally:
            self._started -= 1

    async def _work_in_one_scope(self) -> None:
        """Work until a run is broken off or fails: one scope for many costs far less than many."""
        run = None
        try:
            with trio.CancelScope() as scope:
                while True:
                    run = None
                    if not self._queue or time.monotonic() > self._turns_at:
                        await self._rest()
                    run = self._queue.popleft()
                    run.scope = scope
                    await self._handle(run)
                    if _is_cancelled(run, scope) or not self._is_context_clean():
                        break
                    self._settle(run)
        except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
            if run is None:
                raise
            run.fail(failure_of(raised))
        assert run is not None, "its scope is cancelled only while a run has it"
        self._settle(run)

    def _is_context_clean(self) -> bool:
        return contextvars.copy_context() == self._context

    async def _rest(self) -> None:
        """Wait until there is something to do; let the event loop turn in any case."""
        if self._queue:
            await trio.lowlevel.checkpoint()
            self._turns_at = time.monotonic() + _TURN
        while not self._queue:
            await self._idle.park()
            self._note_wake()

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
