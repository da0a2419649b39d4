"""What producers and operators do."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from planton import InvalidArgumentError
from planton.storage import InstructionRecord, TaskStats
from planton_postgres._claim import to_datetime
from planton_postgres._database import Connection, fetch
from planton_postgres._statements import Statements

_TABLE = "give the name of a table, as in SQL: user_account, app.user_account"


async def retry(
    connection: Connection, sql: Statements, task_name: str, names: list[str] | None
) -> int:
    """Queue ended instructions again, within a transaction; how many.

    Raises:
        InvalidArgumentError: If one that is named is active, queued, or unknown.
    """
    parameters: dict[str, Any] = {"task_name": task_name, "instructions": names}
    ended = {name for (name,) in await fetch(connection, sql["last_ends"], parameters)}
    wanted = sorted(ended) if names is None else names
    parameters["instructions"] = wanted
    living = {name for (name,) in await fetch(connection, sql["living"], parameters)}
    if names is None:
        parameters["instructions"] = [name for name in wanted if name not in living]
    else:
        _refuse_others(names, ended, living)
    return (await connection.execute(sql["retry"], parameters)).rowcount


def _refuse_others(names: Sequence[str], ended: set[str], living: set[str]) -> None:
    for name in names:
        if name in living:
            remedy = "it is queued or active: wait until it has ended"
            raise InvalidArgumentError("instructions", name, remedy)
        if name not in ended:
            remedy = "the history has no such instruction of this task"
            raise InvalidArgumentError("instructions", name, remedy)


def to_record(row: Sequence[Any]) -> InstructionRecord:
    """Read a row of the statement `find`; one that cannot be read in full hides no other."""
    name, instruction, status, payload, priority, tags, retries, timeout, partition = row[:9]
    delivery, result, error, claimed_by, *times = row[9:]
    created_at, run_at, claimed_at, lease_expires_at, ended_at = map(to_time, times)
    assert created_at is not None, "the column is NOT NULL"
    return InstructionRecord(
        task_name=name,
        instruction=instruction,
        status=status,
        payload=_from_json(payload),
        priority=priority,
        tags=tuple(map(str, _from_json(tags))),
        retries=retries,
        timeout=timeout,
        partition=partition,
        delivery=delivery,
        result=_from_json(result),
        error=error,
        created_at=created_at,
        run_at=run_at,
        claimed_at=claimed_at,
        claimed_by=claimed_by,
        lease_expires_at=lease_expires_at,
        ended_at=ended_at,
    )


def to_stats(row: Sequence[Any]) -> TaskStats:
    """Read a row of the statement `stats`."""
    name, *counts, oldest_due_at, is_paused, concurrency = row
    return TaskStats(
        task_name=name,
        **dict(zip(("queued", "running", "succeeded", "failed", "dead"), counts, strict=True)),
        oldest_due_at=to_time(oldest_due_at),
        paused=is_paused,
        concurrency=concurrency,
    )


def to_time(seconds: float | None) -> datetime | None:
    """Return a time; the first or the last one for what is beyond, as infinity is."""
    return None if seconds is None else to_datetime(seconds)


def _from_json(text: str | None) -> Any:
    """Return a value, or the text itself where Python's reader gives up: others can be read."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


async def wake_on_change(
    connection: Connection, sql: Statements, statement: str, parameters: Mapping[str, str]
) -> bool:
    """Make triggers, or drop them; whether that was to do.

    Raises:
        InvalidArgumentError: If there is no such table.
    """
    table = parameters["table"]
    try:
        rows = await fetch(connection, sql["table"], parameters)
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError) as error:
        raise InvalidArgumentError("table", table, _TABLE) from error
    if rows != [(True,)]:
        problem = "is no table" if rows else "is not there, or not in the search_path"
        raise InvalidArgumentError("table", table, f"it {problem}: {_TABLE}")
    ((is_changed,),) = await fetch(connection, sql[statement], parameters)
    return bool(is_changed)
