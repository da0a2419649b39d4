"""Calling functions that users wrote: async ones on trio, others in a thread."""

import inspect
from collections.abc import Callable
from typing import Any

import trio

from planton_executor._run import Run
from planton_executor._terms import is_async


async def call_in_thread(
    function: Callable[[Any], Any], argument: object, run: Run, limiter: trio.CapacityLimiter
) -> Any:
    """Call a plain function in a thread; a coroutine that it returns is awaited on trio.

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


async def call(
    function: Callable[[Any], Any], argument: object, run: Run, limiter: trio.CapacityLimiter
) -> Any:
    """Call a function with its one argument: on trio if it is async, else in a thread."""
    if is_async(function):
        return await function(argument)
    return await call_in_thread(function, argument, run, limiter)
