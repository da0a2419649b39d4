"""Connections of the caller's, of whichever library, in whose transaction something is queued.

No library is imported for it: whoever holds an object of one has imported it.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Literal

import attrs
import trio

from planton._errors import InvalidArgumentError

Parameters = Mapping[str, Any]

_PARAMETER = re.compile(r"(?<!:):(\w+)")
_KNOWN = (
    "give a connection of psycopg, psycopg2, asyncpg, sqlite3, sqlite_utils, aiosqlite, "
    "SQLAlchemy (a Connection or Session, async or not) or Django"
)


@attrs.frozen
class Caller:
    """A connection, or a session, of the caller's.

    Attributes:
        connection: The object itself.
        dialect: "sqlite", "postgresql", or what its library calls another database.
    """

    connection: Any
    dialect: str
    _kind: "_Kind"

    async def fetch(self, sql: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement with parameters such as `:name`.

        What blocks, and may be used by any thread, runs in a worker thread if this is awaited on
        trio; all else runs where this is awaited.
        """
        run, runs = self._kind.run, self._kind.runs
        on_trio = trio.lowlevel.in_trio_task()
        if runs == "on asyncio" and on_trio:
            remedy = "it belongs to asyncio: await this there, on the storage or its bridge"
            raise InvalidArgumentError("connection", self.connection, remedy)
        # A connection of SQLite is its thread's.
        if runs == "anywhere" and on_trio and self.dialect != "sqlite":
            rows = await trio.to_thread.run_sync(run, self.connection, sql, parameters)
        else:
            rows = run(self.connection, sql, parameters)
        if inspect.isawaitable(rows):
            rows = await rows
        return [tuple(row) for row in rows]


def caller_of(connection: Any, dialect: str) -> Caller:
    """Return what the caller gave, as something that runs statements.

    Raises:
        InvalidArgumentError: If it is no connection, is closed, or is one to another database.
    """
    kind = next((kind for kind in _KINDS if kind.fits(connection)), None)
    if kind is None:
        raise InvalidArgumentError("connection", connection, _KNOWN)
    closed = getattr(connection, "closed", False)
    if isinstance(closed, int) and closed:
        raise InvalidArgumentError("connection", connection, "it is closed, give one that is open")
    named = kind.dialect if isinstance(kind.dialect, str) else str(kind.dialect(connection))
    caller = Caller(connection, named, kind)
    if caller.dialect != dialect:
        remedy = f"it is one to {caller.dialect}, give one to the {dialect} database of the storage"
        raise InvalidArgumentError("connection", connection, remedy)
    return caller


@attrs.frozen
class _Kind:
    """A class of a library: how its objects run a statement, and where they may."""

    name: str
    dialect: str | Callable[[Any], str]
    run: Callable[..., Any]
    runs: Literal["here", "anywhere", "on asyncio"]

    def fits(self, connection: object) -> bool:
        module, _, name = self.name.rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        return kind is not None and isinstance(connection, kind)


def _percent(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql)


def _run_sqlite3(connection: Any, sql: str, parameters: Parameters) -> Any:
    cursor = connection.cursor()
    cursor.row_factory = None  # the caller's may make anything of a row
    return cursor.execute(sql, parameters).fetchall()


def _run_sqlite_utils(database: Any, sql: str, parameters: Parameters) -> Any:
    return _run_sqlite3(database.conn, sql, parameters)


async def _run_aiosqlite(connection: Any, sql: str, parameters: Parameters) -> Any:
    async with connection.cursor() as cursor:
        cursor.row_factory = None
        await cursor.execute(sql, parameters)
        return await cursor.fetchall()


def _run_cursor(connection: Any, sql: str, parameters: Parameters, **options: Any) -> Any:
    with connection.cursor(**options) as cursor:
        cursor.execute(_percent(sql), parameters)
        return cursor.fetchall()


def _run_psycopg(connection: Any, sql: str, parameters: Parameters) -> Any:
    from psycopg.rows import tuple_row

    return _run_cursor(connection, sql, parameters, row_factory=tuple_row)


async def _run_async_psycopg(connection: Any, sql: str, parameters: Parameters) -> Any:
    from psycopg.rows import tuple_row

    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_percent(sql), parameters)
        return await cursor.fetchall()


async def _run_asyncpg(connection: Any, sql: str, parameters: Parameters) -> Any:
    names = list(parameters)
    numbered = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", sql)
    return [row.values() for row in await connection.fetch(numbered, *parameters.values())]


def _run_sqlalchemy(connection: Any, sql: str, parameters: Parameters) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), dict(parameters))


def _dialect_of_sqlalchemy(connection: Any) -> Any:
    return (connection if hasattr(connection, "dialect") else connection.get_bind()).dialect.name


# Its classes by their names, its dialect, how it runs a statement, and where. A scoped session is
# another one for each thread.
_KINDS = (
    _Kind("sqlite3.Connection", "sqlite", _run_sqlite3, "here"),
    _Kind("sqlite_utils.Database", "sqlite", _run_sqlite_utils, "here"),
    _Kind("aiosqlite.Connection", "sqlite", _run_aiosqlite, "on asyncio"),
    _Kind("psycopg.Connection", "postgresql", _run_psycopg, "anywhere"),
    _Kind("psycopg.AsyncConnection", "postgresql", _run_async_psycopg, "here"),
    _Kind("psycopg2.extensions.connection", "postgresql", _run_cursor, "anywhere"),
    _Kind("asyncpg.Connection", "postgresql", _run_asyncpg, "on asyncio"),
    _Kind("asyncpg.pool.PoolConnectionProxy", "postgresql", _run_asyncpg, "on asyncio"),
    _Kind("sqlalchemy.Connection", _dialect_of_sqlalchemy, _run_sqlalchemy, "anywhere"),
    _Kind("sqlalchemy.orm.Session", _dialect_of_sqlalchemy, _run_sqlalchemy, "anywhere"),
    _Kind("sqlalchemy.orm.scoped_session", _dialect_of_sqlalchemy, _run_sqlalchemy, "here"),
    *(
        _Kind(
            f"sqlalchemy.ext.asyncio.{name}", _dialect_of_sqlalchemy, _run_sqlalchemy, "on asyncio"
        )
        for name in ("AsyncConnection", "AsyncSession", "async_scoped_session")
    ),
    *(
        _Kind(f"django.db.{name}", attrgetter("vendor"), _run_cursor, "here")
        for name in ("backends.base.base.BaseDatabaseWrapper", "ConnectionProxy")
    ),
)
