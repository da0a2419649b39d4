"""What every storage promises, as a model: one list of rows, and a clock that is set.

Nothing in it is fast, durable or shared; the steps of `claim` are those of the storages.
"""

from collections.abc import Sequence
from typing import Any

import attrs

OWNERS = {"1": "odd", "3": "odd"}  # the partitions of some items
LOST = "its lease expired, and its deliveries are used up: {}"
FAILED = ("failed", "dead")


def owner_of(item: str) -> str:
    return OWNERS.get(item, "")


@attrs.frozen(kw_only=True)
class Rule:
    """How a dispatcher claims, and from where: "queue", or rows that it "marks" or "finds"."""

    task: str
    concurrency: int
    lease: float
    tags: tuple[str, ...] = ()
    prefix: str = ""
    deliveries: int | None = None
    retries: int = 0
    source: str = "queue"
    partition_concurrency: int | None = None

    def offers(self, row: "Row") -> bool:
        return row.instruction.startswith(self.prefix) and {*row.tags} <= {*self.tags}


@attrs.define(eq=False, kw_only=True)
class Row:
    """An instruction; `number` is that of its arrival in the queue, of its claim, or of its end."""

    task: str
    instruction: str
    status: str = "queued"
    payload: Any = None
    priority: int = 0
    tags: tuple[str, ...] = ()
    retries: int = 0
    timeout: float | None = None
    partition: str = ""
    delivery: int = 0
    result: Any = None
    error: str | None = None
    created_at: float
    run_at: float = 0.0
    failures: int = 0
    undelivered: int = 0
    lease: float = 0.0
    claimed_at: float = 0.0
    expires_at: float = 0.0
    ended_at: float = 0.0
    superseded: bool = False
    number: int = 0
    receipt: int = -1


