"""The tables and functions: numbered migrations, applied in order, once.

Functions and rolling deploys: a migration makes all functions anew, so its changes reach the
versions of the program that still run. Therefore a function keeps its name and its arguments for as
long as one of them may call it: for one minor version. What is new goes into the request of
`planton_claim`, which is JSON, or into a function of a new name; a new column is moved by the new
bodies, also when an older version calls. A change of a body alone comes with a migration that has
nothing else to do.
"""

import psycopg
import trio

from planton import StorageError
from planton.storage import check_version, load_migrations, refuse_newer
from planton_postgres._database import Connection, fetch
from planton_postgres._statements import Statements, function_sources, qualified

_MIGRATIONS = load_migrations(__package__)
_SQL = Statements()
# Seconds that a migration waits for another one.
PATIENCE = 5.0


def script(schema: str = "public") -> str:
    """Return all that `migrate` does on an empty database, as one script."""
    applied = f"INSERT INTO planton_schema VALUES ({len(_MIGRATIONS)});\n"
    parts = [*_MIGRATIONS, *function_sources(), f"{_SQL['create']};", applied]
    return "\n".join(qualified(part, schema) for part in parts)


async def migrate(connection: Connection, database: str, *, unlogged: bool) -> int:
    """Bring the tables up to date, inside a transaction; how many migrations were applied.

    Tables that are up to date are read, and no right to create anything is needed; their owner also
    mends sequences that lie behind.

    Raises:
        StorageError: If the tables are newer than this code, or cannot be made here; or if somebody
            is in the way, whom it names.
    """
    known = len(_MIGRATIONS)
    version = await version_of(connection)
    refuse_newer(database, version or 0, known)
    try:
        async with connection.transaction():
            await connection.execute(_SQL["patience"])
            applied = 0 if version == known else await _apply(connection, database)
            await _mend(connection, unlogged=unlogged)
    except psycopg.errors.LockNotAvailable as error:
        raise await _somebody_in_the_way(connection, database) from error
    return applied


async def _apply(connection: Connection, database: str) -> int:
    await _lock(connection, database)
    ((schema, current),) = await fetch(connection, _SQL["schema"])
    await _check_place(connection, database, schema or current)
    sql = Statements(schema or current)
    if schema is None:
        await connection.execute(sql["create"])
    ((version,),) = await fetch(connection, sql["version"])
    refuse_newer(database, int(version), len(_MIGRATIONS))
    pending = _MIGRATIONS[int(version) :]
    for number, migration in enumerate(pending, int(version) + 1):
        await connection.execute(qualified(migration, schema or current))
        await connection.execute(sql["applied"], {"version": number})
    for source in function_sources() if pending else ():
        await connection.execute(qualified(source, schema or current))
    return len(pending)


async def _lock(connection: Connection, database: str) -> None:
    """Take the lock of migrations; whoever has it may be the one of another process."""
    deadline = trio.current_time() + PATIENCE
    while not (await fetch(connection, _SQL["lock"]))[0][0]:
        if trio.current_time() > deadline:
            raise await _somebody_in_the_way(connection, database)
        await trio.sleep(0.05)


async def _somebody_in_the_way(connection: Connection, database: str) -> StorageError:
    ((holders,),) = await fetch(connection, _SQL["holders"], {})
    return StorageError(
        database,
        f"the migration waits for a lock that another session has: {holders}; "
        "wait until it ends, or end it with pg_terminate_backend",
    )


async def _check_place(connection: Connection, database: str, schema: str | None) -> None:
    if schema is None:
        problem = "its search_path names no schema that is there: create one, or set another path"
        raise StorageError(database, problem)
    ((encoding,),) = await fetch(connection, _SQL["encoding"])
    if encoding != "UTF8":
        remedy = "it cannot hold all text: make it with CREATE DATABASE … ENCODING 'UTF8'"
        raise StorageError(database, f"its encoding is {encoding}, {remedy} TEMPLATE template0")


async def _mend(connection: Connection, *, unlogged: bool) -> None:
    """Advance sequences that lie behind; make tables unlogged, if that is wanted now."""
    ((schema, _),) = await fetch(connection, _SQL["schema"])
    sql = Statements(schema)
    if not (await fetch(connection, sql["is_ours"]))[0][0]:
        return
    if (await fetch(connection, sql["is_behind"]))[0][0]:
        await connection.execute(sql["hold"])
        await connection.execute(sql["advance_sequences"])
    if unlogged and (await fetch(connection, sql["is_logged"]))[0][0]:
        await connection.execute(sql["unlog"])


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
