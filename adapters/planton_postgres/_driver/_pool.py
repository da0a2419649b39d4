from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar
from weakref import WeakSet

import psycopg
import trio
from psycopg.abc import ConnParam
from psycopg.pq import PipelineStatus, TransactionStatus

from ._connection import TrioConnection
from ._errors import PoolTimeout, StatementTimeout
from ._retry import connect_with_retries

T = TypeVar("T")
Connection: TypeAlias = TrioConnection[tuple[Any, ...]]


class Pool:
    """Up to `size` connections to one database, lent to whoever asked first.

        async with Pool("postgresql://…", size=4) as pool:
            async with pool.connection() as connection:
                await connection.execute("…")

    There is no background task: connections are made when they are asked for and there is none
    idle, in the task that asks. One that the server has closed is noticed before it is lent, which
    costs one system call, and replaced. While the server is away the tasks that ask
    try again, with pauses of full jitter, until it is back or their time is over. So the pool
    survives the server's restart; a statement in hand does not, it raises
    `psycopg.OperationalError`.

    Connections are in autocommit mode. The pool keeps no state in the session, so it works with a
    pooler in transaction mode when `prepare_threshold` is None.

    It can be entered again after it was left.

    Args:
        conninfo: A connection string or URI as libpq takes it.
        size: The most connections open at a time.
        timeout: Seconds to wait for a connection, the server being away included.
        connect_timeout: Seconds for each attempt at each address; by default what `conninfo` says,
            else 10.
        prepare_threshold: Statements executed more often than this on a connection are prepared;
            None: never.
        longest_pause: The most seconds between two attempts to connect.
        **parameters: More parameters of the connections, before those in `conninfo`.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        size: int = 4,
        timeout: float = 30.0,
        connect_timeout: float | str | None = None,
        prepare_threshold: int | None = 5,
        longest_pause: float = 5.0,
        **parameters: ConnParam,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size!r}")
        self.size = size
        self.timeout = timeout
        self._conninfo = conninfo
        self._options: dict[str, Any] = parameters | {
            "longest_pause": longest_pause,
            "connect_timeout": connect_timeout,
            "prepare_threshold": prepare_threshold,
        }
        self._slots = trio.Semaphore(size)  # first come, first served
        self._idle: list[Connection] = []  # the last one used is lent first; the others may rest
        self._made: WeakSet[Connection] = WeakSet()
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the idle connections now and the others when they come back. No checkpoint."""
        self._open = False
        while self._idle:
            await self._idle.pop().close()  # noqa: ASYNC102  no checkpoint

    @property
    def pids(self) -> set[int]:
        """The server's processes behind the open connections, as `Notify.pid` names them."""
        return {made.pgconn.backend_pid for made in self._made if not made.closed}

    @asynccontextmanager
    async def connection(self, *, timeout: float | None = None) -> AsyncIterator[Connection]:
        """Lend a connection to the block.

        Leaving the block is no checkpoint, unless it left a transaction open, which is then rolled
        back.

        Args:
            timeout: Seconds to wait for it instead of the pool's own time-out.

        Raises:
            PoolTimeout: there was none to be had in time.
        """
        connection = await self._take(self.timeout if timeout is None else timeout)
        try:
            yield connection
        finally:
            await self._give_back(connection)  # noqa: ASYNC102  a rollback, bounded by settle_limit

    async def run(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Take a connection, await `function(connection)` and return its result.

        Cancellation is that of what `function` does: see `TrioConnection`. When it executes one
        statement and returns what that gave, a statement that was committed is never reported
        cancelled.
        """
        async with self.connection() as connection:
            return await function(connection)

    async def transaction(
        self, function: Callable[[Connection], Awaitable[T]], *, timeout: float = 30.0
    ) -> T:
        """Await `function(connection)` in a transaction, commit it, and return its result.

        From BEGIN to the answer of COMMIT nothing here is cancelled from outside: either nothing
        was begun and `Cancelled` is raised, or the transaction runs and its outcome is reported,
        even when a cancellation is pending, which then strikes at the caller's next checkpoint. Who
        wants the result to outlive that must put it somewhere before awaiting anything.

        Args:
            function: What to do in the transaction; when it raises, the transaction is rolled back.
            timeout: Seconds for all of it, waiting for a connection not included.

        Raises:
            StatementTimeout: the time was over; the statement was cancelled on the server and the
                transaction rolled back. If the time was over during COMMIT, it was given
                `TrioConnection.settle_limit` more seconds.
            PoolTimeout: no connection was to be had in time; nothing was begun.
            psycopg.Rollback: the function raised it; there is no result to return.
        """
        async with self.connection() as connection:
            with trio.move_on_after(timeout, shield=True):
                async with connection.transaction() as block:
                    result = await function(connection)
                if block.status is not block.Status.COMMITTED:
                    raise psycopg.Rollback(block)
                return result
            raise StatementTimeout(_report(connection, timeout))

    async def _take(self, timeout: float) -> Connection:
        await trio.lowlevel.checkpoint_if_cancelled()
        deadline = trio.current_time() + timeout
        self._check_open()
        await self._take_slot(deadline)
        try:
            self._check_open()
            return await self._idle_or_new(deadline)
        except psycopg.OperationalError as error:
            self._slots.release()
            raise PoolTimeout(f"no connection could be made within {timeout:g} seconds") from error
        except BaseException:
            self._slots.release()
            raise

    async def _take_slot(self, deadline: float) -> None:
        try:
            self._slots.acquire_nowait()
            return
        except trio.WouldBlock:
            pass
        with trio.move_on_at(deadline):
            await self._slots.acquire()
            return
        raise PoolTimeout(f"no connection became free in time: all {self.size} are in use")

    async def _idle_or_new(self, deadline: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if await _is_still_open(connection):
                return connection
        connection = await connect_with_retries(
            self._conninfo, timeout=max(0.0, deadline - trio.current_time()), **self._options
        )
        self._made.add(connection)
        return connection

    async def _give_back(self, connection: Connection) -> None:
        try:
            if not _is_at_rest(connection):
                await _roll_back(connection)
            if self._open and _is_at_rest(connection):
                connection.forget_notifies()
                self._idle.append(connection)
            else:
                await connection.close()
        finally:
            self._slots.release()

    def _check_open(self) -> None:
        if not self._open:
            raise psycopg.InterfaceError("the pool is not open: use it in its `async with` block")


async def _is_still_open(connection: Connection) -> bool:
    try:
        connection.absorb()
    except psycopg.OperationalError:
        await connection.close()
    return not connection.closed


def _is_at_rest(connection: Connection) -> bool:
    """Whether the connection is open, and in no transaction, pipeline or statement."""
    pgconn = connection.pgconn
    return (
        pgconn.transaction_status == TransactionStatus.IDLE
        and pgconn.pipeline_status == PipelineStatus.OFF
    )


async def _roll_back(connection: Connection) -> None:
    """Try to; a connection that is not at rest afterwards is not used again."""
    with trio.move_on_after(connection.settle_limit, shield=True):
        try:
            await connection.rollback()
        except psycopg.Error:
            pass


def _report(connection: Connection, timeout: float) -> str:
    if connection.closed:
        end = "the server did not answer in time: whether it was committed is not known"
    else:
        end = "it was rolled back"
    return f"the transaction took longer than {timeout:g} seconds; {end}"
