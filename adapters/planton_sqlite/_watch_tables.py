"""Triggers on the user's tables that tell which task a change may concern."""

import sqlite3
from typing import Any

from planton import InvalidArgumentError
from planton_sqlite._watch_due import WATCH

EVENTS = ("INSERT", "UPDATE")


def wake_on_change(connection: sqlite3.Connection, table: str, task_name: str) -> bool:
    """Make the triggers; whether there were none.

    Raises:
        InvalidArgumentError: If there is no such table.
    """
    table = _table(connection, table)
    connection.execute(WATCH["count_changes"], {"task_name": task_name})
    made = [_create(connection, event, table, task_name) for event in EVENTS]
    return any(made)


def ignore_changes(connection: sqlite3.Connection, table: str, task_name: str) -> bool:
    """Drop the triggers; whether there were any.

    Raises:
        InvalidArgumentError: If there is no such table.
    """
    table = _table(connection, table)
    dropped = [_drop(connection, event, table, task_name) for event in EVENTS]
    return any(dropped)


def _table(connection: sqlite3.Connection, table: object) -> str:
    if not isinstance(table, str):
        raise InvalidArgumentError("table", table, "give the name of a table")
    found = _one(connection, "table", table=table)
    if found is None:
        remedy = "there is no such table in the database; make it first"
        raise InvalidArgumentError("table", table, remedy)
    return str(found)


def _create(connection: sqlite3.Connection, event: str, table: str, task_name: str) -> bool:
    names = {"event": event, "table": table, "task_name": task_name}
    trigger = _one(connection, "trigger_name", **names)
    if _one(connection, "trigger_exists", trigger=trigger):
        return False
    connection.execute(_one(connection, "create_trigger", trigger=trigger, **names))
    return True


def _drop(connection: sqlite3.Connection, event: str, table: str, task_name: str) -> bool:
    names = {"event": event, "table": table, "task_name": task_name}
    trigger = _one(connection, "trigger_name", **names)
    if not _one(connection, "trigger_exists", trigger=trigger):
        return False
    connection.execute(_one(connection, "drop_trigger", trigger=trigger))
    return True


def _one(connection: sqlite3.Connection, statement: str, **parameters: str) -> Any:
    row = connection.execute(WATCH[statement], parameters).fetchone()
    return None if row is None else row[0]
