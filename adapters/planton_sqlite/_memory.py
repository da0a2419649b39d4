"""A storage in memory: the SQLite backend on `:memory:`, on trio's clock and without a thread."""

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import outcome
import trio

from planton import InvalidArgumentError, StorageError
from planton.storage import (
    Caller,
    Claimed,
    ClaimRequest,
    NewInstruction,
    Report,
    Storage,
    Watcher,
    to_rows,
)
from planton_sqlite import _schema
from planton_sqlite._backend import Committed, Found, SQLiteBackend
from planton_sqlite._open import BUSY_TIMEOUT, open_memory
from planton_sqlite._owner import Owner, Work

T = TypeVar("T")
Observer: TypeAlias = Callable[[Sequence[Found], Sequence[ClaimRequest], Sequence[Claimed]], None]
_NAP = 1 / 64
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


class Inline(Owner):
    """An owner that calls: every call takes `latency` seconds of trio's clock.

    Half of them pass before it happens and half before its answer arrives. Once it has happened a
    cancellation does not cut it off.
    """

    def __init__(self, clock: Clock, latency: float, timeout: float) -> None:
        super().__init__(lambda: open_memory(clock), "memory", ":memory:", timeout)
        self.latency = latency
        # A test may look from another thread than Planton's. SQLite has a lock of its own: Python
        # waits for it with the GIL in its hands, and whoever has it may be waiting for the GIL.
        self.lock = threading.RLock()
        self.connect()

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """What it holds stays until it is garbage."""

    async def do(self, function: Work[T], *, is_write: bool, shield: bool = True) -> T:  # noqa: ARG002  nothing can come in between
        await trio.sleep(self.latency / 2)
        if is_write:
            await self._wait_for_the_caller()
        result = self.done(function, is_write=is_write)
        with trio.CancelScope(shield=True):
            await trio.sleep(self.latency / 2)
        return result.unwrap()

    async def _wait_for_the_caller(self) -> None:
        """Wait until the caller has ended a transaction on the connection, which is theirs, too."""
        deadline = trio.current_time() + BUSY_TIMEOUT
        while self.connection().in_transaction:
            if trio.current_time() >= deadline:
                problem = "a transaction on its connection is open: commit it, or roll it back"
                raise StorageError("memory", problem)
            await trio.sleep(_NAP)

    def done(self, function: Work[T], *, is_write: bool) -> "outcome.Outcome[T]":
        """Do it at once, within its time: it holds up the event loop."""
        with self.lock:
            return super().done(function, is_write=is_write)


class MemoryBackend(SQLiteBackend):
    """The SQLite backend without a file."""

    def __init__(self, runner: Inline, clock: Clock, *, keeps: bool) -> None:
        super().__init__("memory", ":memory:", runner, keeps=keeps, clock=clock)
        self.identity = ("memory", id(self))
        self._own = runner.connection()
        self.observers: list[Observer] = []

    def exchange_within(
        self,
        own: sqlite3.Connection,
        reports: Sequence[Report],
        requests: Sequence[ClaimRequest],
    ) -> Committed:
        found, claimed = super().exchange_within(own, reports, requests)
        for observe in self.observers:
            observe(found, requests, claimed)
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
        self._now(lambda own: _schema.migrate(own, "memory"))

    def _now(self, function: Work[T]) -> T:
        return self._runner.done(function, is_write=True).unwrap()

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
        return self._runner.connection()

    def to_datetime(self, seconds: float) -> datetime:
        """Return the date of a time of trio's clock."""
        zero = self._clock() - trio.current_time()
        return datetime.fromtimestamp(zero + seconds, UTC)

    def observe(self, observer: Observer) -> None:
        """Call a function in each transaction of reports and claims: who sees all commits in order.

        Args:
            observer: Called with what each report has changed, requests, and what each has
                claimed; see `planton.storage.Backend.exchange`.
        """
        self._memory.observers.append(observer)

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
        self._now(lambda own: self._memory.rows_within(own, "enqueue", new=rows))

    def instructions(self, task_name: str, status: str) -> list[str]:
        """Return the instructions of a task that are `"pending"`, `"active"` or `"ended"`."""
        sql = "SELECT instruction, status FROM planton_instruction WHERE task_name = ?"
        with self._runner.lock:
            rows = self.connection.execute(sql, [task_name]).fetchall()
        return [instruction for instruction, each in rows if each in _STATUSES[status]]

    def _check_open(self) -> None:
        """It is always open, on any thread."""