class Model:
    """All rows of all tasks, and the user's own table: which of its items were marked."""

    def __init__(self) -> None:
        self.now, self.number = 0.0, 0
        self.rows: list[Row] = []
        self.items: dict[int, bool] = {}
        self.paused: set[str] = set()
        self.override: dict[str, int] = {}
        self.turn: dict[str, str] = {}  # by task, the partition that was served last

    def having(self, task: str, *statuses: str) -> list[Row]:
        found = [row for row in self.rows if row.task == task and row.status in statuses]
        return sorted(found, key=lambda row: row.number)

    def names(self, task: str, *statuses: str) -> list[str]:
        return [row.instruction for row in self.having(task, *statuses)]

    def next(self) -> int:
        self.number += 1
        return self.number

    # Producers

    def enqueue(self, task: str, instruction: str, *, run_in: float = 0.0, **given: Any) -> bool:
        is_new = instruction not in self.names(task, "queued")
        row = Row(task=task, instruction=instruction, created_at=self.now, **given)
        self.queue(row, run_in, undelivered=0)
        return is_new

    def queue(self, row: Row, run_in: float, **changes: Any) -> None:
        """Queue what is new or comes back; what is queued already is the same unit of work."""
        self.rows = [each for each in self.rows if each is not row]
        if row.instruction not in self.names(row.task, "queued"):
            changes |= {"status": "queued", "run_at": self.now + run_in, "number": self.next()}
            self.rows.append(attrs.evolve(row, receipt=-1, **changes))

    # The claim

    def claim(self, rule: Rule, limit: int) -> tuple[list[Row], int | None, float | None]:
        """Return what is claimed, how many were active, and when something may be due."""
        if rule.task in self.paused:
            return [], None, None
        cap = self.override.get(rule.task, rule.concurrency)
        active = len(self.having(rule.task, "running"))
        claimed = self._rescue(rule, limit, cap)
        for row in self._due(rule, self._room(rule, limit - len(claimed), cap)):
            claimed.append(self._start(row, rule, self.next()))
        given, beyond = self._ask(rule, self._room(rule, limit - len(claimed), cap))
        for name in given:
            more = {"retries": rule.retries, "partition": owner_of(name)}
            row = Row(task=rule.task, instruction=name, created_at=self.now, **more)
            self.rows.append(row)
            claimed.append(self._start(row, rule, self.next()))
        for name in beyond:
            self.enqueue(rule.task, name, retries=rule.retries, partition=owner_of(name))
        return claimed, active, self._due_in(rule, beyond or len(claimed) >= limit, cap)

    def _rescue(self, rule: Rule, limit: int, cap: int) -> list[Row]:
        expired = []
        for row in self.having(rule.task, "running"):
            if row.expires_at > self.now:
                continue
            if rule.deliveries is not None and row.delivery >= rule.deliveries:
                before = "" if row.error is None else f"; the error before was: {row.error}"
                self.end(row, "dead", error=LOST.format(row.delivery) + before)
            elif not rule.offers(row):
                self.queue(row, 0.0)
            else:
                expired.append(row)
        room = self._room(rule, limit, cap + len(expired))
        expired.sort(key=lambda row: (row.expires_at, row.number))
        taken = sorted(expired[:room], key=lambda row: row.number)
        return [self._start(row, rule, row.number) for row in taken]

    def _room(self, rule: Rule, limit: int, cap: int) -> int:
        return max(min(limit, cap - len(self.having(rule.task, "running"))), 0)

    def _waiting(self, rule: Rule) -> list[Row]:
        active = self.names(rule.task, "running")
        queued = self.having(rule.task, "queued")
        return [row for row in queued if rule.offers(row) and row.instruction not in active]

    def _due(self, rule: Rule, room: int) -> list[Row]:
        due = [row for row in self._waiting(rule) if row.run_at <= self.now]
        due.sort(key=lambda row: (-row.priority, row.run_at, row.number))
        if rule.partition_concurrency is None:
            return due[:room]
        taken = self._turns(rule, due, room)
        return sorted(taken, key=due.index)

    def _turns(self, rule: Rule, due: Sequence[Row], room: int) -> list[Row]:
        """Take one of each partition, then of those that gave as many as each of them may."""
        turn = self.turn.get(rule.task, "")
        owners = sorted({row.partition for row in due}, key=lambda name: (not name > turn, name))
        left = {name: [row for row in due if row.partition == name] for name in owners}
        left = {name: rows[: self._room_of(rule, name, room)] for name, rows in left.items()}
        taken: list[Row] = []
        quota = 1
        while len(taken) < room and any(left.values()):
            gave = []
            for name in [name for name, rows in left.items() if rows]:
                some = left[name][: min(quota, room - len(taken))]
                taken, left[name] = taken + some, left[name][len(some) :]
                self.turn[rule.task] = name if some else self.turn.get(rule.task, "")
                gave += [name] if len(some) == quota else []
            left = {name: left[name] for name in gave}
            quota = max(1, (room - len(taken)) // max(1, len(gave)))
        return taken

    def _room_of(self, rule: Rule, partition: str, room: int) -> int:
        if rule.partition_concurrency is None or not partition:
            return room
        running = self.having(rule.task, "running")
        active = sum(row.partition == partition for row in running)
        return max(rule.partition_concurrency - active, 0)

    def _start(self, row: Row, rule: Rule, number: int) -> Row:
        row.status, row.lease, row.delivery = "running", rule.lease, row.delivery + 1
        row.number, row.receipt = number, self.next()
        return self._renew(row)

    def _renew(self, row: Row) -> Row:
        row.claimed_at = self.now
        row.expires_at = self.now + min(row.lease, row.timeout or row.lease)
        return row

    def _ask(self, rule: Rule, room: int) -> tuple[list[str], list[str]]:
        """Return what the user's own statement gives that is not on its way already.

        First that for which there is room in its partition, then what waits in the queue for it.
        """
        living = self.names(rule.task, "running", "queued")
        if rule.source == "marks":
            given = [item for item, is_marked in sorted(self.items.items()) if not is_marked][:room]
            self.items |= dict.fromkeys(given, True)
            for name in [name for name in map(str, given) if name in living]:
                self.enqueue(rule.task, name, retries=rule.retries, partition=owner_of(name))
            return self._within(rule, [str(item) for item in given if str(item) not in living])
        failed = (row for row in self.having(rule.task, *FAILED) if not row.superseded)
        left_out = {*living, *(row.instruction for row in failed)}
        found = sorted(self.items) if rule.source == "finds" else []
        return [str(item) for item in found if str(item) not in left_out][:room], []

    def _within(self, rule: Rule, names: Sequence[str]) -> tuple[list[str], list[str]]:
        turns = [[owner_of(each) for each in names[:place]] for place in range(len(names))]
        is_within = [
            before.count(owner_of(name)) < self._room_of(rule, owner_of(name), len(names))
            for name, before in zip(names, turns, strict=True)
        ]
        pairs = list(zip(names, is_within, strict=True))
        return [name for name, ok in pairs if ok], [name for name, ok in pairs if not ok]

    def _due_in(self, rule: Rule, is_limited: object, cap: int) -> float | None:
        active = self.having(rule.task, "running")
        times = [row.expires_at for row in active if row.expires_at > self.now]
        if len(active) < cap:
            times += [self.now] if is_limited else []
            times += [row.run_at for row in self._waiting(rule) if row.run_at > self.now]
        return min((at - self.now for at in times), default=None)

    # Consumers

    def report(self, kind: str, receipt: int, arguments: dict[str, Any]) -> int | None:
        """Apply a report; the receipt that names the claim from now on, None if it named none."""
        row = next((row for row in self.rows if row.receipt == receipt), None)
        if row is None or (kind == "take_over" and row.expires_at <= self.now):
            return None
        getattr(self, kind)(row, **arguments)
        return row.receipt

    def heartbeat(self, row: Row) -> None:
        latest = self.now + row.lease if row.timeout is None else row.claimed_at + row.timeout
        row.expires_at = min(self.now + row.lease, latest)

    def complete(self, row: Row, result: Any = None) -> None:
        self.end(row, "succeeded", result=result)
        for old in self.having(row.task, *FAILED):
            old.superseded |= old.instruction == row.instruction

    def end(self, row: Row, status: str, **changes: Any) -> None:
        changes |= {"status": status, "ended_at": self.now, "number": self.next(), "receipt": -1}
        self.rows = [each for each in self.rows if each is not row]
        self.rows.append(attrs.evolve(row, **changes))

    def fail(
        self,
        row: Row,
        error: str,
        retry_in: float,
        retry: bool,
        lower_priority: bool,
        retries: int,
    ) -> None:
        left = row.retries or (0 if row.failures else retries)
        if retry and left:
            changes = {"retries": left - 1, "failures": row.failures + 1, "error": error}
            priority = row.priority - lower_priority
            self.queue(row, retry_in, priority=priority, undelivered=0, **changes)
        else:
            self.end(row, "dead" if retry else "failed", error=error)

    def advance(self, row: Row, payload: Any, retries: int, run_in: float | None) -> None:
        row.payload, row.retries, row.error, row.delivery = payload, retries, None, 1
        row.failures = row.undelivered = 0
        self._renew(row) if run_in is None else self.queue(row, run_in, delivery=0)

    def release(self, row: Row) -> None:
        self.queue(row, 0.0, undelivered=0)

    def give_back(self, row: Row) -> None:
        pause = min(2 ** (row.undelivered - 1), 60) if row.undelivered else 0
        self.queue(row, pause, undelivered=row.undelivered + 1)

    def take_over(self, row: Row, lease: float | None) -> None:
        row.lease, row.receipt = lease or row.lease, self.next()
        self._renew(row)

    # Operators

    def retry(self, task: str, names: Sequence[str] | None) -> int | None:
        """Queue ended ones again, and return how many; None for an error."""
        living = self.names(task, "queued", "running")
        ended = ended_all = self.having(task, "succeeded", *FAILED)
        if names is None:
            ended = [each for each in ended if each.status in FAILED and not each.superseded]
            names = [each.instruction for each in ended if each.instruction not in living]
        last = {row.instruction: row for row in ended}
        if any(name in living or name not in last for name in names):
            return None
        for row in sorted({last[name] for name in names}, key=lambda row: row.number):
            failed = [each for each in ended_all if each.status in FAILED]
            gone = [each for each in failed if each.instruction == row.instruction]
            self.rows = [each for each in self.rows if each not in gone]
            new = {"failures": 0, "undelivered": 0, "delivery": 0, "result": None}
            self.queue(row, 0.0, superseded=False, **new)
        return len(set(names))

    def prune(self, older_than: float, statuses: Sequence[str]) -> int:
        past = [row for row in self.rows if row.ended_at <= self.now - older_than]
        gone = [row for row in past if row.status in statuses]
        self.rows = [row for row in self.rows if row not in gone]
        return len(gone)
