"""Producers and operations: what goes into the queue, and what people want to know and change."""

from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import psycopg
import trio

from planton import InvalidArgumentError
from planton.storage import InstructionRecord, NewInstruction, Status, TaskStats, to_status
from planton_postgres._database import Connection, Database, fetch
from planton_postgres._errors import translated
from planton_postgres._limits import (
    to_integer,
    to_json_column,
    to_seconds,
    to_task_name,
    to_text,
    to_texts,
)
from planton_postgres._statements import OPERATE

_PART = 10_000  # rows of the history that one transaction deletes


async def enqueue(database: Database, new: NewInstruction, connection: Any) -> bool:
    """Queue an instruction, on a connection of ours or in the transaction of another."""
    parameters = _parameters(new)
    if connection is None:
        return await database.count(OPERATE["enqueue"], parameters) == 1
    with translated(database.name):
        return await _execute(connection, parameters) == 1


async def _execute(connection: Any, parameters: dict[str, Any]) -> int:
    """Run the statement in the transaction of the caller; how many rows it added."""
    if isinstance(connection, psycopg.AsyncConnection | psycopg.Connection) and connection.closed:
        raise InvalidArgumentError("connection", connection, "it is closed, give one that is open")
    if isinstance(connection, psycopg.AsyncConnection):
        # Nothing of trio here: it may be a connection on asyncio, within a program on asyncio.
        return (await connection.execute(OPERATE["enqueue"], parameters)).rowcount
    if isinstance(connection, psycopg.Connection):
        plain: psycopg.Connection[Any] = connection
        # It blocks, and waits for whoever queues the same instruction: not on the loop's thread.
        cursor = await trio.to_thread.run_sync(plain.execute, OPERATE["enqueue"], parameters)
        return cursor.rowcount
    remedy = "give a psycopg.Connection or a psycopg.AsyncConnection"
    raise InvalidArgumentError("connection", connection, remedy)


def _parameters(new: NewInstruction) -> dict[str, Any]:
    """Give what the columns of the queue take, or raise `InvalidArgumentError`."""
    return {
        "task_name": to_task_name(new.task_name),
        "instruction": to_text("instruction", new.instruction),
        "payload": to_json_column(new.payload),
        "priority": new.priority,
        "run_at": new.run_at,
        "tags": list(to_texts("tags", new.tags)),
        "retries": to_integer("retries", new.retries),
        "timeout": None if new.timeout is None else to_seconds("timeout", new.timeout, above=0),
    }


async def set_concurrency(database: Database, task_name: str, concurrency: int | None) -> None:
    """Override the concurrency of the code, or stop doing so."""
    parameters = {
        "task_name": to_task_name(task_name),
        "concurrency": None if concurrency is None else to_integer("concurrency", concurrency, 1),
    }
    await database.count(OPERATE["set_concurrency"], parameters)


async def retry(database: Database, task_name: str, instructions: Sequence[str] | None) -> int:
    """Queue ended instructions again; how many."""
    name = to_task_name(task_name)
    named = None if instructions is None else list(to_texts("instructions", instructions))

    def again(connection: Connection) -> Awaitable[int]:
        return _retry(connection, {"task_name": name, "instructions": named})

    return await database.transaction(again)


async def _retry(connection: Connection, parameters: dict[str, Any]) -> int:
    rows = await fetch(connection, OPERATE["ended"], parameters)
    if parameters["instructions"] is not None:
        found = {instruction for _, instruction in rows}
        await _refuse_others(connection, parameters, found)
    chosen = {"ids": [row_id for row_id, _ in rows], "instructions": [name for _, name in rows]}
    cursor = await connection.execute(OPERATE["retry"], {**parameters, **chosen})
    return cursor.rowcount


async def _refuse_others(
    connection: Connection, parameters: dict[str, Any], found: set[str]
) -> None:
    """Refuse what was named and has not ended; nothing was changed yet."""
    others = [name for name in parameters["instructions"] if name not in found]
    if not others:
        return
    statuses = dict(await fetch(connection, OPERATE["statuses"], parameters))
    state = {"queued": "it is queued already", "running": "it is active"}.get(
        statuses.get(others[0], ""), f"task {parameters['task_name']!r} knows no such instruction"
    )
    raise InvalidArgumentError("instructions", others[0], f"{state}; retry what has ended")


async def find(
    database: Database,
    *,
    status: Status | None,
    task_name: str | None,
    instruction: str | None,
    older_than: float | None,
    limit: int,
) -> list[InstructionRecord]:
    """Give instructions, the oldest first."""
    parameters = {
        "status": None if status is None else to_status(status),
        "task_name": None if task_name is None else to_task_name(task_name),
        "instruction": None if instruction is None else to_text("instruction", instruction),
        "older_than": None if older_than is None else to_seconds("older_than", older_than),
        "limit": to_integer("limit", limit),
    }
    names = [field.name for field in attrs.fields(InstructionRecord)]
    rows = await database.rows(OPERATE["find"], parameters)
    return [InstructionRecord(**_in_utc(dict(zip(names, row, strict=True)))) for row in rows]


async def stats(database: Database) -> list[TaskStats]:
    """Count the instructions of every task, by name."""
    names = [field.name for field in attrs.fields(TaskStats)]
    rows = await database.rows(OPERATE["stats"])
    return [TaskStats(**_in_utc(dict(zip(names, row, strict=True)))) for row in rows]


async def prune(database: Database, older_than: float) -> int:
    """Delete from the history; how many."""
    parameters = {"older_than": to_seconds("older_than", older_than), "limit": _PART}
    pruned = part = await database.count(OPERATE["prune"], parameters)
    while part == _PART:
        part = await database.count(OPERATE["prune"], parameters)
        pruned += part
    return pruned


def _in_utc(values: dict[str, Any]) -> dict[str, Any]:
    """Give times in UTC, whatever the time zone of the session is."""
    for name, value in values.items():
        if isinstance(value, datetime):
            values[name] = value.astimezone(UTC)
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    return values
