"""PostgreSQL as a backend of storages."""

from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import trio

from planton import InvalidArgumentError, StorageError
from planton.storage import (
    Backend,
    Caller,
    Claimed,
    ClaimRequest,
    NewInstruction,
    Report,
    Watcher,
    are_new,
    to_rows,
)
from planton_postgres import _schema, _wake
from planton_postgres._database import Database, Rows, with_utf8
from planton_postgres._errors import translated
from planton_postgres._exchange import Exchanges
from planton_postgres._query import Query
from planton_postgres._reports import Found

_TABLE = "give the name of a table, as in SQL: user_account, app.user_account"
_NO_NAME = (psycopg.errors.InvalidName, psycopg.errors.SyntaxError)
# Seconds that `migrate` waits for a lock on the tables.
LOCK_TIMEOUT = 5.0


class PostgresBackend(Backend):
    """A `planton.storage.Backend`; see there for what its methods promise.

    Args:
        database: Where.
        keeps: Whether there is a history.
        unlogged: Whether `migrate` makes tables that are not logged.
        listen_dsn: Where changes are listened for.
    """

    def __init__(
        self, database: Database, *, keeps: bool, unlogged: bool, listen_dsn: str | None
    ) -> None:
        self._database = database
        self.database = database.name
        self.identity: Hashable = ("postgresql", database.conninfo)
        self._unlogged = unlogged
        self._listen_dsn = with_utf8(listen_dsn) if listen_dsn else database.conninfo
        self._exchanges = Exchanges(database, keeps=keeps)

    async def open(self) -> None:
        self._exchanges.forget()
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    def hurry(self, while_: Callable[[], bool]) -> None:
        self._database.hurry(while_)

    async def migrate(self, lock_timeout: float = LOCK_TIMEOUT) -> int:
        change = partial(
            _schema.migrate,
            database=self.database,
            unlogged=self._unlogged,
            lock_timeout=lock_timeout,
        )
        try:
            return await self._database.change_tables(change, patience=lock_timeout)
        except StorageError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            refused = error
        holders = await self._database.change_tables(_schema.holders)
        problem = f"a lock on its tables was not to be had within {lock_timeout:g} s"
        who = holders or "whoever held it has let go of it: try again"
        raise StorageError(self.database, f"{problem}: {who}") from refused

    def schema(self) -> str:
        return _schema.script()

    def check_statement(self, task_name: str, sql: str) -> None:
        Query(task_name, sql).check()

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        return await self._exchanges.exchange(reports, requests)

    dialect = "postgresql"

    async def rows(self, statement: str, **parameters: Any) -> Rows:
        return await self._database.rows(statement, parameters)

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        return are_new(new, await self.rows("enqueue", new=to_rows(new, datetime.isoformat)))

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        sql = self._database.sql["enqueue"].replace("%(new)s", ":new")
        with translated(self.database):
            return are_new(new, await caller.fetch(sql, new=to_rows(new, datetime.isoformat)))

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        """Make triggers, or drop them; whether that was to do."""
        try:
            rows = await self.rows("table", table=table)
        except StorageError as error:
            if not isinstance(error.__cause__, _NO_NAME):
                raise
            raise InvalidArgumentError("table", table, _TABLE) from error
        if rows != [(True,)]:
            problem = "is no table" if rows else "is not there, or not in the search_path"
            raise InvalidArgumentError("table", table, f"it {problem}: {_TABLE}")
        ((is_changed,),) = await self.rows(
            "wake_on_change", table=table, task_name=task_name, is_wanted=is_wanted
        )
        return bool(is_changed)

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        await _wake.listen(self._database, self._listen_dsn, watcher, task_status)
