"""Instructions claimed from a PostgreSQL database."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import attrs
import trio

from planton import Claim, InvalidArgumentError, Planton, Task, UnknownTaskError
from planton.abc import (
    Acknowledged,
    InstructionRecord,
    Misfire,
    Status,
    TaskStats,
    TimeTable,
    receipts_of,
)
from planton_postgres import _operations, _schema
from planton_postgres._claim import Claimer
from planton_postgres._database import Database, check_name, check_text, check_texts, to_json
from planton_postgres._reports import Reports
from planton_postgres._rule import ClaimRule, check_int, check_seconds
from planton_postgres._schedule import ActiveInstructions, QueueSchedule, SourceSchedule
from planton_postgres._source import Source
from planton_postgres._statements import OPERATE

_WEEK = 7 * 24 * 3600.0
_LONGEST_ERROR = 10_000
# How often the history is pruned while `serve` runs.
_PRUNE_EVERY = 600.0


class PostgresStorage:
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

    Raises:
        InvalidArgumentError: If an argument cannot be used.
        StorageError: On entering, if the database cannot be connected to.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        pool_size: int = 4,
        unlogged: bool = False,
        retention: float | None = _WEEK,
        connect_timeout: float = 10.0,
        statement_timeout: float = 10.0,
        prepare_threshold: int | None = 5,
    ) -> None:
        check_int("pool_size", pool_size, 1)
        check_seconds("connect_timeout", connect_timeout, above_zero=True)
        check_seconds("statement_timeout", statement_timeout, above_zero=True)
        if retention is not None:
            check_seconds("retention", retention)
        self.conninfo = conninfo
        self._unlogged = unlogged
        self._retention = retention
        self._database = Database(
            conninfo,
            pool_size=pool_size,
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            prepare_threshold=prepare_threshold,
        )
        keep = retention != 0
        self._claimer = Claimer(self._database, keep=keep)
        self._reports = Reports(self._database, keep=keep)
        self._get_active_instructions = ActiveInstructions(self._database)
        self._from_queue = QueueSchedule(self._claimer)
        self._from_source = SourceSchedule(self._claimer)
        self._plantons: set[Planton] = set()

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._database.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102  no checkpoint

    async def migrate(self) -> int:
        """Bring Planton's tables up to date; safe when many processes start at once.

        Returns:
            How many migrations were applied.

        Raises:
            StorageError: If the tables are newer than this code, or cannot be written.
        """
        name, unlogged = self._database.name, self._unlogged
        return await self._database.transaction(
            lambda connection: _schema.migrate(connection, name, unlogged=unlogged)
        )

    @property
    def get_active_instructions(self) -> ActiveInstructions:
        """Callback for `Planton(get_active_instructions=…)`: what this storage has active."""
        return self._get_active_instructions

    def claim_task(
        self,
        name: str,
        *,
        sql: str,
        lease: float = 60.0,
        retries: int = 0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a strict task that claims from the user's own tables.

        One transaction takes over claims whose lease expired, then what was given back or waits
        for a retry, then runs `sql` for the room that is left, and records what it gave.

        Args:
            name: Name of the task.
            sql: A statement that gives one column, the instruction: `UPDATE … RETURNING id`,
                which claims, or `SELECT id`, whose rows disappear when the work is done. It is
                given `%(limit)s` (how many may be claimed; required), `%(active)s` (the active
                instructions, text[]) and `%(now)s` (timestamptz). A percent sign is `%%`.
            lease: Seconds that a claim lasts without a heartbeat.
            retries: How often `fail` puts an instruction back into the queue.
            deliveries: The most times that one is handed out; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidQueryError: If the statement lacks `%(limit)s` or has parameters that nobody
                gives. What the server has to say about it comes with the first attempt.
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot, or the name has a task already.
        """
        source = Source(name, sql)
        task = self._task(name, self._from_source, options)
        source.check()
        rule = ClaimRule(lease=lease, retries=retries, deliveries=deliveries, source=source)
        return self._added(task, rule)

    def queue_task(
        self,
        name: str,
        *,
        key: str = "%",
        tags: Sequence[str] = (),
        lease: float = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        r"""Make a strict task that claims what `enqueue`, or a plain INSERT, put into the queue.

        By priority (high first), then time, then arrival. Rows that somebody has locked are left
        for the next attempt.

        Args:
            name: Name of the task.
            key: Only instructions LIKE this; `%` and `_` stand for any text and any character, a
                backslash before them for themselves.
            tags: Only instructions all of whose tags are among these.
            lease: Seconds that a claim lasts without a heartbeat.
            deliveries: The most times that one is handed out; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot, or the name has a task already.
        """
        check_text("key", key)
        offered = check_texts("tags", tags)
        rule = ClaimRule(lease=lease, deliveries=deliveries, key=key, tags=offered)
        return self._added(self._task(name, self._from_queue, options), rule)

    def cron_task(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        lease: float = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a strict task whose instructions are fire times, each claimed once in the fleet.

        The instruction is the time in ISO 8601, in UTC. The next time is kept in the database and
        compared by its clock. The first time is the first one after the first attempt.

        Args:
            name: Name of the task.
            expression: As for `planton.delays.cron`, as are `fold` and `gap` among the options.
            timezone: In which the expression is read.
            misfire: What becomes of times missed by more than a minute: `"skip"` drops them,
                `"once"` dispatches the last of them, `"all"` every one.
            lease: Seconds that a claim lasts without a heartbeat.
            deliveries: The most times that one is handed out; None for no limit.
            **options: `fold` and `gap`, and fields of `Task`.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot, or the name has a task already.
        """
        policies = {each: options.pop(each) for each in ("fold", "gap") if each in options}
        times = TimeTable.of(expression, timezone=timezone, misfire=misfire, **policies)
        task = self._task(name, self._from_source, options)
        rule = ClaimRule(lease=lease, deliveries=deliveries, times=times)
        return self._added(task, rule)

    def _task(self, name: str, schedule: Any, options: dict[str, Any]) -> Task:
        return Task(name=name, schedule=schedule, cap="strict", release=self._release, **options)

    def _added(self, task: Task, rule: ClaimRule) -> Task:
        check_name("name", task.name)
        if task.name in self._claimer.rules:
            remedy = "this storage has a task of that name already"
            raise InvalidArgumentError("name", task.name, remedy)
        self._claimer.rules[task.name] = attrs.evolve(rule, delay=_seconds(task))
        return task

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Service for `Planton(services=[storage.serve])`.

        Wakes a task when one of its slots frees up or something is queued for it in this process,
        and prunes the history.
        """
        self._plantons.add(planton)
        task_status.started()
        try:
            while True:
                await trio.sleep(_PRUNE_EVERY)
                if self._retention is not None:
                    await self.prune(self._retention)
        finally:
            self._plantons.discard(planton)

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
                commits it.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
            StorageError: If the database fails.
        """
        is_new = await _operations.enqueue(
            self._database,
            task_name,
            instruction,
            payload=payload,
            priority=priority,
            run_at=run_at,
            tags=tags,
            retries=retries,
            timeout=timeout,
            connection=connection,
        )
        if is_new and connection is None and run_at is None:
            self._wake({task_name})
        return is_new

    async def heartbeat(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Renew the leases of claims, each for its own seconds from now, within its `timeout`."""
        acknowledged, _ = await self._reports.heartbeat(receipts)
        return acknowledged

    async def complete(self, receipts: str | Sequence[str], result: Any = None) -> Acknowledged:
        """End claims whose work is done, and wake their tasks.

        What several consumers report at the same time is written in one statement.

        Args:
            receipts: One receipt or many.
            result: Kept in the history; anything that JSON holds.

        Raises:
            InvalidArgumentError: If a receipt is none, or the result is not JSON.
        """
        return await self._end(self._reports.complete, receipts, to_json("result", result))

    async def fail(
        self,
        receipts: str | Sequence[str],
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        retry: bool = True,
        lower_priority: bool = False,
    ) -> Acknowledged:
        """Report that the work failed, and wake the tasks.

        With retries left it is queued again, with one retry less; with none left it ends as dead.

        Args:
            receipts: One receipt or many.
            error: What went wrong; an exception is kept as its type and message.
            retry_in: Seconds until it is due again; None for at once.
            retry: False ends it as failed, retries left or not.
            lower_priority: Queue it with a priority one lower.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
        """
        if retry_in is not None:
            check_seconds("retry_in", retry_in)
        options = (float(retry_in or 0.0), bool(retry), bool(lower_priority))
        return await self._end(self._reports.fail, receipts, _in_words(error), *options)

    async def release(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Give claims back unfinished, at once claimable again, and wake their tasks."""
        return await self._end(self._reports.release, receipts)

    async def _end(self, report: Any, receipts: str | Sequence[str], *values: Any) -> Acknowledged:
        acknowledged: Acknowledged
        acknowledged, task_names = await report(receipts, *values)
        self._wake(task_names)
        return acknowledged

    async def _release(self, claims: Sequence[Claim]) -> None:
        # Not a wake-up: Planton gives back what it cannot deliver now, and would claim it again.
        await self._reports.release(receipts_of(claims))

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task, until `resume`; what is active goes on."""
        check_name("task_name", task_name)
        await self._database.count(OPERATE["pause"], {"task_name": task_name})

    async def resume(self, task_name: str) -> None:
        """Let dispatchers claim for a task again."""
        check_name("task_name", task_name)
        await self._database.count(OPERATE["resume"], {"task_name": task_name})
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
        older_than: float | None = None,
        limit: int = 100,
    ) -> list[InstructionRecord]:
        """Give instructions, the oldest first.

        Args:
            status: Only those in this status.
            task_name: Only those of this task.
            older_than: Only those that came to be more than these seconds ago.
            limit: The most to give.
        """
        return await _operations.find(
            self._database, status=status, task_name=task_name, older_than=older_than, limit=limit
        )

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        return await _operations.stats(self._database)

    async def prune(self, older_than: float = 0.0) -> int:
        """Delete from the history what ended more than `older_than` seconds ago; how many."""
        return await _operations.prune(self._database, older_than)

    def _wake(self, task_names: set[str]) -> None:
        for planton in self._plantons:
            for name in task_names:
                try:
                    planton.wake(name)
                except UnknownTaskError:
                    pass  # a task of another process


def _in_words(error: str | BaseException) -> str:
    """Give an error as it is kept."""
    text = error
    if isinstance(error, BaseException):
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not isinstance(text, str):
        raise InvalidArgumentError("error", error, "give a str or an exception")
    # Whatever it is, it must not be what keeps a consumer from reporting it.
    return text.replace("\0", "␀").encode(errors="replace").decode()[:_LONGEST_ERROR]


def _seconds(task: Task) -> float | None:
    """Give the delay of a task, if it is always the same."""
    if isinstance(task.delay, timedelta):
        return task.delay.total_seconds()
    return float(task.delay) if isinstance(task.delay, int | float) else None
