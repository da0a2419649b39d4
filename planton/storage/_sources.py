"""The tasks that a storage makes: of the user's own tables, of the queue, of a calendar."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypedDict, Unpack

import trio

from planton._calendar import Fold, Gap
from planton._errors import InvalidArgumentError, InvalidTaskError
from planton._task import Capacity, Claim, Concurrency, Delay, Seconds, Task
from planton.storage._arguments import to_count, to_key, to_name, to_number, to_strings
from planton.storage._backend import Report, Rule
from planton.storage._base import Base
from planton.storage._consumers import receipts_of
from planton.storage._cron import CronTimes, Misfire
from planton.storage._schedule import ActiveInstructions, Schedule, SharedSchedule


class TaskOptions(TypedDict, total=False):
    """Fields of `Task` that a storage leaves to the user."""

    concurrency: int | Concurrency
    delay: Seconds | Delay
    capacity: Capacity | None
    timeout: float | None


class ClaimOptions(TaskOptions, total=False):
    """What `claim_task` takes beside its statement."""

    retries: int
    lease: float | timedelta
    deliveries: int | None
    partition_concurrency: int | None


class Sources(Base):
    """Makes tasks. They are strict: their claims count and claim in one transaction."""

    @property
    def get_active_instructions(self) -> ActiveInstructions:
        """Callback for `Planton(get_active_instructions=…)`: what this storage has active."""
        return self._get_active

    def claim_task(
        self,
        name: str,
        *,
        sql: str,
        retries: int = 0,
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        partition_concurrency: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Make a task that claims from the user's own tables.

        One transaction rescues claims whose lease expired, takes what was given back or is to be
        tried again, then runs `sql` for the room that is left, and records its rows.

        Args:
            name: Name of the task.
            sql: A statement that returns the instruction: `UPDATE … RETURNING id`,
                which marks what it returns as claimed, or `SELECT id`, whose rows disappear when
                the work is done. Rows that a SELECT finds again, because they are active, queued
                or failed for good, are left out and do not hide those behind them. A second column
                is the partition, NULL for none. Its parameters are `limit` (how many may be
                claimed; required), `active` (the active instructions), `now` and `full` (the
                partitions that are full): `:limit` on SQLite, `%(limit)s` on PostgreSQL.
            retries: How often an instruction is queued again after it failed.
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: How often the lease of an instruction may expire; at the last time it ends
                as dead. None for no limit.
            partition_concurrency: How many of one partition may be active at most, over the whole
                fleet; what has no partition is not limited. Of a SELECT the rows beyond that are
                left out, and each claim takes one of each partition before a second one; of a
                statement that marks what it returns they wait in the queue, where partitions take
                turns. None: partitions are not looked at.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidQueryError: If the statement cannot be used, as far as that is known without
                running it; the rest comes with the first attempt, before anything is changed.
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        if not isinstance(sql, str):
            remedy = "give a str: UPDATE … RETURNING id, or SELECT id"
            raise InvalidArgumentError("sql", sql, remedy)
        rule = self._rule(
            name,
            lease,
            deliveries,
            partition_concurrency,
            statement=sql,
            retries=to_count("retries", retries),
        )
        # A schedule of its own: only this task waits for the statement.
        schedule = self._new(Schedule(self))
        task = self._task(name, schedule, options)
        self._backend.check_statement(name, sql)
        schedule.add(task, rule)
        return task

    def queue_task(
        self,
        name: str,
        *,
        key: str = "%",
        tags: Sequence[str] = (),
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        partition_concurrency: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task:
        r"""Make a task that claims what `enqueue`, or plain SQL, put into the queue.

        High priorities first, then by time, then by arrival.

        Args:
            name: Name of the task.
            key: Only instructions LIKE this: `%` is any characters, `_` is one, a backslash
                takes their meaning away; case counts.
            tags: Only instructions all of whose tags are among these.
            lease: See `claim_task`.
            deliveries: See `claim_task`.
            partition_concurrency: How many of one partition may be active at most, over the whole
                fleet; partitions take turns then, and the order is that within each. What has no
                partition is not limited, and takes turns as one. None: partitions are not looked
                at.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        offered = to_strings("tags", tags)
        rule = self._rule(
            name, lease, deliveries, partition_concurrency, key=to_key(key), tags=offered
        )
        return self._add_shared(rule, options)

    def cron_task(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        fold: Fold | Any = "auto",
        gap: Gap = "forward",
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Make a task whose instructions are fire times, each claimed once in the whole fleet.

        The instruction is the time in ISO 8601, in UTC. The next time is kept in the storage, for
        each expression that the task has: while two versions of a program with different
        expressions run, the times of both are dispatched, and a time of both once.

        Args:
            name: Name of the task.
            expression: Five fields, or six with seconds first; see `planton.delays.cron`.
            timezone: In which it is read.
            misfire: What becomes of times missed by more than a minute: `"skip"` them, dispatch
                the last of them `"once"`, or dispatch them `"all"`.
            fold: What becomes of times that a clock shows twice; see `planton.delays.cron`.
            gap: What becomes of times that a clock skips.
            lease: See `claim_task`.
            deliveries: See `claim_task`.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        times = CronTimes.of(expression, timezone=timezone, misfire=misfire, fold=fold, gap=gap)
        return self._add_shared(self._rule(name, lease, deliveries, cron=times), options)

    def _rule(
        self, name: str, lease: Any, deliveries: Any, partition_concurrency: Any = None, **rest: Any
    ) -> Rule:
        most = partition_concurrency
        if most is not None:
            most = to_count("partition_concurrency", most, 1)
        return Rule(
            task_name=to_name(name, "name"),
            claimed_by=self.name,
            lease=to_number("lease", lease, above=0),
            deliveries=None if deliveries is None else to_count("deliveries", deliveries, 1),
            partition_concurrency=most,
            keeps=self._retention != 0,
            **rest,
        )

    def _task(self, name: str, schedule: Schedule, options: Any) -> Task:
        for field in options:
            if field not in TaskOptions.__annotations__:
                known = ", ".join(TaskOptions.__annotations__)
                remedy = f"give some of {known}: a storage counts, claims and releases by itself"
                raise InvalidTaskError(field, options[field], remedy)
        return Task(name=name, schedule=schedule, cap="strict", release=self._give_back, **options)

    def _add_shared(self, rule: Rule, options: TaskOptions) -> Task:
        """Make a task that shares its schedule; one of a name that is taken begins a new one.

        That task was unregistered, or belongs to another Planton: each is claimed for by its own
        rule.
        """
        schedule = self._shared
        if rule.task_name in schedule.rules:
            schedule = self._new(SharedSchedule(self))
        task = self._task(rule.task_name, schedule, options)
        schedule.add(task, rule)
        self._shared = schedule
        return task

    async def _give_back(self, claims: Sequence[Claim]) -> None:
        # Not a wake-up: Planton gives back what it cannot deliver now, and would claim it again.
        receipts = list(receipts_of(claims).values())
        with trio.CancelScope(shield=True):
            await self.report(Report("give_back", receipts))
