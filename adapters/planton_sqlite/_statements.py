"""The statements of producers, operators and the fleet; the transaction is the caller's."""

import json
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from planton import InvalidArgumentError
from planton.storage import load_statements

_WRITES = re.compile("^(INSERT|UPDATE|DELETE)", re.MULTILINE)


def split(script: str) -> list[str]:
    """Cut a script into its statements; `executescript` would commit in between."""
    statements, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements


SCRIPTS = {
    name: split(script)
    for file in ("operate.sql", "fleet.sql")
    for name, script in load_statements(__package__, file).items()
}


def writes(name: str) -> bool:
    return any(_WRITES.search(statement) for statement in SCRIPTS[name])


def run(
    connection: sqlite3.Connection, name: str, now: float, parameters: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    """Run the statements of a name; the rows of the last one."""
    lists = {key: json.dumps(each) for key, each in parameters.items() if isinstance(each, list)}
    # A cursor of our own: the caller's connection may make rows of another kind.
    cursor = connection.cursor()
    cursor.row_factory = None
    for statement in SCRIPTS[name]:
        cursor.execute(statement, {**parameters, **lists, "now": now})
    return cursor.fetchall()


def wake_on_change(
    connection: sqlite3.Connection, table: str, task_name: str, *, is_wanted: bool
) -> bool:
    """Make the triggers that count changes of a table, or drop them; whether that was to do.

    Raises:
        InvalidArgumentError: If there is no such table.
    """
    triggers = run(connection, "triggers", 0.0, {"table": table, "task_name": task_name})
    if not triggers:
        remedy = "there is no such table in the database; make it first"
        raise InvalidArgumentError("table", table, remedy)
    if is_wanted:
        run(connection, "count_changes", 0.0, {"task_name": task_name})
    others = [each for each in triggers if bool(each[0]) is not is_wanted]
    for _, create, drop in others:
        connection.execute(create if is_wanted else drop)
    return bool(others)
