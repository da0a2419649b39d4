"""The tables: numbered migrations, applied in order, once."""

import sqlite3
from functools import cache
from importlib.resources import files

from planton import StorageError

_CREATE_VERSION = "CREATE TABLE IF NOT EXISTS planton_schema (version INTEGER NOT NULL)"
_FIND_VERSION = "SELECT count(*) FROM sqlite_master WHERE name = 'planton_schema'"


@cache
def migrations() -> list[str]:
    """Give the migrations, the first first."""
    folder = files(__package__).joinpath("migrations")
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in found]


def script() -> str:
    """Give all that `migrate` does on an empty database, as one script."""
    applied = f"INSERT INTO planton_schema VALUES ({len(migrations())});\n"
    return "\n".join([*migrations(), f"{_CREATE_VERSION};", applied])


def migrate(connection: sqlite3.Connection, database: str) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied.

    Raises:
        StorageError: If the tables are newer than this code.
    """
    connection.execute(_CREATE_VERSION)
    version, known = _version(connection), migrations()
    _refuse_newer(version, database)
    for number, script in enumerate(known[version:], version + 1):
        for statement in _statements(script):
            connection.execute(statement)
        connection.execute("INSERT INTO planton_schema VALUES (?)", (number,))
    return len(known) - version


def check(connection: sqlite3.Connection, database: str) -> None:
    """Find out whether the tables are those that this code needs.

    Raises:
        StorageError: If they are missing, older, or newer; it says what to do.
    """
    version = _version(connection) if _count(connection, _FIND_VERSION) else 0
    _refuse_newer(version, database)
    if version < len(migrations()):
        tables = f"its tables are of version {version}" if version else "it has no planton tables"
        problem = f"{tables}, this planton needs version {len(migrations())}"
        remedy = "call `await storage.migrate()` first, or run `planton migrate URL`"
        raise StorageError(database, f"{problem}: {remedy}")


def _version(connection: sqlite3.Connection) -> int:
    return _count(connection, "SELECT coalesce(max(version), 0) FROM planton_schema")


def _count(connection: sqlite3.Connection, sql: str) -> int:
    """Give a number, whatever rows the connection of a caller gives."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return int(cursor.execute(sql).fetchone()[0])


def _refuse_newer(version: int, database: str) -> None:
    if version > len(migrations()):
        problem = (
            f"its tables are of version {version}, this planton knows versions up to "
            f"{len(migrations())}: install a newer planton"
        )
        raise StorageError(database, problem)


def _statements(script: str) -> list[str]:
    """Cut a script into its statements; `executescript` would commit in between."""
    statements, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements
