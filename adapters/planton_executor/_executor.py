"""The executor as users see it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import trio

from planton import (
    AlreadyRunningError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    UndeliveredInstructionsError,
    UnknownTaskError,
)
from planton.storage import Storage, to_count, to_number
from planton_executor._ends import Advance, Complete, Ends, Release
from planton_executor._events import (
    AdvancedEvent,
    FailedEvent,
    IdleEvent,
    StartedEvent,
    SucceededEvent,
)
from planton_executor._handlers import (
    Function,
    FunctionHandler,
    Handler,
    RetryDelay,
    Terms,
    checked_function,
    checked_name,
)
from planton_executor._leases import Leases
from planton_executor._listeners import Listener, Listeners, logger
from planton_executor._run import Run

E = TypeVar("E")
F = TypeVar("F", bound=Function)
L = TypeVar("L", bound=Listener)

# What ends when the grace period is over has this long to be stored; less if nobody waits for it.
LAST_WORDS = 2.0
ABORTED_LAST_WORDS = 0.5


class Executor:
    """Calls a handler for every instruction that it is given, and reports what became of it.

    It runs as a service of a Planton, or as an async context manager by itself, in any program
    that receives instruction events:

        Planton(tasks=[…], services=[storage.serve, executor.serve])
        planton.on(InstructionEvent, executor.submit)

    Leases are renewed as long as work waits for a slot, runs, or is being stored. At the end it
    takes no more, gives back what has not begun, and lets what runs finish within `grace`; then
    async handlers are cancelled and their instructions given back. A second Ctrl-C or SIGTERM ends
    the grace period at once; threads of sync handlers are left then.

    Args:
        storage: Any `planton.storage.Storage`, open while the executor runs.
        concurrency: How many handlers may run at a time.
        grace: Seconds that they have to finish at the end.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    _nursery: trio.Nursery
    _patience: trio.CancelScope

    def __init__(self, storage: Storage, *, concurrency: int = 10, grace: float = 10.0) -> None:
        self._concurrency = to_count("concurrency", concurrency, 1)
        self._grace = to_number("grace", grace)
        if not callable(getattr(storage, "heartbeat", None)):
            remedy = "give an open storage, such as SQLiteStorage or PostgresStorage"
            raise InvalidArgumentError("storage", storage, remedy)
        self.storage = storage
        self._handlers: dict[str, Handler] = {}
        self._listeners = Listeners()
        self._ends = Ends(storage, self._report)
        self._leases = Leases(storage, self._report, self._listeners.tell_from_thread)
        self._plantons: set[Planton] = set()
        self._runs: set[Run] = set()
        self._waiting: set[Run] = set()
        self._is_open = False
        self._is_wanted = False
        self._is_aborted = False
        self._block: AbstractAsyncContextManager[Self]

    def handler(
        self,
        task_name: str,
        *,
        timeout: float | None = None,
        retries: int = 0,
        retry_delay: RetryDelay = 0.0,
        lower_priority: bool = False,
    ) -> Callable[[F], F]:
        """Decorate the function that does the work of a task.

        It is called with a `Work`. Async functions run on trio; sync ones in a worker thread.
        What it returns, any JSON, is the result; if it raises, the work has failed and is tried
        again while there are retries, or not at all if it raises `GiveUp`.

        Args:
            task_name: The task.
            timeout: Seconds that one call may take. The work has failed then; a sync function
                goes on and keeps its slot until it returns.
            retries: How often an instruction is tried again that came with no retries of its
                own; what `enqueue(retries=…)` or `claim_task(retries=…)` said goes first.
            retry_delay: Seconds until the next try, or a function of how many deliveries came
                before this one, such as those of `planton.delays`.
            lower_priority: Whether a next try has a priority one lower.

        Raises:
            InvalidArgumentError: If an argument cannot be used, or the task has a handler.
        """
        checked_name(task_name, self._handlers)
        terms = Terms.of(
            timeout=timeout,
            retries=retries,
            retry_delay=retry_delay,
            lower_priority=lower_priority,
        )

        def decorate(function: F) -> F:
            self._add(task_name, FunctionHandler(checked_function(function), terms))
            return function

        return decorate

    def _add(self, task_name: str, handler: Handler) -> None:
        self._handlers[checked_name(task_name, self._handlers)] = handler

    @overload
    def on(self, event_type: type[E], listener: L) -> L: ...

    @overload
    def on(self, event_type: type[E], listener: None = None) -> Callable[[L], L]: ...

    def on(self, event_type: type[Any], listener: Any = None) -> Any:
        """Call `listener` for every event of a type; also a decorator.

        The types are `StartedEvent`, `SucceededEvent`, `FailedEvent`, `IdleEvent`,
        `LeaseAtRiskEvent`, and `planton.ErrorEvent` for errors of the storage. Listeners may be
        plain or async functions; the work that an event is about waits for them, and keeps its
        slot: `capacity` does not count that one yet. Failures and errors that nobody listens to
        are logged.

        Raises:
            InvalidArgumentError: If the type is none of these or the listener no function.
        """
        if listener is None:
            return lambda function: self.on(event_type, function)
        self._listeners.add(event_type, listener)
        return listener

    def off(self, event_type: type[Any], listener: Listener) -> None:
        """Call `listener` no more.

        Raises:
            InvalidArgumentError: If it does not listen.
        """
        self._listeners.remove(event_type, listener)

    def capacity(self) -> int:
        """Tell how many more can start now: for `Task(capacity=executor.capacity)`.

        When it was 0, the tasks that have handlers are woken as soon as a slot is free, if the
        executor is a service of their Planton.
        """
        free = max(0, self._concurrency - len(self._runs) - len(self._waiting))
        self._is_wanted = self._is_wanted or free == 0
        return free

    async def submit(self, event: InstructionEvent) -> None:
        """Take an instruction; returns when its handler is about to be called.

        Waits while `concurrency` handlers run; the lease is renewed meanwhile. If it is
        cancelled then, the instruction is still the caller's.

        Raises:
            UndeliveredInstructionsError: If the executor does not run, or ends before there was
                a slot; it was given back in the latter case.
            InvalidArgumentError: If the event has no receipt.
        """
        run = Run.of(event)
        if not self._is_open:
            problem = "the executor does not run: give executor.serve to the services of Planton, "
            raise _undelivered(run, f"{problem}or use it as a context manager", released=False)
        self._leases.add(run, event.lease, event.timeout)
        try:
            # Without a turn for the others, as long as there are slots: a turn for each of a
            # thousand instructions would take longer than all the rest.
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_slot(run)
        else:
            self._start(run)

    def _start(self, run: Run) -> None:
        self._runs.add(run)
        self._nursery.start_soon(self._execute, run)

    async def _wait_for_slot(self, run: Run) -> None:
        self._waiting.add(run)
        try:
            with run.scope:
                await self._slots.acquire()
                run.scope = trio.CancelScope()
                self._start(run)
            if run not in self._runs:
                await self._refuse(run)
        finally:
            self._waiting.discard(run)
            if run not in self._runs:
                self._leases.discard(run)
                self._note_end()

    async def _refuse(self, run: Run) -> None:
        """Deal with what was broken off before it began."""
        if run.is_lost:
            run.note_loss()
            await self._listeners.tell(_failed(run))
            return
        with trio.move_on_after(LAST_WORDS, shield=True):
            await self._ends.store(run.work.receipt, Release())
        raise _undelivered(run, "the executor ended before there was a slot", released=True)

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run as a service: `Planton(services=[storage.serve, executor.serve])`.

        Services end after Planton has handed over all that it claimed; only then the drain
        begins, so that the run may last `grace` seconds longer than Planton's own. Where the
        executor runs already, as a context manager, this only lets it wake the tasks.
        """
        unknown = self._handlers.keys() - {status.name for status in planton.status()}
        if unknown:
            logger.warning("there are handlers for tasks that are not registered: %s", unknown)
        self._plantons.add(planton)
        try:
            if self._is_open:
                task_status.started()
                await trio.sleep_forever()
            async with self:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._plantons.discard(planton)

    async def __aenter__(self) -> Self:
        """Begin to take instructions.

        Raises:
            AlreadyRunningError: If it runs already.
        """
        if self._is_open:
            raise AlreadyRunningError("this executor runs already: make a second one")
        self._block = self._running()
        return await self._block.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Take no more, and drain; an exception of the block leaves as it is."""
        # The drain within is shielded, and bounded by `grace`.
        return await self._block.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Self]:
        failure: BaseException | None = None
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run, stop)
            try:
                yield self
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error  # kept back: raised in here it would leave wrapped in a group
            finally:
                self._is_open = False
                stop.set()
        if failure is not None:
            raise failure

    async def _run(self, stop: trio.Event, *, task_status: "trio.TaskStatus[None]") -> None:
        """Work until told to stop, then drain; a cancellation from outside has to wait."""
        self._slots = trio.Semaphore(self._concurrency)
        self._limiter = trio.CapacityLimiter(self._concurrency)
        self._emptied = trio.Event()
        self._is_aborted, self._patience = False, trio.CancelScope()
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as helpers:
                for planton in self._plantons:
                    helpers.start_soon(self._watch, planton)
                self._ends.open(helpers)
                helpers.start_soon(self._leases.beat)
                async with trio.open_nursery() as self._nursery:
                    self._is_open = True
                    task_status.started()
                    await stop.wait()
                    await self._drain(self._nursery)
                helpers.cancel_scope.cancel()

    async def _drain(self, nursery: trio.Nursery) -> None:
        for run in self._waiting:
            run.stop()
        for run in self._runs:
            run.is_leaving = True
        self._patience.deadline = trio.current_time() + self._grace
        with self._patience:
            while self._runs or self._waiting:
                self._emptied = trio.Event()
                await self._emptied.wait()
        for run in self._runs:
            run.stop()
        last_words = ABORTED_LAST_WORDS if self._is_aborted else LAST_WORDS
        nursery.cancel_scope.deadline = trio.current_time() + last_words

    async def _watch(self, planton: Planton) -> None:
        """End the drain when whoever runs `planton` does not wait for it any more."""
        await planton.wait_until_aborted()
        self._is_aborted = True
        self._patience.cancel()

    async def _execute(self, run: Run) -> None:
        """Call the handler, store what came of it, and free the slot."""
        try:
            handler = self._handlers.get(run.work.task_name)
            if handler is not None and not (run.is_lost or run.is_stopped):
                await self._listeners.tell(StartedEvent(work=run.work))
                await run.call(handler, self._limiter)
            await self._settle(run, handler)
            if run.thread_ended is not None and not self._is_aborted:
                await run.thread_ended.wait()
        finally:
            self._leases.discard(run)
            self._runs.discard(run)
            self._slots.release()
            self._note_end()
        if not self._runs and not self._waiting:
            await self._listeners.tell(IdleEvent())

    async def _settle(self, run: Run, handler: Handler | None) -> None:
        duration = run.duration
        end = run.end(handler, tuple(self._handlers))
        if end is not None:
            try:
                if not await self._ends.store(run.work.receipt, end):
                    run.note_loss()
            except Exception as error:
                await self._report(error, run.work.task_name)
                return
        elif not run.is_lost:
            problem = (
                "the thread of %r, task %r, goes on after the end; its lease is left to expire"
            )
            logger.warning(problem, run.work.instruction, run.work.task_name)
        self._leases.discard(run)
        if run.error is not None:
            await self._listeners.tell(_failed(run, duration))
        elif isinstance(end, Complete):
            event = SucceededEvent(work=run.work, result=run.result, duration=duration)
            await self._listeners.tell(event)
        elif isinstance(end, Advance):
            put_off = AdvancedEvent(work=run.work, state=end.state, run_in=end.run_in)
            await self._listeners.tell(put_off)

    def _note_end(self) -> None:
        """Let the drain and the tasks know that something has ended."""
        self._emptied.set()
        if not self._is_wanted:
            return
        self._is_wanted = False
        for planton in self._plantons:
            for name in self._handlers:
                try:
                    planton.wake(name)
                except UnknownTaskError:
                    pass  # a task of another Planton

    async def _report(self, error: Exception, task_name: str | None = None) -> None:
        event = ErrorEvent(task_name=task_name, error=error, stage="service")
        await self._listeners.tell(event)


def _failed(run: Run, duration: float = 0.0) -> FailedEvent:
    assert run.error is not None
    return FailedEvent(
        work=run.work,
        error=run.error,
        reason=run.reason,
        duration=duration,
        retry_in=run.retry_in,
    )


def _undelivered(run: Run, problem: str, *, released: bool) -> UndeliveredInstructionsError:
    names = [run.work.instruction]
    return UndeliveredInstructionsError(run.work.task_name, names, problem, released=released)
