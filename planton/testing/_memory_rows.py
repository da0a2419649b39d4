"""The rows of the in-memory storage, and the transactions that see and lock them."""

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import attrs
import trio

from planton._task import Claim
from planton.storage import KeptTime, Status

Key: TypeAlias = tuple[str, str]


@attrs.frozen(kw_only=True)
class Row:
    """One instruction of one task. Times are those of trio's clock.

    Attributes:
        status: Where it is in its life.
        receipt: Name of its claim while it is active.
        payload: Handed to consumers.
        priority: High ones are claimed first.
        run_at: When it is due, while it is pending.
        tags: What a dispatcher must offer.
        retries: How many are left.
        timeout: Seconds that one delivery may take.
        delivery: How often it was handed out.
        lease: Seconds that a claim lasts without a heartbeat; None for ever.
        lease_expires_at: End of the claim.
        outcome: How it ended.
        given_back: How often in a row a dispatcher could not deliver it.
        id: Its place in the order of arrival.
    """

    task_name: str
    instruction: str
    status: Literal["pending", "active", "ended"] = "pending"
    receipt: str | None = None
    payload: Any = None
    priority: int = 0
    run_at: float = -math.inf
    tags: tuple[str, ...] = ()
    retries: int = 0
    timeout: float | None = None
    delivery: int = 0
    lease: float | None = None
    lease_expires_at: float | None = None
    outcome: Status | None = None
    result: Any = None
    error: str | None = None
    created_at: float = 0.0
    claimed_at: float | None = None
    claimed_by: str | None = None
    ended_at: float | None = None
    given_back: int = 0
    id: int = 0

    @property
    def key(self) -> Key:
        """What is unique about it, among the pending and among the active."""
        return (self.task_name, self.instruction)

    @property
    def order(self) -> tuple[int, float, int]:
        """Its place among the pending."""
        return (-self.priority, self.run_at, self.id)

    def is_expired(self, now: float) -> bool:
        """Tell whether its lease is over."""
        return self.lease_expires_at is not None and self.lease_expires_at <= now

    def renewed(self, now: float, lease: float | None) -> "Row":
        """Give it with a lease from now on, which does not go beyond its timeout."""
        assert self.claimed_at is not None, "only claims have leases"
        end = math.inf if lease is None else now + lease
        latest = math.inf if self.timeout is None else self.claimed_at + self.timeout
        expires_at = min(end, latest)
        known = None if expires_at == math.inf else expires_at
        return attrs.evolve(self, lease=lease, lease_expires_at=known)

    def claimed(self, now: float, lease: float | None, by: str) -> "Row":
        """Give it with a new receipt."""
        row = attrs.evolve(
            self,
            status="active",
            receipt=secrets.token_hex(8),
            delivery=self.delivery + 1,
            claimed_at=now,
            claimed_by=by,
        )
        return row.renewed(now, lease)

    def left(self, status: Literal["pending", "ended"], **changes: Any) -> "Row":
        """Give it as it is when it is active no more."""
        ended = {"status": status, "receipt": None, "lease_expires_at": None, "given_back": 0}
        return attrs.evolve(self, **{**ended, **changes})


@attrs.frozen
class TaskState:
    """What operators have said about a task, and the next times of a cron task's time tables."""

    is_paused: bool = False
    concurrency: int | None = None
    fires: Mapping[str, KeptTime] = attrs.field(factory=dict)


class Tables(Protocol):
    """What is committed, and who has locked which instructions."""

    name: str
    committed: dict[int, Row]
    tasks: dict[str, TaskState]
    locks: dict[Key, "Transaction"]

    def new_id(self) -> int: ...

    def note_unlock(self) -> None: ...


