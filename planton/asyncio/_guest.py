"""The one run of trio in a thread, as a guest of the asyncio loop there."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Self

import trio

from planton._errors import PlantonError
from planton.asyncio._host import Host

logger = logging.getLogger("planton")

# Seconds that trio may take to end when its loop was closed under it.
BURIAL = 30.0

_local = threading.local()


class Gate(asyncio.Future[None]):
    """Opens once. An asyncio task that is cancelled while it waits goes on waiting until then.

    A task that is cancelled has what it awaits cancelled first. A gate calls `on_cancel` and
    refuses, for trio has to end what it does; when it opens the task gets its CancelledError.
    """

    def __init__(self, on_cancel: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def open(self) -> None:
        """Let all go on that wait."""
        if not self.done():
            try:
                self.set_result(None)
            except RuntimeError:
                pass  # their loop is closed, and they never will

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002  asyncio gives it by name
        if self._on_cancel is not None and not self.done():
            self._on_cancel()
        return False


class Guest:
    """Trio on a loop, shared by all Plantons and bridges there; the last to leave ends it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.host = Host(loop)
        self.hops: set[Any] = set()  # trio tasks that wait for asyncio
        self.visits: set[Any] = set()  # asyncio tasks that wait for trio
        # By the id of a function how often in a row the program broke it off, and when last.
        self.broken_off: dict[int, tuple[int, float]] = {}
        self.is_over = False
        self._pid = os.getpid()
        self._users = 0
        self._ended = Gate()
        self._stop = trio.Event()
        self.host.start(self._main, done=self._done)
        _local.guest = self

    @classmethod
    def running(cls) -> Self | None:
        """Return the guest of this thread, in whatever state."""
        return getattr(_local, "guest", None)

    @classmethod
    async def join(cls) -> Self:
        """Use the guest of the loop that runs, or start it; `leave` it afterwards."""
        loop = _running_loop()
        while (guest := cls._on(loop)) is not None and not guest._users:
            await guest._ended
        guest = guest or cls(loop)
        guest._users += 1
        return guest

    async def leave(self) -> None:
        """End trio if nobody else uses it; a cancellation waits for that."""
        self._users -= 1
        if not self._users and not self.is_over:
            self.host.wake()
            self._stop.set()
            await self._ended

    def spawn(self, function: Any) -> None:
        """Start a trio task, in a copy of the caller's context.

        It must not raise, not even Cancelled: it has a shielded scope, and ends when the visit that
        it belongs to is cancelled.
        """
        self.host.wake()
        trio.lowlevel.spawn_system_task(function, context=copy_context())

    @classmethod
    def _on(cls, loop: asyncio.AbstractEventLoop) -> Self | None:
        """Return the guest of `loop`, after a look at what else is in this thread."""
        guest = cls.running()
        if guest is None:
            if trio.lowlevel.in_trio_run():
                remedy = "there can be one run of trio in a thread: use `async with planton` in it"
                raise PlantonError(f"trio runs in this thread already: {remedy}")
        elif guest._pid != os.getpid():
            remedy = "start Planton after the fork, or start the process by spawn"
            raise PlantonError(f"this process was forked while a Planton ran: {remedy}")
        elif guest.loop is not loop:
            if not guest.loop.is_closed():
                remedy = "leave `running` there first, or use another thread"
                raise PlantonError(f"a Planton runs on another loop of this thread: {remedy}")
            guest._bury()
            return None
        return guest

    def _bury(self) -> None:
        """End trio without its loop: nothing else could run trio in this thread."""
        logger.error("an asyncio loop was closed while a Planton ran on it: leave `running` first")
        hooks = sys.get_asyncgen_hooks()
        for hop in tuple(self.hops):
            hop.end(PlantonError("the asyncio loop was closed"))
        self._stop.set()
        try:
            self.host.run_here(lambda: self.is_over, BURIAL)
        finally:
            # Trio has put back those of the loop that was closed.
            sys.set_asyncgen_hooks(*hooks)
        if not self.is_over:
            problem = "its loop was closed, and it did not end without it"
            raise PlantonError(f"trio cannot be ended in this thread: {problem}")

    async def _main(self) -> None:
        try:
            await self._stop.wait()
        finally:
            for visit in tuple(self.visits):
                visit.cancel()

    def _done(self, result: Any) -> None:
        self.is_over = True
        del _local.guest
        error = getattr(result, "error", None)
        for call in (*self.visits, *self.hops):
            lost = PlantonError(f"trio ended in the middle of it: {error!r}")
            lost.__cause__ = error
            call.end(lost)
        self._ended.open()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        remedy = "use `async with planton` on trio, planton.hosting in synchronous programs"
        raise PlantonError(f"planton.asyncio needs a running asyncio loop: {remedy}") from None
