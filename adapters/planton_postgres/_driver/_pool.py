from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias

import psycopg
import trio
from psycopg.pq import TransactionStatus

from ._connection import TrioConnection
from ._wait import is_readable

Connection: TypeAlias = TrioConnection[tuple[Any, ...]]

# Seconds between two attempts to connect: between nothing and the first, doubled each time, up to
# the last; so clients of a server that comes back do not come back together.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 5.0


class PoolTimeout(psycopg.OperationalError):
    """No connection could be had from the pool in time: all are in use, or the server is away.

    When the server is away, `__cause__` is the error of the last attempt to connect.
    """


class Pool:
    """Up to `size` connections to one database, lent to whoever asked first.

        async with Pool("postgresql://…", size=4) as pool:
            async with pool.connection() as connection:
                await connection.execute("…")

    There is no background task: connections are made when they are asked for and there is none
    idle, in the task that asks. One that the server has closed is noticed before it is lent, which
    costs one system call, and replaced. While the server is away the tasks that ask
    try again, with random pauses, until it is back or their time is over. So the pool survives the
    server's restart; a statement in hand does not, it raises `psycopg.OperationalError`. One that
    comes back within a transaction, or in the middle of anything else, is closed.

    The pool keeps no state in the session, so it works with a pooler in transaction mode when
    `prepare_threshold` is None. It can be entered again after it was left.

    Args:
        conninfo: A connection string or URI as libpq takes it.
        size: The most connections open at a time.
        timeout: Seconds to wait for a connection, the server being away included.
        prepare_threshold: Statements executed more often than this on a connection are prepared;
            None: never.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        size: int = 4,
        timeout: float = 30.0,
        prepare_threshold: int | None = 5,
    ) -> None:
        self._conninfo = conninfo
        self._size = size
        self._timeout = timeout
        self._prepare_threshold = prepare_threshold
        self._slots = trio.Semaphore(size)  # first come, first served
        self._idle: list[Connection] = []  # the last one used is lent first; the others may rest
        self._lent: set[Connection] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the idle connections now and the others when they come back. No checkpoint."""
        self._open = False
        while self._idle:
            await self._idle.pop().close()  # noqa: ASYNC102  no checkpoint

    @property
    def pids(self) -> set[int]:
        """The server's processes behind the open connections, as `Notify.pid` names them."""
        made = (*self._idle, *self._lent)
        return {each.pgconn.backend_pid for each in made if not each.closed}

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection to the block.

        Leaving the block is no checkpoint.

        Raises:
            PoolTimeout: there was none to be had in time.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + self._timeout
        await self._take_slot(deadline)
        try:
            connection = await self._idle_or_new(deadline)
            self._lent.add(connection)
            try:
                yield connection
            finally:
                await self._give_back(connection)  # noqa: ASYNC102  no checkpoint
        finally:
            self._slots.release()

    async def _take_slot(self, deadline: float) -> None:
        self._check_open()
        try:
            self._slots.acquire_nowait()
            return
        except trio.WouldBlock:
            pass
        with trio.move_on_at(deadline):
            await self._slots.acquire()
            return
        raise PoolTimeout(f"no connection became free in time: all {self._size} are in use")

    async def _idle_or_new(self, deadline: float) -> Connection:
        self._check_open()
        while self._idle:
            connection = self._idle.pop()
            if not _is_spent(connection):
                return connection
            await connection.close()
        failure: psycopg.OperationalError | None = None
        longest = _FIRST_PAUSE
        while (left := deadline - trio.current_time()) > 0:
            try:
                return await TrioConnection.connect(
                    self._conninfo,
                    connect_timeout=left,
                    prepare_threshold=self._prepare_threshold,
                )
            except psycopg.OperationalError as error:
                failure = error
            with trio.move_on_at(deadline):
                await trio.sleep(random.uniform(0, longest))
            longest = min(_LAST_PAUSE, longest * 2)
        raise PoolTimeout(
            f"no connection could be made within {self._timeout:g} seconds"
        ) from failure

    async def _give_back(self, connection: Connection) -> None:
        self._lent.discard(connection)
        if self._open and connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            await connection.close()

    def _check_open(self) -> None:
        if not self._open:
            raise psycopg.InterfaceError("the pool is not open: use it in its `async with` block")


def _is_spent(connection: Connection) -> bool:
    """Whether it must not be lent again: closed, or with something to read.

    Nothing was asked, so that is the end of the connection, or something that does not belong to a
    pool, as notifications.
    """
    return connection.closed or is_readable(connection.pgconn.socket)
