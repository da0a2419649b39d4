"""Waiting for trio's I/O and deadlines by the host's loop, without the thread that trio waits in.

When trio has nothing to do it would start a wait in its thread and be woken by it, which costs 60
to 95 microseconds. The pump keeps its next tick instead ("parks" it): the loop watches trio's
epoll (or kqueue) descriptor, and a timer of the loop stands for trio's next deadline.

That needs private names of trio, all of them in this module, all of them looked up when a run
starts: `GuestState.runner` and `.unrolled_run_next_send`; `Runner.io_manager`, `.runq`,
`.waiting_for_idle` and `.guest_tick_scheduled`; `_epoll` or `_kqueue` of the I/O manager. Where
one is missing (a new trio, Windows) there is no pump, and trio waits in its thread.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Self, TypeAlias

import trio

logger = logging.getLogger("planton")

Tick: TypeAlias = Callable[[], object]

# Of trio's I/O managers; what has a `fileno` that is readable when there are events.
POLLERS = ("_epoll", "_kqueue")
# Seconds; a loop refuses timers that are too long, and a tick a day costs nothing.
LONGEST_TIMER = 86400.0


class PumpClock(trio.abc.Clock):
    """Trio's own clock; while there is a pump it never sends trio to its thread to wait."""

    def __init__(self) -> None:
        self._start = 0.0
        self.pump: Pump | None = None  # set by the pump itself
        self.idle_until: float | None = None  # the deadline that trio would have waited for

    def start_clock(self) -> None:
        self._start = time.perf_counter()

    def current_time(self) -> float:
        return time.perf_counter() - self._start

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return 0 instead of the time until `deadline`, for the pump waits for it."""
        if self.pump is None or self.pump.is_trio_to_wait():
            return deadline - self.current_time()
        self.idle_until = deadline
        return 0.0


class Pump:
    """Keeps trio's next tick until there is something to do.

    The private names of trio are reached through the first tick that it hands over. `resume` is
    called when the tick that is parked should run.
    """

    def __init__(
        self,
        tick: Any,
        clock: PumpClock,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        resume: Callable[[], object],
    ) -> None:
        self._state: Any = tick.__self__
        self._runner: Any = self._state.runner
        self._probe()
        self._clock, self._loop, self._context, self._resume = clock, loop, context, resume
        self._parked: Tick | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        # One of our own: trio closes its descriptor before the loop stops watching it.
        self._fd = os.dup(self._poller().fileno())
        try:
            loop.add_reader(self._fd, self._on_event)
        except BaseException:
            os.close(self._fd)
            raise
        clock.pump = self

    @classmethod
    def made(cls, *args: Any) -> Self | None:
        """Make one, or return None where that is not possible."""
        try:
            return cls(*args)
        except (AttributeError, NotImplementedError, OSError, ValueError) as error:
            logger.debug("trio waits in a thread of its own: %r", error)
            return None

    @property
    def is_parked(self) -> bool:
        return self._parked is not None

    def is_trio_to_wait(self) -> bool:
        """Whether trio has to see for itself that nothing happens: `wait_all_tasks_blocked`."""
        return bool(self._runner.waiting_for_idle)

    def park(self, tick: Tick) -> bool:
        """Keep trio's next tick if there is nothing to do now; return whether it is kept."""
        deadline, self._clock.idle_until = self._clock.idle_until, None
        # An outcome: of the events that there are, or of an error in asking for them.
        events = self._state.unrolled_run_next_send
        if deadline is None or getattr(events, "value", True):
            return False
        self._runner.guest_tick_scheduled = False
        # After that: from here on trio writes to its wake-up socket when something is runnable.
        # A signal handler may have made something runnable just before.
        if self._runner.runq:
            self._runner.guest_tick_scheduled = True
            return False
        self._parked = tick
        self._wait_until(deadline)
        return True

    def unpark(self) -> Tick:
        """Return the tick that is parked; trio wakes nobody then, until it parks again."""
        tick, self._parked = self._parked, None
        assert tick is not None
        self._runner.guest_tick_scheduled = True
        return tick

    def close(self) -> None:
        self._clock.pump = None
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _poller(self) -> Any:
        manager = self._runner.io_manager
        for name in POLLERS:
            if hasattr(manager, name):
                return getattr(manager, name)
        raise AttributeError(f"{manager!r} has none of {POLLERS}")

    def _probe(self) -> None:
        """Raise AttributeError unless all the other names are there."""
        self._state.unrolled_run_next_send.value  # noqa: B018
        for name in ("runq", "waiting_for_idle", "guest_tick_scheduled"):
            getattr(self._runner, name)

    def _wait_until(self, deadline: float) -> None:
        """Have a timer by then; one that is too early stays, for a tick costs less than a timer."""
        if deadline >= self._timer_at or self._loop.is_closed():
            return
        if self._timer is not None:
            self._timer.cancel()
        seconds = min(max(0.0, deadline - self._clock.current_time()), LONGEST_TIMER)
        # Loops count in milliseconds: rounded down trio would be woken again and again.
        seconds = math.ceil(seconds * 1000) / 1000
        self._timer_at = deadline
        self._timer = self._loop.call_later(seconds, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._on_event()

    def _on_event(self) -> None:
        if self._parked is not None:
            self._resume()
