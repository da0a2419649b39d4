"""What producers and operators do with the in-memory storage; see `planton.storage.Storage`."""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import trio

from planton._errors import InvalidArgumentError
from planton.storage import (
    DispatcherRecord,
    InstructionRecord,
    NewInstruction,
    Status,
    TaskReport,
    TaskStats,
    to_count,
    to_name,
    to_number,
    to_status,
    to_strings,
)
from planton.testing._memory_base import MemoryBase
from planton.testing._memory_rows import Row, TaskState, Transaction


class MemoryOperations(MemoryBase):
    """Enqueue, pause, retry, find, count and prune."""

    async def enqueue(
        self,
        task_name: str,
        instruction: str,
        *,
        payload: Any = None,
        priority: int = 0,
        run_at: datetime | None = None,
        tags: Sequence[str] = (),
        retries: int = 0,
        timeout: float | None = None,
        connection: Transaction | None = None,
    ) -> bool:
        """Queue an instruction; a `connection` is a `transaction()` of this storage."""
        new = NewInstruction.of(
            task_name,
            instruction,
            payload=payload,
            priority=priority,
            run_at=run_at,
            tags=tags,
            retries=retries,
            timeout=timeout,
        )
        if connection is not None:
            return await self._enqueue(connection, new)
        async with self.transaction() as transaction:
            is_new = await self._enqueue(transaction, new)
        self._wake([task_name])
        return is_new

    async def _enqueue(self, transaction: Transaction, new: NewInstruction) -> bool:
        key = (new.task_name, new.instruction)
        await self._until_unlocked(transaction, lambda: [key])
        if any(row.key == key for row in transaction.rows(new.task_name, "pending")):
            return False
        now = trio.current_time()
        row = Row(
            task_name=new.task_name,
            instruction=new.instruction,
            payload=None if new.payload is None else json.loads(new.payload),
            priority=new.priority,
            run_at=now if new.run_at is None else self.to_seconds(new.run_at),
            tags=new.tags,
            retries=new.retries,
            timeout=new.timeout,
            created_at=now,
        )
        transaction.add(row)
        return True

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task."""
        await self._change_task(to_name(task_name), is_paused=True)

    async def resume(self, task_name: str) -> None:
        """Let them claim again."""
        await self._change_task(to_name(task_name), is_paused=False)

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code; None to stop doing so."""
        if concurrency is not None:
            to_count("concurrency", concurrency, 1)
        await self._change_task(to_name(task_name), concurrency=concurrency)

    async def _change_task(self, task_name: str, **changes: Any) -> None:
        async with self.transaction(lock=task_name) as transaction:
            transaction.write_task(task_name, **changes)
        self._wake([task_name])

    async def retry(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Queue ended instructions again, all failed and dead ones if none is named."""
        name = to_name(task_name)
        asked = None if instructions is None else to_strings("instructions", instructions)

        def candidates() -> list[Row]:
            rows = [row for row in self.committed.values() if row.task_name == name]
            return [row for row in rows if asked is None or row.instruction in asked]

        async with self.transaction() as transaction:
            await self._until_unlocked(transaction, candidates)
            chosen = _retried(candidates(), asked)
            for row in _forgotten(candidates(), chosen):
                transaction.delete(row)
            for row in chosen:
                now = trio.current_time()
                transaction.add(
                    row.left("pending", run_at=now, delivery=0, outcome=None, ended_at=None)
                )
        self._wake([name])
        return len(chosen)

    async def find(
        self,
        *,
        status: Status | None = None,
        task_name: str | None = None,
        instruction: str | None = None,
        older_than: float | None = None,
        limit: int = 100,
    ) -> list[InstructionRecord]:
        """Give instructions, the oldest first."""
        wanted = None if status is None else to_status(status)
        name = None if task_name is None else to_name(task_name)
        (named,) = (None,) if instruction is None else to_strings("instruction", [instruction])
        age = -math.inf if older_than is None else to_number("older_than", older_than)
        count = to_count("limit", limit)
        await self.work()
        latest = trio.current_time() - age
        rows = sorted(self.committed.values(), key=lambda row: (row.created_at, row.id))
        found = [
            row
            for row in rows
            if wanted in (None, _status(row))
            and name in (None, row.task_name)
            and named in (None, row.instruction)
            and row.created_at <= latest
        ]
        return [self._record(row) for row in found[:count]]

    def _record(self, row: Row) -> InstructionRecord:
        is_pending, is_active = row.status == "pending", row.status == "active"
        created_at = self._date(row.created_at)
        assert created_at is not None
        return InstructionRecord(
            task_name=row.task_name,
            instruction=row.instruction,
            status=_status(row),
            payload=row.payload,
            priority=row.priority,
            tags=row.tags,
            retries=row.retries,
            timeout=row.timeout,
            delivery=row.delivery,
            result=row.result,
            error=row.error,
            created_at=created_at,
            run_at=self._date(max(row.run_at, row.created_at)) if is_pending else None,
            claimed_at=None if is_pending else self._date(row.claimed_at),
            claimed_by=None if is_pending else row.claimed_by,
            lease_expires_at=self._date(row.lease_expires_at) if is_active else None,
            ended_at=self._date(row.ended_at),
        )

    def _date(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self.to_datetime(seconds)

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        await self.work()
        names = set(self.tasks) | {row.task_name for row in self.committed.values()}
        return [self._stats(name) for name in sorted(names)]

    def _stats(self, name: str) -> TaskStats:
        rows = [row for row in self.committed.values() if row.task_name == name]
        statuses = [_status(row) for row in rows]
        due = [max(row.run_at, row.created_at) for row in rows if row.status == "pending"]
        oldest = min((time for time in due if time <= trio.current_time()), default=None)
        task = self.tasks.get(name, TaskState())
        return TaskStats(
            task_name=name,
            queued=statuses.count("queued"),
            running=statuses.count("running"),
            succeeded=statuses.count("succeeded"),
            failed=statuses.count("failed"),
            dead=statuses.count("dead"),
            oldest_due_at=self._date(oldest),
            paused=task.is_paused,
            concurrency=task.concurrency,
        )

    async def prune(self, older_than: float = 0.0) -> int:
        """Delete from the history what ended more than `older_than` seconds ago; how many."""
        seconds = to_number("older_than", older_than)
        async with self.transaction() as transaction:
            latest = trio.current_time() - seconds
            old = [
                row
                for row in transaction.unlocked(self.committed.values())
                if row.ended_at is not None and row.ended_at <= latest
            ]
            for row in old:
                transaction.delete(row)
        return len(old)

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers that serve this storage now, the oldest first."""
        return await self.registry.dispatchers()

    async def request_stop(self, dispatcher_ids: Sequence[str] | None = None) -> list[str]:
        """Ask dispatchers to terminate, all of them if none is named; which were asked."""
        named = None if dispatcher_ids is None else to_strings("dispatcher_ids", dispatcher_ids)
        return await self.registry.request_stop(named)

    async def decisions(self, task_name: str | None = None) -> list[TaskReport]:
        """Give what dispatchers say of a task, or of all of them."""
        return await self.registry.decisions(None if task_name is None else to_name(task_name))


def _retried(rows: Iterable[Row], asked: Sequence[str] | None) -> list[Row]:
    """Choose which ends to retry: the last of each instruction that is not alive.

    Raises:
        InvalidArgumentError: If one of those that are asked for is alive, or never ended.
    """
    ends: dict[str, Row] = {}
    alive = {row.instruction for row in rows if row.status != "ended"}
    for row in sorted(rows, key=lambda row: row.ended_at or 0.0):
        if row.status == "ended":
            ends[row.instruction] = row
    for name in asked or ():
        if name in alive or name not in ends:
            remedy = "only what has ended, and is in the history, can be tried again"
            raise InvalidArgumentError("instructions", name, remedy)
    return [
        row
        for name, row in ends.items()
        if asked is not None or (row.outcome != "succeeded" and name not in alive)
    ]


def _forgotten(rows: Iterable[Row], chosen: Sequence[Row]) -> list[Row]:
    """Choose which ends leave the history: what begins anew, and all its failures."""
    names = {row.instruction for row in chosen}
    return [
        row
        for row in rows
        if row in chosen or (row.instruction in names and row.outcome in ("failed", "dead"))
    ]


def _status(row: Row) -> Status:
    if row.status == "ended":
        return row.outcome or "succeeded"
    return "queued" if row.status == "pending" else "running"
