"""The tables: numbered migrations, applied in order, once."""

import sqlite3

from planton.storage import Caller, check_version, load_migrations, refuse_newer
from planton_sqlite._statements import split

_MIGRATIONS = load_migrations(__package__)
_CREATE_VERSION = "CREATE TABLE IF NOT EXISTS planton_schema (version INTEGER NOT NULL)"
_VERSION = "SELECT coalesce(max(version), 0) FROM planton_schema"
_FIND_VERSION = "SELECT count(*) FROM sqlite_master WHERE name = 'planton_schema'"


def script() -> str:
    """Return all that `migrate` does on an empty database, as one script."""
    applied = f"INSERT INTO planton_schema VALUES ({len(_MIGRATIONS)});\n"
    return "\n".join([*_MIGRATIONS, f"{_CREATE_VERSION};", applied])


def migrate(connection: sqlite3.Connection, database: str) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied."""
    connection.execute(_CREATE_VERSION)
    version = _version(connection)
    refuse_newer(database, version, len(_MIGRATIONS))
    for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
        for statement in split(migration):
            connection.execute(statement)
        connection.execute("INSERT INTO planton_schema VALUES (?)", (number,))
    return len(_MIGRATIONS) - version


def check(connection: sqlite3.Connection, database: str) -> None:
    version = _version(connection) if _count(connection, _FIND_VERSION) else None
    check_version(database, version, len(_MIGRATIONS))


async def check_within(caller: Caller, database: str) -> None:
    ((exists,),) = await caller.fetch(_FIND_VERSION)
    version = (await caller.fetch(_VERSION))[0][0] if exists else None
    check_version(database, version, len(_MIGRATIONS))


def _version(connection: sqlite3.Connection) -> int:
    return _count(connection, _VERSION)


def _count(connection: sqlite3.Connection, sql: str) -> int:
    return int(connection.execute(sql).fetchone()[0])
