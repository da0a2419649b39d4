"""What producers and operators do; the transaction is the caller's."""

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from planton import InvalidArgumentError
from planton.storage import (
    Caller,
    Filter,
    InstructionRecord,
    NewInstruction,
    TaskStats,
    are_new,
    load_statements,
    to_rows,
)

OPERATE = load_statements(__package__, "operate.sql")
_EVENTS = ("INSERT", "UPDATE")
_FIRST, _LAST = -62135596800.0, 253402300799.0  # the seconds that a datetime holds


def enqueue(
    connection: sqlite3.Connection, new: Sequence[NewInstruction], now: float
) -> list[bool]:
    """Queue instructions; whether each was not queued already."""
    parameters = {"new": to_rows(new, datetime.timestamp), "now": now}
    return are_new(new, _execute(connection, "enqueue", **parameters).fetchall())


async def enqueue_within(caller: Caller, new: Sequence[NewInstruction], now: float) -> list[bool]:
    parameters = {"new": to_rows(new, datetime.timestamp), "now": now}
    return are_new(new, await caller.fetch(OPERATE["enqueue"], **parameters))


def change_task(connection: sqlite3.Connection, statement: str, **parameters: Any) -> None:
    _execute(connection, statement, **parameters)


def retry(
    connection: sqlite3.Connection, task_name: str, instructions: Sequence[str] | None, now: float
) -> int:
    if instructions is None:
        ends = _by_name(connection, "failed_ends", task_name)
        living = _living(connection, task_name, ends)
        ends = {name: end for name, end in ends.items() if name not in living}
    else:
        ends = _by_name(connection, "last_ends", task_name, instructions)
        _check_ended(instructions, ends, _living(connection, task_name, instructions))
    parameters = {"task_name": task_name, "ids": json.dumps(list(ends.values())), "now": now}
    for statement in ("requeue_ended", "forget_failures", "forget_ends"):
        _execute(connection, statement, **parameters)
    return len(ends)


def _by_name(
    connection: sqlite3.Connection, statement: str, task_name: str, names: Iterable[str] = ()
) -> dict[str, int]:
    parameters = {"task_name": task_name, "instructions": json.dumps(list(names))}
    return dict(_execute(connection, statement, **parameters).fetchall())


def _living(connection: sqlite3.Connection, task_name: str, names: Iterable[str]) -> set[str]:
    parameters = {"task_name": task_name, "instructions": json.dumps(list(names))}
    return {name for (name,) in _execute(connection, "living", **parameters)}


def _check_ended(names: Sequence[str], ended: Collection[str], living: Collection[str]) -> None:
    for name in names:
        if name in living:
            remedy = "it is queued or active: wait until it has ended"
            raise InvalidArgumentError("instructions", name, remedy)
        if name not in ended:
            remedy = "the history has no such instruction of this task"
            raise InvalidArgumentError("instructions", name, remedy)


def drop(connection: sqlite3.Connection, task_name: str, instructions: Sequence[str] | None) -> int:
    named = None if instructions is None else json.dumps(list(instructions))
    return _execute(connection, "drop", task_name=task_name, instructions=named).rowcount


def find(connection: sqlite3.Connection, wanted: Filter, now: float) -> list[InstructionRecord]:
    parameters = {
        "status": wanted.status,
        "task_name": wanted.task_name,
        "instruction": wanted.instruction,
        "older_than": wanted.older_than,
        "limit": wanted.limit,
    }
    rows = _execute(connection, "find", **parameters, now=now)
    names = [column[0] for column in rows.description]
    return [_record(dict(zip(names, row, strict=True))) for row in rows]


def _record(values: dict[str, Any]) -> InstructionRecord:
    for name in ("created_at", "run_at", "claimed_at", "lease_expires_at", "ended_at"):
        values[name] = to_datetime(values[name])
    for name in ("payload", "result"):
        values[name] = _from_json(values[name])
    values["tags"] = tuple(map(str, _from_json(values["tags"]) or ()))
    return InstructionRecord(**values)


def stats(connection: sqlite3.Connection, now: float) -> list[TaskStats]:
    return [
        TaskStats(
            task_name=name,
            **dict(zip(("queued", "running", "succeeded", "failed", "dead"), counts, strict=True)),
            oldest_due_at=to_datetime(oldest_due_at),
            paused=bool(is_paused),
            concurrency=concurrency,
        )
        for name, *counts, oldest_due_at, is_paused, concurrency in _execute(
            connection, "stats", now=now
        )
    ]


def prune(
    connection: sqlite3.Connection,
    older_than: float,
    statuses: Collection[str],
    limit: int,
    now: float,
) -> int:
    parameters = {"older_than": older_than, "statuses": json.dumps(list(statuses)), "limit": limit}
    return _execute(connection, "prune", **parameters, now=now).rowcount


def wake_on_change(
    connection: sqlite3.Connection, table: str, task_name: str, *, is_wanted: bool
) -> bool:
    """Make the triggers that count changes of a table, or drop them; whether that was to do.

    Raises:
        InvalidArgumentError: If there is no such table.
    """
    row = _execute(connection, "table", table=table).fetchone()
    if row is None:
        remedy = "there is no such table in the database; make it first"
        raise InvalidArgumentError("table", table, remedy)
    if is_wanted:
        _execute(connection, "count_changes", task_name=task_name)
    names = {"table": row[0], "task_name": task_name}
    return any(
        # All of them, whatever the first did.
        [_trigger(connection, names, event, is_wanted=is_wanted) for event in _EVENTS]  # noqa: C419
    )


def _trigger(
    connection: sqlite3.Connection, names: Mapping[str, str], event: str, *, is_wanted: bool
) -> bool:
    (trigger,) = _execute(connection, "trigger_name", **names, event=event).fetchone()
    (exists,) = _execute(connection, "trigger_exists", trigger=trigger).fetchone()
    if bool(exists) is is_wanted:
        return False
    statement = "create_trigger" if is_wanted else "drop_trigger"
    (sql,) = _execute(connection, statement, **names, event=event, trigger=trigger).fetchone()
    connection.execute(sql)
    return True


def to_datetime(seconds: float | None) -> datetime | None:
    """Return a time; the first or the last one for what is beyond, as rows of plain SQL may be."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(min(max(float(seconds), _FIRST), _LAST), UTC)


def _from_json(text: str | None) -> Any:
    """Return a value, or the text itself where Python's reader gives up: others can be read."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _execute(connection: sqlite3.Connection, statement: str, **parameters: Any) -> sqlite3.Cursor:
    # A cursor of our own: the caller's connection may make rows of another kind.
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(OPERATE[statement], parameters)
