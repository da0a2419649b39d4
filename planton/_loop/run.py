"""One run, from its start to the end of its drain.

Storages are opened first. In them lie three nurseries inside each other: services in the outer one,
consumers in the next, attempts in the inner one, all in a scope that is shielded from whoever
cancels the run. Stopping lets the attempts run empty, then ends the consumers, which drain, then
the services, and closes the storages; the scope gets a deadline, which is the end of the grace
period. (The arrangement is that of hypercorn's trio worker.)
"""

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import attrs
import trio

from planton._errors import (
    AlreadyRunningError,
    CallbackTimeoutError,
    PlantonError,
    UndeliveredInstructionsError,
)
from planton._events import AttemptEvent, ErrorEvent
from planton._failures import unwrapped
from planton._loop.attempt import NOBODY, Attempt
from planton._loop.consumers import Takers
from planton._loop.dispatch import Dispatcher
from planton._loop.entry import Entries, Entry
from planton._loop.listeners import Listeners
from planton._loop.log import logger
from planton._loop.plan import HANDOVER_SHARE, Plan
from planton._loop.services import Services
from planton._parts import Started

# Streams are opened a moment after the start.
_UNTAKEN_AFTER = 1.0
# Async listeners of errors get this long, after the grace period, to hear what was not delivered.
LAST_WORDS = 1.0
# What has not ended this long after the grace period ignores its cancellation: it is named.
_STILL_RUNNING_AFTER = 5.0


@attrs.frozen
class Parts:
    """What a run consists of beside its tasks."""

    services: Services  # of storages and users, ended when all is drained
    consumers: Services  # ended when all is handed over
    storages: Sequence[Any] = ()  # opened first, closed last


class Session:
    """The entries, their plan, and the nurseries of one run."""

    # Both are there as soon as the services have had their time to start.
    _nursery: trio.Nursery
    _dispatcher: Dispatcher

    def __init__(
        self, entries: Entries, listeners: Listeners, takers: Takers, parts: Parts, grace: float
    ) -> None:
        self._entries = entries
        self._listeners = listeners
        self._takers = takers
        self._parts = parts
        self._grace = grace
        self.plan = Plan()
        self._scope = trio.CancelScope(shield=True)
        self._nurseries: list[trio.Nursery] = []
        self._failure: BaseException | None = None
        self._result: Any = None
        self._is_open = False
        self._driven = trio.Event()
        self._stop_requested = trio.Event()
        self._pid = os.getpid()
        self.deadline = math.inf
        self.aborted = trio.Event()
        self.ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(
        self,
        body: Callable[[], Awaitable[Any]],
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> Any:
        """Run `body` beside a nursery for attempts, drain when it returns, and return its result.

        A cancellation or a KeyboardInterrupt stops the session first, as `stop` does, and goes on
        its way when all is drained. Here and in all trio tasks of a session a KeyboardInterrupt
        waits for the main trio task to reach a checkpoint: raised in the middle of a callback it
        would lose what that has just committed.
        """
        interrupt: KeyboardInterrupt | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, body, task_status)
            nursery.start_soon(self._watch)
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
        if self._failure is not None:
            raise self._failure
        return self._result

    @property
    def is_forked(self) -> bool:
        return self._pid != os.getpid()

    @property
    def takes_attempts(self) -> bool:
        """Whether `attempt` may be called: after the start, before the stop."""
        return self.plan.is_driving and not self.plan.is_stopping

    async def drive(self) -> None:
        self.plan.is_driving = True
        self._driven.set()
        now = trio.current_time()
        for entry in list(self._entries.by_name.values()):
            # Nothing to wait for: in the order of registration, and all at the same time.
            if entry.is_delay_quick and entry.turn.try_take(self.plan):
                await self._admit(entry, now, True)
            else:
                self._start_admitting(entry)
        for entry in self._entries.leaving:
            self.plan.wake(entry)
        while not self.plan.is_stopping:
            await self._dispatcher.start(await self.plan.next_due())

    def admit(self, entry: Entry) -> None:
        """Begin to make attempts for `entry`, the first after its delay.

        An attempt that is being made for a task of the same name that was unregistered is
        finished first.
        """
        if self.takes_attempts:
            self._start_admitting(entry)

    def dismiss(self, entry: Entry) -> None:
        """Make no more attempts for `entry`, but to deliver what it keeps."""
        self.plan.suspend(entry)
        if entry.undelivered:
            self.plan.wake(entry)

    def return_undelivered(self, entries: Iterable[Entry]) -> None:
        """Release what `entries` keep, or deliver it again; the drain does so in any case."""
        if self.takes_attempts:
            for entry in entries:
                self._nursery.start_soon(self._dispatcher.release_undelivered, entry)
                self.plan.wake(entry)

    async def attempt(self, entry: Entry) -> AttemptEvent | None:
        """Make one attempt now, after the one that is being made; None if it came too late.

        That is when all was stopped, or the task unregistered, meanwhile.
        """
        if entry.turn.trio_task is not None and entry.turn.trio_task in _ancestors():
            problem = f"an attempt of task {entry.task.name!r} is being made and waits for this"
            raise AlreadyRunningError(f"{problem} call: wake the task instead")
        await entry.turn.take(self.plan)
        if self.plan.is_stopping or entry.unregistered:
            entry.end_attempt()
            return None
        self.plan.suspend(entry)
        attempt = self._dispatcher.begin(entry)
        ended = trio.Event()
        self._nursery.start_soon(self._make, attempt, ended)
        await ended.wait()
        return attempt.event or attempt.end(attempt.outcome if attempt.is_over else "stopping")

    def stop(self) -> None:
        """Begin no more attempts and claim nothing more; drain within the grace period."""
        if not self.plan.is_stopping:
            self.deadline = self._scope.deadline = trio.current_time() + self._grace
            self.plan.stop(self._grace)
            for entry in self._entries:
                if not entry.is_attempting:
                    entry.due = math.inf
            self._parts.services.give_up_starting()
            self._parts.consumers.give_up_starting()
            self._stop_requested.set()
            if not self._is_open:
                self._scope.cancel()

    def abort(self) -> None:
        """Stop now, without draining; what is undelivered is reported."""
        self.stop()
        self.aborted.set()
        self._scope.cancel()

    def is_called_from_within(self) -> bool:
        """Return whether the drain waits for whoever calls this: an attempt, or a consumer."""
        return any(task.parent_nursery in self._nurseries for task in _ancestors())

    def _start_admitting(self, entry: Entry) -> None:
        # The turn is taken at once, so that a wake-up finds it taken, and is not lost.
        self._nursery.start_soon(self._admit, entry, None, entry.turn.try_take(self.plan))

    @trio.lowlevel.enable_ki_protection
    async def _admit(self, entry: Entry, now: float | None, has_turn: bool) -> None:
        if not has_turn:
            await entry.turn.take(self.plan)
        entry.attempt_number = 0
        await self._dispatcher.plan_first(entry, now)

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

    async def _watch(self) -> None:
        """Name what nobody takes, end drains in time, and name what does not end at all."""
        with trio.CancelScope(shield=True) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._name_untaken)
                nursery.start_soon(self._break_off)
                await self.ended.wait()
                scope.cancel()

    async def _name_untaken(self) -> None:
        """Log for which tasks nothing is claimed, once listeners have had time to come."""
        await self._driven.wait()
        await trio.sleep(_UNTAKEN_AFTER)
        untaken = [name for name in self._entries.by_name if not self._takers.is_taken(name)]
        if untaken and not self.plan.is_stopping:
            more = f" and {len(untaken) - 5} more" if len(untaken) > 5 else ""
            names = ", ".join(map(repr, untaken[:5]))
            logger.warning("nothing is claimed for %s%s: %s", names, more, NOBODY)

    async def _break_off(self) -> None:
        await self._stop_requested.wait()
        await trio.sleep(self._grace * HANDOVER_SHARE)
        self.aborted.set()
        await trio.sleep_until(self.deadline + _STILL_RUNNING_AFTER)
        names = [task.name for nursery in self._nurseries for task in nursery.child_tasks]
        logger.error(
            "the grace period ended %.0f s ago; these ignore that they are cancelled: %s",
            _STILL_RUNNING_AFTER,
            ", ".join(names),
        )

    @trio.lowlevel.enable_ki_protection
    async def _work(
        self, body: Callable[[], Awaitable[Any]], task_status: "trio.TaskStatus[None]"
    ) -> None:
        started = Started(task_status.started)
        try:
            with self._scope:
                await self._run_parts(body, started)
            with trio.move_on_after(LAST_WORDS, shield=True):
                await self._report_losses()
            started.started()
        except BaseException as raised:  # noqa: ASYNC103  shielded, so it is no cancellation
            # Kept back: raised in here it would leave wrapped in a group.
            self._failure = unwrapped(raised)
        finally:
            for entry in self._entries:
                if entry.turn.holder is self.plan:
                    entry.end_attempt()
            self.ended.set()

    async def _run_parts(self, body: Callable[[], Awaitable[Any]], started: Started) -> None:
        async with AsyncExitStack() as stack:
            for storage in self._parts.storages:
                if not storage.is_open:
                    await stack.enter_async_context(storage)
            self._is_open = True
            async with trio.open_nursery() as services:
                await self._parts.services.start(services)
                async with trio.open_nursery() as consumers:
                    self._nurseries.append(consumers)
                    await self._parts.consumers.start(consumers)
                    await self._make_attempts(body, started)
                    consumers.cancel_scope.cancel()
                self._nurseries.append(services)
                services.cancel_scope.cancel()

    async def _make_attempts(self, body: Callable[[], Awaitable[Any]], started: Started) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._nurseries.append(nursery)
            self._dispatcher = self._make_dispatcher(nursery)
            started.started()
            self._result = await body()
            # From here on all is drained, with a deadline even if nobody asked for the stop.
            self.stop()
        async with trio.open_nursery() as nursery:
            self._nurseries.append(nursery)
            last = self._make_dispatcher(nursery)
            for entry in self._entries:
                await last.release_undelivered(entry)

    def _make_dispatcher(self, nursery: trio.Nursery) -> Dispatcher:
        return Dispatcher(self.plan, self._takers, self._listeners, nursery)

    async def _report_losses(self) -> None:
        """Report what is left undelivered; one attempt by itself may well keep something."""
        for entry in self._entries:
            for error in _losses(entry, is_run=self.plan.is_driving):
                event = ErrorEvent(task_name=entry.task.name, error=error, stage="terminate")
                await self._listeners.report(event)


def _losses(entry: Entry, *, is_run: bool) -> list[PlantonError]:
    """Take from `entry` what the end of the run leaves undelivered, as errors."""
    name = entry.task.name
    losses: list[PlantonError] = []
    if entry.is_schedule_cut_off or "schedule" in entry.overrunning:
        remedy = ", and the run is over: what it claims is not known"
        losses.append(CallbackTimeoutError(name, "schedule", None, remedy))
    if entry.undelivered and is_run:
        problem = "no consumer took them before the run was over; another run will deliver them"
        names = [claim.instruction for claim in entry.undelivered]
        losses.append(UndeliveredInstructionsError(name, names, problem, released=False))
    entry.overrunning, entry.is_schedule_cut_off = {}, False
    return losses


def _ancestors() -> list[trio.lowlevel.Task]:
    """Return the current trio task and those that wait for it to end."""
    task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    found = []
    while task is not None:
        found.append(task)
        task = task.parent_nursery.parent_task if task.parent_nursery else None
    return found
