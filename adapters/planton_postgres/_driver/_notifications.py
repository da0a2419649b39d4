from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import trio
from psycopg import Notify

if TYPE_CHECKING:
    from ._connection import TrioConnection


class Notifications(AsyncGenerator[Notify, None]):
    """The notifications of a connection, as they come; made by `TrioConnection.notifies`.

    A plain object and no generator: leaving its loop early, or cancelling it, leaves nothing behind
    to be finalised, holds no lock, and loses nothing, as what has arrived waits on the connection
    for the next loop.
    """

    def __init__(
        self, connection: TrioConnection[Any], timeout: float | None, stop_after: int | None
    ) -> None:
        self._connection = connection
        self._timeout = math.inf if timeout is None else timeout
        self._deadline: float | None = None
        self._left = math.inf if stop_after is None else stop_after

    async def asend(self, value: None) -> Notify:  # noqa: ARG002 -- the signature of AsyncGenerator
        if self._left <= 0:
            raise StopAsyncIteration
        await trio.lowlevel.checkpoint()
        if self._deadline is None:
            self._deadline = trio.current_time() + self._timeout
        with trio.CancelScope(deadline=self._deadline):
            notify = await self._connection.next_notify()
            self._left -= 1
            return notify
        self._left = 0
        raise StopAsyncIteration

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,  # noqa: ARG002 -- the signature of AsyncGenerator
        tb: TracebackType | None = None,  # noqa: ARG002
    ) -> Notify:
        """End the loop with this exception: nothing here would handle it."""
        self._left = 0
        raise typ
