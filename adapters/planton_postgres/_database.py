"""Transactions on a small pool: shielded once begun, with a time limit, errors translated."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeAlias, TypeVar

import psycopg
import trio
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from planton import StorageError
from planton_postgres._driver import Pool, Statement, StatementTimeout, TrioConnection
from planton_postgres._errors import name_of, translated
from planton_postgres._statements import Statements

T = TypeVar("T")
Connection: TypeAlias = TrioConnection[tuple[Any, ...]]
Rows: TypeAlias = list[tuple[Any, ...]]
Parameters: TypeAlias = Mapping[str, Any]

# A transaction has so many seconds once a run is over, and the same to be cancelled.
HURRY = 0.5
# Two transactions that wait for each other: one of them is undone by the server, and done again.
# Likewise two that make the same row or table.
_TRIES = 3
_UNDONE = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateTable,
)


class Database:
    """A database by its conninfo.

    Args:
        conninfo: A connection string or URI as libpq takes it.
        pool_size: The most connections.
        connect_timeout: Seconds to wait for a connection, whatever it takes to get one.
        statement_timeout: Seconds that a transaction may take, once it has a connection.
        prepare_threshold: See `Pool`.
        check: Raises if the tables are not those that this code needs, returns their schema.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        check: Callable[[Connection, str], Awaitable[str]],
        pool_size: int,
        connect_timeout: float,
        statement_timeout: float,
        prepare_threshold: int | None,
    ) -> None:
        self.name = name_of(conninfo)
        self.conninfo = with_utf8(conninfo)
        self.connect_timeout = connect_timeout
        self.sql = Statements()
        self._statement_timeout = statement_timeout
        self._hurries: Callable[[], bool] = lambda: False
        self._scopes: dict[trio.CancelScope, Connection | None] = {}
        self._pool = Pool(
            self.conninfo,
            size=pool_size,
            timeout=connect_timeout,
            prepare_threshold=prepare_threshold,
        )
        # The user's own statements may wait for locks of the user's: one connection is left for
        # reports and heartbeats.
        self._statements = trio.Semaphore(max(1, pool_size - 1))
        self._check = check
        self._is_checked = False
        self._begins = False

    async def open(self) -> None:
        """Connect once, so that a wrong password is found at once and not waited for.

        Raises:
            StorageError: If that fails.
        """
        with translated(self.name):
            first = await TrioConnection.connect(
                self.conninfo, connect_timeout=self.connect_timeout
            )
        await first.close()
        await self._pool.__aenter__()
        self._is_checked = False

    async def close(self) -> None:
        """Close the connections. No checkpoint."""
        await self._pool.__aexit__(None, None, None)

    def hurry(self, while_: Callable[[], bool]) -> None:
        """Give up what takes longer than `HURRY`, from now on and for as long as `while_()`."""
        self._hurries = while_
        for scope, connection in self._scopes.items() if while_() else ():
            scope.deadline = min(scope.deadline, trio.current_time() + HURRY)
            self._set_limits(connection)

    def _set_limits(self, connection: Connection | None) -> None:
        """Set how long the server may take to end what was cancelled."""
        if connection is not None:
            usual = type(connection).cancel_limit
            connection.cancel_limit = HURRY if self._hurries() else usual

    @property
    def pids(self) -> set[int]:
        """The server's processes behind our connections; behind a pooler they are others."""
        return self._pool.pids

    async def use(
        self,
        function: Callable[[Connection], Awaitable[T]],
        *,
        shield: bool = True,
        tries: int = _TRIES,
        patience: float = 0.0,
        checks: bool = True,
    ) -> T:
        """Await `function(connection)` and return its result; it commits what it does.

        A cancellation takes effect only as long as there is no connection: from then on the
        result is returned, and the cancellation strikes at the caller's next checkpoint, so that
        nothing is committed unheard. Without the shield it takes effect while a statement runs,
        which is undone then; see `TrioConnection`. A transaction that the server has undone because
        of another one is tried again, `tries` times in all. It may wait for a lock for `patience`
        seconds, besides what a transaction may take. `checks` says whether it needs our tables.

        Raises:
            StorageError: If there is no connection to be had, it takes too long, or fails.
        """
        with translated(self.name):
            while True:
                tries -= 1
                try:
                    limit = self._statement_timeout + patience
                    return await self._run(function, limit, shield=shield, checks=checks)
                except _UNDONE:
                    if not tries:
                        raise

    async def use_for_statement(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        """Like `use`, without the shield, for the user's own statement."""
        async with self._turn():
            return await self.use(function, shield=False)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one of the connections that statements may have, no longer than for any."""
        with trio.move_on_after(self.connect_timeout) as scope:
            await self._statements.acquire()
        if scope.cancelled_caught:
            problem = "all connections that statements of claim tasks may have are in use"
            remedy = "use a larger pool_size, or look for the statements that take so long"
            raise StorageError(self.name, f"{problem}: {remedy}")
        try:
            yield
        finally:
            self._statements.release()

    async def _run(
        self,
        function: Callable[[Connection], Awaitable[T]],
        seconds: float,
        *,
        shield: bool,
        checks: bool,
    ) -> T:
        """Await `function(connection)` for as long as a transaction may take.

        Raises:
            StatementTimeout: If it takes longer; what it has begun was rolled back.
        """
        with trio.CancelScope() as scope:
            self._scopes[scope] = None
            try:
                if self._hurries():
                    scope.deadline = trio.current_time() + HURRY
                async with self._pool.connection() as connection:
                    self._limit(scope, connection, seconds)
                    scope.shield = shield
                    if checks and not self._is_checked:
                        self.sql = Statements(await self._check(connection, self.name))
                        self._is_checked = True
                    return await _used(connection, function)
            finally:
                del self._scopes[scope]
        if self._hurries():
            problem = "was given up: the run is over, and nobody waits for it any more"
        else:
            problem = f"took longer than statement_timeout, {seconds:g} s"
        raise StatementTimeout(f"a transaction {problem}")

    def _limit(self, scope: trio.CancelScope, connection: Connection, seconds: float) -> None:
        """Set how long a transaction may take, and how long the server to end it then."""
        self._scopes[scope] = connection
        limit = min(HURRY, seconds) if self._hurries() else seconds
        scope.deadline = trio.current_time() + limit
        self._set_limits(connection)

    async def change_tables(
        self, function: Callable[[Connection], Awaitable[T]], *, patience: float = 0.0
    ) -> T:
        """Like `use`, in a transaction, whatever tables there are."""

        async def within(connection: Connection) -> T:
            await connection.execute(self.sql["begin"])
            result = await function(connection)
            await connection.execute(self.sql["commit"])
            return result

        return await self.use(within, patience=patience, checks=False)

    async def rows(self, statement: str, parameters: Parameters | None = None) -> Rows:
        """Run a statement by its name, which commits by itself; its rows."""
        return await self.use(lambda connection: fetch(connection, self.sql[statement], parameters))

    async def together(
        self, connection: Connection, statements: Sequence[tuple[str, Parameters]]
    ) -> list[Rows]:
        """Run statements by their names in one round trip and one commit; the rows of each.

        They need READ COMMITTED. Where the default is another isolation, which planton_claim
        refuses, they are sent with a BEGIN of their own from then on.

        Raises:
            psycopg.Error: The first error; all is undone.
        """
        if not self._begins:
            try:
                return await connection.run_pipeline(
                    Statement(self.sql[name], parameters) for name, parameters in statements
                )
            except psycopg.errors.ActiveSqlTransaction:
                self._begins = True
        found = await connection.run_pipeline(
            [
                Statement(self.sql["begin"], prepare=False),
                *(Statement(self.sql[name], parameters) for name, parameters in statements),
                Statement(self.sql["commit"], prepare=False),
            ]
        )
        return found[1:-1]


def with_utf8(conninfo: str) -> str:
    """Return a conninfo for text of any kind, whatever the server or the environment is set to."""
    return make_conninfo(conninfo, client_encoding="UTF8")


async def _used(connection: Connection, function: Callable[[Connection], Awaitable[T]]) -> T:
    try:
        return await function(connection)
    except psycopg.errors.ReadOnlySqlTransaction as error:
        refused = error
    # Of a primary that is one no more, or of a time when all was read-only: it stays so, while
    # a new connection may be one to the primary.
    await connection.close()
    raise refused


async def fetch(
    connection: Connection, statement: LiteralString, parameters: Parameters | None = None
) -> Rows:
    """Run a statement; all of its rows."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []
