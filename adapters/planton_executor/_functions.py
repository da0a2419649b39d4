"""What does the work of a task: functions of the user's, called on trio or in a thread."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from planton.storage import is_async
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


async def call_in_thread(
    function: Callable[[Any], Any], argument: object, run: Run, limiter: trio.CapacityLimiter
) -> Any:
    """Call a function in a thread; a coroutine that it returns is awaited on trio.

    A cancellation does not wait for the thread: `run.thread_ended` says when it is over.
    """
    token, ended = trio.lowlevel.current_trio_token(), trio.Event()

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
        run.thread_ended = ended
        raise
    return await value if inspect.isawaitable(value) else value
