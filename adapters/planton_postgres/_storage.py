"""Instructions claimed from a PostgreSQL database."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from planton.storage import InstructionRecord, NewInstruction, Status, TaskStats
from planton_postgres import _operations, _wake_tables
from planton_postgres._consumers import Consumers
from planton_postgres._limits import to_task_name
from planton_postgres._statements import OPERATE


class PostgresStorage(Consumers):
    """Claims instructions from a PostgreSQL database, under a cap that is exact over all processes.

    Used as an async context manager, which connects and closes the connections. A method that has
    a connection and has begun finishes even if it is cancelled, and returns what became of it, so
    that nothing is committed unheard. While the server is away each method tries again for
    `connect_timeout`, and then raises `StorageError`; the next call tries again.

    There is no state in sessions, so it works through a pooler such as PgBouncer in transaction
    mode, with `prepare_threshold=None` where the pooler knows no prepared statements.

    Args:
        conninfo: A connection string or URI, as libpq takes it.
        pool_size: The most connections; with two or more, one is left for what consumers report
            while statements of claim tasks wait for locks.
        unlogged: `migrate` makes tables that are not written to the log: faster, and **empty after
            a crash of the server**. For work that can be found again.
        retention: Seconds that ended instructions are kept while `serve` runs; 0 keeps none, None
            keeps all.
        connect_timeout: Seconds to wait for a connection.
        statement_timeout: Seconds that one transaction may take; it is rolled back then.
        prepare_threshold: Statements executed more often than this on a connection are prepared
            there; None for never.
        wake_ups: Whether `serve` listens, on a connection of its own, for what other processes
            change; without it that is found by polling.
        listen_dsn: Where it listens, if `conninfo` leads to a pooler: there it could not.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
        StorageError: On entering, if the database cannot be connected to.
    """

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
        connection: Any = None,
    ) -> bool:
        """Queue an instruction; False, and nothing changed, if it is queued already.

        An instruction may be queued while it is active; it is claimed after that claim has ended.

        Args:
            task_name: Its task.
            instruction: What it tells consumers.
            payload: What consumers get with it; anything that JSON holds.
            priority: High ones are claimed first.
            run_at: When it is due, an aware datetime; None for now.
            tags: What a task must offer to claim it.
            retries: How often `fail` puts it back.
            timeout: Seconds that one delivery may take, heartbeats or not.
            connection: A `psycopg.Connection`, or a `psycopg.AsyncConnection` of the event loop
                that this runs on: it is then part of the transaction there, and nothing here
                commits it. It must be to the same database, with the same search_path: the
                instruction goes where that connection finds the table.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
            StorageError: If the database fails.
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
        is_new = await _operations.enqueue(self._database, new, connection)
        if is_new and connection is None:  # due later, too: then it has a new time to be at
            self._wake({task_name})
        return is_new

    async def wake_on_change(self, table: str, task_name: str) -> bool:
        """Wake a task, in every process, when rows of a table of yours are inserted or updated.

        It makes triggers, once; any number of processes may call it at every start. They cost
        each statement that changes rows a NOTIFY, and commits that notify take turns. What the
        claim of a task changes wakes nobody. The task is polled as before: give it a long delay
        if all that makes work for it is such a change.

        Args:
            table: Its name as in SQL, with the schema unless that is in the search_path.
            task_name: The task.

        Returns:
            Whether the triggers were made now.

        Raises:
            InvalidArgumentError: If there is no such table.
            StorageError: If they cannot be made, or not within `statement_timeout`: it waits for
                transactions that write to the table.
        """
        return await _wake_tables.wake_on_change(self._database, table, task_name)

    async def ignore_changes(self, table: str, task_name: str) -> bool:
        """Take back `wake_on_change`; whether there was something to take back.

        Raises:
            InvalidArgumentError: If there is no such table.
            StorageError: If the database fails.
        """
        return await _wake_tables.ignore_changes(self._database, table, task_name)

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task, until `resume`; what is active goes on."""
        await self._database.count(OPERATE["pause"], {"task_name": to_task_name(task_name)})

    async def resume(self, task_name: str) -> None:
        """Let dispatchers claim for a task again."""
        await self._database.count(OPERATE["resume"], {"task_name": to_task_name(task_name)})
        self._wake({task_name})

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code in all dispatchers; None to stop doing so."""
        await _operations.set_concurrency(self._database, task_name, concurrency)
        self._wake({task_name})

    async def retry(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Queue ended instructions again, with their deliveries counted anew; how many.

        Args:
            task_name: Their task.
            instructions: Which ones, however they ended; None for all whose last end was failed
                or dead and that are not on their way again.

        Raises:
            InvalidArgumentError: If one that is named is active, queued, or unknown; none is
                retried then.
        """
        count = await _operations.retry(self._database, task_name, instructions)
        self._wake({task_name})
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
        """Give instructions, the oldest first.

        Args:
            status: Only those in this status.
            task_name: Only those of this task.
            instruction: Only this one, of any task or of that one.
            older_than: Only those that came to be more than these seconds ago.
            limit: The most to give.
        """
        return await _operations.find(
            self._database,
            status=status,
            task_name=task_name,
            instruction=instruction,
            older_than=older_than,
            limit=limit,
        )

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        return await _operations.stats(self._database)

    async def prune(self, older_than: float = 0.0) -> int:
        """Delete from the history what ended more than `older_than` seconds ago; how many."""
        return await _operations.prune(self._database, older_than)
