"""From trio to asyncio: coroutine functions of the program as callbacks of Planton."""

import asyncio
import functools
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ParamSpec, TypeVar, overload

import trio

from planton._errors import InvalidArgumentError, PlantonError
from planton._failures import failure_of
from planton._functions import is_async
from planton.asyncio._guest import Guest

logger = logging.getLogger("planton")

P = ParamSpec("P")
T = TypeVar("T")

# Seconds that a cancelled coroutine has to end.
PATIENCE = 1.0
# Seconds that leaving a context manager, such as giving a lock back, may take at the end.
RELEASE = 5.0
# Seconds before a coroutine that the program cancelled is told of: what is given back for that
# reason is claimed again, and a function that cancels itself would go on without a pause.
PAUSE = 0.2
# A function that is broken off so often in a row is not broken off because the program ends.
TIMES = 3


class CallbackCancelledError(PlantonError):
    """The program cancelled the coroutine of a callback: broken off, not failed."""

    is_failure = False


class Hop:
    """One call of a coroutine function by a trio task, as an asyncio task of the same thread."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        guest = Guest.running()
        if guest is None or guest.loop.is_closed():
            remedy = "run the Planton by planton.asyncio.running, on a loop that is open"
            raise PlantonError(f"{function!r} needs an asyncio loop: {remedy}")
        self._guest = guest
        self._function, self._args, self._kwargs = function, args, kwargs
        self._trio_task = trio.lowlevel.current_task()
        self._task: asyncio.Task[Any] | None = None  # None until it has begun
        self._timer: asyncio.TimerHandle | None = None
        self._raise_cancel: Callable[[], object] | None = None
        self._end: Callable[[], Any] | Exception  # set when the trio task goes on

    async def run(self) -> Any:
        """Call it, and return what it returns; called by the trio task."""
        self._guest.hops.add(self)
        self._guest.host.after_ticks(self._start)
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        if isinstance(self._end, CallbackCancelledError):
            await trio.sleep(PAUSE)
        if isinstance(self._end, Exception):
            raise self._end
        return self._end()

    @property
    def is_current(self) -> bool:
        """Whether it is the asyncio task that runs now."""
        return self._task is not None and self._task is asyncio.current_task()

    def end(self, error: PlantonError) -> None:
        """End it from outside, the coroutine too."""
        if self._task is not None and not self._guest.loop.is_closed():
            self._task.cancel()
        self._break_off(f"broken off: {error}", error)

    def _start(self) -> None:
        if self not in self._guest.hops:
            return
        body = self._body()
        try:
            # The trio task's own context, not a copy: a context manager may reset when it is left
            # what it has set when it was entered.
            self._task = self._guest.loop.create_task(body, context=self._trio_task.context)
        except Exception as error:  # a task factory that takes no context
            body.close()
            self._finish(error)
        else:
            self._task.add_done_callback(self._note_end, context=self._guest.host.context)

    async def _body(self) -> None:
        self._task = asyncio.current_task()  # an eager one begins before it is returned
        try:
            value = await self._function(*self._args, **self._kwargs)
        except Exception as error:
            self._finish(error)
        except SystemExit as error:
            # Not the end of the program, which asyncio would make of it: as on trio.
            self._finish(failure_of(error))
        else:
            self._guest.broken_off.pop(id(self._function), None)
            self._finish(lambda: value)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        """Look at what ended it, unless it returned or failed."""
        if self not in self._guest.hops:
            return
        error = None if task.cancelled() else task.exception()
        if self._raise_cancel is not None:
            self._finish(self._raise_cancel)
        elif task.cancelled() and not task.cancelling():
            problem = "raised CancelledError although it was not cancelled"
            self._finish(PlantonError(f"{self._function!r} {problem}"))
        else:
            self._break_off("cancelled by the program" if error is None else f"ended by {error!r}")

    def _break_off(self, problem: str, cause: BaseException | None = None) -> None:
        error = CallbackCancelledError(f"{self._function!r} was {problem}")
        error.__cause__ = cause
        self._count(error)
        self._finish(error)

    def _count(self, error: CallbackCancelledError) -> None:
        """Let a function fail that is broken off again and again: its work is given back each time.

        Those that are broken off at the same time, as at the end of a program, count as one.
        """
        now = time.monotonic()
        count, last = self._guest.broken_off.get(id(self._function), (0, -math.inf))
        count += now - last >= PAUSE / 2
        self._guest.broken_off[id(self._function)] = count, now
        error.is_failure = count > TIMES
        if not error.is_failure:
            logger.warning("%s: what it worked on is given back", error)

    def _finish(self, end: Callable[[], Any] | Exception) -> None:
        """Let the trio task go on; what comes first counts, as a value that may be a commit."""
        if self not in self._guest.hops:
            return
        self._guest.hops.discard(self)
        self._end = end
        if self._timer is not None:
            self._timer.cancel()
        if not self._guest.is_over:
            self._guest.host.wake()
            trio.lowlevel.reschedule(self._trio_task)

    def _abort(self, raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
        """Cancel the coroutine once, and let the trio task wait for its end."""
        if self._task is None:
            self._guest.hops.discard(self)
            return trio.lowlevel.Abort.SUCCEEDED
        self._raise_cancel = raise_cancel
        self._task.cancel()
        context = self._guest.host.context
        self._timer = self._guest.loop.call_later(PATIENCE, self._give_up, context=context)
        return trio.lowlevel.Abort.FAILED

    def _give_up(self) -> None:
        assert self._task is not None
        assert self._raise_cancel is not None
        logger.error(
            "%r was cancelled and has not ended after %g s; it is not waited for: it is at %s",
            self._function,
            PATIENCE,
            _place(self._task),
        )
        self._finish(self._raise_cancel)


def _place(task: asyncio.Task[Any]) -> str:
    """Tell where the coroutines of a task wait, from the outermost to the innermost."""
    places = []
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        name = frame.f_code.co_qualname
        places.append(f"{name} ({frame.f_code.co_filename}:{frame.f_lineno})")
        coroutine = coroutine.cr_await
    return " > ".join(places[1:] or places)  # the first is `_body`


async def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a coroutine function of asyncio, from trio or from the program itself."""
    if trio.lowlevel.in_trio_task():
        return await Hop(function, args, kwargs).run()
    return await function(*args, **kwargs)


