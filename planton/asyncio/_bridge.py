"""From asyncio to trio: async functions and context managers of trio, for asyncio code."""

import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar, cast

import trio

from planton._errors import AlreadyRunningError, PlantonError
from planton._failures import unwrapped
from planton._functions import is_async
from planton._text import traceback_of
from planton.asyncio._guest import Gate, Guest

logger = logging.getLogger("planton")

T = TypeVar("T")


class Visit:
    """One call of an async function of trio by an asyncio task of the same thread.

    `to_raise` gets what it raised, and returns what is to be raised in asyncio. A cancellation of
    a task that waits for it calls `on_cancel`, which cancels it unless it is given.
    """

    def __init__(
        self,
        guest: Guest,
        function: Callable[[], Any],
        *,
        to_raise: Callable[[BaseException], BaseException] = lambda error: error,
        on_cancel: Callable[[], object] | None = None,
    ) -> None:
        self._guest, self._function, self._to_raise = guest, function, to_raise
        self._scope = trio.CancelScope(shield=True)
        self.over = Gate(on_cancel or self.cancel)
        self._value: Any = None
        self._error: BaseException | None = None
        guest.visits.add(self)
        guest.spawn(self._body)

    def result(self) -> Any:
        """Return what it returned, or raise what it raised, which is told once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._value

    def cancel(self) -> None:
        self._guest.host.wake()
        self._scope.cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._scope.cancel_called

    async def _body(self) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                value = self._function()
                self._value = await value if inspect.isawaitable(value) else value
            if self._scope.cancelled_caught:
                error = PlantonError(f"trio ended before {self._function!r} did")
        except BaseException as raised:  # noqa: ASYNC103  raised by whoever waits
            error = self._to_raise(raised)
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Let who waits go on."""
        self._error = error
        self._guest.visits.discard(self)
        self.over.open()


async def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an async function of trio from asyncio code; starts trio if it does not run.

    With a `connection` of the program's it runs in the program's own task, where that belongs.
    """
    if trio.lowlevel.in_trio_task() or kwargs.get("connection") is not None:
        return await function(*args, **kwargs)
    guest = await Guest.join()
    try:
        visit = Visit(guest, functools.partial(function, *args, **kwargs))
        await visit.over
        return visit.result()
    finally:
        await guest.leave()  # noqa: ASYNC102  asyncio code, as below


class Stay(AbstractAsyncContextManager[Any]):
    """An async context manager of trio's that asyncio code enters: held open by one trio task."""

    _guest: Guest
    _visit: Visit

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._block: Any = None

    async def __aenter__(self) -> Self:
        """Enter the manager; what that raises leaves as it is.

        Cancelled meanwhile, it cancels the manager and waits for its end; cancelled twice, it
        aborts.
        """
        if getattr(self._block, "ag_frame", None) is not None:
            raise AlreadyRunningError(f"{self._manager!r} is entered already: leave it first")
        self._block = self._stay()
        await self._block.__anext__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """Leave the manager and wait for its end, however the block ended."""
        try:
            await self._leave_early()  # noqa: ASYNC102
        finally:
            if not self._block.ag_running:
                await self._block.aclose()  # noqa: ASYNC102
        if exc[1] is None:
            self._visit.result()

    async def _leave_early(self) -> None:
        """Leave the manager within the block; a cancellation aborts, and waits for that."""
        self._ask_to_leave()
        await self._visit.over

    def _ask_to_leave(self) -> None:
        if not self._visit.over.done():
            self._guest.host.wake()
            self._leaving.set()

    def _abort(self) -> None:
        """End it without waiting for what it has begun."""
        self._visit.cancel()

    def _note_cancel(self) -> None:
        """Called at each cancellation of a task that enters or leaves."""
        if self._entered.done() or self._visit.is_cancelled:
            self._guest.host.wake()
            self._abort()
        else:
            self._visit.cancel()

    async def _stay(self) -> AsyncGenerator[None, None]:
        """Enter, and leave at the end of the loop, at the latest: it closes its generators."""
        self._guest = await Guest.join()
        try:
            self._entered, self._leaving = Gate(self._note_cancel), trio.Event()
            self._visit = Visit(
                self._guest, self._hold, to_raise=self._note_end, on_cancel=self._note_cancel
            )
            self._visit.over.add_done_callback(lambda _: self._entered.open())
            try:
                await self._entered
                self._visit.result()
                yield
            finally:
                await self._leave_early()  # noqa: ASYNC102
        finally:
            await self._guest.leave()  # noqa: ASYNC102

    async def _hold(self) -> None:
        """Called by trio."""
        async with self._manager:
            self._entered.open()
            await self._leaving.wait()

    def _note_end(self, error: BaseException) -> BaseException:
        failure = unwrapped(error)
        if self._entered.done():
            logger.critical(
                "%r has ended: %s", self._manager, error, exc_info=traceback_of(failure)
            )
        return failure


class _Bridge(Stay):
    """The async methods of an object of trio's, awaited from asyncio."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self._manager, name)
        if not is_async(value):
            return value
        call = functools.partial(called, value)
        setattr(self, name, call)  # not looked for again
        return call


def bridge(storage: T) -> T:
    """Return the same storage for asyncio code: its async methods are awaited from asyncio.

    It may be made anywhere, without a loop, and of any object. `async with bridge(storage) as
    jobs:` opens the storage, for a program that only enqueues; beside a Planton that has opened
    it, use the methods as they are. Trio is started as a guest of the loop where it does not run.
    What is no coroutine function stays as it is.

    A call that is cancelled waits for trio's side to end, then raises `CancelledError`, even if
    what it did was committed just before.

    Raises:
        PlantonError: When it is used, if trio cannot be a guest of the loop that runs.
    """
    return cast(T, _Bridge(storage))
