"""The dispatcher as users see it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import trio

from planton._errors import (
    AlreadyRunningError,
    DuplicateTaskNameError,
    InvalidArgumentError,
    UndeliveredInstructionsError,
    UnknownTaskError,
)
from planton._events import AttemptEvent, ErrorEvent, Event, InstructionEvent
from planton._loop.entry import Entry
from planton._loop.listeners import Listener, Listeners
from planton._loop.run import Session
from planton._loop.services import Service, Services, current_service
from planton._loop.streams import Stream, unread_claims
from planton._status import TaskStatus
from planton._task import Claim, GetActiveInstructions, Task, to_seconds

E = TypeVar("E", bound=Event)
L = TypeVar("L", bound=Listener)


class Planton:
    """Dispatches work: asks, for every task, what is active, and claims what may start.

    A Planton belongs to one trio run at a time; all its methods are called from trio's thread
    (see `planton.hosting` for programs that are not on trio). Before and after a run `register`,
    `pause`, `on` and the other plain methods can be called from anywhere.

    Args:
        get_active_instructions: Gives the active instructions of the task it is asked for; a
            task's own callback takes precedence. See `Task` for sync, async and `many`.
        tasks: Tasks to begin with.
        services: Run in Planton's nursery for as long as it runs: async functions of the
            Planton and `task_status`, on which they call `started()` when ready. One that fails
            is reported and started again. They are cancelled last, after the drain.
        grace: Seconds that stopping may take.

    Raises:
        DuplicateTaskNameError: If two tasks have the same name.
        InvalidTaskError: If a task cannot be counted: its cap is advisory and nobody gives its
            active instructions.
        InvalidArgumentError: If another argument cannot be used.
    """

    def __init__(
        self,
        *,
        get_active_instructions: GetActiveInstructions | None = None,
        tasks: Iterable[Task] = (),
        services: Sequence[Service] = (),
        grace: float = 10.0,
    ) -> None:
        seconds = to_seconds(grace)
        if seconds is None:
            raise InvalidArgumentError("grace", grace, "give finite seconds of at least 0")
        if get_active_instructions is not None and not callable(get_active_instructions):
            remedy = "give a function of a task's name, sync or async"
            raise InvalidArgumentError("get_active_instructions", get_active_instructions, remedy)
        if callable(services) or isinstance(tasks, Task):
            name, value = ("tasks", tasks) if isinstance(tasks, Task) else ("services", services)
            raise InvalidArgumentError(name, value, "give a list of them")
        for service in services:
            if not callable(service):
                remedy = "give async functions of (planton, *, task_status)"
                raise InvalidArgumentError("services", service, remedy)
        self._get_active = get_active_instructions
        self._services = tuple(services)
        self._grace = seconds
        self._listeners = Listeners()
        self._streams: set[Stream] = set()
        self._session: Session | None = None
        self._block: AbstractAsyncContextManager[Self]
        self._entries: dict[str, Entry] = {}
        for task in tasks:
            self.register(task)

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until terminated or cancelled.

        `task_status.started()` is called when the services are ready and attempts begin. A
        cancellation (or a KeyboardInterrupt) begins the same drain as `terminate`: it takes
        effect when all that was claimed has been handed over or given back, `grace` seconds
        later at the most. What could not be handed over by then is reported as an `ErrorEvent`
        of stage `"terminate"`. After it has ended it may run again.

        Raises:
            AlreadyRunningError: If it runs already.
        """
        _check_trio()
        if self._session is not None:
            raise AlreadyRunningError
        services = Services(self, self._services, self._listeners)
        session = self._session = Session(self._entries, self._listeners, services, self._grace)
        try:
            await session.run(session.drive, task_status)
        finally:
            self._session = None
            for stream in tuple(self._streams):
                stream.close()

    async def __aenter__(self) -> Self:
        """Run in the background of the block, from when services are ready."""
        _check_trio()
        if self._session is not None:
            raise AlreadyRunningError
        self._block = self._running()
        return await self._block.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Terminate; an exception of the block leaves as it is, not wrapped in a group."""
        # The drain within is shielded, and bounded by `grace`.
        return await self._block.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Self]:
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self.run)
            try:
                yield self
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                # Kept back: raised in here it would leave wrapped in a group. Cancelled may: the
                # scope that it belongs to unwraps it.
                failure = error
            self._request_stop()
        if failure is not None:
            raise failure

    async def terminate(self) -> None:
        """Stop attempts, let what runs finish, and return within the grace period.

        Claims that are in hand are delivered or given back. It may be called more than once,
        from several trio tasks, and when nothing runs. Called from a listener or a callback,
        for which the drain waits, it asks for the stop and returns at once.
        """
        session = self._session
        if session is None:
            await trio.lowlevel.checkpoint()
            return
        session.stop()
        if session.is_called_from_attempt():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(session.deadline):
            await session.ended.wait()

    @overload
    def on(self, event_type: type[E], listener: L) -> L: ...

    @overload
    def on(self, event_type: type[E], listener: None = None) -> Callable[[L], L]: ...

    def on(self, event_type: type[Event], listener: Any = None) -> Any:
        """Call `listener` for every event of a type; also a decorator.

        Plain functions are called on trio's thread and should return soon; async ones are
        awaited, and hold back only the task whose event they are told. A listener that raises
        is reported, and the others still get the event.

        Returns:
            The listener.

        Raises:
            InvalidArgumentError: If the type is no event type or the listener no function.
        """
        if listener is None:
            return lambda function: self.on(event_type, function)
        self._listeners.add(event_type, listener)
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
        """Give the events of some types as a stream, while the block lasts.

        A task whose event is not read yet, and not in the buffer, waits; nothing is dropped.
        The iteration ends when Planton has ended. Instructions that were sent and never read
        when the block is left are given back to the storage, or kept and delivered by the next
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

    def register(self, task: Task) -> None:
        """Add a task, also while running; its first attempt follows after its delay.

        Raises:
            DuplicateTaskNameError: If its name is taken.
            InvalidTaskError: If it cannot be counted.
            InvalidArgumentError: If it is no `Task`.
        """
        if not isinstance(task, Task):
            raise InvalidArgumentError("task", task, "give a planton.Task")
        if task.name in self._entries:
            raise DuplicateTaskNameError(task.name)
        self._admit(Entry.of(task, self._get_active))

    def unregister(self, name: str) -> None:
        """Remove a task; an attempt in hand is finished, and what it claimed is delivered.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entry(name)
        del self._entries[name]
        entry.leaving = True
        if self._session is not None:
            self._session.dismiss(entry)

    def pause(self, name: str) -> None:
        """Make no more attempts for a task, in this process; one in hand is finished.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entry(name)
        if not entry.paused:
            entry.paused = True
            entry.decisions.add("paused", "paused")
        if self._session is not None:
            self._session.suspend(entry)

    def resume(self, name: str) -> None:
        """Attempt a paused task at once, and go on; a task that is not paused stays as it is.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entry(name)
        if entry.paused:
            entry.paused = False
            entry.decisions.add("resumed", "resumed")
            self._wake(entry)

    def wake(self, name: str | None = None) -> None:
        """Attempt a task now instead of after its delay; all tasks when no name is given.

        A wake-up during an attempt is not lost: the next attempt follows at once. A paused task
        stays paused.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entries = list(self._entries.values()) if name is None else [self._entry(name)]
        for entry in entries:
            self._wake(entry)

    async def attempt(self, name: str) -> AttemptEvent:
        """Make one attempt now, without the delay, running or not, paused or not.

        It waits for an attempt of the task that is in hand. It drains before a cancellation
        takes effect, as `run` does.

        Raises:
            UnknownTaskError: If there is no such task.
            AlreadyRunningError: If it is called by the very attempt that it would wait for.
        """
        entry = self._entry(name)
        session = self._session
        if session is not None and session.takes_attempts:
            event = await session.attempt(entry)
            if event is not None:
                return event
        if session is not None and session.stopping:
            await session.ended.wait()
        return await self._attempt_alone(entry)

    async def wait_until_aborted(self) -> None:
        """Wait until even the drain is not waited for any more: after a second Ctrl-C or SIGTERM.

        For services: one that shields what it does at its end breaks that off when this returns.
        It never does while Planton does not run.
        """
        if self._session is None:
            await trio.sleep_forever()
        else:
            await self._session.aborted.wait()

    async def report(self, error: Exception) -> None:
        """Tell the listeners of errors what befell a service that goes on all the same.

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

    def status(self) -> list[TaskStatus]:
        """Tell where every task stands, in the order of registration."""
        is_running = self._session is not None
        return [entry.status(running=is_running) for entry in self._entries.values()]

    def _status_from(self, start: int, count: int) -> list[TaskStatus]:
        """Tell where some tasks stand, from one place in the order of registration on."""
        is_running = self._session is not None
        some = islice(self._entries.values(), start, start + count)
        return [entry.status(running=is_running) for entry in some]

    def explain(self, name: str) -> list[str]:
        """Tell the last decisions about a task in words, the newest last.

        Equal decisions that follow each other are told once, with their number.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        return list(self._entry(name).decisions)

    def _request_stop(self) -> None:
        if self._session is not None:
            self._session.stop()

    def _request_abort(self) -> None:
        if self._session is not None:
            self._session.abort()

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownTaskError(name, list(self._entries)) from None

    def _admit(self, entry: Entry) -> None:
        self._entries[entry.task.name] = entry
        if self._session is not None:
            self._session.admit(entry)

    def _wake(self, entry: Entry) -> None:
        if self._session is None:
            entry.woken = True
        else:
            self._session.wake(entry)

    async def _attempt_alone(self, entry: Entry) -> AttemptEvent:
        events: list[AttemptEvent] = []

        async def attempt(session: Session) -> None:
            event = await session.attempt(entry)
            events.extend([event] if event else [])

        await self._alone({entry.task.name: entry}, attempt)
        return events[0]

    async def _alone(
        self, entries: dict[str, Entry], body: Callable[[Session], Awaitable[None]]
    ) -> None:
        """Do something that needs a session while there is none."""
        services = Services(self, (), self._listeners)
        session = Session(entries, self._listeners, services, self._grace)

        async def work() -> None:
            await body(session)

        await session.run(work)

    async def _return(self, unread: dict[str, list[Claim]]) -> None:
        """Take back what a stream's reader left unread."""
        entries = {name: self._entries[name] for name in unread if name in self._entries}
        for name, claims in unread.items():
            if name in entries:
                entries[name].keep(claims)
            else:
                await self._report_unread(name, claims)
        if self._session is not None:
            self._session.return_kept(entries.values())
        elif entries:
            await self._alone(entries, _nothing)

    async def _report_unread(self, name: str, claims: Sequence[Claim]) -> None:
        instructions = [claim.instruction for claim in claims]
        problem = "a stream was left before they were read, and the task is registered no more"
        error = UndeliveredInstructionsError(name, instructions, problem, released=False)
        await self._listeners.report(ErrorEvent(task_name=name, error=error, stage="deliver"))


def _check_trio() -> None:
    # Not `in_trio_run`: that is true in asyncio code too, where trio is a guest.
    if not trio.lowlevel.in_trio_task():
        remedy = "use trio.run(planton.run), or planton.asyncio or planton.hosting elsewhere"
        raise RuntimeError(f"Planton runs on trio: {remedy}")


async def _nothing(_: Session) -> None:
    """Leave it all to the drain."""
