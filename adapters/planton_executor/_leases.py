"""Renewing leases for as long as the work lives, whatever the handlers do.

One trio task beats for all claims in one call, at a third of their leases. A handler that blocks
trio's loop keeps it from doing so, and no other thread can do it instead, as a storage belongs to
its loop: so a thread watches over the renewals and tells of a lease half of which has passed.
"""

import math
import time
from collections.abc import Awaitable, Callable, Sequence

import trio

from planton.storage import Storage
from planton_executor._events import LeaseAtRiskEvent
from planton_executor._run import Run
from planton_executor._watchdog import Lease, Watchdog

# A lease that nobody told of: that of a task that was given none.
USUAL = 60.0


class Leases:
    """The leases of all claims that wait or run.

    Args:
        storage: Where they are renewed.
        report: Told of errors of the storage.
        warn: Told of leases at risk, in a thread.
    """

    def __init__(
        self,
        storage: Storage,
        report: Callable[[Exception], Awaitable[None]],
        warn: Callable[[LeaseAtRiskEvent], None],
    ) -> None:
        self._storage = storage
        self._report = report
        self._leases: dict[str, Lease] = {}
        self._earlier = trio.Event()
        self._sleeps_until = 0.0
        self._watchdog = Watchdog(self._leases, warn)

    def add(self, run: Run, lease: float | None, timeout: float | None) -> None:
        """Keep the lease of a claim alive."""
        seconds = min(lease or USUAL, timeout or USUAL)
        next_beat_at = trio.current_time() + seconds / 3
        self._leases[run.work.receipt] = Lease(run, seconds, next_beat_at)
        self._watchdog.watch(seconds)
        if next_beat_at < self._sleeps_until:
            self._earlier.set()

    def discard(self, run: Run) -> None:
        """Let it expire, unless it was ended."""
        self._leases.pop(run.work.receipt, None)

    async def beat(self) -> None:
        """Renew leases until cancelled."""
        with self._watchdog:
            while True:
                await self._sleep()
                now = trio.current_time()
                # Those that are due soon, too: they share the call from then on.
                due = [
                    lease
                    for lease in self._leases.values()
                    if lease.next_beat_at - lease.seconds / 6 <= now
                ]
                if due:
                    await self._beat(due)

    async def _sleep(self) -> None:
        self._earlier = trio.Event()
        self._sleeps_until = min(
            (lease.next_beat_at for lease in self._leases.values()), default=math.inf
        )
        with trio.move_on_at(self._sleeps_until):
            await self._earlier.wait()

    async def _beat(self, leases: Sequence[Lease]) -> None:
        began = time.monotonic()
        shortest = min(lease.seconds for lease in leases)
        for lease in leases:
            lease.tried_at = began
            lease.next_beat_at = trio.current_time() + lease.seconds / 12  # if this one fails
        try:
            with trio.fail_after(shortest / 3):
                done = await self._storage.heartbeat([lease.run.work.receipt for lease in leases])
        except Exception as error:
            await self._report(error)
            return
        stale = set(done.stale)
        for lease in leases:
            if lease.run.work.receipt in stale:
                lease.run.lose()
                self.discard(lease.run)
            else:
                lease.renewed_at, lease.is_told = began, False
                lease.next_beat_at = trio.current_time() + lease.seconds / 3