class _Manager(AbstractAsyncContextManager[Any]):
    """An asyncio context manager, to be entered by a trio task."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await _called(self._manager.__aenter__)

    async def __aexit__(self, *exc: Any) -> Any:
        leave = functools.partial(_called, self._manager.__aexit__, *exc)
        if not trio.lowlevel.in_trio_task():
            return await leave()  # noqa: ASYNC102  asyncio code
        # Shielded, as a trio lock would be: what is cancelled must still be given back.
        with trio.move_on_after(RELEASE, shield=True):
            return await leave()
        return None


@overload
def callback(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def callback(
    function: Callable[P, AbstractAsyncContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]: ...


@overload
def callback(
    function: AbstractAsyncContextManager[T],
) -> AbstractAsyncContextManager[T]: ...


@overload
def callback(function: Callable[P, T]) -> Callable[P, T]: ...


def callback(function: Any) -> Any:
    """Let something of an asyncio program be called by Planton; also a decorator.

    It may be made anywhere, without a loop. A coroutine function runs as an asyncio task on the
    loop of `running`, in the context of the trio task that calls it, which waits meanwhile. A
    function that returns an async context manager, such as a lock, is one that trio can enter;
    so is a context manager itself. A `many` method goes along. The program itself may call it
    too: then it is the function as it was.

    Trio's cancellation (a timeout, the end of the grace period) cancels the asyncio task once and
    waits up to a second for its end; a value that it returns in spite of that counts. A coroutine
    that the *program* cancels raises `CallbackCancelledError`: an executor gives its instruction
    back, and no try is spent.

    Args:
        function: A coroutine function, a function that returns an async context manager, or an
            async context manager; anything else stays as it is.

    Raises:
        InvalidArgumentError: If it is none of these.
        PlantonError: When it is called by trio, if no loop is its host: see `running`.
    """
    if hasattr(function, "__aenter__") and not isinstance(function, type):
        return _Manager(function)
    if not callable(function):
        remedy = "give a coroutine function or an async context manager"
        raise InvalidArgumentError("function", function, remedy)
    call: Any = _wrapped_async(function) if is_async(function) else _wrapped(function)
    many = getattr(function, "many", None)
    if callable(many):
        call.many = callback(many)
    return call


def _wrapped_async(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await _called(function, *args, **kwargs)

    return call


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a plain function; what it returns may have to be awaited by asyncio."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        if hasattr(value, "__aenter__"):
            return _Manager(value)
        return _called(lambda: value) if inspect.isawaitable(value) else value

    return call
