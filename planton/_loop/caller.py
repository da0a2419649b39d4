"""Calling a task's callbacks within their timeouts, wherever they run."""

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import trio

from planton._errors import CallbackTimeoutError
from planton._events import ErrorEvent, Stage
from planton._failures import guarded
from planton._loop.answers import claims_of
from planton._loop.callbacks import Callback, ThreadCall, Threads
from planton._loop.entry import Entry
from planton._loop.listeners import Listeners
from planton._loop.plan import Plan


class Caller:
    """Calls callbacks; those that outlive their timeout in a thread are looked at in the end."""

    def __init__(self, plan: Plan, listeners: Listeners, nursery: trio.Nursery) -> None:
        self._plan = plan
        self._listeners = listeners
        self.threads = Threads(nursery)

    async def call(self, entry: Entry, callback: Callback, argument: Any) -> Any:
        if callback.is_async:
            function = partial(callback.function, argument)
            return await self.within_timeout(entry, callback.name, function)
        value = await self.call_thread(
            entry, callback.name, partial(callback.function, argument), self._keep_late_claims
        )
        if not inspect.isawaitable(value):
            return value
        return await self.within_timeout(entry, callback.name, lambda: value)

    async def within_timeout(
        self, entry: Entry, name: str, function: Callable[[], Awaitable[Any]]
    ) -> Any:
        if entry.timeout is None:
            return await function()
        with trio.move_on_after(entry.timeout):
            return await function()
        raise CallbackTimeoutError(entry.task.name, name, entry.timeout)

    async def call_thread(
        self,
        entry: Entry,
        name: str,
        function: Callable[[], Any],
        on_overrun_end: Callable[[Entry, str, ThreadCall], Awaitable[None]],
    ) -> Any:
        """Call a function in a worker thread, unless a call of that name still runs there.

        If it takes too long, `on_overrun_end` is called in the end.
        """
        if name not in entry.overrunning:
            call = await self.threads.call(function, timeout=entry.timeout)
            if call.done.is_set():
                return call.unwrap()
            entry.overrunning[name] = call
            call.on_overrun_end = partial(self._end_overrun, entry, name, on_overrun_end)
        remedy = "; it goes on in its thread, and the task waits for it before it calls it again"
        raise CallbackTimeoutError(entry.task.name, name, entry.timeout, remedy)

    async def _end_overrun(
        self,
        entry: Entry,
        name: str,
        on_overrun_end: Callable[[Entry, str, ThreadCall], Awaitable[None]],
        call: ThreadCall,
    ) -> None:
        del entry.overrunning[name]
        try:
            with guarded:
                await on_overrun_end(entry, name, call)
        except Exception as error:
            stage = cast(Stage, name)
            event = ErrorEvent(task_name=entry.task.name, error=error, stage=stage)
            await self._listeners.report(event)
        self._plan.wake(entry)

    async def _keep_late_claims(self, entry: Entry, name: str, call: ThreadCall) -> None:
        """Keep what a `schedule` that outlived its timeout claimed in the end."""
        if name == "schedule":
            value = call.unwrap()
            entry.keep(claims_of(entry, await value if inspect.isawaitable(value) else value))
