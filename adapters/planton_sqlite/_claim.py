"""The strict claim: counts and claims in one transaction, which only one process has at a time."""

import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from planton import Batch, Claim, ScheduleRequest
from planton.storage import CronTimes, KeptTime
from planton_sqlite._receipts import to_receipt
from planton_sqlite._source import Source
from planton_sqlite._statements import CLAIM

# While changes of other processes wake its task, an idle one looks no more often than that, in
# seconds: to be on the safe side, as nothing should be found then.
REST = 150.0


@attrs.define(eq=False)
class Memory:
    """What the last attempt of a task saw, for whoever wakes it.

    Attributes:
        concurrency: That of the code, as asked for; plenty before the first attempt.
        is_saturated: Whether there was no room.
    """

    concurrency: int = 2**31
    is_saturated: bool = False


@attrs.frozen(kw_only=True)
class ClaimRule:
    """How the instructions of a task are claimed.

    Attributes:
        lease: Seconds that a claim lasts without a heartbeat.
        claimed_by: Whom a claim names as the one that has it.
        deliveries: Most times that one is handed out; None for no limit.
        delay: Seconds that the task waits between attempts, which a rest is no shorter than; 0 if
            that varies.
        key: Which ones of the queue, as a pattern for GLOB.
        tags: What the dispatcher offers, as a JSON array.
        retries: How many an instruction has that comes from `source`.
        source: The user's statement, if there is one.
        times: The time table of a cron task.
        is_kept: Whether there is a history.
        is_concurrency_fixed: Whether the code has a number for it, and no function.
        is_live: Tells whether changes of other processes wake the task.
        memory: Of the last attempt.
    """

    lease: float
    claimed_by: str
    deliveries: int | None = None
    delay: float = 0.0
    key: str = "*"
    tags: str = "[]"
    retries: int = 0
    source: Source | None = None
    times: CronTimes | None = None
    is_kept: bool = True
    is_concurrency_fixed: bool = True
    is_live: Callable[[], bool] = bool
    memory: Memory = attrs.field(factory=Memory, eq=False)


@attrs.define
class State:
    """A task as the transaction finds it. Times are seconds since 1970 by the database's clock."""

    now: float
    is_paused: bool
    concurrency: int | None
    next_fire_at: float | None
    active: int
    expired: int
    first_run_at: float | None
    lease_expires_at: float | None
    changes: int


def active_instructions(connection: sqlite3.Connection, task_name: str) -> list[str]:
    """Give what is active now."""
    rows = connection.execute(CLAIM["active"], {"task_name": task_name})
    return [instruction for (instruction,) in rows]


def look(connection: sqlite3.Connection, request: ScheduleRequest, rule: ClaimRule) -> Batch | None:
    """Give the answer if there is nothing to claim, None if it takes a transaction to tell."""
    return _Claiming.of(connection, request, rule).look()


def claim(connection: sqlite3.Connection, request: ScheduleRequest, rule: ClaimRule) -> Batch:
    """Claim up to what the cap leaves room for; the transaction is the caller's."""
    return _Claiming.of(connection, request, rule).run()


def next_at(
    connection: sqlite3.Connection, task_name: str, rule: ClaimRule
) -> tuple[float | None, float]:
    """Tell when an attempt may find something, None if nothing says so; and what time it is now."""
    request = ScheduleRequest(
        task_name=task_name,
        active_instructions=(),
        concurrency=rule.memory.concurrency,
        limit=rule.memory.concurrency,
        attempt_number=0,
    )
    claiming = _Claiming.of(connection, request, rule)
    return claiming.next_at(), claiming.state.now


@attrs.define
class _Claiming:
    """One claim of one task, step by step."""

    connection: sqlite3.Connection
    request: ScheduleRequest
    rule: ClaimRule
    state: State
    claims: list[Claim] = attrs.field(factory=list)
    next_times: list[float] = attrs.field(factory=list)

    @classmethod
    def of(
        cls, connection: sqlite3.Connection, request: ScheduleRequest, rule: ClaimRule
    ) -> "_Claiming":
        key = None if rule.times is None else rule.times.key
        parameters = {"task_name": request.task_name, "cron": key}
        row = connection.execute(CLAIM["state"], parameters).fetchone()
        return cls(connection, request, rule, State(*row))

    def look(self) -> Batch | None:
        """Give the answer of an attempt that writes nothing."""
        state = self.state
        is_idle = self.rule.source is None and not self._is_due()
        if state.is_paused or (not state.expired and (self.room <= 0 or is_idle)):
            self._remember()
            self.next_times = [t for t in (state.first_run_at, self.state.next_fire_at) if t]
            return self._batch(state.active)
        return None

    def next_at(self) -> float | None:
        """Tell when an attempt may find something; None if nothing says so."""
        state = self.state
        if state.is_paused:
            return None
        if state.expired or (self.room > 0 and self._may_claim()):
            return state.now
        times = [state.lease_expires_at]
        times += [state.first_run_at, self.state.next_fire_at] if self.room > 0 else []
        return min((time for time in times if time and time > state.now), default=None)

    def _may_claim(self) -> bool:
        """Tell whether there is something for this very task, or may be in the user's table."""
        if self.rule.source is not None and self.rule.memory.is_saturated:
            return True
        if not self._is_due():
            return False
        return self.rule.times is not None or bool(self._due(1))

    def _is_due(self) -> bool:
        """Tell whether something of the queue or of the calendar may be due."""
        times = [self.state.first_run_at]
        if self.rule.times is not None:
            times.append(self.state.next_fire_at or self.state.now)
        return any(time is not None and time <= self.state.now for time in times)

    def run(self) -> Batch:
        active = self.state.active
        if self.state.is_paused:
            return Batch([], active=active)
        if self.state.expired:
            self._rescue()
        if self.state.first_run_at is not None:
            self._take_pending(self.state.first_run_at)
        if self.rule.times is not None:
            self._take_times(self.rule.times)
        if self.rule.source is not None and self.room > 0:
            self._take_from(self.rule.source)
        self._remember()
        return self._batch(active)

    @property
    def room(self) -> int:
        """How many more may be claimed; claims that changed hands are counted as active."""
        override = self.state.concurrency
        concurrency = self.request.concurrency if override is None else override
        return min(self.request.limit - len(self.claims), concurrency - self.state.active)

    def _rescue(self) -> None:
        """Bury what was handed out too often, hand out again what else expired.

        What this dispatcher does not offer goes back to those that do.
        """
        self.state.active -= self.state.expired
        if self.rule.deliveries is not None:
            parameters = {"deliveries": self.rule.deliveries, "is_kept": self.rule.is_kept}
            self._execute("bury", **parameters)
            self.state.expired -= self._execute("forget_buried", **parameters).rowcount
        offered = {"key": self.rule.key, "tags": self.rule.tags}
        self._execute("roll_back", **offered)
        self.state.expired -= self._execute("forget_rolled_back", **offered).rowcount
        if self.room > 0:
            self._claimed(self._execute("take_over", limit=self.room).fetchall())
        # Those for which there is no room hold their slots all the same.
        self.state.active += max(self.state.expired - len(self.claims), 0)

    def _take_pending(self, first_run_at: float) -> None:
        if first_run_at <= self.state.now and self.room > 0:
            self._activate(self._due(self.room))
        if first_run_at > self.state.now:
            self.next_times.append(first_run_at)
        elif self.room > 0:
            (next_run_at,) = self._execute("next_run").fetchone()
            self.next_times += [] if next_run_at is None else [next_run_at]

    def _due(self, limit: int) -> list[tuple[int, str]]:
        options = {"key": self.rule.key, "tags": self.rule.tags, "limit": limit}
        return self._execute("due", **options).fetchall()

    def _activate(self, due: list[tuple[int, str]]) -> None:
        if not due:
            return
        ids = json.dumps([row_id for row_id, _ in due])
        rows = self._execute("activate", ids=ids).fetchall()
        self._execute("unqueue", ids=ids)
        # RETURNING promises no order.
        place = {instruction: index for index, (_, instruction) in enumerate(due)}
        self._claimed(sorted(rows, key=lambda row: place[row[0]]))

    def _take_times(self, times: CronTimes) -> None:
        rows = self._execute("fires").fetchall()
        kept = {key: KeptTime(_to_datetime(at), bool(is_done)) for key, at, is_done in rows}
        fires = times.fires(kept, _to_datetime(self.state.now), self.room)
        due = [time.astimezone(UTC) for time in fires.due]
        self._record([time.isoformat() for time in due], since=min(due, default=None))
        next_fire_at = fires.next_at.timestamp()
        if kept.get(times.key) != KeptTime(fires.next_at):
            self._execute("keep_next_fire", key=times.key, next_fire_at=next_fire_at)
        for statement, keys in (("fires_done", fires.shared), ("forget_fires", fires.gone)):
            if keys:
                self._execute(statement, keys=json.dumps(keys))
        self.next_times.append(next_fire_at)

    def _take_from(self, source: Source) -> None:
        active = active_instructions(self.connection, self.request.task_name)
        given = {"active": json.dumps(active), "now": self.state.now}
        if source.is_select:
            self._take_found(source, given, len(active))
            return
        found = source.run(self.connection, {**given, "limit": self.room})
        if self.state.changes:
            # What a claim changes in the user's table does not wake its own task.
            self._execute("keep_changes", changes=self.state.changes)
        lost = set(found) - self._record(found)
        if lost:
            instructions = json.dumps(sorted(lost))
            self._execute("postpone", instructions=instructions, retries=self.rule.retries)

    def _take_found(self, source: Source, given: dict[str, Any], active: int) -> None:
        """Claim rows that a SELECT finds, though it finds those that are not to be claimed, too.

        What is active or queued is few: it asks for so many more. What failed may be many, and
        most of their rows may be gone: it asks for more only if it must.
        """
        queued, failed = self._execute("left_out").fetchone()
        limit = self.room + active + queued
        most = limit + failed
        while True:
            found = source.run(self.connection, {**given, "limit": limit})
            self._record(found, is_select=True)
            if self.room <= 0 or len(found) < limit or limit >= most:
                return
            limit = min(limit * 32, most)

    def _record(
        self,
        instructions: Sequence[str],
        *,
        is_select: bool = False,
        since: datetime | None = None,
    ) -> set[str]:
        if not instructions:
            return set()
        options: dict[str, Any] = {
            "retries": self.rule.retries,
            "limit": self.room,
            "is_select": is_select,
            "since": None if since is None else since.timestamp(),
        }
        rows = self._execute("record", instructions=json.dumps(instructions), **options).fetchall()
        place = {instruction: index for index, instruction in enumerate(instructions)}
        self._claimed(sorted(rows, key=lambda row: place[row[0]]))
        return {row[0] for row in rows}

    def _claimed(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.state.active += len(rows)
        self.claims += [
            Claim(
                instruction=instruction,
                receipt=to_receipt(receipt),
                payload=None if payload is None else json.loads(payload),
                delivery=delivery,
                lease=lease,
                timeout=timeout,
            )
            for instruction, receipt, payload, delivery, lease, timeout in rows
        ]

    def _remember(self) -> None:
        self.rule.memory.concurrency = self.request.concurrency
        self.rule.memory.is_saturated = self.room <= 0

    def _batch(self, active: int) -> Batch:
        next_in = max(REST, self.rule.delay) if self._may_rest() else None
        return Batch(self.claims, active=active, next_in=next_in, due_in=self._due_in())

    def _due_in(self) -> float | None:
        """Give the seconds until something may be due that is not yet."""
        times = [*self.next_times, self.state.lease_expires_at or 0.0]
        waits = [time - self.state.now for time in times if time > self.state.now]
        waits += [min(claim.lease or math.inf, claim.timeout or math.inf) for claim in self.claims]
        return min(waits, default=None)

    def _may_rest(self) -> bool:
        """Tell whether the task is woken as soon as there is something to claim."""
        rule, state = self.rule, self.state
        # The end of the first lease is known, and if that is over no other one.
        is_rescue = state.lease_expires_at is not None and state.lease_expires_at <= state.now
        is_told = rule.source is None and (rule.is_concurrency_fixed or self.room > 0)
        return rule.is_live() and is_told and not (self.claims or is_rescue)

    def _execute(self, statement: str, **parameters: Any) -> sqlite3.Cursor:
        common = {
            "task_name": self.request.task_name,
            "now": self.state.now,
            "lease": self.rule.lease,
            "claimed_by": self.rule.claimed_by,
        }
        return self.connection.execute(CLAIM[statement], {**common, **parameters})


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
