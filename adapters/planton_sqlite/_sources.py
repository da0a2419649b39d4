"""The tasks that a SQLite storage makes: of the user's own tables, of the queue, of a calendar."""

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import attrs

from planton import Claim, InvalidArgumentError, Task
from planton.storage import (
    CronTimes,
    Misfire,
    receipts_of,
    to_count,
    to_lease,
    to_strings,
)
from planton_sqlite import _end, _open
from planton_sqlite._base import Base
from planton_sqlite._claim import ClaimRule
from planton_sqlite._receipts import to_numbers
from planton_sqlite._source import Source

_LIKE = re.compile(r"\\(.)|(.)", re.DOTALL)
_GLOB = {"%": "*", "_": "?"}


class Sources(Base):
    """Makes tasks; see `planton.storage.Storage`."""

    def claim_task(
        self,
        name: str,
        *,
        sql: str,
        retries: int = 0,
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a strict task that claims from the user's own tables.

        One transaction takes over claims whose lease expired, then what was given back or is to
        be tried again, then runs `sql` for the room that is left, and records what it gave.

        Args:
            name: Name of the task.
            sql: A statement that gives one column, the instruction: `UPDATE … RETURNING id`,
                which claims, or `SELECT id`, whose rows disappear when the work is done. It is
                given `:limit` (how many may be claimed; required), `:active` (a JSON array of
                the active instructions, for `json_each`) and `:now` (seconds since 1970). A
                SELECT finds its active rows again, so its limit is larger by as many.
            retries: How often an instruction is queued again after it failed.
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: Most times that an instruction is handed out before its lease expires
                for the last time; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidQueryError: If the statement cannot be used; nothing was run.
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        rule = self._rule(lease, deliveries, retries=to_count("retries", retries))
        task = self._task(name, options)
        source = Source(name, sql).checked(lambda: _open.connect_existing(self.path))
        return self._register(task, attrs.evolve(rule, source=source))

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
        r"""Make a strict task that claims what `enqueue` put into the queue.

        High priorities first, then by time, then by arrival.

        Args:
            name: Name of the task.
            key: Only instructions LIKE this: `%` is any characters, `_` is one, a backslash
                takes their meaning away; case counts.
            tags: Only instructions all of whose tags are among these.
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: Most times that an instruction is handed out before its lease expires
                for the last time; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        if not isinstance(key, str):
            raise InvalidArgumentError("key", key, 'give a pattern for LIKE, such as "user:%"')
        offered = json.dumps(to_strings("tags", tags))
        rule = self._rule(lease, deliveries, key=to_glob(key), tags=offered)
        return self._register(self._task(name, options), rule)

    def cron_task(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        fold: Any = "auto",
        gap: Any = "forward",
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a strict task whose instructions are fire times, each claimed once in the fleet.

        All dispatchers should give the same expression: one that gives another begins the time
        table anew.

        Args:
            name: Name of the task.
            expression: Five fields, or six with seconds first; see `planton.delays.cron`.
            timezone: In which it is read.
            misfire: What becomes of times missed by more than a minute: `"skip"` them,
                dispatch the last of them `"once"`, or dispatch them `"all"`.
            fold: What becomes of times that a clock shows twice; see `planton.delays.cron`.
            gap: What becomes of times that a clock skips.
            lease: Seconds, or a timedelta, that a claim lasts without a heartbeat.
            deliveries: Most times that an instruction is handed out before its lease expires
                for the last time; None for no limit.
            **options: Fields of `Task`: concurrency, delay, capacity, timeout.

        Raises:
            InvalidTaskError: If an option cannot be used.
            InvalidArgumentError: If another argument cannot be used.
        """
        times = CronTimes.of(expression, timezone=timezone, misfire=misfire, fold=fold, gap=gap)
        rule = self._rule(lease, deliveries, times=times)
        return self._register(self._task(name, options), rule)

    def _rule(self, lease: float | timedelta, deliveries: int | None, **rest: Any) -> ClaimRule:
        return ClaimRule(
            lease=to_lease(lease),
            deliveries=None if deliveries is None else to_count("deliveries", deliveries, 1),
            is_kept=self._history.is_kept,
            claimed_by=self._name,
            is_live=self._wake_ups.is_live,
            **rest,
        )

    def _task(self, name: str, options: dict[str, Any]) -> Task:
        return Task(
            name=name, schedule=self._schedule, cap="strict", release=self._release, **options
        )

    def _register(self, task: Task, rule: ClaimRule) -> Task:
        if task.name in self._schedule.rules:
            self._schedule = self._new_schedule()
            task = attrs.evolve(task, schedule=self._schedule)
        is_fixed = not callable(task.concurrency)
        self._schedule.rules[task.name] = attrs.evolve(
            rule, delay=_seconds(task.delay), is_concurrency_fixed=is_fixed
        )
        return task

    async def _release(self, claims: Sequence[Claim]) -> None:
        # Not a wake-up: Planton gives back what it cannot deliver now, and would claim it again.
        numbers = list(to_numbers(receipts_of(claims)).values())
        await self._owner.write(lambda connection: _end.take_back(connection, numbers))


def _seconds(delay: Any) -> float:
    """Give the delay of a task if it is always the same, 0 if it is not."""
    if isinstance(delay, timedelta):
        return delay.total_seconds()
    return 0.0 if callable(delay) else float(delay)


def to_glob(key: str) -> str:
    """Give a pattern for LIKE as one for GLOB, for which case counts as it does elsewhere."""
    return _LIKE.sub(lambda match: _literal(match[1]) if match[1] else _special(match[2]), key)


def _special(character: str) -> str:
    return _GLOB.get(character) or _literal(character)


def _literal(character: str) -> str:
    return f"[{character}]" if character in "*?[" else character
