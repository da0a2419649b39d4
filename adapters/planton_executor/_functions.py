"""What does the work of a task: functions of the user's, called on trio or in a thread."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from planton import InvalidArgumentError
from planton_executor._events import Work
from planton_executor._run import End, Run, Terms

Function: TypeAlias = Callable[[Work], Awaitable[Any] | Any]


class Host(Protocol):
    """What a handler may use while it runs."""

    limiter: trio.CapacityLimiter

    async def advance(self, run: Run, end: End) -> bool:
        """Store an end that is none yet; return whether to go on."""


class Handler(Protocol):
    """Does the work of a task."""

    @property
    def terms(self) -> Terms:
        """On what terms it begins."""

    def call(self, run: Run, host: Host) -> Awaitable[Any]:
        """Do it; return the result, or an `End` if it has another one."""


@attrs.frozen(eq=False)
class FunctionHandler:
    """A function of the user's: async ones run on trio, others in a thread."""

    function: Function
    terms: Terms
    is_async: bool = attrs.field(init=False)

    @is_async.default
    def _look(self) -> bool:
        return is_async(self.function)

    def call(self, run: Run, host: Host) -> Any:
        if self.is_async:
            return self.function(run.work)
        return call_in_thread(self.function, run.work, run, host.limiter)


def is_async(function: object) -> bool:
    """Return whether calling it makes a coroutine: also of partials and callable objects."""
    return any(map(inspect.iscoroutinefunction, _called(function)))


def is_generator(function: object) -> bool:
    """Return whether calling it only makes a generator: nothing would be done."""
    tests = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(test(each) for test in tests for each in _called(function))


def _called(function: object) -> tuple[object, object]:
    return function, getattr(function, "__call__", None)  # noqa: B004  of a callable object


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether it can be called with so many arguments, as far as that can be known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True  # written in C, some of it
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_function(function: object) -> Any:
    """Return what can be called with one `Work`, or raise `InvalidArgumentError`."""
    remedy = "give a function of one planton_executor.Work, sync or async"
    if not callable(function):
        raise InvalidArgumentError("handler", function, remedy)
    if is_generator(function):
        raise InvalidArgumentError("handler", function, f"it is a generator: {remedy}")
    if not takes(function, 1):
        raise InvalidArgumentError("handler", function, f"it cannot be called with one: {remedy}")
    return function


async def call_in_thread(
    function: Callable[[Any], Any], argument: object, run: Run, limiter: trio.CapacityLimiter
) -> Any:
    """Call a function in a thread; a coroutine that it returns is awaited on trio.

    A cancellation does not wait for the thread: `run.thread_ended` says when it is over.
    """
    token = trio.lowlevel.current_trio_token()
    ended = run.thread_ended = trio.Event()

    def call() -> tuple[Any]:
        try:
            # In a tuple: trio refuses an awaitable from a thread, if it sees it.
            return (function(argument),)
        finally:
            try:
                token.run_sync_soon(ended.set)
            except trio.RunFinishedError:
                pass  # nobody waits any more

    try:
        (value,) = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
    except trio.Cancelled:
        raise
    except BaseException:
        run.thread_ended = None
        raise
    run.thread_ended = None
    return await value if inspect.isawaitable(value) else value
