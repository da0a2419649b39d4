"""The tables: numbered migrations, applied in order, once."""

import sqlite3
from importlib.resources import files

from planton import StorageError

_CREATE_VERSION = "CREATE TABLE IF NOT EXISTS planton_schema (version INTEGER NOT NULL)"


def migrations() -> list[str]:
    """Give the migrations, the first first."""
    folder = files(__package__).joinpath("migrations")
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in found]


def migrate(connection: sqlite3.Connection, database: str) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied.

    Raises:
        StorageError: If the tables are newer than this code.
    """
    connection.execute(_CREATE_VERSION)
    (version,) = connection.execute(
        "SELECT coalesce(max(version), 0) FROM planton_schema"
    ).fetchone()
    known = migrations()
    if version > len(known):
        problem = (
            f"its tables are of version {version}, this planton knows versions up to "
            f"{len(known)}: install a newer planton"
        )
        raise StorageError(database, problem)
    for number, script in enumerate(known[version:], int(version) + 1):
        for statement in _statements(script):
            connection.execute(statement)
        connection.execute("INSERT INTO planton_schema VALUES (?)", (number,))
    return len(known) - int(version)


def _statements(script: str) -> list[str]:
    """Cut a script into its statements; `executescript` would commit in between."""
    statements, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements
