"""The strict claim of the in-memory storage, within a transaction that has the task's lock."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import attrs
import trio

from planton._task import Batch, Claim, ScheduleRequest
from planton.storage import CronTimes, FireTimes, KeptTime
from planton.testing._memory_rows import Row, Transaction

_LIKE = re.compile(r"\\(.)|(.)", re.DOTALL)
_WILDCARDS = {"%": ".*", "_": "."}


@attrs.frozen(kw_only=True)
class ClaimRule:
    """How the instructions of a task are claimed.

    Attributes:
        lease: Seconds that a claim lasts without a heartbeat.
        deliveries: Most times that one is handed out; None for no limit.
        key: Which instructions.
        tags: What the dispatcher offers.
        times: The time table of a cron task.
    """

    lease: float
    deliveries: int | None
    key: re.Pattern[str]
    tags: frozenset[str]
    times: CronTimes | None = None

    def wants(self, row: Row) -> bool:
        """Tell whether the dispatcher can have it."""
        return self.key.fullmatch(row.instruction) is not None and self.tags.issuperset(row.tags)


def to_pattern(key: str) -> re.Pattern[str]:
    """Give a pattern for LIKE as a regular expression."""
    parts = (
        re.escape(escaped) if escaped else _WILDCARDS.get(plain) or re.escape(plain)
        for escaped, plain in _LIKE.findall(key)
    )
    return re.compile("".join(parts), re.DOTALL)


@attrs.define
class Claiming:
    """One claim of one task, step by step."""

    transaction: Transaction
    request: ScheduleRequest
    rule: ClaimRule
    to_datetime: Callable[[float], datetime]
    to_seconds: Callable[[datetime], float]
    claims: list[Claim] = attrs.field(factory=list)
    next_times: list[float] = attrs.field(factory=list)
    now: float = attrs.field(factory=trio.current_time)

    def run(self) -> Batch:
        active = len(self._active())
        if self.transaction.task(self.request.task_name).is_paused:
            return Batch([], active=active)
        self._rescue()
        self._take_pending()
        if self.rule.times is not None:
            self._take_times(self.rule.times)
        self.next_times += [row.lease_expires_at or 0.0 for row in self._active()]
        return Batch(self.claims, active=active, due_in=self._due_in())

    def _active(self) -> list[Row]:
        return self.transaction.rows(self.request.task_name, "active")

    def _room(self, active: int) -> int:
        override = self.transaction.task(self.request.task_name).concurrency
        concurrency = self.request.concurrency if override is None else override
        return min(self.request.limit - len(self.claims), concurrency - active)

    def _rescue(self) -> None:
        """Bury what was handed out too often, hand out again what else expired.

        What this dispatcher does not offer goes back to those that do.
        """
        active = self._active()
        expired = self.transaction.unlocked(row for row in active if row.is_expired(self.now))
        most = self.rule.deliveries
        for row in expired:
            if most is not None and row.delivery >= most:
                self.transaction.write(_buried(row, self.now))
        left = [row for row in expired if most is None or row.delivery < most]
        for row in left:
            if not self.rule.wants(row):
                self.transaction.requeue(row.left("pending", run_at=self.now))
        wanted = [row for row in left if self.rule.wants(row)]
        self._hand_out(wanted, self._room(len(active) - len(expired)))

    def _take_pending(self) -> None:
        taken = {row.instruction for row in self._active()}
        pending = self.transaction.rows(self.request.task_name, "pending")
        free = [row for row in pending if row.instruction not in taken and self.rule.wants(row)]
        self._hand_out(
            [row for row in free if row.run_at <= self.now], self._room(len(self._active()))
        )
        self.next_times += [row.run_at for row in free if row.run_at > self.now]

    def _take_times(self, times: CronTimes) -> None:
        name, kept = self.request.task_name, self.transaction.task(self.request.task_name).fires
        room = self._room(len(self._active()))
        fires = times.fires(kept, self.to_datetime(self.now), room)
        # A time fires once, however it ended.
        known = {row.instruction for row in self.transaction.all_rows() if row.task_name == name}
        due = [time.astimezone(UTC).isoformat() for time in fires.due]
        rows = [
            Row(task_name=name, instruction=time, created_at=self.now)
            for time in due
            if time not in known
        ]
        self._hand_out([self.transaction.add(row) for row in rows], room)
        self.transaction.write_task(name, fires=_kept_after(fires, kept, times.key))
        self.next_times.append(self.to_seconds(fires.next_at))

    def _hand_out(self, rows: Sequence[Row], room: int) -> None:
        self.claims += self.transaction.hand_out(rows, room, self.rule.lease)

    def _due_in(self) -> float | None:
        """Give the seconds until something may be due that is not yet."""
        return min((time - self.now for time in self.next_times if time > self.now), default=None)


def _kept_after(fires: FireTimes, kept: Mapping[str, KeptTime], key: str) -> dict[str, KeptTime]:
    """Give the next times of all time tables of a task after a claim for the one of `key`."""
    left = {
        other: attrs.evolve(time, is_done=time.is_done or other in fires.shared)
        for other, time in kept.items()
        if other not in fires.gone
    }
    return {**left, key: KeptTime(fires.next_at)}


def _buried(row: Row, now: float) -> Row:
    error = f"its lease expired, and delivery {row.delivery} was the last"
    return row.left("ended", outcome="dead", error=error, ended_at=now)
