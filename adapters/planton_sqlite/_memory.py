"""A storage in memory: the SQLite backend on `:memory:`, on trio's clock and without a thread."""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import attrs
import trio

from planton import Batch, Claim, InvalidArgumentError, ScheduleRequest, StorageError, Task
from planton.storage import (
    Caller,
    Claimed,
    ClaimRequest,
    NewInstruction,
    Report,
    Rule,
    Storage,
    Watcher,
    to_rows,
)
from planton_sqlite import _schema
from planton_sqlite._backend import Exchanged, Found, SQLiteBackend
from planton_sqlite._open import BUSY_TIMEOUT, committed, open_memory, to_storage_error

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Observer: TypeAlias = Callable[
    [
        Sequence[Report],
        Sequence[Found | Exception],
        Sequence[ClaimRequest],
        Sequence[Claimed | Exception],
    ],
    None,
]
# As good as for ever: a claim of the advisory schedule has no lease.
_NO_LEASE = 1e8
_MOST = 2**31 - 1
_NAP = 1 / 64
_NO_SQL: Any = object()
_STATUSES = {
    "pending": ("queued",),
    "active": ("running",),
    "ended": ("succeeded", "failed", "dead"),
}


class Clock:
    """The time of trio's clock as seconds since 1970, from a start on.

    Each `trio.run` has a clock of its own: in the next one time goes on from where it was.
    """

    def __init__(self, start: datetime | None) -> None:
        # Whole seconds: sums of small times are exact then.
        start = start or datetime.now(UTC).replace(microsecond=0)
        self._last = start.timestamp()
        self._zeros: WeakKeyDictionary[trio.lowlevel.TrioToken, float] = WeakKeyDictionary()

    def __call__(self, _: object = None) -> float:
        if trio.lowlevel.in_trio_run():
            now = trio.current_time()
            zero = self._zeros.setdefault(trio.lowlevel.current_trio_token(), self._last - now)
            self._last = zero + now
        return self._last


