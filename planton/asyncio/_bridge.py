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
    """One call of an async function of trio by an asyncio task of the same thread."""

    def __init__(self, guest: Guest, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._guest = guest
        self._function, self._args, self._kwargs = function, args, kwargs
        self._scope = trio.CancelScope(shield=True)
        self._gate = Gate(guest.loop)
        self._value: Any = None
        self._error: BaseException | None = None

    async def run(self) -> Any:
        """Call it, and return what it returns; a cancellation waits for trio's side to end."""
        self._guest.visits.add(self)
        try:
            self._guest.spawn(self._body)
            await self._gate.wait(self.cancel)
        finally:
            self._guest.visits.discard(self)
        if self._error is not None:
            raise self._error
        return self._value

    def fail(self, error: PlantonError) -> None:
        self._error = error
        self._gate.open()

    def cancel(self) -> None:
        self._guest.host.wake()
        self._scope.cancel()

    async def _body(self) -> None:
        try:
            with self._scope:
                value = self._function(*self._args, **self._kwargs)
                self._value = await value if inspect.isawaitable(value) else value
            if self._scope.cancelled_caught:
                self._error = PlantonError(f"trio ended before {self._function!r} did")
        except BaseException as error:  # noqa: ASYNC103  raised by `run`
            self._error = error
        self._gate.open()


async def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an async function of trio from asyncio code; starts trio if it does not run.

    With a `connection` of the program's it runs in the program's own task, where that belongs.
    """
    if trio.lowlevel.in_trio_task() or kwargs.get("connection") is not None:
        return await function(*args, **kwargs)
    guest = await Guest.join()
    try:
        return await Visit(guest, function, args, kwargs).run()
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
        self._scope, self._leaving = trio.CancelScope(shield=True), trio.Event()
        self._entered, self._left = Gate(self._guest.loop), Gate(self._guest.loop)
        self._error: BaseException | None = None
        self._guard: Any = self._guarded()
        try:
            await self._guard.__anext__()
            self._guest.visits.add(self)
            self._guest.spawn(self._body)
            await self._entered.wait(self._give_up)
            self._raise_error()
        except BaseException:
            await self._end()  # noqa: ASYNC102
            raise
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """Leave the manager and wait for its end, however the block ended."""
        await self._end()  # noqa: ASYNC102
        if exc[1] is None:
            self._raise_error()

    async def leave_early(self) -> None:
        """Leave the manager within the block; a cancellation aborts, and waits for that."""
        if not self._left.is_open:
            self._guest.host.wake()
            self._leaving.set()
        await self._left.wait(self._abort_soon)

    def fail(self, error: PlantonError) -> None:
        self._error = error
        self._open_gates()

    def cancel(self) -> None:
        self._guest.host.wake()
        self._scope.cancel()

    def _abort(self) -> None:
        """End it without waiting for what it has begun."""
        self._scope.cancel()

    def _abort_soon(self) -> None:
        self._guest.host.wake()
        self._abort()

    def _give_up(self) -> None:
        if self._scope.cancel_called:
            self._abort_soon()
        else:
            self.cancel()

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
                self._guest.visits.discard(self)
                await self._guest.leave()  # noqa: ASYNC102
                if not self._guard.ag_running:
                    await self._guard.aclose()  # noqa: ASYNC102

    async def _body(self) -> None:
        try:
            with self._scope:
                async with self._manager:
                    self._entered.open()
                    await self._leaving.wait()
            if self._scope.cancelled_caught:
                self._error = PlantonError(f"trio ended before {self._manager!r} did")
        except BaseException as error:  # noqa: ASYNC103  raised when the block is left
            self._error = unwrapped(error)
            if self._entered.is_open:
                logger.critical("%r has ended: %s", self._manager, error, exc_info=self._error)
        self._open_gates()

    def _open_gates(self) -> None:
        self._entered.open()
        self._left.open()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


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