class Transaction:
    """Sees what is committed and what it has written itself; locks the rows that it writes."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._written: dict[int, Row | None] = {}
        self._tasks: dict[str, TaskState] = {}
        self._keys: set[Key] = set()

    def all_rows(self) -> list[Row]:
        """Give all rows as this transaction sees them, in the order of their arrival."""
        rows = {**self._tables.committed, **self._written}
        return [row for row in rows.values() if row is not None]

    def rows(self, task_name: str, status: str) -> list[Row]:
        """Give the rows of a task as this transaction sees them; pending ones in their order."""
        rows = [
            row for row in self.all_rows() if (row.task_name, row.status) == (task_name, status)
        ]
        return sorted(rows, key=lambda row: row.order) if status == "pending" else rows

    def unlocked(self, rows: Iterable[Row]) -> list[Row]:
        """Leave out rows that another transaction has locked (SKIP LOCKED)."""
        return [row for row in rows if self.may_lock(row.key)]

    def may_lock(self, key: Key) -> bool:
        """Tell whether no other transaction has an instruction locked."""
        return self._tables.locks.get(key, self) is self

    def write(self, row: Row) -> None:
        """Lock a row and change it; nobody else sees the change before the commit."""
        self._lock(row.key)
        self._written[row.id] = row

    def add(self, row: Row) -> Row:
        """Lock an instruction and add a row for it."""
        new = attrs.evolve(row, id=self._tables.new_id())
        self.write(new)
        return new

    def delete(self, row: Row) -> None:
        """Lock a row and delete it."""
        self._lock(row.key)
        self._written[row.id] = None

    def requeue(self, row: Row) -> None:
        """Make a row pending, unless its instruction is so: that is the same unit of work."""
        if any(
            row.instruction == other.instruction for other in self.rows(row.task_name, "pending")
        ):
            self.delete(row)
        else:
            self.write(row)

    def task(self, name: str) -> TaskState:
        """Give what is said about a task."""
        return self._tasks.get(name) or self._tables.tasks.get(name) or TaskState()

    def write_task(self, name: str, **changes: Any) -> None:
        """Change what is said about a task."""
        self._tasks[name] = attrs.evolve(self.task(name), **changes)

    def claim(
        self,
        task_name: str,
        limit: int,
        lease: float | None = None,
        wanted: Callable[[Row], bool] = lambda _: True,
    ) -> list[Claim]:
        """Claim expired rows, then pending ones; rows locked by others are skipped."""
        now = trio.current_time()
        expired = [row for row in self.rows(task_name, "active") if row.is_expired(now)]
        claims = self.hand_out(expired, limit, lease)
        taken = {row.instruction for row in self.rows(task_name, "active")}
        due = [
            row
            for row in self.rows(task_name, "pending")
            if row.run_at <= now and row.instruction not in taken and wanted(row)
        ]
        return claims + self.hand_out(due, limit - len(claims), lease)

    def hand_out(self, rows: Sequence[Row], limit: int, lease: float | None) -> list[Claim]:
        """Claim the first of some rows; those locked by others are skipped."""
        now = trio.current_time()
        claims = []
        for row in self.unlocked(rows)[: max(limit, 0)]:
            claimed = row.claimed(now, lease, self._tables.name)
            self.write(claimed)
            claims.append(
                Claim(
                    instruction=row.instruction,
                    receipt=claimed.receipt,
                    payload=row.payload,
                    delivery=claimed.delivery,
                    lease=lease,
                    timeout=row.timeout,
                )
            )
        return claims

    def commit(self) -> None:
        """Make what was written visible to all, at once."""
        for row_id, row in self._written.items():
            if row is None:
                self._tables.committed.pop(row_id, None)
            else:
                self._tables.committed[row_id] = row
        self._tables.tasks.update(self._tasks)

    def close(self) -> None:
        """Let go of all locks; what was not committed is gone."""
        for key in self._keys:
            del self._tables.locks[key]
        self._keys, self._written, self._tasks = set(), {}, {}
        self._tables.note_unlock()

    def _lock(self, key: Key) -> None:
        assert self.may_lock(key), "the row is locked"
        self._tables.locks[key] = self
        self._keys.add(key)
