"""Renewing leases for as long as the work lives, whatever the handlers do.

One trio task beats for all claims in one call, at a third of their leases. A handler that blocks
trio's loop keeps it from doing so, and no other thread can do it instead, as a storage belongs to
its loop: so a thread watches over the renewals and tells of a lease half of which has passed.
"""

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence

import trio

from planton import InvalidArgumentError, StorageError
from planton_executor._callbacks import Link
from planton_executor._events import LeaseAtRiskEvent
from planton_executor._links import Outage, pause
from planton_executor._run import Run

# Frames of the stack that are told of.
FRAMES = 8
# Seconds after which the watchdog looks whether there is something to watch over.
IDLE = 0.25


class Leases:
    """The leases of all claims that wait or run; `warn` is called in a thread."""

    def __init__(
        self, link: Link, outage: Outage, warn: Callable[[LeaseAtRiskEvent], None]
    ) -> None:
        self._link = link
        self._outage = outage
        self._runs: dict[Run, None] = {}
        self._earlier = trio.Event()
        self._sleeps_until = 0.0
        self._watchdog = Watchdog(self._runs, warn)

    def add(self, run: Run) -> None:
        self._runs[run] = None
        if run.beat_at < self._sleeps_until:
            self._earlier.set()

    def discard(self, run: Run) -> None:
        self._runs.pop(run, None)

    async def confirm(self, run: Run) -> None:
        """Renew the lease of a claim, or take it over if it comes from elsewhere.

        If that cannot be done, because the claim is another's by now, it is lost.

        Raises:
            Exception: What the storage has against the receipt itself.
        """
        while True:
            try:
                await (self._take_over(run) if run.is_foreign else self._renew([run]))
                return
            except (StorageError, trio.TooSlowError) as error:
                self._outage.note(error)
            await trio.sleep(pause(self._outage.count - 1))

    async def _take_over(self, run: Run) -> None:
        receipt = await self._link.take_over(run)
        if receipt is None:
            run.break_off("lost")
            return
        run.receipt = run.work.receipt = receipt
        run.is_foreign, run.claimed_at = False, trio.current_time()
        run.renewed(time.monotonic())
        self.add(run)

    async def beat(self) -> None:
        with self._watchdog:
            while True:
                await self._sleep()
                now = trio.current_time()
                # Those that are due soon, too: they share the call from then on.
                due = [run for run in self._runs if run.beat_at - run.lease / 6 <= now]
                if due:
                    await self._beat(due)

    async def _sleep(self) -> None:
        self._earlier = trio.Event()
        self._sleeps_until = min((run.beat_at for run in self._runs), default=math.inf)
        with trio.move_on_at(self._sleeps_until):
            await self._earlier.wait()

    async def _beat(self, runs: Sequence[Run]) -> None:
        try:
            await self._renew(runs)
        except InvalidArgumentError:
            if len(runs) == 1:
                self.discard(runs[0])  # it is told when it is confirmed, or its end is stored
            else:
                for run in runs:
                    await self._beat([run])  # one of them spoils the others
        except Exception as error:
            self._outage.note(error)

    async def _renew(self, runs: Sequence[Run]) -> None:
        began = time.monotonic()
        for run in runs:
            run.tried_at = began
            run.beat_at = trio.current_time() + run.lease / 12  # if this one fails
        with trio.fail_after(min(run.lease for run in runs) / 3):
            lost = set(await self._link.heartbeat(runs))
        self._outage.end()
        for run in runs:
            if run in lost:
                run.break_off("lost")
                self.discard(run)
            else:
                run.renewed(began)


class Watchdog:
    """A thread that warns once half of a lease has passed without a renewal."""

    def __init__(self, runs: Iterable[Run], warn: Callable[[LeaseAtRiskEvent], None]) -> None:
        self._runs = runs
        self._warn = warn
        self._is_over = threading.Event()
        self._trio_thread = threading.get_ident()

    def __enter__(self) -> None:
        # A daemon: a listener that hangs must not keep the program from ending.
        name = "planton-executor-watchdog"
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End it, and do not wait for a listener that hangs."""
        self._is_over.set()
        self._thread.join(timeout=1.0)

    def _watch(self) -> None:
        seconds = IDLE
        while not self._is_over.wait(seconds):
            # One step for the interpreter, so that nobody can change it meanwhile.
            runs = list(self._runs)
            self._look(runs, time.monotonic())
            seconds = min((run.lease / 12 for run in runs), default=IDLE)

    def _look(self, runs: Iterable[Run], now: float) -> None:
        for run in runs:
            if now - run.renewed_at > run.lease / 2 and not run.is_at_risk:
                run.is_at_risk = True
                is_blocked = run.tried_at < run.renewed_at
                event = LeaseAtRiskEvent(
                    work=run.work,
                    expires_in=run.renewed_at + run.lease - now,
                    is_blocked=is_blocked,
                    stack=self._stack() if is_blocked else "",
                )
                self._warn(event)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._trio_thread)
        return "".join(traceback.format_stack(frame)[-FRAMES:]) if frame else ""
