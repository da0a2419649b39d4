"""What asyncio code waits for while trio does something for it."""

import asyncio
from collections.abc import Callable


class Gate:
    """Opens once; asyncio tasks wait until it is open, also when they are cancelled meanwhile."""

    __slots__ = ("_loop", "_waiters", "is_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: list[asyncio.Future[None]] = []
        self.is_open = False

    def open(self) -> None:
        """Let all go on that wait; those of a closed loop never will."""
        self.is_open = True
        if not self._loop.is_closed():
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, on_cancel: Callable[[], object]) -> None:
        """Wait until it is open; call `on_cancel` at each cancellation before that.

        Raises:
            asyncio.CancelledError: When it is open, if there was a cancellation.
        """
        cancelled: asyncio.CancelledError | None = None
        while not self.is_open:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError as error:  # noqa: ASYNC103  raised below
                cancelled = error  # trio has to end what it does first
                on_cancel()
        if cancelled is not None:
            raise cancelled
