"""The tables and functions: numbered migrations, applied in order, once.

Functions and rolling deploys: a migration makes all functions anew, so its changes reach the
versions of the program that still run. Therefore a function keeps its name and its arguments for as
long as one of them may call it: for one minor version. What is new goes into the request of
`planton_claim`, which is JSON, or into a function of a new name; a new column is moved by the new
bodies, also when an older version calls. A change of a body alone comes with a migration that has
nothing else to do.
"""

import math

from planton import StorageError
from planton.storage import check_version, load_migrations, refuse_newer
from planton_postgres._database import Connection, fetch
from planton_postgres._statements import Statements, function_sources, qualified

_MIGRATIONS = load_migrations(__package__)
_SQL = Statements()


def script() -> str:
    """Return all that `migrate` does on an empty database, as one script."""
    applied = f"INSERT INTO planton_schema VALUES ({len(_MIGRATIONS)});\n"
    parts = [*_MIGRATIONS, *function_sources(), f"{_SQL['create']};", applied]
    return "\n".join(qualified(part, "public") for part in parts)


async def migrate(
    connection: Connection, database: str, *, unlogged: bool, lock_timeout: float
) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied.

    Tables that are up to date are read, and nothing else: no right to create anything is needed.

    Raises:
        StorageError: If the tables are newer than this code, or a setting would change what they
            hold.
    """
    known = len(_MIGRATIONS)
    milliseconds = math.ceil(lock_timeout * 1000)
    await connection.execute(_SQL["patience"], {"milliseconds": milliseconds})
    await _check_settings(connection, database)
    if await version_of(connection) == known:
        return 0
    ((schema, current),) = await fetch(connection, _SQL["schema"])
    if (schema or current) is None:
        problem = "its search_path names no schema that is there: create one, or set another path"
        raise StorageError(database, problem)
    sql = Statements(schema or current)
    await connection.execute(sql["create"])
    await connection.execute(sql["lock"])
    ((version,),) = await fetch(connection, sql["version"])
    refuse_newer(database, version, known)
    for number, migration in enumerate(_MIGRATIONS[version:], int(version) + 1):
        await connection.execute(qualified(migration, schema or current))
        await connection.execute(sql["applied"], {"version": number})
    for source in function_sources():
        await connection.execute(qualified(source, schema or current))
    if unlogged:
        await connection.execute(sql["unlog"])
    return known - int(version)


async def _check_settings(connection: Connection, database: str) -> None:
    for name, found, needed in await fetch(connection, _SQL["settings"]):
        remedy = "make a database with ENCODING 'UTF8' TEMPLATE template0"
        if name != "server_encoding":
            remedy = f"ALTER DATABASE or ALTER ROLE … SET {name} = {needed}"
        raise StorageError(database, f"its setting {name} is {found}, not {needed}: {remedy}")


async def holders(connection: Connection) -> str:
    """Return who has locks on the tables, for people."""
    rows = await fetch(connection, _SQL["holders"])
    return "; ".join(
        f"process {pid} of role {role} ({program or 'no application_name'}, {state}), in a "
        f"transaction for {seconds or 0:.0f} s"
        for pid, role, program, state, seconds in rows
    )


async def version_of(connection: Connection) -> int | None:
    """Return the version of the tables; None if there are none."""
    ((schema, _),) = await fetch(connection, _SQL["schema"])
    if schema is None:
        return None
    ((version,),) = await fetch(connection, Statements(schema)["version"])
    return int(version)


async def check(connection: Connection, database: str) -> str:
    """Check that the tables are those that this code needs; return their schema.

    Raises:
        StorageError: If they are missing, older or newer; it says what to do.
    """
    check_version(database, await version_of(connection), len(_MIGRATIONS))
    ((schema, _),) = await fetch(connection, _SQL["schema"])
    return str(schema)
