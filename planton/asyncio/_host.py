"""Running trio's ticks on an asyncio loop.

Trio as a guest hands its host one tick after the other. The host runs ticks that follow each
other in one turn of the loop, half a millisecond at most (they cost 2 to 4 microseconds, a turn of
the loop costs more), then the program has its turn. When trio has nothing to do the pump waits,
or else trio's own thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

import trio

from planton.asyncio._interrupt import Interrupts
from planton.asyncio._pump import Pump, PumpClock, Tick

# Seconds that ticks may follow each other without a turn of the host's loop.
BUDGET = 0.0005
# Seconds that asyncio's tasks of callbacks wait for others to begin with, while trio is busy.
HOLD = 0.005


class Host:
    """One guest run of trio on a loop; with a clock other than trio's own there is no pump."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: trio.abc.Clock | None = None
    ) -> None:
        self.loop = loop
        # Callbacks of the loop run in this one, whatever context they are scheduled from.
        self.context = copy_context()
        self._clock = clock or PumpClock()
        self._pump: Pump | None = None
        self.interrupts = Interrupts()
        self._next: Tick | None = None
        self._is_driving = False
        self._calls: deque[Callable[[], object]] = deque()
        self._calls_due = 0.0

    def start(
        self,
        main: Callable[[], Awaitable[Any]],
        *,
        done: Callable[[Any], object],
        **options: Any,
    ) -> None:
        """Begin; `done` is called with the outcome of `main` when the run is over.

        The options are those of `trio.run`.
        """

        def close(result: object) -> None:
            self._close()
            done(result)

        self.interrupts.install()
        try:
            trio.lowlevel.start_guest_run(
                main,
                run_sync_soon_threadsafe=self._soon_from_thread,
                run_sync_soon_not_threadsafe=self._soon,
                done_callback=close,
                # Trio would take the descriptor that wakes the loop for signals.
                host_uses_signal_set_wakeup_fd=True,
                clock=self._clock,
                **options,
            )
        except BaseException:
            self.interrupts.uninstall()
            raise
        if isinstance(self._clock, PumpClock):
            self._pump = Pump.made(self._next, self._clock, self.loop, self.context, self._resume)

    def wake(self) -> None:
        """Have a tick soon; call it right before asyncio code makes something runnable in trio.

        It only saves time: without it trio would write to its wake-up socket, which takes as long
        as all the rest.
        """
        if not self.loop.is_closed() and self._unpark():
            self._schedule()

    def after_ticks(self, call: Callable[[], object]) -> None:
        """Call it when trio has nothing to do, together with others; trio calls this in a tick."""
        if not self._calls:
            self._calls_due = time.perf_counter() + HOLD
        self._calls.append(call)

    def run_here(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Run trio without the loop, which is closed, until `is_over` or for so many seconds."""
        until = time.monotonic() + seconds
        self._is_driving = True  # the loop runs no more ticks
        while not is_over() and time.monotonic() < until:
            self._unpark()
            if self._next is not None:
                self._run_next()
            if self._next is None:
                time.sleep(0.001)  # trio waits

    def _soon_from_thread(self, tick: Tick) -> None:
        """Called by trio's thread with the next tick; nothing else has one then."""
        self._next = tick
        try:
            self.loop.call_soon_threadsafe(self._drive, context=self.context)
        except RuntimeError:
            pass  # the loop is closed: `run_here` looks for it

    def _soon(self, tick: Tick) -> None:
        """Called by trio in this thread with the next tick."""
        if self._pump is None or not self._pump.park(tick):
            self._next = tick
            if not self._is_driving:
                self._schedule()

    def _schedule(self) -> None:
        self.loop.call_soon(self._drive, context=self.context)

    def _resume(self) -> None:
        self._unpark()
        self._drive()

    def _unpark(self) -> bool:
        if self._pump is None or not self._pump.is_parked:
            return False
        self._next = self._pump.unpark()
        return True

    def _drive(self) -> None:
        """Run ticks as long as they follow each other, within the budget; then what they called."""
        self._is_driving = self.interrupts.are_held = True
        now = time.perf_counter()
        until = now + BUDGET
        try:
            while self._next is not None and now < until:
                self._run_next()
                now = time.perf_counter()
        finally:
            self._is_driving = False
            if self._next is not None or self.interrupts.is_pending:
                self._schedule()
            self.interrupts.release()
        if self._next is None or now > self._calls_due:
            while self._calls:
                self._calls.popleft()()

    def _run_next(self) -> None:
        tick, self._next = self._next, None
        assert tick is not None
        tick()

    def _close(self) -> None:
        if self._pump is not None:
            self._pump.close()
            self._pump = None
        self.interrupts.uninstall()
