"""The tasks of a Postgres storage: of the user's own tables, of the queue, of a calendar."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import attrs

from planton import Claim, Task
from planton.storage import CronTimes, Misfire, receipts_of
from planton_postgres._base import Base
from planton_postgres._limits import to_text, to_texts
from planton_postgres._rule import ClaimRule
from planton_postgres._source import Source


class Sources(Base):
    """Makes tasks; see `planton.storage.Storage`."""

    def claim_task(
        self,
        name: str,
        *,
        sql: str,
        lease: float | timedelta = 60.0,
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
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            retries: How often `fail` puts an instruction back into the queue.
            deliveries: The most times that one is handed out; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidQueryError: If the statement lacks `%(limit)s` or has parameters that nobody
                gives. What the server has to say about it comes with the first attempt.
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot.
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
        lease: float | timedelta = 60.0,
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
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: The most times that one is handed out; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot.
        """
        rule = ClaimRule(
            lease=lease,
            deliveries=deliveries,
            key=to_text("key", key),
            tags=to_texts("tags", tags),
        )
        return self._added(self._task(name, self._from_queue, options), rule)

    def cron_task(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        lease: float | timedelta = 60.0,
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
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: The most times that one is handed out; None for no limit.
            **options: `fold` and `gap`, and fields of `Task`.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot.
        """
        policies = {each: options.pop(each) for each in ("fold", "gap") if each in options}
        times = CronTimes.of(expression, timezone=timezone, misfire=misfire, **policies)
        task = self._task(name, self._from_source, options)
        rule = ClaimRule(lease=lease, deliveries=deliveries, times=times)
        return self._added(task, rule)

    def _task(self, name: str, schedule: Any, options: dict[str, Any]) -> Task:
        return Task(name=name, schedule=schedule, cap="strict", release=self._release, **options)

    def _added(self, task: Task, rule: ClaimRule) -> Task:
        to_text("name", task.name)
        if task.name in self._claimer.rules:
            # It was unregistered, or is of another Planton: each is claimed for by its own rule.
            self._begin_schedules()
            schedule = self._from_queue if rule.kind == "queue" else self._from_source
            task = attrs.evolve(task, schedule=schedule)
        self._claimer.rules[task.name] = attrs.evolve(rule, delay=_seconds(task))
        return task

    async def _release(self, claims: Sequence[Claim]) -> None:
        # Not a wake-up: Planton gives back what it cannot deliver now, and would claim it again.
        await self._reports.give_back(receipts_of(claims))


def _seconds(task: Task) -> float | None:
    """Give the delay of a task, if it is always the same."""
    if isinstance(task.delay, timedelta):
        return task.delay.total_seconds()
    return float(task.delay) if isinstance(task.delay, int | float) else None
