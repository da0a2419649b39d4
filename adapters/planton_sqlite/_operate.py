"""What producers and operators do; the transaction is the caller's."""

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from planton import InvalidArgumentError
from planton.storage import InstructionRecord, NewInstruction, TaskStats
from planton_sqlite._statements import OPERATE

LARGEST = 2**63 - 1


def enqueue(connection: sqlite3.Connection, new: NewInstruction) -> bool:
    """Queue an instruction; whether it was not queued already."""
    parameters = {
        "task_name": new.task_name,
        "instruction": new.instruction,
        "payload": new.payload,
        "priority": new.priority,
        "run_at": None if new.run_at is None else new.run_at.timestamp(),
        "tags": json.dumps(new.tags),
        "retries": new.retries,
        "timeout": new.timeout,
    }
    return connection.execute(OPERATE["enqueue"], parameters).rowcount == 1


def change_task(connection: sqlite3.Connection, statement: str, **parameters: Any) -> None:
    """Pause, resume, or set the concurrency."""
    connection.execute(OPERATE[statement], parameters)


def retry(
    connection: sqlite3.Connection, task_name: str, instructions: Sequence[str] | None
) -> int:
    """Queue ended instructions again; how many."""
    failed = _ends(connection, "failed_ends", task_name, instructions)
    names = list(failed) if instructions is None else instructions
    # One that never failed may have succeeded at any time.
    since = min(failed.values(), default=LARGEST) if failed.keys() >= set(names) else 0
    succeeded = _ends(connection, "succeeded_since", task_name, names, since=since)
    later = {name: end for name, end in succeeded.items() if end > failed.get(name, 0)}
    living = _living(connection, task_name, names)
    if instructions is None:
        back = later.keys() | living
        ends = [end for name, end in failed.items() if name not in back]
        return _revive(connection, task_name, ends)
    _check_ended(instructions, failed.keys() | later.keys(), living)
    return _revive(connection, task_name, list({**failed, **later}.values()))


def _ends(
    connection: sqlite3.Connection,
    statement: str,
    task_name: str,
    instructions: Sequence[str] | None,
    **parameters: int,
) -> dict[str, int]:
    """Give the last ends of instructions by their ids, which are in the order of the ends."""
    asked = None if instructions is None else json.dumps(instructions)
    common = {"task_name": task_name, "instructions": asked}
    return dict(connection.execute(OPERATE[statement], {**common, **parameters}).fetchall())


def _living(connection: sqlite3.Connection, task_name: str, names: Sequence[str]) -> set[str]:
    parameters = {"task_name": task_name, "instructions": json.dumps(names)}
    return {name for (name,) in connection.execute(OPERATE["living"], parameters)}


def _check_ended(instructions: Sequence[str], ended: set[str], living: set[str]) -> None:
    for name in instructions:
        if name in living:
            remedy = "it is queued or active, wait until it has ended"
            raise InvalidArgumentError("instructions", name, remedy)
        if name not in ended:
            remedy = "the history knows no such instruction of this task"
            raise InvalidArgumentError("instructions", name, remedy)


def _revive(connection: sqlite3.Connection, task_name: str, ids: Sequence[int]) -> int:
    parameters = {"task_name": task_name, "ids": json.dumps(ids)}
    for statement in ("revive", "forget_failed", "forget"):
        connection.execute(OPERATE[statement], parameters)
    return len(ids)


def find(connection: sqlite3.Connection, **filters: Any) -> list[InstructionRecord]:
    """Give instructions, the oldest first."""
    return [_record(*row) for row in connection.execute(OPERATE["find"], filters)]


def _record(
    task_name: str,
    instruction: str,
    status: Any,
    payload: str | None,
    priority: int,
    tags: str,
    retries: int,
    timeout: float | None,
    delivery: int,
    result: str | None,
    error: str | None,
    claimed_by: str | None,
    *times: float | None,
) -> InstructionRecord:
    created_at, run_at, claimed_at, lease_expires_at, ended_at = map(_to_datetime, times)
    assert created_at is not None, "the column is NOT NULL"
    return InstructionRecord(
        task_name=task_name,
        instruction=instruction,
        status=status,
        payload=_from_json(payload),
        priority=priority,
        tags=tuple(json.loads(tags)),
        retries=retries,
        timeout=timeout,
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


def stats(connection: sqlite3.Connection) -> list[TaskStats]:
    """Count the instructions of every task."""
    return [
        TaskStats(
            task_name=name,
            queued=queued,
            running=running,
            succeeded=succeeded,
            failed=failed,
            dead=dead,
            oldest_due_at=_to_datetime(oldest_due_at),
            paused=bool(is_paused),
            concurrency=concurrency,
        )
        for (
            name,
            queued,
            running,
            succeeded,
            failed,
            dead,
            oldest_due_at,
            is_paused,
            concurrency,
        ) in connection.execute(OPERATE["stats"])
    ]


def prune(connection: sqlite3.Connection, older_than: float, limit: int = -1) -> int:
    """Delete from the history what ended that long ago, the oldest first; how many."""
    parameters = {"older_than": older_than, "limit": limit}
    return connection.execute(OPERATE["prune"], parameters).rowcount


def _to_datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
