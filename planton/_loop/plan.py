"""When the next attempt of each task is due, and whether there is to be one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from planton._loop.agenda import Agenda
from planton._loop.entry import Entry

# The part of the grace period that consumers have to take what was claimed; the rest is for
# releasing what they did not take.
HANDOVER_SHARE = 0.9
# However far the next attempt is, the clock is looked at this often.
_LONGEST_SLEEP = 3600.0


class Plan:
    """The agenda of one run, with its beginning and its end."""

    def __init__(self) -> None:
        self.is_driving = False  # attempts are started as they fall due
        self.is_stopping = False  # nothing more is attempted and claimed
        self._agenda: Agenda[Entry] = Agenda()
        self._alarm = trio.Event()
        self._sleeps_until = -math.inf
        self._handover_deadline = math.inf
        self._handovers: set[trio.CancelScope] = set()

    def wants(self, entry: Entry) -> bool:
        is_done = entry.unregistered and not entry.undelivered
        return self.is_driving and not (self.is_stopping or entry.paused or is_done)

    def set(self, entry: Entry, due: float) -> None:
        entry.due = due
        self._agenda.set(entry, due, entry.number)
        if due < self._sleeps_until:
            self._alarm.set()

    def wake(self, entry: Entry) -> None:
        """Make the next attempt due now, or follow at once on the one that is being made."""
        if entry.is_attempting or not self.is_driving:
            entry.woken = True
        elif self.wants(entry):
            entry.woken = True
            self.set(entry, trio.current_time())

    def suspend(self, entry: Entry) -> None:
        self._agenda.discard(entry)
        if not entry.is_attempting:
            entry.due = math.inf

    def stop(self, grace: float) -> None:
        """Plan nothing more; consumers have nine tenths of the grace period to take claims."""
        self.is_stopping = True
        self._agenda.clear()
        self._handover_deadline = trio.current_time() + grace * HANDOVER_SHARE
        for scope in self._handovers:
            scope.deadline = self._handover_deadline
        self._alarm.set()

    async def next_due(self) -> list[Entry]:
        """Sleep until something is due, at least for one turn of the other trio tasks."""
        self._alarm = trio.Event()
        self._sleeps_until = self._agenda.next_due()
        now = trio.current_time()
        if self._sleeps_until <= now or self.is_stopping:
            await trio.lowlevel.checkpoint()
        else:
            with trio.move_on_at(min(self._sleeps_until, now + _LONGEST_SLEEP)):
                await self._alarm.wait()
        return self._agenda.pop_due(trio.current_time())

    @contextmanager
    def handover(self) -> Iterator[trio.CancelScope]:
        """Open a scope that is cancelled when consumers have had their time to take claims."""
        with trio.CancelScope(deadline=self._handover_deadline) as scope:
            self._handovers.add(scope)
            try:
                yield scope
            finally:
                self._handovers.discard(scope)
