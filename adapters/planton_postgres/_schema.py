"""The tables: numbered migrations, applied in order, once."""

from functools import cache
from importlib.resources import files

from planton import StorageError
from planton_postgres._database import Connection, fetch
from planton_postgres._statements import SCHEMA


@cache
def migrations() -> list[str]:
    """Give the migrations, the first first."""
    folder = files(__package__).joinpath("migrations")
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in found]


def script() -> str:
    """Give all that `migrate` does on an empty database, as one script."""
    applied = f"INSERT INTO planton_schema VALUES ({len(migrations())});\n"
    return "\n".join([*migrations(), SCHEMA["create"], applied])


async def migrate(connection: Connection, database: str, *, unlogged: bool) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied.

    Raises:
        StorageError: If the tables are newer than this code.
    """
    await connection.execute(SCHEMA["lock"])
    await connection.execute(SCHEMA["create"])
    ((version,),) = await fetch(connection, SCHEMA["version"])
    known = migrations()
    _refuse_newer(version, database)
    for number, script in enumerate(known[version:], int(version) + 1):
        await connection.execute(script)
        await connection.execute(SCHEMA["applied"], {"version": number})
    if unlogged and await fetch(connection, SCHEMA["is_logged"]) == [(True,)]:
        await connection.execute(SCHEMA["unlog"])
    return len(known) - int(version)


async def check(connection: Connection, database: str) -> None:
    """Find out whether the tables are those that this code needs.

    Raises:
        StorageError: If they are older or newer; it says what to do.
        psycopg.errors.UndefinedTable: If there are none, which is translated.
    """
    ((version,),) = await fetch(connection, SCHEMA["version"])
    _refuse_newer(version, database)
    if version < len(migrations()):
        problem = (
            f"its tables are of version {version}, this planton needs version {len(migrations())}: "
            "call `await storage.migrate()` first, or run `planton migrate URL`"
        )
        raise StorageError(database, problem)


def _refuse_newer(version: int, database: str) -> None:
    if version > len(migrations()):
        problem = (
            f"its tables are of version {version}, this planton knows versions up to "
            f"{len(migrations())}: install a newer planton"
        )
        raise StorageError(database, problem)
