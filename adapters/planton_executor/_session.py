"""One time that an executor is open: from its start until it has drained."""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import trio

from planton import ErrorEvent, InstructionEvent, Planton, UndeliveredInstructionsError
from planton.storage import Reports, describe
from planton_executor._callbacks import CallbackLink, Callbacks, Link
from planton_executor._errors import NoHandlerError
from planton_executor._events import AdvancedEvent, IdleEvent, StartedEvent
from planton_executor._functions import Handler
from planton_executor._leases import Leases
from planton_executor._links import Outage, StorageLink
from planton_executor._listeners import Listeners
from planton_executor._run import RELEASE, End, Run, Terms
from planton_executor._workers import Workers

logger = logging.getLogger("planton.executor")

# What ends when the grace period is over has this long to be stored; less if nobody waits for it.
LAST_WORDS = 2.0
ABORTED_LAST_WORDS = 0.5
# What came from elsewhere for a task without a handler: at last it ends as dead, with the reason.
WITHOUT_HANDLER = Terms(retries=5, retry_delay=60.0)


class Session:
    """Takes instructions, has them worked on, and stores how they end.

    What works does so in the nursery `workers`, and all that it needs in `helpers`. `frees` is
    called when slots are free, or about to be.
    """

    def __init__(
        self,
        workers: trio.Nursery,
        helpers: trio.Nursery,
        *,
        handlers: Mapping[str, Handler],
        listeners: Listeners,
        storage: Reports | Callbacks,
        concurrency: int,
        frees: Callable[[], None],
    ) -> None:
        self._helpers = helpers
        self._handlers = handlers
        self._listeners = listeners
        self._concurrency = concurrency
        self._frees = frees
        self._slots = trio.Semaphore(concurrency)
        self.limiter = trio.CapacityLimiter(concurrency)
        self._workers = Workers(workers, concurrency, self._handle, self._settle)
        outage = Outage(self._report)
        self._link: Link
        if isinstance(storage, Callbacks):
            self._link = CallbackLink(storage, helpers, self._answered, outage)
        else:
            self._link = StorageLink(storage, helpers, self._answered, outage, self._sending)
        self._leases = Leases(self._link, outage, listeners.tell_from_thread)
        helpers.start_soon(self._leases.beat)
        self._leaving = 0  # slots that will be free once the ends under way are stored
        self._is_draining = False
        self._waiting: set[Run] = set()
        self._runs: set[Run] = set()  # have a slot each
        self.failures: dict[str, tuple[int, str]] = {}
        self._refused: set[str] = set()
        self._changed: trio.Event | None = None
        self._patience = trio.CancelScope()
        self._is_aborted = False

    @property
    def capacity(self) -> int:
        """How many more can start: those whose ends are being stored will have left by then."""
        taken = len(self._runs) + len(self._waiting)
        return max(0, self._concurrency - taken + self._leaving)

    @property
    def hung(self) -> int:
        """How many slots are held by threads of handlers that were given up."""
        return sum(run.thread_ended is not None for run in self._runs)

    async def take(self, event: InstructionEvent) -> None:
        run = Run(event, self._link.receipt(event))
        if event.task_name not in self._handlers:
            await self._refuse(run)
            return
        if not run.is_foreign:
            self._leases.add(run)
        # Without a turn of the event loop, as long as there are slots: one for each of a thousand
        # instructions would take longer than all the rest.
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_slot(run)
        else:
            self._start(run)

    async def _refuse(self, run: Run) -> None:
        """Leave an instruction to a process that has a handler for its task.

        Planton releases what it has claimed, with pauses. What came from elsewhere fails, to be
        tried again, and is told once.
        """
        name = run.work.task_name
        error = NoHandlerError(name, run.work.instruction, self._handlers, released=run.is_foreign)
        if not run.is_foreign:
            raise error
        if name not in self._refused:
            self._refused.add(name)
            self._report(error, name)
        run.terms = WITHOUT_HANDLER
        run.fail(error)
        run.decide()
        await self._store_in_time(run)

    def _start(self, run: Run) -> None:
        self._runs.add(run)
        self._workers.put(run)

    async def _wait_for_slot(self, run: Run) -> None:
        self._waiting.add(run)
        try:
            with trio.CancelScope() as run.scope:
                await self._slots.acquire()
                self._start(run)
            if run not in self._runs:
                await self._give_back(run)
        finally:
            self._waiting.discard(run)
            if run not in self._runs:
                self._leases.discard(run)
            self._note_change()

    async def _give_back(self, run: Run) -> None:
        """Give back what was broken off before it began."""
        if run.broken_off == "lost":
            run.note_loss()
            await self._listeners.tell(run.to_event())
            return
        run.end = RELEASE
        is_released = await self._store_in_time(run)
        names = [run.work.instruction]
        problem = "the executor ended before there was a slot"
        raise UndeliveredInstructionsError(run.work.task_name, names, problem, released=is_released)

    async def _store_in_time(self, run: Run) -> bool:
        """Store the end of what was not begun; return whether that is done."""
        with trio.move_on_after(LAST_WORDS, shield=True):
            return await self._store(run)
        return False

    async def _handle(self, run: Run) -> None:
        """Call the handler, if the claim is ours."""
        run.began_at = trio.current_time()
        if run.is_foreign or run.fresh_until <= run.began_at:
            await self._leases.confirm(run)
        if run.broken_off:
            return
        if self._listeners.want(StartedEvent):
            await self._listeners.tell(StartedEvent(work=run.work))
            run.began_at = trio.current_time()
        handler = self._handlers[run.work.task_name]
        run.begin(handler.terms, run.tries)
        run.result = await handler.call(run, self)
        run.has_result = True

    def _settle(self, run: Run) -> None:
        """Decide how a run ends, and hand that over."""
        run.decide()
        if self._listeners.want(run.event_type):
            run.duration = trio.current_time() - run.began_at
        self._note_change()
        if run.end is not None:
            self._link.send(run)
            return
        if run.broken_off == "stopped":
            problem = "the thread of %r, task %r, goes on: its lease is left to expire"
            logger.warning(problem, run.work.instruction, run.work.task_name)
        self._conclude(run)
        self._note_free_slots()

    def _keeps_slot(self, run: Run) -> bool:
        """Return whether its slot is held after its end: by a thread, or by async listeners."""
        return run.thread_ended is not None or self._listeners.may_wait_for(run.event_type)

    def _sending(self, runs: Sequence[Run]) -> None:
        """Let tasks claim for the slots of these runs, whose ends are being stored."""
        self._leaving = sum(run.stored is None and not self._keeps_slot(run) for run in runs)
        if self._leaving:
            self._frees()

    async def _store(self, run: Run) -> bool:
        run.stored, run.refusals = trio.Event(), 0
        self._link.send(run)
        await run.stored.wait()
        run.stored = None
        if isinstance(run.answer, Exception):
            raise run.answer
        return bool(run.answer)

    async def advance(self, run: Run, end: End) -> bool:
        """Store where work in steps is now, which is not broken off; return whether to go on."""
        assert run.scope is not None, "a worker has it"
        run.end, run.is_storing, run.scope.deadline = end, True, math.inf
        try:
            is_ours = await self._store(run)
        finally:
            run.end, run.is_storing = None, False
        if not is_ours:
            run.break_off("lost")
            return False
        run.claimed_at = trio.current_time()  # its time limit begins anew
        event = AdvancedEvent(work=run.work, state=end.about, run_in=None)
        await self._listeners.tell(event)
        return not self._is_draining

    def _answered(
        self, runs: Iterable[Run], stale: Collection[str], error: Exception | None
    ) -> None:
        """Go on with runs whose ends were answered by the storage."""
        for run in runs:
            run.answer = error or run.receipt not in stale
            if run.stored is not None:
                run.stored.set()
            elif error is not None and run.end is not None and run.end.kind == "complete":
                run.end, run.refusals = run.refuse_result(error), 0
                self._link.send(run)
            else:
                self._conclude(run)
        self._note_free_slots()

    def _conclude(self, run: Run) -> None:
        """Tell how a run ended, and free its slot."""
        self._leases.discard(run)
        if run.answer is False:
            run.note_loss()
        self._note_failure(run)
        if isinstance(run.answer, Exception):
            self._report(run.answer, run.work.task_name)
        is_told = self._listeners.want(run.event_type) and not isinstance(run.answer, Exception)
        event = run.to_event() if is_told else None
        if self._keeps_slot(run):
            self._helpers.start_soon(self._leave_later, run, event)
            return
        if event is not None:
            self._listeners.tell_soon(event, self._helpers)
        self._leave(run)

    def _note_failure(self, run: Run) -> None:
        """Count how many in a row have failed, of each task."""
        name = run.work.task_name
        if run.error is not None and run.reason != "lost":
            count, _ = self.failures.get(name, (0, ""))
            self.failures[name] = count + 1, describe(run.error)
        elif self.failures and run.event_type is not None:
            self.failures.pop(name, None)

    async def _leave_later(self, run: Run, event: Any) -> None:
        """Keep the slot for as long as listeners take, or a thread that goes on."""
        if event is not None:
            await self._listeners.tell(event)
        if run.thread_ended is not None and not self._is_aborted:
            await run.thread_ended.wait()
        self._leave(run)
        self._note_free_slots()

    def _leave(self, run: Run) -> None:
        self._runs.discard(run)
        self._slots.release()

    def _note_free_slots(self) -> None:
        self._note_change()
        if self._is_empty and self._listeners.want(IdleEvent):
            self._listeners.tell_soon(IdleEvent(), self._helpers)
        self._frees()

    def _report(self, error: Exception, task_name: str | None = None) -> None:
        event = ErrorEvent(task_name=task_name, error=error, stage="service")
        self._listeners.tell_soon(event, self._helpers)

    async def drain(self, grace: float) -> None:
        """Take no more, and let what runs end; return when that is stored, or cannot be."""
        self._is_draining = True
        for run in self._waiting:
            run.break_off("stopped")
        self._patience.deadline = trio.current_time() + grace
        with self._patience:
            await self._until(lambda: self._is_empty)
        for run in self._runs:
            run.break_off("stopped")
        # Handlers that shield themselves are waited for: their results are stored, too.
        await self._until(lambda: all(run.is_storing for run in self._runs))
        with trio.move_on_after(ABORTED_LAST_WORDS if self._is_aborted else LAST_WORDS):
            await self._until(lambda: self._is_empty)
        self._warn_of_losses()

    @property
    def _is_empty(self) -> bool:
        return not (self._runs or self._waiting)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    def _note_change(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def watch(self, planton: Planton) -> None:
        """End the drain when whoever runs `planton` does not wait for it any more."""
        await planton.wait_until_aborted()
        self._is_aborted = True
        self._patience.cancel()

    def _warn_of_losses(self) -> None:
        names = [run.work.instruction for run in self._runs if run.end and run.answer is None]
        if names:
            problem = "the ends of %d instructions could not be stored before the executor ended; "
            remedy = "they are left to their leases, and will be delivered again: %s"
            logger.error(problem + remedy, len(names), ", ".join(map(repr, names[:5])))
