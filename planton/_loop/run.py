"""One run, from its start to the end of its drain.

Two nurseries lie inside each other: services in the outer one, attempts in the inner one, both in
a scope that is shielded from whoever cancels the run. Stopping lets the inner nursery run empty,
then ends the services; the scope gets a deadline, which is the end of the grace period.
(The arrangement is that of hypercorn's trio worker.)
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio

from planton._errors import (
    AlreadyRunningError,
    CallbackTimeoutError,
    PlantonError,
    UndeliveredInstructionsError,
)
from planton._events import AttemptEvent, ErrorEvent
from planton._loop.agenda import Agenda
from planton._loop.attempt import Attempt
from planton._loop.dispatch import Dispatcher
from planton._loop.entry import Entry
from planton._loop.listeners import Listeners
from planton._loop.services import Services

# The part of the grace period that consumers have to take what was claimed; the rest is for
# giving back what they did not take.
HANDOVER_SHARE = 0.9
# Async listeners of errors get this long, after the grace period, to hear what was not delivered.
LAST_WORDS = 1.0


class Session:
    """The entries, their timetable, and the nursery they are attempted in."""

    # Both are there as soon as the services have had their time to start.
    _nursery: trio.Nursery
    _dispatcher: Dispatcher

    def __init__(
        self, entries: Mapping[str, Entry], listeners: Listeners, services: Services, grace: float
    ) -> None:
        self._entries = entries
        self._leaving: list[Entry] = []
        self._listeners = listeners
        self._services = services
        self._grace = grace
        self._agenda: Agenda[Entry] = Agenda()
        self._alarm = trio.Event()
        self._sleeps_until = -math.inf
        self._scope = trio.CancelScope(shield=True)
        self._driving = False
        self.deadline = math.inf
        self._handover_deadline = math.inf
        self._handovers: set[trio.CancelScope] = set()
        self.stopping = False
        self.aborted = trio.Event()
        self.ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        body: Callable[[], Awaitable[object]],
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run `body` beside a nursery for attempts, and drain when it returns.

        A cancellation or a KeyboardInterrupt stops the session first, as `stop` does, and goes on
        its way when all is drained. Here and in all trio tasks of a session a KeyboardInterrupt
        waits for the main trio task to reach a checkpoint: raised in the middle of a callback it
        would lose what that has just committed.
        """
        interrupt: KeyboardInterrupt | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, body, task_status)
            try:
                await self.ended.wait()
            except KeyboardInterrupt as error:
                # Kept back: raised in here it would leave wrapped in a group.
                interrupt = error
                await self._stop_and_wait()
            except trio.Cancelled:
                await self._stop_and_wait()  # noqa: ASYNC102  shielded, bounded by `grace`
                raise
        if interrupt is not None:
            raise interrupt

    @property
    def takes_attempts(self) -> bool:
        """Whether `attempt` may be called: after the start, before the stop."""
        return self._driving and not self.stopping

    async def drive(self) -> None:
        """Start attempts as they fall due, until stopped."""
        self._driving = True
        now = trio.current_time()
        for entry in list(self._entries.values()):
            if entry.fixed_delay is None or entry.in_hand:
                self._nursery.start_soon(self._admit, entry, now)
            else:
                # Nothing to wait for: in the order of registration, and all at the same time.
                await self._admit(entry, now)
        while not self.stopping:
            await self._sleep()
            await self._dispatcher.start(self._agenda.pop_due(trio.current_time()))

    def admit(self, entry: Entry) -> None:
        """Begin to make attempts for `entry`, the first after its delay.

        An attempt in hand for a task of the same name that was unregistered is finished first.
        """
        if self._driving:
            self._nursery.start_soon(self._admit, entry, trio.current_time())

    def dismiss(self, entry: Entry) -> None:
        """Make no more attempts for `entry`, but to deliver what it keeps."""
        self._leaving = [left for left in self._leaving if left.in_hand or left.kept]
        self._leaving.append(entry)
        self.suspend(entry)
        if entry.kept:
            self.wake(entry)

    def wake(self, entry: Entry) -> None:
        """Make the next attempt due now, or follow at once on the one in hand."""
        if entry.in_hand or not self._driving:
            entry.woken = True
        elif self.wants(entry):
            self.plan(entry, trio.current_time())

    def return_kept(self, entries: Iterable[Entry]) -> None:
        """Give back what `entries` keep, or deliver it again; the drain does so in any case."""
        if self._driving and not self.stopping:
            for entry in entries:
                self._nursery.start_soon(self._dispatcher.give_back_kept, entry)
                self.wake(entry)

    def suspend(self, entry: Entry) -> None:
        """Make `entry` due no more, until it is planned again."""
        self._agenda.discard(entry)
        if not entry.in_hand:
            entry.due = math.inf

    def wants(self, entry: Entry) -> bool:
        """Tell whether `entry` is to have a next attempt."""
        is_done = entry.leaving and not entry.kept
        return self._driving and not (self.stopping or entry.paused or is_done)

    def plan(self, entry: Entry, due: float) -> None:
        """Make the next attempt of `entry` due at `due`."""
        entry.due = due
        self._agenda.set(entry, due)
        if due < self._sleeps_until:
            self._alarm.set()

    @contextmanager
    def time_limit(self) -> Iterator[trio.CancelScope]:
        """Give a scope that is cancelled when consumers have had their time to take claims."""
        with trio.CancelScope(deadline=self._handover_deadline) as scope:
            self._handovers.add(scope)
            try:
                yield scope
            finally:
                self._handovers.discard(scope)

    async def attempt(self, entry: Entry) -> AttemptEvent | None:
        """Make one attempt now, after the one in hand; None if all has been stopped meanwhile."""
        if entry.flyer is not None and entry.flyer in _ancestors():
            problem = f"an attempt of task {entry.task.name!r} is in hand and waits for this call"
            raise AlreadyRunningError(f"{problem}: wake the task instead")
        await entry.wait_until_free()
        if self.stopping:
            return None
        self.suspend(entry)
        attempt = self._dispatcher.begin(entry)
        ended = trio.Event()
        self._nursery.start_soon(self._make, attempt, ended)
        await ended.wait()
        return attempt.event or attempt.end(attempt.outcome if attempt.is_over else "stopping")

    def stop(self) -> None:
        """Begin no more attempts and claim nothing more; drain within the grace period."""
        if not self.stopping:
            now = trio.current_time()
            self.stopping = True
            self.deadline = self._scope.deadline = now + self._grace
            self._handover_deadline = now + self._grace * HANDOVER_SHARE
            for scope in self._handovers:
                scope.deadline = self._handover_deadline
            self._agenda.clear()
            for entry in self._all_entries():
                if not entry.in_hand:
                    entry.due = math.inf
            self._services.give_up_starting()
            self._alarm.set()

    def abort(self) -> None:
        """Stop now, without draining; what is undelivered is reported."""
        self.stop()
        self.aborted.set()
        self._scope.cancel()

    def is_stopping(self) -> bool:
        """Tell whether it stops."""
        return self.stopping

    def is_called_from_attempt(self) -> bool:
        """Tell whether an attempt of this session waits for whoever calls this."""
        nursery = getattr(self, "_nursery", None)
        return any(nursery and task.parent_nursery is nursery for task in _ancestors())

    @trio.lowlevel.enable_ki_protection
    async def _admit(self, entry: Entry, now: float) -> None:
        for other in [*self._leaving, entry]:
            if other.in_hand and other.task.name == entry.task.name:
                await other.wait_until_free()
                now = trio.current_time()
        entry.attempt_number = 0
        await self._dispatcher.plan_first(entry, now)

    async def _sleep(self) -> None:
        """Sleep until something is due, at least for one turn of the other trio tasks."""
        self._alarm = trio.Event()
        self._sleeps_until = self._agenda.next_due()
        if self._sleeps_until <= trio.current_time() or self.stopping:
            await trio.lowlevel.checkpoint()
        else:
            with trio.move_on_at(self._sleeps_until):
                await self._alarm.wait()

    @trio.lowlevel.enable_ki_protection
    async def _make(self, attempt: Attempt, ended: trio.Event) -> None:
        try:
            await self._dispatcher.make(attempt)
        finally:
            ended.set()

    async def _stop_and_wait(self) -> None:
        self.stop()
        with trio.CancelScope(shield=True):
            try:
                await self.ended.wait()
            except KeyboardInterrupt:
                # Asked twice: do not wait for the drain.
                self.abort()
                await self.ended.wait()

    @trio.lowlevel.enable_ki_protection
    async def _work(
        self, body: Callable[[], Awaitable[object]], task_status: "trio.TaskStatus[None]"
    ) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as services:
                    await self._services.start(services)
                    await self._make_attempts(body, task_status)
                    services.cancel_scope.cancel()
            with trio.move_on_after(LAST_WORDS, shield=True):
                await self._report_losses()
        finally:
            for entry in self._all_entries():
                entry.let_go()
            self.ended.set()

    async def _make_attempts(
        self, body: Callable[[], Awaitable[object]], task_status: "trio.TaskStatus[None]"
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._dispatcher = Dispatcher(self, self._listeners, nursery)
            task_status.started()
            await body()
            # From here on all is drained, with a deadline even if nobody asked for the stop.
            self.stop()
        async with trio.open_nursery() as nursery:
            last = Dispatcher(self, self._listeners, nursery)
            for entry in self._all_entries():
                await last.give_back_kept(entry)

    def _all_entries(self) -> list[Entry]:
        return [*self._entries.values(), *self._leaving]

    async def _report_losses(self) -> None:
        """Report what is left undelivered; one attempt by itself may well keep something."""
        for entry in self._all_entries():
            for error in _losses(entry, is_run=self._driving):
                event = ErrorEvent(task_name=entry.task.name, error=error, stage="terminate")
                await self._listeners.report(event)


def _losses(entry: Entry, *, is_run: bool) -> list[PlantonError]:
    """Take from `entry` what the end of the run leaves undelivered, as errors."""
    name = entry.task.name
    losses: list[PlantonError] = []
    if entry.cut_off or "schedule" in entry.late:
        remedy = ", and the run is over: what it claims is not known"
        losses.append(CallbackTimeoutError(name, "schedule", None, remedy))
    if entry.kept and is_run:
        problem = "no consumer took them before the run was over; another run will deliver them"
        names = [claim.instruction for claim in entry.kept]
        losses.append(UndeliveredInstructionsError(name, names, problem, released=False))
    entry.late, entry.cut_off = {}, False
    return losses


def _ancestors() -> list[trio.lowlevel.Task]:
    """Give the current trio task and those that wait for it to end."""
    task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    found = []
    while task is not None:
        found.append(task)
        task = task.parent_nursery.parent_task if task.parent_nursery else None
    return found
