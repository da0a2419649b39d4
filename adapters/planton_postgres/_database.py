"""Transactions on a small pool: shielded once begun, with a time limit, errors translated."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, LiteralString, Self, TypeAlias, TypeVar

import psycopg
import trio
from psycopg.rows import tuple_row

from planton import StorageError
from planton_postgres._driver import Pool, StatementTimeout, TrioConnection
from planton_postgres._errors import name_of, translated

T = TypeVar("T")
Connection: TypeAlias = TrioConnection[tuple[Any, ...]]

# Two batches of reports that name the same claims in another order: one of them is undone by the
# server, and does it again.
_TRIES = 3
_UNDONE = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class Database:
    """A database by its conninfo.

    Args:
        conninfo: A connection string or URI as libpq takes it.
        pool_size: The most connections.
        connect_timeout: Seconds to wait for a connection, whatever it takes to get one.
        statement_timeout: Seconds that a transaction may take, once it has a connection.
        prepare_threshold: See `Pool`.
        check: Raises if the tables are not those that this code needs; asked until it does not.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        check: Callable[[Connection, str], Awaitable[None]],
        pool_size: int,
        connect_timeout: float,
        statement_timeout: float,
        prepare_threshold: int | None,
    ) -> None:
        self.conninfo = conninfo
        self.name = name_of(conninfo)
        self._connect_timeout = connect_timeout
        self._statement_timeout = statement_timeout
        self._pool = Pool(
            conninfo,
            size=pool_size,
            timeout=connect_timeout,
            connect_timeout=connect_timeout,
            prepare_threshold=prepare_threshold,
        )
        # Claims run the user's SQL, which may wait for locks of the user's: one connection is
        # left for reports and heartbeats.
        self._claims = trio.Semaphore(max(1, pool_size - 1))
        self._check = check
        self._is_checked = self._is_open = False

    async def __aenter__(self) -> Self:
        """Connect once, so that a wrong password is found at once and not waited for.

        Raises:
            StorageError: If that fails.
        """
        with translated(self.name):
            first = await TrioConnection.connect(
                self.conninfo, connect_timeout=self._connect_timeout
            )
        await first.close()
        await self._pool.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._is_open = False
        await self._pool.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  no checkpoint

    @property
    def pids(self) -> set[int]:
        """The server's processes behind our connections; behind a pooler they are others."""
        return self._pool.pids

    @property
    def connect_timeout(self) -> float:
        """Seconds to wait for a connection."""
        return self._connect_timeout

    async def claim(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Like `use`, for what may wait for the user's own locks."""
        async with self._turn():
            return await self.use(function)

    async def claim_in_parts(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Like `claim`, of what puts its parts within `limited` itself, and rolls back itself."""
        self._check_open()
        async with self._turn():
            with translated(self.name):
                async with self._pool.connection() as connection:
                    with self.limited(shield=True):
                        await self._check_tables(connection)
                    return await function(connection)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the connections that claims may have, no longer than for any."""
        with trio.move_on_after(self._connect_timeout) as scope:
            await self._claims.acquire()
        if scope.cancelled_caught:
            problem = "all connections that claims may have are in use"
            remedy = "use a larger pool_size, or look for the statements that take so long"
            raise StorageError(self.name, f"{problem}: {remedy}")
        try:
            yield
        finally:
            self._claims.release()

    async def use(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Await `function(connection)` and give its result; it commits what it does.

        A cancellation takes effect only as long as there is no connection: from then on the
        result is returned, and the cancellation strikes at the caller's next checkpoint, so that
        nothing is committed unheard. What it has begun and not committed is rolled back.

        Raises:
            StorageError: If there is no connection to be had, it takes too long, or fails.
        """
        self._check_open()
        with translated(self.name):
            for _ in range(_TRIES - 1):
                try:
                    return await self._once(function)
                except _UNDONE:
                    pass
            return await self._once(function)

    async def _once(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._pool.connection() as connection:
            with self.limited(shield=True):
                await self._check_tables(connection)
                return await function(connection)

    async def _check_tables(self, connection: Connection) -> None:
        if not self._is_checked:
            await self._check(connection, self.name)
            self._is_checked = True

    @contextmanager
    def limited(self, *, shield: bool) -> Iterator[None]:
        """Give the block as long as a transaction may take, whoever cancels it if it is shielded.

        Raises:
            StatementTimeout: If it takes longer; what it has begun was rolled back.
        """
        with trio.move_on_after(self._statement_timeout, shield=shield) as scope:
            yield
        if scope.cancelled_caught:
            raise StatementTimeout(
                f"a transaction took longer than statement_timeout, {self._statement_timeout:g} s"
            )

    async def change_tables(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Like `transaction`, whatever tables there are."""
        self._check_open()
        with translated(self.name):
            async with self._pool.connection() as connection:
                with self.limited(shield=True):
                    async with connection.transaction():
                        return await function(connection)

    async def transaction(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Await `function(connection)` in a transaction of several statements."""

        async def within(connection: Connection) -> T:
            async with connection.transaction():
                return await function(connection)

        return await self.use(within)

    async def rows(
        self, statement: LiteralString, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement, which commits by itself; the rows that it gives."""
        return await self.use(lambda connection: fetch(connection, statement, parameters))

    async def count(self, statement: LiteralString, parameters: Mapping[str, Any]) -> int:
        """Run one statement, which commits by itself; how many rows it changed."""

        async def change(connection: Connection) -> int:
            return (await connection.execute(statement, parameters)).rowcount

        return await self.use(change)

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageError(self.name, "the storage is closed: use it within its block")


async def fetch(
    connection: Connection, statement: LiteralString, parameters: Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Run a statement; all of its rows."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []
