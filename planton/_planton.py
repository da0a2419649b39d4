"""The dispatcher as users see it."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar, overload

import trio

from planton._errors import (
    AlreadyRunningError,
    InvalidArgumentError,
    UndeliveredInstructionsError,
)
from planton._events import AttemptEvent, ErrorEvent, Event, InstructionEvent
from planton._functions import problem_of_function
from planton._listeners import Listener
from planton._loop.consumers import Takers
from planton._loop.entry import Entries, Entry
from planton._loop.listeners import Listeners
from planton._loop.run import Parts, Session
from planton._loop.services import Services, current_service
from planton._loop.streams import Stream, unread_claims
from planton._parts import (
    Consumer,
    Started,
    StoragePart,
    checked_parts,
    checked_services,
    is_method_of,
)
from planton._parts import Service as ServiceOf
from planton._registry import Registry
from planton._task import Claim, GetActiveInstructions, Task, to_seconds

Service: TypeAlias = ServiceOf["Planton"]
Storage: TypeAlias = StoragePart["Planton"]
E = TypeVar("E", bound=Event)
L = TypeVar("L", bound=Listener)


class Planton(Registry):
    """Dispatches work: asks, for every task, what is active, and claims what may start.

    A Planton belongs to one trio run at a time; all its methods are called from trio's thread
    (see `planton.hosting` for programs that are not on trio). Before and after a run `register`,
    `pause`, `on` and the other plain methods can be called from anywhere. In a process that was
    forked while it runs, they raise `PlantonError`.

    A run opens `storages`, starts services, and begins attempts. At its end attempts stop, what
    was claimed is handed over or released, consumers drain and store their ends, services stop,
    and storages close; all of it within `grace`.

    Args:
        get_active_instructions: Returns the active instructions of the task it is asked for; a
            task's own callback takes precedence. See `Task` for sync, async and `many`.
        tasks: Tasks to begin with.
        storages: Opened, served and closed by every run; one that is open already is closed by
            whoever opened it.
        consumers: What takes instructions, such as an executor or a relay to a broker: objects
            with `capacity(task_name)`, `async submit(event)` and, if they like, `serve`. No more
            is claimed for a task than its consumer can take.
        services: Run in Planton's nursery for as long as it runs: async functions of the
            Planton and `task_status`, on which they call `started()` when ready. One that fails
            is reported and started again. They are cancelled last, after the drain.
        grace: Seconds that stopping may take.

    Raises:
        DuplicateTaskNameError: If two tasks have the same name.
        InvalidTaskError: If a task cannot be counted: its cap is advisory and nothing returns its
            active instructions.
        InvalidArgumentError: If another argument cannot be used.
    """

    def __init__(
        self,
        *,
        get_active_instructions: GetActiveInstructions | None = None,
        tasks: Iterable[Task] = (),
        storages: Iterable[Storage] = (),
        consumers: Iterable[Consumer] = (),
        services: Sequence[Service] = (),
        grace: float = 10.0,
    ) -> None:
        self._grace = _checked_grace(grace)
        if get_active_instructions is not None and problem_of_function(get_active_instructions):
            remedy = "give a function of a task's name, sync or async"
            raise InvalidArgumentError("get_active_instructions", get_active_instructions, remedy)
        if isinstance(tasks, Task):
            raise InvalidArgumentError("tasks", tasks, "give a list of them")
        self._storages = checked_parts("storages", storages, ("__aenter__", "is_open", "serve"))
        self._consumers = checked_parts("consumers", consumers, ("capacity", "submit"))
        self._services = checked_services(services, (*self._storages, *self._consumers))
        self._listeners = Listeners()
        self._streams: set[Stream] = set()
        self._block: AbstractAsyncContextManager[Self]
        takers = Takers(self._consumers, self._listeners)
        super().__init__(Entries(get_active_instructions), takers)
        for task in tasks:
            self.register(task)

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until terminated or cancelled.

        `task_status.started()` is called when the services are ready and attempts begin. A
        cancellation (or a KeyboardInterrupt) begins the same drain as `terminate`: it takes
        effect when all that was claimed has been handed over or released, `grace` seconds
        later at the most. What could not be handed over by then is reported as an `ErrorEvent`
        of stage `"terminate"`. After it has ended it may run again.

        Raises:
            AlreadyRunningError: If it runs already.
            InvalidArgumentError: If two consumers take one task.
            StorageError: If a storage cannot be opened, or closed.
        """
        self._check_start()
        session = self._session = self._make_session()
        try:
            await session.run(session.drive, task_status)
        finally:
            self._session = None
            for stream in tuple(self._streams):
                stream.close()

    async def __aenter__(self) -> Self:
        """Run in the background of the block, from when services are ready."""
        self._check_start()
        self._block = self._running()
        return await self._block.__aenter__()

    async def __aexit__(self, *exc: Any) -> bool | None:
        """Terminate; an exception of the block leaves as it is, not wrapped in a group."""
        # The drain within is shielded, and bounded by `grace`.
        return await self._block.__aexit__(*exc)  # noqa: ASYNC102

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Self]:
        failures: list[BaseException] = []
        async with trio.open_nursery() as nursery:
            # What fails is kept back: raised in here it would leave wrapped in a group. Cancelled
            # may: the scope that it belongs to unwraps it.
            if await nursery.start(self._run_in_block, nursery, failures):
                try:
                    yield self
                except (Exception, KeyboardInterrupt, SystemExit) as error:
                    failures.append(error)
            self.request_stop()
        if failures:
            raise failures[0]

    async def _run_in_block(
        self,
        nursery: trio.Nursery,
        failures: list[BaseException],
        *,
        task_status: "trio.TaskStatus[bool]",
    ) -> None:
        started = Started(partial(task_status.started, True))
        try:
            await self.run(task_status=started)
        except Exception as error:
            failures.append(error)
            if started.is_called:
                nursery.cancel_scope.cancel()
            else:
                task_status.started(False)

    async def terminate(self) -> None:
        """Stop attempts, let what runs finish, and return within the grace period.

        Claims that are in hand are delivered or released. It may be called more than once,
        from several trio tasks, and when nothing runs. Called from a listener, a callback or a
        consumer, for which the drain waits, it asks for the stop and returns at once.
        """
        session = self._live_session()
        if session is None:
            await trio.lowlevel.checkpoint()
            return
        session.stop()
        if session.is_called_from_within():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(session.deadline):
            await session.ended.wait()

    def request_stop(self) -> None:
        """Begin the drain and return at once, on trio's thread; nothing if it does not run."""
        session = self._live_session()
        if session is not None:
            session.stop()

    def abort(self) -> None:
        """End without draining, on trio's thread; what is undelivered is reported."""
        session = self._live_session()
        if session is not None:
            session.abort()

    @overload
    def on(self, event_type: type[E], listener: L) -> L: ...

    @overload
    def on(self, event_type: type[E], listener: None = None) -> Callable[[L], L]: ...

    def on(self, event_type: type[Event], listener: Any = None) -> Any:
        """Call `listener` for every event of a type; also a decorator.

        Plain functions are called on trio's thread and should return soon; async ones are
        awaited, and hold back only the task whose event they get. A listener that raises
        is reported, and the others still get the event.

        Returns:
            The listener.

        Raises:
            InvalidArgumentError: If the type is no event type, or the listener no function of
                such an event.
        """
        self._listeners.check_type(event_type)
        if listener is None:
            return lambda function: self.on(event_type, function)
        if any(is_method_of(listener, consumer, "submit") for consumer in self._consumers):
            remedy = "leave it out: consumers get their instructions without it"
            raise InvalidArgumentError("listener", listener, remedy)
        self._listeners.add(event_type, listener)
        if event_type is InstructionEvent and self._session is not None:
            # Nothing may have been claimed for want of one that listens.
            self.wake()
        return listener

    def off(self, event_type: type[Event], listener: Listener) -> None:
        """Call `listener` no more.

        Raises:
            InvalidArgumentError: If it does not listen.
        """
        self._listeners.remove(event_type, listener)

    @asynccontextmanager
    async def events(
        self, *event_types: type[E], buffer: int = 0
    ) -> AsyncIterator["trio.MemoryReceiveChannel[E]"]:
        """Return the events of some types as a stream, while the block lasts.

        A task whose event is not read yet, and not in the buffer, waits; nothing is dropped.
        The iteration ends when Planton has ended. Instructions that were sent and never read
        when the block is left are released to the storage, or kept and delivered by the next
        attempt when the task has no `release`.

        Args:
            event_types: Which events; all three types when none is given.
            buffer: How many events may wait to be read.
        """
        if type(buffer) is not int or buffer < 0:
            raise InvalidArgumentError("buffer", buffer, "give an int of at least 0")
        types: tuple[type[Any], ...] = event_types or (InstructionEvent, ErrorEvent, AttemptEvent)
        send, receive = trio.open_memory_channel[E](buffer)
        stream = Stream(types, self._listeners, send)
        stream.open()
        self._streams.add(stream)
        try:
            yield receive
        finally:
            self._streams.discard(stream)
            stream.close()
            claims = unread_claims(receive)
            receive.close()
            with trio.CancelScope(shield=True):
                await self._return(claims)

    async def attempt(self, name: str) -> AttemptEvent:
        """Make one attempt now, without the delay, running or not, paused or not.

        It waits for an attempt of the task that is being made, and for the end of the run if that
        is stopping. It drains before a cancellation takes effect, as `run` does.

        Raises:
            UnknownTaskError: If there is no such task, or no longer when its turn comes.
            AlreadyRunningError: If it is called by the very attempt that it would wait for.
        """
        while True:
            entry = self._entries.get(name)
            session = self._live_session()
            event = None
            if session is not None and session.takes_attempts:
                event = await session.attempt(entry)
            elif session is not None and session.plan.is_stopping:
                await session.ended.wait()
            else:
                session = self._make_session(entry)
                event = await session.run(partial(session.attempt, entry))
            if event is not None:
                return event

    async def wait_until_aborted(self) -> None:
        """Wait until even the drain is not waited for any more.

        That is after a second Ctrl-C or SIGTERM, and when nine tenths of the grace period are
        over. For consumers and services: one that shields what it does at its end breaks that off
        when this returns. It never does while Planton does not run.
        """
        session = self._live_session()
        if session is None:
            await trio.sleep_forever()
        else:
            await session.aborted.wait()

    async def report(self, error: Exception) -> None:
        """Report to the listeners of errors what befell a service that goes on all the same.

        For services: an error that one raises is reported too, and the service started again. It
        becomes an `ErrorEvent` of stage `"service"`.

        Raises:
            InvalidArgumentError: If it is no `Exception`.
        """
        if not isinstance(error, Exception):
            raise InvalidArgumentError("error", error, "give an Exception")
        name = current_service.get()
        event = ErrorEvent(task_name=None, error=error, stage="service", service=name)
        await self._listeners.report(event)

    def _check_start(self) -> None:
        # Not `in_trio_run`: that is true in asyncio code too, where trio is a guest.
        if not trio.lowlevel.in_trio_task():
            remedy = "use trio.run(planton.run), or planton.asyncio or planton.hosting elsewhere"
            raise RuntimeError(f"Planton runs on trio: {remedy}")
        if self._live_session() is not None:
            raise AlreadyRunningError
        for name in self._entries.by_name:
            self._takers.check(name)

    def _make_session(self, *alone: Entry) -> Session:
        """Make a session of all parts; or without them, for what some tasks need by themselves."""
        serving = [*(part.serve for part in self._storages), *self._services]
        consuming = [part.serve for part in self._consumers if hasattr(part, "serve")]
        services, consumers = (
            Services(self, () if alone else served, self._listeners)
            for served in (serving, consuming)
        )
        parts = Parts(services, consumers, () if alone else self._storages)
        entries = Entries.only(alone) if alone else self._entries
        takers = Takers(self._consumers, self._listeners)
        return Session(entries, self._listeners, takers, parts, self._grace)

    async def _return(self, unread: dict[str, list[Claim]]) -> None:
        """Take back what a stream's reader left unread."""
        by_name = self._entries.by_name
        entries = [by_name[name] for name in unread if name in by_name]
        for name, claims in unread.items():
            if name in by_name:
                by_name[name].keep(claims)
            else:
                await self._report_unread(name, claims)
        session = self._live_session()
        if session is not None:
            session.return_undelivered(entries)
        elif entries:
            # It leaves them all to its drain.
            await self._make_session(*entries).run(trio.lowlevel.checkpoint)

    async def _report_unread(self, name: str, claims: Sequence[Claim]) -> None:
        instructions = [claim.instruction for claim in claims]
        problem = "a stream was left before they were read, and the task is registered no more"
        error = UndeliveredInstructionsError(name, instructions, problem, released=False)
        await self._listeners.report(ErrorEvent(task_name=name, error=error, stage="deliver"))


def _checked_grace(grace: object) -> float:
    seconds = to_seconds(grace)
    if seconds is None:
        raise InvalidArgumentError("grace", grace, "give finite seconds of at least 0")
    return seconds
