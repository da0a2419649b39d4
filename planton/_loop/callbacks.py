"""Calling the users' functions: async ones on trio, blocking ones in worker threads."""

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import attrs
import trio

from planton._failures import guarded
from planton._functions import is_async

# A call that lasts longer than this no longer counts against the number of threads, so that
# callbacks that hang cannot use up the threads of all the others.
SLOW_CALL = 1.0
THREADS = 40


@attrs.frozen(eq=False)
class Callback:
    """A user's function with what has to be known to call it; `name` is its field of the task."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    many: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]] | None

    @classmethod
    def of(cls, name: str, function: Callable[..., Any]) -> "Callback":
        many = getattr(function, "many", None)
        return cls(name, function, is_async(function), many if callable(many) else None)


class Ask(NamedTuple):
    """A callback to call, with its one argument."""

    callback: Callback
    argument: Any


@attrs.define(eq=False)
class ThreadCall:
    """One call in a worker thread, which nothing can interrupt.

    Attributes:
        on_overrun_end: Called when the call is done, if its caller has given up by then.
        has_extra_thread: Whether a thread was added to make up for this one.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: trio.Event = attrs.field(factory=trio.Event)
    value: Any = None
    error: Exception | None = None
    on_overrun_end: "Callable[[ThreadCall], Awaitable[None]] | None" = None
    has_extra_thread: bool = False

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Threads:
    """Runs blocking functions in worker threads that a nursery waits for.

    A call belongs to the nursery, not to its caller: a caller that gives up after its timeout
    leaves the call behind, and what it returns in the end is still looked at.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self._limiter = trio.CapacityLimiter(THREADS)

    async def call(
        self, function: Callable[..., Any], *arguments: Any, timeout: float | None
    ) -> ThreadCall:
        """Call `function`; the returned call is not done if `timeout` seconds passed."""
        call = ThreadCall(function, arguments)
        self.nursery.start_soon(self._run, call)
        patience = math.inf if timeout is None else timeout
        with trio.move_on_after(min(SLOW_CALL, patience)):
            await call.done.wait()
        if not call.done.is_set():
            self._add_thread(call)
            with trio.move_on_after(max(patience - SLOW_CALL, 0)):
                await call.done.wait()
        return call

    def _add_thread(self, call: ThreadCall) -> None:
        call.has_extra_thread = True
        self._limiter.total_tokens += 1

    async def _run(self, call: ThreadCall) -> None:
        run = partial(trio.to_thread.run_sync, limiter=self._limiter, abandon_on_cancel=True)
        try:
            with guarded:
                (call.value,) = await run(_boxed, call.function, call.arguments)
        except Exception as error:
            call.error = error
        if call.has_extra_thread:
            self._limiter.total_tokens -= 1
        call.done.set()
        if call.on_overrun_end is not None:
            await call.on_overrun_end(call)


def _boxed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any]:
    """Call `function`; trio takes an awaitable out of a thread only if it does not see it."""
    return (function(*arguments),)