class Inline:
    """A runner that calls: every call takes `latency` seconds of trio's clock.

    Half of them pass before it happens and half before its answer arrives. Once it has happened a
    cancellation does not cut it off.
    """

    def __init__(self, clock: Clock, latency: float, timeout: float) -> None:
        self.latency = latency
        self._timeout = timeout
        self.connection = open_memory(clock)

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """What it holds stays until it is garbage."""

    def hurry(self, while_: Callable[[], bool]) -> None:
        """Nothing in it waits for another process."""

    def when_idle(self, work: Any, interval: float = 0.0) -> None:
        """There is no other process whose commits would have to be noticed."""

    async def read(self, function: Work[T]) -> T:
        await trio.sleep(self.latency / 2)
        result = self._within_time(lambda: function(self.connection))
        await self._answer()
        return result

    async def write(self, function: Work[T]) -> T:
        await trio.sleep(self.latency / 2)
        await self._wait_for_the_caller()
        result = self.transact(function)
        await self._answer()
        return result

    async def _answer(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.latency / 2)

    async def _wait_for_the_caller(self) -> None:
        """Wait until the caller has ended a transaction on the connection, which is theirs, too."""
        deadline = trio.current_time() + BUSY_TIMEOUT
        while self.connection.in_transaction:
            if trio.current_time() >= deadline:
                problem = "a transaction on its connection is open: commit it, or roll it back"
                raise StorageError("memory", problem)
            await trio.sleep(_NAP)

    def transact(self, function: Work[T]) -> T:
        self.connection.execute("BEGIN IMMEDIATE")
        return committed(self.connection, lambda own: self._within_time(lambda: function(own)))

    def _within_time(self, function: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._timeout
        self.connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
        try:
            return function()
        except sqlite3.Error as error:
            raise to_storage_error("memory", error) from error
        finally:
            self.connection.set_progress_handler(None, 0)


class MemoryBackend(SQLiteBackend):
    """The SQLite backend without a file."""

    def __init__(self, runner: Inline, clock: Clock, *, keeps: bool) -> None:
        super().__init__("memory", ":memory:", runner, keeps=keeps, clock=clock)
        self.identity = ("memory", id(self))
        self._own = runner.connection
        self.observers: list[Observer] = []

    def exchange_within(
        self,
        own: sqlite3.Connection,
        reports: Sequence[Report],
        requests: Sequence[ClaimRequest],
    ) -> Exchanged:
        found, claimed = super().exchange_within(own, reports, requests)
        for observe in self.observers:
            observe(reports, found, requests, claimed)
        return found, claimed

    async def check_caller(self, caller: Caller) -> None:
        if caller.connection is not self._own:
            remedy = "give storage.connection: no other sees this database"
            raise InvalidArgumentError("connection", caller.connection, remedy)

    async def watch(
        self,
        watcher: Watcher,  # noqa: ARG002  there is nothing to tell
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """There is no other process: what this one changes wakes its tasks in any case."""
        task_status.started()
        await trio.sleep_forever()


class MemoryStorage(Storage):
    """A storage for tests and simulations: one process, no I/O, virtual time.

    It is the SQLite storage on a database in memory, on trio's clock, dates and defaults of SQL
    included, so that what is tested is the claim that runs in production. It need not be opened.
    Several tasks of one name are those of several processes, which may be of two versions of a
    program.

    Args:
        latency: Seconds of trio's clock that each call takes; may be changed at any time.
        start: The date when it is first used, from which on dates follow trio's clock; now if
            None.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.
        retention: See `Storage`.
        timeout: Seconds by the machine's clock after which a statement that is slow is ended: it
            holds up the event loop.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        start: datetime | None = None,
        name: str | None = None,
        retention: float | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._clock = Clock(start)
        self._runner = Inline(self._clock, latency, timeout)
        self._memory = MemoryBackend(self._runner, self._clock, keeps=retention != 0)
        super().__init__(self._memory, name=name, retention=retention)
        self._runner.transact(lambda own: _schema.migrate(own, "memory"))

    @property
    def latency(self) -> float:
        """Seconds that each call takes."""
        return self._runner.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._runner.latency = seconds

    @property
    def connection(self) -> sqlite3.Connection:
        """The database itself, for tables of your own and for looking into ours."""
        return self._runner.connection

    def to_datetime(self, seconds: float) -> datetime:
        """Return the date of a time of trio's clock."""
        zero = self._clock() - trio.current_time()
        return datetime.fromtimestamp(zero + seconds, UTC)

    def observe(self, observer: Observer) -> None:
        """Call a function in each transaction of reports and claims: who sees all commits in order.

        Args:
            observer: Called with reports, what each has changed, requests, and what each has
                claimed; see `planton.storage.Backend.exchange`.
        """
        self._memory.observers.append(observer)

    @property
    def schedule(self) -> "AdvisorySchedule":
        """Callback: claims without counting (an advisory cap); has `many`."""
        return AdvisorySchedule(self._backend, self.name)

    def add(self, task_name: str, *instructions: str, payload: Any = None) -> None:
        """Queue instructions, without waiting; those that are there already stay as they are."""
        text = None if payload is None else json.dumps(payload)
        known = {name for status in _STATUSES for name in self.instructions(task_name, status)}
        new = [
            NewInstruction(task_name=task_name, instruction=name, payload=text)
            for name in dict.fromkeys(instructions)
            if name not in known
        ]
        rows = to_rows(new, datetime.timestamp)
        self._runner.transact(lambda own: self._memory.rows_within(own, "enqueue", new=rows))

    def instructions(self, task_name: str, status: str) -> list[str]:
        """Return the instructions of a task that are `"pending"`, `"active"` or `"ended"`."""
        sql = "SELECT instruction, status FROM planton_instruction WHERE task_name = ?"
        rows = self.connection.execute(sql, [task_name])
        return [instruction for instruction, each in rows if each in _STATUSES[status]]

    def claim_task(self, name: str, *, sql: str = _NO_SQL, **options: Any) -> Task:
        """Make a task that claims from tables of yours, or from the queue without `sql`."""
        if sql is _NO_SQL:
            return self.queue_task(name, **options)
        return super().claim_task(name, sql=sql, **options)

    def _check_open(self) -> None:
        """It is always open, on any thread."""


@attrs.frozen(eq=False)
class AdvisorySchedule:
    """Callback: claims what it is asked for, without counting."""

    _backend: Any
    _claimed_by: str

    async def __call__(self, request: ScheduleRequest) -> Batch:
        (batch,) = await self.many([request])
        return batch

    async def many(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        asked = [
            ClaimRequest(self._rule(request.task_name), _MOST, request.limit, is_expected=True)
            for request in requests
        ]
        _, claimed = await self._backend.exchange([], asked)
        return [Batch([self._claim(row) for row in one.rows]) for one in claimed]

    def _rule(self, task_name: str) -> Rule:
        return Rule(task_name=task_name, claimed_by=self._claimed_by, lease=_NO_LEASE)

    @staticmethod
    def _claim(row: Any) -> Claim:
        return Claim(
            instruction=row.instruction,
            receipt=f"{row.receipt[0]}.{row.receipt[1]}",
            payload=None if row.payload is None else json.loads(row.payload),
            delivery=row.delivery,
            claimed_at=trio.current_time(),
        )
