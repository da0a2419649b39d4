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
from planton.asyncio._guest import Gate, Guest

logger = logging.getLogger("planton")

T = TypeVar("T")


class Visit:
    """One call of an async function of trio by an asyncio task of the same thread.

    `to_raise` gets what it raised, and returns what is to be raised in asyncio; all `gates` are
    opened at its end.
    """

    def __init__(
        self,
        guest: Guest,
        function: Callable[[], Any],
        *gates: Gate,
        to_raise: Callable[[BaseException], BaseException] = lambda error: error,
    ) -> None:
        self._guest, self._function, self._to_raise = guest, function, to_raise
        self._scope = trio.CancelScope(shield=True)
        self.over = Gate()
        self._gates = (*gates, self.over)
        self._value: Any = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        self._guest.visits.add(self)
        self._guest.spawn(self._body)

    async def run(self) -> Any:
        """Call it, and return what it returns; a cancellation waits for trio's side to end."""
        self.begin()
        await self.over.pass_through(self.cancel)
        return self.result()

    def result(self) -> Any:
        """Return what it returned, or raise what it raised, which is told once."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._value

    def fail(self, error: BaseException) -> None:
        """Wait for it no more."""
        self._error = error
        self._end()

    def cancel(self) -> None:
        self._guest.host.wake()
        self._scope.cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._scope.cancel_called

    async def _body(self) -> None:
        try:
            with self._scope:
                value = self._function()
                self._value = await value if inspect.isawaitable(value) else value
            if self._scope.cancelled_caught:
                self._error = PlantonError(f"trio ended before {self._function!r} did")
        except BaseException as error:  # noqa: ASYNC103  raised by whoever waits
            self._error = self._to_raise(error)
        self._end()

    def _end(self) -> None:
        self._guest.visits.discard(self)
        for gate in self._gates:
            gate.open()


async def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an async function of trio from asyncio code; starts trio if it does not run.

    With a `connection` of the program's it runs in the program's own task, where that belongs.
    """
    if trio.lowlevel.in_trio_task() or kwargs.get("connection") is not None:
        return await function(*args, **kwargs)
    guest = await Guest.join()
    try:
        return await Visit(guest, functools.partial(function, *args, **kwargs)).run()
    finally:
        await guest.leave()  # noqa: ASYNC102  asyncio code, as below


class Stay(AbstractAsyncContextManager[Any]):
    """An async context manager of trio's that asyncio code enters: held open by one trio task."""

    _guest: Guest

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager
        self._is_in = False

    async def __aenter__(self) -> Self:
        """Enter the manager; what that raises leaves as it is.

        Cancelled meanwhile, it cancels the manager and waits for its end; cancelled twice, it
        aborts.
        """
        if self._is_in:
            raise AlreadyRunningError(f"{self._manager!r} is entered already: leave it first")
        self._is_in = True
        self._guest = await Guest.join()
        self._entered, self._leaving = Gate(), trio.Event()
        self._visit = Visit(self._guest, self._hold, self._entered, to_raise=self._note_end)
        self._guard: Any = self._guarded()
        try:
            await self._guard.__anext__()
            self._visit.begin()
            await self._entered.pass_through(self._give_up)
            self._visit.result()
        except BaseException:
            await self._end()  # noqa: ASYNC102
            raise
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """Leave the manager and wait for its end, however the block ended."""
        await self._end()  # noqa: ASYNC102
        if exc[1] is None:
            self._visit.result()

    async def leave_early(self) -> None:
        """Leave the manager within the block; a cancellation aborts, and waits for that."""
        self._ask_to_leave()
        await self._visit.over.pass_through(self._abort_soon)

    def _ask_to_leave(self) -> None:
        if not self._visit.over.is_set():
            self._guest.host.wake()
            self._leaving.set()

    def _abort(self) -> None:
        """End it without waiting for what it has begun."""
        self._visit.cancel()

    def _abort_soon(self) -> None:
        self._guest.host.wake()
        self._abort()

    def _give_up(self) -> None:
        if self._visit.is_cancelled:
            self._abort_soon()
        else:
            self._visit.cancel()

    async def _guarded(self) -> AsyncGenerator[None, None]:
        """Leave at the end of the loop, at the latest: it closes the generators that it knows."""
        try:
            yield
        finally:
            await self._end()  # noqa: ASYNC102

    async def _end(self) -> None:
        """Leave the manager, then the guest; more than one may wait for that."""
        try:
            await self.leave_early()
        finally:
            if self._is_in:
                self._is_in = False
                await self._guest.leave()  # noqa: ASYNC102
                if not self._guard.ag_running:
                    await self._guard.aclose()  # noqa: ASYNC102

    async def _hold(self) -> None:
        """Called by trio."""
        async with self._manager:
            self._entered.open()
            await self._leaving.wait()

    def _note_end(self, error: BaseException) -> BaseException:
        failure = unwrapped(error)
        if self._entered.is_set():
            logger.critical("%r has ended: %s", self._manager, error, exc_info=failure)
        return failure


class _Bridge:
    """The async methods of an object of trio's, awaited from asyncio."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._stay = Stay(storage)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self._storage, name)
        if not is_async(value):
            return value
        call = functools.partial(called, value)
        setattr(self, name, call)  # not looked for again
        return call

    async def __aenter__(self) -> Self:
        await self._stay.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stay.__aexit__(*exc)  # noqa: ASYNC102


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
