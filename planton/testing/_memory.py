"""A storage in memory, with the transactions of a real one."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
import trio

from planton._errors import InvalidArgumentError
from planton._task import Batch, Claim, Delay, ScheduleRequest, Seconds, Task
from planton.storage import (
    Acknowledged,
    AdvanceReport,
    CronTimes,
    FailureReport,
    Misfire,
    receipts_of,
    to_count,
    to_json,
    to_lease,
    to_receipts,
    to_strings,
)
from planton.testing._memory_claim import Claiming, ClaimRule, to_pattern
from planton.testing._memory_operations import MemoryOperations
from planton.testing._memory_rows import Row, Transaction


@attrs.frozen(eq=False)
class _Active:
    storage: "MemoryStorage"

    async def __call__(self, task_name: str) -> list[str]:
        return (await self.many([task_name]))[0]

    async def many(self, task_names: Sequence[str]) -> list[list[str]]:
        await self.storage.work()
        return [
            [row.instruction for row in Transaction(self.storage).rows(name, "active")]
            for name in task_names
        ]


@attrs.frozen(eq=False)
class _Schedule:
    """Claims what it is asked for, without counting."""

    storage: "MemoryStorage"

    async def __call__(self, request: ScheduleRequest) -> Batch:
        async with self.storage.transaction() as transaction:
            claims = transaction.claim(request.task_name, request.limit)
            await self.storage.work()
        # No checkpoint between the commit and the return: a cancellation cannot come in between.
        return Batch(claims)

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        return [await self(request) for request in requests]


@attrs.frozen(eq=False)
class _StrictSchedule(_Schedule):
    """Counts and claims under the lock of the task; tasks that share it have different names."""

    rules: dict[str, ClaimRule] = attrs.field(factory=dict)

    async def __call__(self, request: ScheduleRequest) -> Batch:
        storage, rule = self.storage, self.rules[request.task_name]
        async with storage.transaction(lock=request.task_name) as transaction:
            batch = Claiming(
                transaction, request, rule, storage.to_datetime, storage.to_seconds
            ).run()
            await storage.work()
        return batch


class MemoryStorage(MemoryOperations):
    """A storage for tests and simulations: one process, no I/O, virtual time.

    It does all that `planton.storage.Storage` says. Transactions are real ones: what a transaction
    claims is locked against others at once and visible to them only after the commit, so that
    count-then-claim shows the same races as on a database. With a `latency` every call takes
    that many seconds of trio's clock. Several tasks of one name are those of several processes,
    which may be of two versions of a program.

    Args:
        latency: Seconds that each call takes.
        start: The date when it is first used, from which on dates follow trio's clock; now if
            None.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.
    """

    def __init__(
        self, *, latency: float = 0.0, start: datetime | None = None, name: str | None = None
    ) -> None:
        super().__init__(latency=latency, start=start, name=name)
        self._get_active_instructions = _Active(self)
        self._schedule = _Schedule(self)
        self._strict_schedule = _StrictSchedule(self)

    @property
    def get_active_instructions(self) -> _Active:
        """Callback: the active instructions of a task; has `many`."""
        return self._get_active_instructions

    @property
    def schedule(self) -> _Schedule:
        """Callback: claims without counting (an advisory cap); has `many`."""
        return self._schedule

    def add(self, task_name: str, *instructions: str, payload: Any = None) -> None:
        """Make instructions pending, in one transaction; those that are there already stay."""
        transaction = Transaction(self)
        now = trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
        known = {row.instruction for row in self.committed.values() if row.task_name == task_name}
        for instruction in dict.fromkeys(instructions):
            if instruction not in known:
                row = Row(task_name=task_name, instruction=instruction, payload=payload)
                transaction.add(attrs.evolve(row, created_at=now))
        transaction.commit()
        transaction.close()

    def instructions(self, task_name: str, status: str) -> list[str]:
        """Give the instructions of a task that are `"pending"`, `"active"` or `"ended"`."""
        return [row.instruction for row in Transaction(self).rows(task_name, status)]

    # Sources

    def claim_task(
        self,
        name: str,
        *,
        concurrency: int = 1,
        delay: Seconds | Delay = 1.0,
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a strict task that claims the pending instructions of its name."""
        options.update(concurrency=concurrency, delay=delay, lease=lease, deliveries=deliveries)
        return self.queue_task(name, **options)

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
        """Make a strict task that claims what is queued; see `planton.storage.Storage`."""
        if not isinstance(key, str):
            raise InvalidArgumentError("key", key, 'give a pattern for LIKE, such as "user:%"')
        offered = to_strings("tags", tags)
        return self._task(name, lease, deliveries, options, key=key, tags=offered)

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
        """Make a strict task whose instructions are fire times; see `planton.storage.Storage`."""
        times = CronTimes.of(expression, timezone=timezone, misfire=misfire, fold=fold, gap=gap)
        return self._task(name, lease, deliveries, options, times=times)

    def _task(
        self,
        name: str,
        lease: float | timedelta,
        deliveries: int | None,
        options: dict[str, Any],
        *,
        key: str = "%",
        tags: Sequence[str] = (),
        times: CronTimes | None = None,
    ) -> Task:
        schedule, release = self._strict_schedule, self._release_claims
        task = Task(name=name, schedule=schedule, cap="strict", release=release, **options)
        rule = ClaimRule(
            lease=to_lease(lease),
            deliveries=None if deliveries is None else to_count("deliveries", deliveries, 1),
            key=to_pattern(key),
            tags=frozenset(tags),
            times=times,
        )
        if name in self._strict_schedule.rules:
            # It was unregistered, or is of another Planton: each is claimed for by its own rule.
            self._strict_schedule = _StrictSchedule(self)
            task = attrs.evolve(task, schedule=self._strict_schedule)
        self._strict_schedule.rules[name] = rule
        return task

    # Consumers

    async def heartbeat(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Renew leases; see `planton.storage.Storage`."""
        return await self._report(
            receipts,
            lambda transaction, row, now: transaction.write(row.renewed(now, row.lease)),
            frees=False,
        )

    async def complete(self, receipts: str | Sequence[str], result: Any = None) -> Acknowledged:
        """End claims; see `planton.storage.Storage`."""
        to_json("result", result)
        return await self._report(
            receipts,
            lambda transaction, row, now: transaction.write(
                row.left("ended", outcome="succeeded", result=result, ended_at=now)
            ),
        )

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
        """Queue claims again or end them; see `planton.storage.Storage`."""
        report = FailureReport.of(
            error,
            retry_in=retry_in,
            retry=retry,
            lower_priority=lower_priority,
            retries=retries,
        )
        return await self._report(
            receipts, lambda transaction, row, now: _fail(transaction, row, now, report)
        )

    async def advance(
        self,
        receipts: str | Sequence[str],
        payload: Any = None,
        *,
        retries: int = 0,
        run_in: float | None = None,
    ) -> Acknowledged:
        """Begin anew with another payload; see `planton.storage.Storage`."""
        report = AdvanceReport.of(payload, retries=retries, run_in=run_in)
        changes = {"payload": payload, "retries": report.retries, "error": None}
        return await self._report(
            receipts,
            lambda transaction, row, now: _advance(
                transaction, attrs.evolve(row, **changes), now, report.delay
            ),
            frees=report.delay is not None,
        )

    async def release(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Give claims back; see `planton.storage.Storage`."""
        return await self._report(receipts, _release)

    async def _release_claims(self, claims: Sequence[Claim]) -> None:
        await self._report(receipts_of(claims), _take_back, frees=False)

    async def _report(
        self,
        receipts: str | Sequence[str],
        change: Callable[[Transaction, Row, float], None],
        *,
        frees: bool = True,
    ) -> Acknowledged:
        wanted = to_receipts(receipts)
        for receipt in wanted:
            if len(receipt) != 16 or not set(receipt) <= set("0123456789abcdef"):
                remedy = "give the receipt of an event, as it was received"
                raise InvalidArgumentError("receipt", receipt, remedy)

        def claims() -> list[Row]:
            return [row for row in self.committed.values() if row.receipt in wanted]

        async with self.transaction() as transaction:
            await self._until_unlocked(transaction, claims)
            active, now = claims(), trio.current_time()
            for row in active:
                change(transaction, row, now)
        if frees:
            self._wake(dict.fromkeys(row.task_name for row in active))
        return Acknowledged.of(wanted, {str(row.receipt) for row in active})


def _release(transaction: Transaction, row: Row, now: float) -> None:
    transaction.requeue(row.left("pending", run_at=now))


def _take_back(transaction: Transaction, row: Row, now: float) -> None:
    pause = min(1 << min(row.given_back - 1, 6), 60) if row.given_back else 0
    changes = {"run_at": now + pause, "given_back": row.given_back + 1}
    transaction.requeue(row.left("pending", **changes))


def _fail(transaction: Transaction, row: Row, now: float, report: FailureReport) -> None:
    is_first = row.error is None or row.delivery == 1
    retries = report.retries if is_first and not row.retries else row.retries
    if report.retry and retries:
        changes: dict[str, Any] = {
            "error": report.error,
            "retries": retries - 1,
            "priority": row.priority - report.lower_priority,
            "run_at": now + report.delay,
        }
        transaction.requeue(row.left("pending", **changes))
    else:
        outcome = "dead" if report.retry else "failed"
        transaction.write(row.left("ended", outcome=outcome, error=report.error, ended_at=now))


def _advance(transaction: Transaction, row: Row, now: float, delay: float | None) -> None:
    if delay is None:
        again = attrs.evolve(row, delivery=1, claimed_at=now)
        transaction.write(again.renewed(now, row.lease))
    else:
        transaction.requeue(row.left("pending", delivery=0, run_at=now + delay))
