"""PostgreSQL as a backend of storages."""

from collections.abc import Callable, Collection, Hashable, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

import attrs
import psycopg
import trio

from planton import StorageError
from planton.storage import (
    Caller,
    Claimed,
    ClaimRequest,
    Filter,
    InstructionRecord,
    NewInstruction,
    Report,
    Status,
    TaskStats,
    Watcher,
    are_new,
    to_rows,
)
from planton_postgres import _operate, _schema, _wake
from planton_postgres._database import Connection, Database, with_utf8
from planton_postgres._errors import translated
from planton_postgres._exchange import Exchanges
from planton_postgres._fleet import Fleet
from planton_postgres._query import Query
from planton_postgres._reports import Found

T = TypeVar("T")
# Seconds that `migrate` waits for a lock on the tables.
LOCK_TIMEOUT = 5.0


class PostgresBackend(Fleet):
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
        super().__init__(database)
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

    # Producers and operators

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        found: dict[str, list[str]] = {name: [] for name in task_names}
        for name, instruction in await self._database.rows("active", {"task_names": list(found)}):
            found[name].append(instruction)
        return [found[name] for name in task_names]

    dialect = "postgresql"

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        parameters = {"new": to_rows(new, datetime.isoformat)}
        return are_new(new, await self._database.rows("enqueue", parameters))

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        sql = self._database.sql["enqueue"].replace("%(new)s", ":new")
        with translated(self.database):
            return are_new(new, await caller.fetch(sql, new=to_rows(new, datetime.isoformat)))

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        await self._database.rows("pause" if is_paused else "resume", {"task_name": task_name})

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        parameters = {"task_name": task_name, "concurrency": concurrency}
        await self._database.rows("set_concurrency", parameters)

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        names = None if instructions is None else list(instructions)
        return await self._database.transaction(
            lambda connection: _operate.retry(connection, self._database.sql, task_name, names)
        )

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        named = None if instructions is None else list(instructions)
        parameters = {"task_name": task_name, "instructions": named}

        async def delete(connection: Connection) -> int:
            cursor = await connection.execute(self._database.sql["drop"], parameters)
            return cursor.rowcount

        return await self._database.use(delete)

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        rows = await self._database.rows("find", attrs.asdict(wanted))
        return [_operate.to_record(row) for row in rows]

    async def stats(self) -> list[TaskStats]:
        return [_operate.to_stats(row) for row in await self._database.rows("stats")]

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        await self._database.rows("forget_expressions")
        parameters = {"older_than": older_than, "statuses": list(statuses), "limit": limit}

        async def delete(connection: Connection) -> int:
            cursor = await connection.execute(self._database.sql["prune"], parameters)
            return cursor.rowcount

        return await self._database.use(delete)

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        statement = "wake_on_change" if is_wanted else "ignore_changes"
        parameters = {"table": table, "task_name": task_name}
        return await self._database.use(
            lambda connection: _operate.wake_on_change(
                connection, self._database.sql, statement, parameters
            )
        )

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        await _wake.listen(self._database, self._listen_dsn, watcher, task_status)
