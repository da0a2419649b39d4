"""Calling the users' functions within their timeouts: async ones on trio, others in threads."""

import inspect
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from planton._errors import CallbackTimeoutError, UnexpectedLimitError
from planton._events import ErrorEvent, Stage
from planton._failures import guarded
from planton._loop.answers import claims_of
from planton._loop.attempt import Attempt
from planton._loop.entry import Callback, Entry
from planton._loop.listeners import Listeners
from planton._loop.plan import Plan
from planton._task import is_int

# A call that lasts longer than this no longer counts against the number of threads, so that
# callbacks that hang cannot use up the threads of all the others.
SLOW_CALL = 1.0
THREADS = 40
# Looks at what a call returned that outlived its timeout.
Look: TypeAlias = Callable[[Any], Awaitable[None]]


@attrs.define(eq=False)
class _ThreadCall:
    """One call in a worker thread, which nothing can interrupt."""

    function: Callable[[], Any]
    done: trio.Event = attrs.field(factory=trio.Event)
    value: Any = None
    error: Exception | None = None
    # Called when the call is done, if its caller has given up by then.
    on_overrun_end: Callable[[], Awaitable[None]] | None = None

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Caller:
    """Calls callbacks, blocking ones in worker threads that the nursery waits for.

    A call in a thread belongs to the nursery, not to its caller: a caller that gives up after its
    timeout leaves the call behind, and what it returns in the end is still looked at.
    """

    def __init__(self, plan: Plan, listeners: Listeners, nursery: trio.Nursery) -> None:
        self.plan = plan
        self.listeners = listeners
        self.nursery = nursery
        self._limiter = trio.CapacityLimiter(THREADS)

    def call(self, entry: Entry, callback: Callback, argument: Any) -> Awaitable[Any]:
        if not callback.is_async:
            return self._call_sync(entry, callback, argument)
        asked: Awaitable[Any] = callback.function(argument)
        # Without a call in between: most attempts are made like this.
        return asked if entry.timeout is None else self.within_timeout(entry, callback.name, asked)

    async def within_timeout(self, entry: Entry, name: str, awaitable: Awaitable[Any]) -> Any:
        if entry.timeout is None:
            return await awaitable
        with trio.move_on_after(entry.timeout):
            return await awaitable
        raise CallbackTimeoutError(entry.task.name, name, entry.timeout)

    async def compute(
        self, attempt: Attempt, stage: Stage, minimum: int, *arguments: object
    ) -> int:
        """Return what a function says that only computes, or whose answer has to be awaited."""
        attempt.stage = stage
        task = attempt.entry.task
        value = getattr(task, stage)(*arguments)
        if inspect.isawaitable(value):
            value = await self.within_timeout(attempt.entry, stage, value)
        if not is_int(value, minimum):
            raise UnexpectedLimitError(task.name, stage, value, minimum)
        return int(value)

    async def call_thread(
        self, entry: Entry, name: Stage, function: Callable[[], Any], look: Look | None = None
    ) -> Any:
        """Call a function in a worker thread, unless a call of that name still runs there.

        If it takes too long, `look` gets what it returns in the end.
        """
        if name not in entry.overrunning:
            call = _ThreadCall(function)
            await self._wait(call, math.inf if entry.timeout is None else entry.timeout)
            if call.done.is_set():
                return call.unwrap()
            entry.overrunning = {**entry.overrunning, name: call.done}
            call.on_overrun_end = partial(self._end_overrun, entry, name, call, look)
        remedy = "; it goes on in its thread, and the task waits for it before it calls it again"
        raise CallbackTimeoutError(entry.task.name, name, entry.timeout, remedy)

    async def _call_sync(self, entry: Entry, callback: Callback, argument: Any) -> Any:
        function = partial(callback.function, argument)
        look = partial(_keep_late_claims, entry) if callback.name == "schedule" else None
        value = await self.call_thread(entry, callback.name, function, look)
        if not inspect.isawaitable(value):
            return value
        return await self.within_timeout(entry, callback.name, value)

    async def _wait(self, call: _ThreadCall, patience: float) -> None:
        self.nursery.start_soon(self._run, call)
        with trio.move_on_after(min(SLOW_CALL, patience)):
            await call.done.wait()
        if not call.done.is_set():
            self.nursery.start_soon(self._add_thread, call)
            with trio.move_on_after(max(patience - SLOW_CALL, 0)):
                await call.done.wait()

    async def _run(self, call: _ThreadCall) -> None:
        run = partial(trio.to_thread.run_sync, limiter=self._limiter, abandon_on_cancel=True)
        try:
            with guarded:
                (call.value,) = await run(_boxed, call.function)
        except Exception as error:
            call.error = error
        call.done.set()
        if call.on_overrun_end is not None:
            await call.on_overrun_end()

    async def _add_thread(self, call: _ThreadCall) -> None:
        self._limiter.total_tokens += 1
        await call.done.wait()
        self._limiter.total_tokens -= 1

    async def _end_overrun(
        self, entry: Entry, name: Stage, call: _ThreadCall, look: Look | None
    ) -> None:
        others = {key: done for key, done in entry.overrunning.items() if key != name}
        entry.overrunning = others
        try:
            with guarded:
                if look is not None:
                    await look(call.unwrap())
        except Exception as error:
            event = ErrorEvent(task_name=entry.task.name, error=error, stage=name)
            await self.listeners.report(event)
        self.plan.wake(entry)


async def _keep_late_claims(entry: Entry, value: Any) -> None:
    """Keep what a `schedule` that outlived its timeout claimed in the end."""
    entry.keep(claims_of(entry, await value if inspect.isawaitable(value) else value))


def _boxed(function: Callable[[], Any]) -> tuple[Any]:
    """Call `function`; trio takes an awaitable out of a thread only if it does not see it."""
    return (function(),)
