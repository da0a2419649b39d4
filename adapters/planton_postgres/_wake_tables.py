"""Wake-ups by the user's own tables."""

import psycopg

from planton import InvalidArgumentError
from planton_postgres._database import Connection, Database, fetch
from planton_postgres._limits import to_task_name, to_text
from planton_postgres._statements import WAKE

_REMEDY = "give the name of a table, as in SQL: user_account, app.user_account"


async def wake_on_change(database: Database, table: str, task_name: str) -> bool:
    """Make a trigger; whether there was none."""
    return await _change(database, "wake_on_change", table, task_name)


async def ignore_changes(database: Database, table: str, task_name: str) -> bool:
    """Drop the trigger; whether there was one."""
    return await _change(database, "ignore_changes", table, task_name)


async def _change(database: Database, statement: str, table: str, task_name: str) -> bool:
    parameters = {"table": to_text("table", table), "task_name": to_task_name(task_name)}

    async def change(connection: Connection) -> bool:
        await _check(connection, parameters)
        ((is_changed,),) = await fetch(connection, WAKE[statement], parameters)
        return bool(is_changed)

    return await database.use(change)


async def _check(connection: Connection, parameters: dict[str, str]) -> None:
    try:
        rows = await fetch(connection, WAKE["table"], parameters)
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError) as error:
        raise InvalidArgumentError("table", parameters["table"], _REMEDY) from error
    if rows != [(True,)]:
        problem = "is no table" if rows else "is not there, or not in the search_path"
        raise InvalidArgumentError("table", parameters["table"], f"it {problem}: {_REMEDY}")
