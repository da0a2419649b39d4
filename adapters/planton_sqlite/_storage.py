"""Instructions claimed from a SQLite database."""

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import sqlite_utils

from planton import InvalidArgumentError
from planton.storage import (
    Acknowledged,
    AdvanceReport,
    FailureReport,
    InstructionRecord,
    NewInstruction,
    Status,
    TaskStats,
    to_count,
    to_json,
    to_name,
    to_number,
    to_status,
    to_strings,
)
from planton_sqlite import _end, _open, _operate, _watch_tables
from planton_sqlite._receipts import to_numbers
from planton_sqlite._sources import Sources


class SQLiteStorage(Sources):
    """Claims instructions from a SQLite database, under a cap that is exact over all processes.

    Used as an async context manager, which opens the database and closes it. The database is in
    WAL mode. One thread owns the connection; a method that has begun to write finishes even if
    it is cancelled, and returns, so that nothing is committed unheard.

    Args:
        path: The database file; it is made if it is not there, its folder is not.
        synchronous: `"FULL"` survives a power failure; `"NORMAL"` is ten times as fast for small
            transactions, survives a crash of the process, and may lose the last commits when
            the power goes.
        wake_ups: Whether what other processes commit wakes tasks (see `serve`); if not, they find
            it when they poll. What this process does wakes them in any case.
        retention: Seconds that ended instructions are kept, a week if nothing is said; with 0
            none is. What is older is deleted along with other writes, once a minute.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.

    Raises:
        InvalidArgumentError: If the path is that of no file, or another argument cannot be used.
        StorageError: On entering, if the file cannot be opened or is no database.
    """

    # Producers

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
        connection: sqlite3.Connection | sqlite_utils.Database | None = None,
    ) -> bool:
        """Queue an instruction; False, and nothing changed, if it is queued already.

        Args:
            task_name: The task that is to claim it.
            instruction: What it tells consumers; what is active may be queued again.
            payload: Any JSON, for consumers.
            priority: High ones are claimed first.
            run_at: When it is due, an aware datetime; at once if None.
            tags: What a dispatcher must offer to claim it.
            retries: How often it is queued again after it failed.
            timeout: Seconds that one delivery may take, heartbeats or not.
            connection: A connection of the caller's, to this very file: the instruction is part
                of its transaction, and nobody sees it before the caller commits. It is used
                here and now, so it may wait for another writer as its own timeout says.

        Raises:
            InvalidArgumentError: If an argument cannot be used.
            StorageError: If the database cannot be written.
        """
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
            return self._enqueue_within(connection, new)
        is_new = await self._owner.write(lambda own: _operate.enqueue(own, new))
        self._wake([task_name])
        return is_new

    def _enqueue_within(self, connection: object, new: NewInstruction) -> bool:
        if isinstance(connection, sqlite_utils.Database):
            connection = connection.conn
        if not isinstance(connection, sqlite3.Connection):
            remedy = "give a sqlite3.Connection or a sqlite_utils.Database"
            raise InvalidArgumentError("connection", connection, remedy)
        _open.check_connection(connection, self._file)
        try:
            self._check(connection)
            return _operate.enqueue(connection, new)
        except sqlite3.Error as error:
            raise _open.to_storage_error(self.path, error) from error

    # Consumers

    async def heartbeat(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Renew leases, each for its own seconds from now, but never beyond its `timeout`."""
        return await self._report(receipts, _end.heartbeat)

    async def complete(self, receipts: str | Sequence[str], result: Any = None) -> Acknowledged:
        """End claims whose work is done, with any JSON as a result, and wake their tasks."""
        text = to_json("result", result)

        def change(connection: sqlite3.Connection, numbers: Sequence[int]) -> _end.Found:
            self._history.prune(connection)
            return _end.complete(connection, numbers, result=text, is_kept=self._history.is_kept)

        return await self._report(receipts, change, frees=True)

    async def fail(
        self,
        receipts: str | Sequence[str],
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        retry: bool = True,
        lower_priority: bool = False,
        retries: int = 0,
    ) -> Acknowledged:
        """Report that the work failed, and wake its tasks.

        Args:
            receipts: One receipt or many.
            error: Kept with the instruction; of an exception the name and the message.
            retry_in: Seconds until it may be claimed again, if it has retries left; at once if
                None.
            retry: False ends it as failed, whatever retries are left.
            lower_priority: Whether a retry has a priority one lower.
            retries: How many it is given if it fails for the first time, or the first time since
                `retry`, and has none of its own.
        """
        report = FailureReport.of(
            error,
            retry_in=retry_in,
            retry=retry,
            lower_priority=lower_priority,
            retries=retries,
        )

        def change(connection: sqlite3.Connection, numbers: Sequence[int]) -> _end.Found:
            self._history.prune(connection)
            return _end.fail(connection, numbers, report=report, is_kept=self._history.is_kept)

        return await self._report(receipts, change, frees=True)

    async def advance(
        self,
        receipts: str | Sequence[str],
        payload: Any = None,
        *,
        retries: int = 0,
        run_in: float | None = None,
    ) -> Acknowledged:
        """Store how far the work has come: it begins anew with another payload.

        Args:
            receipts: One receipt or many.
            payload: Any JSON, for whoever goes on.
            retries: How many there are from now on.
            run_in: Seconds until it goes on; that frees its slot. If None the claim is kept, with
                a new lease, and the caller goes on.
        """
        report = AdvanceReport.of(payload, retries=retries, run_in=run_in)
        return await self._report(
            receipts,
            lambda connection, numbers: _end.advance(connection, numbers, report=report),
            frees=report.delay is not None,
        )

    async def release(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Give claims back unfinished, at once claimable again, and wake their tasks."""
        return await self._report(receipts, _end.release, frees=True)

    async def _report(
        self,
        receipts: str | Sequence[str],
        change: Callable[[sqlite3.Connection, Sequence[int]], _end.Found],
        *,
        frees: bool = False,
    ) -> Acknowledged:
        """Apply a change to claims, in one transaction; those it does not find are stale."""
        numbers = to_numbers(receipts)
        wanted = list(numbers.values())
        found = await self._owner.write(lambda connection: change(connection, wanted))
        if frees:
            self._wake(set(found.values()))
        applied = {receipt for receipt, number in numbers.items() if number in found}
        return Acknowledged.of(list(numbers), applied)

    # Operations

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task."""
        await self._change_task("pause", task_name)

    async def resume(self, task_name: str) -> None:
        """Let them claim again."""
        await self._change_task("resume", task_name)
        self._wake([task_name])

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code in all dispatchers; None to stop doing so."""
        if concurrency is None:
            await self._change_task("unset_concurrency", task_name)
        else:
            count = to_count("concurrency", concurrency, 1)
            await self._change_task("set_concurrency", task_name, concurrency=count)
        self._wake([task_name])

    async def wake_on_change(self, table: str, task_name: str) -> bool:
        """Let rows that are inserted or updated in a table of the user's wake a task.

        It makes two triggers, in the database, for all who write to the table and all who dispatch;
        once made they stay. The rows that a claim of the task itself changes do not wake it.

        Args:
            table: A table of this database.
            task_name: The task, which this process need not have.

        Returns:
            Whether they were made; False if they are there already.

        Raises:
            InvalidArgumentError: If there is no such table.
            StorageError: If the database cannot be written.
        """
        name = to_name(task_name)
        return await self._owner.write(lambda own: _watch_tables.wake_on_change(own, table, name))

    async def ignore_changes(self, table: str, task_name: str) -> bool:
        """Take back what `wake_on_change` made; False if there is nothing to take back.

        Raises:
            InvalidArgumentError: If there is no such table.
            StorageError: If the database cannot be written.
        """
        name = to_name(task_name)
        return await self._owner.write(lambda own: _watch_tables.ignore_changes(own, table, name))

    async def _change_task(self, statement: str, task_name: str, **parameters: Any) -> None:
        name = to_name(task_name)
        await self._owner.write(
            lambda own: _operate.change_task(own, statement, task_name=name, **parameters)
        )

    async def retry(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Queue ended instructions again, all failed and dead ones if none is named; how many.

        Raises:
            InvalidArgumentError: If one is active, queued or unknown; none is retried then.
        """
        name = to_name(task_name)
        named = None if instructions is None else to_strings("instructions", instructions)
        count = await self._owner.write(lambda own: _operate.retry(own, name, named))
        self._wake([name])
        return count

    async def find(
        self,
        *,
        status: Status | None = None,
        task_name: str | None = None,
        instruction: str | None = None,
        older_than: float | None = None,
        limit: int = 100,
    ) -> list[InstructionRecord]:
        """Give instructions, the oldest first; `older_than` is seconds since they came to be."""
        (named,) = (None,) if instruction is None else to_strings("instruction", [instruction])
        filters = {
            "status": None if status is None else to_status(status),
            "task_name": None if task_name is None else to_name(task_name),
            "instruction": named,
            "older_than": None if older_than is None else to_number("older_than", older_than),
            "limit": to_count("limit", limit),
        }
        return await self._owner.read(lambda own: _operate.find(own, **filters))

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        return await self._owner.read(_operate.stats)

    async def prune(self, older_than: float = 0.0) -> int:
        """Delete from the history what ended more than `older_than` seconds ago; how many."""
        seconds = to_number("older_than", older_than)
        return await self._owner.write(lambda own: _operate.prune(own, seconds))
