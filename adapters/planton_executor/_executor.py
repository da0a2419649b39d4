"""The executor as users see it."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self, TypeVar, overload

import trio

from planton import (
    AlreadyRunningError,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    UndeliveredInstructionsError,
    UnknownTaskError,
)
from planton.storage import Reports, check_function, to_count, to_name, to_number
from planton_executor._callbacks import Callbacks
from planton_executor._functions import Function, FunctionHandler, Handler
from planton_executor._listeners import Listener, Listeners
from planton_executor._run import RetryDelay, Terms
from planton_executor._session import Session

# So many instructions of a task that failed in a row are worth a warning.
MANY_FAILURES = 10

E = TypeVar("E")
F = TypeVar("F", bound=Function)
L = TypeVar("L", bound=Listener)

logger = logging.getLogger("planton.executor")


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
        storage: Any `planton.storage.Storage`, open while the executor runs; or `Callbacks`, for
            tables of your own.
        concurrency: How many handlers may run at a time.
        grace: Seconds that they have to finish at the end.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    _block: AbstractAsyncContextManager[Self]

    def __init__(
        self, storage: Reports | Callbacks, *, concurrency: int = 10, grace: float = 10.0
    ) -> None:
        self._concurrency = to_count("concurrency", concurrency, 1)
        self._grace = to_number("grace", grace)
        if not isinstance(storage, Reports | Callbacks):
            remedy = "give a storage, such as SQLiteStorage or PostgresStorage, or Callbacks"
            raise InvalidArgumentError("storage", storage, remedy)
        self.storage = storage
        self._handlers: dict[str, Handler] = {}
        self._listeners = Listeners()
        self._plantons: set[Planton] = set()
        self._wanted: set[str] = set()
        self._slot_freed = trio.Event()
        self._session: Session | None = None

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
        self._check_name(task_name)
        terms = Terms(
            timeout=timeout,
            retries=retries,
            retry_delay=retry_delay,
            lower_priority=lower_priority,
        )

        def decorate(function: F) -> F:
            check_function("handler", function, 1)
            self.add_handler(task_name, FunctionHandler(function, terms))
            return function

        return decorate

    def add_handler(self, task_name: str, handler: Handler) -> None:
        """Add what does the work of a task, such as `Steps`."""
        self._handlers[self._check_name(task_name)] = handler

    def _check_name(self, task_name: object) -> str:
        name = to_name(task_name)
        if name in self._handlers:
            remedy = "it has a handler already: one task, one handler"
            raise InvalidArgumentError("task_name", name, remedy)
        return name

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

    @overload
    def capacity(self, task_name: None = None) -> int: ...

    @overload
    def capacity(self, task_name: str) -> int | None: ...

    def capacity(self, task_name: str | None = None) -> int | None:
        """Return how many more instructions can start now; None for a task without a handler.

        Planton asks this of `consumers=[executor]`, and claims no more. By hand it is
        `Task(capacity=executor.capacity)`, which does not say for which task.

        When it was 0, the tasks that asked are woken as soon as a slot is free, if the executor
        serves their Planton.
        """
        if task_name is not None and task_name not in self._handlers:
            return None
        free = self._concurrency if self._session is None else self._session.capacity
        if free == 0:
            self._wanted.update(self._handlers if task_name is None else (task_name,))
        return free

    async def wait_for_slot(self) -> int:
        """Wait until an instruction can start; return how many can.

        For programs that fetch work from elsewhere, such as a broker: they take no more than
        that.
        """
        while (free := self.capacity()) == 0:
            await self._slot_freed.wait()
        return free

    def failing(self, task_name: str) -> str | None:
        """Return that many instructions of a task in a row have failed, or that all slots hang.

        None if neither is so. Planton shows it in `TaskStatus.failing`, and `planton.health` warns
        of it.
        """
        if self._session is not None and self._session.hung == self._concurrency:
            held = "all slots are held by threads that go on although their time is up"
            return f"{held}: nothing is claimed until they end, or the program is started again"
        failures = {} if self._session is None else self._session.failures
        count, error = failures.get(task_name, (0, ""))
        if count < MANY_FAILURES:
            return None
        return f"the last {count} instructions failed, the last of them with {error}"

    async def submit(self, event: InstructionEvent) -> None:
        """Take an instruction; returns when its handler is about to be called.

        Waits while `concurrency` handlers run; the lease is renewed meanwhile. If it is
        cancelled then, the instruction is still the caller's. A claim that may have waited for
        too long is renewed before its handler is called, and one that came by
        `InstructionEvent.from_json` is taken over: if it is another consumer's by then, its
        handler is not called.

        Raises:
            UndeliveredInstructionsError: If the executor does not run, or ends before there was
                a slot; it was given back in the latter case.
            NoHandlerError: If the task has no handler.
            InvalidArgumentError: If the event has no receipt.
        """
        if self._session is None:
            problem = "the executor does not run: give it to Planton(consumers=[…]), or use it as "
            raise UndeliveredInstructionsError(
                event.task_name, [event.instruction], f"{problem}a context manager", released=False
            )
        await self._session.take(event)

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run for as long as a Planton does: `Planton(consumers=[executor])` calls it.

        By hand: `Planton(services=[storage.serve, executor.serve])`. Services end after Planton has
        handed over all that it claimed; only then the drain begins, so that the run may last
        `grace` seconds longer than Planton's own. Where the executor runs already, as a context
        manager, this only lets it wake the tasks.
        """
        unknown = self._handlers.keys() - {status.name for status in planton.status()}
        if unknown:
            logger.warning("there are handlers for tasks that are not registered: %s", unknown)
        self._plantons.add(planton)
        try:
            if self._session is not None:
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
        if self._session is not None:
            raise AlreadyRunningError("this executor runs already: make a second one")
        self._block = self._running()
        return await self._block.__aenter__()

    async def __aexit__(self, *exc: Any) -> bool | None:
        """Take no more, and drain; an exception of the block leaves as it is."""
        # The drain within is shielded, and bounded by `grace`.
        return await self._block.__aexit__(*exc)  # noqa: ASYNC102

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Self]:
        failure: BaseException | None = None
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            self._session = await nursery.start(self._run, stop)
            try:
                yield self
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error  # kept back: raised in here it would leave wrapped in a group
            finally:
                self._session = None
                stop.set()
        if failure is not None:
            raise failure

    async def _run(self, stop: trio.Event, *, task_status: "trio.TaskStatus[Session]") -> None:
        """Work until `stop`, then drain; a cancellation from outside has to wait."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as helpers:
                async with trio.open_nursery() as workers:
                    session = Session(
                        workers,
                        helpers,
                        handlers=self._handlers,
                        listeners=self._listeners,
                        storage=self.storage,
                        concurrency=self._concurrency,
                        frees=self._wake_tasks,
                    )
                    for planton in self._plantons:
                        helpers.start_soon(session.watch, planton)
                    task_status.started(session)
                    await stop.wait()
                    await session.drain(self._grace)
                    workers.cancel_scope.cancel()
                helpers.cancel_scope.cancel()

    def _wake_tasks(self) -> None:
        """Wake the tasks that found no free slot, if there is one now."""
        if not self._wanted:
            return
        session = self._session
        if session is not None and session.capacity == 0:
            return
        self._slot_freed.set()
        self._slot_freed = trio.Event()
        wanted, self._wanted = self._wanted, set()
        for planton in self._plantons:
            for name in wanted:
                try:
                    planton.wake(name)
                except UnknownTaskError:
                    pass  # a task of another Planton
