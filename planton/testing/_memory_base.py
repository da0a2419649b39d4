"""Where the in-memory storage keeps its rows, its locks and its time."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import trio

from planton._errors import UnknownTaskError
from planton._planton import Planton
from planton.storage import keep_registered, to_claimant
from planton.testing._memory_fleet import MemoryFleet
from planton.testing._memory_rows import Key, Row, TaskState, Transaction


class MemoryBase:
    """Tables, transactions, and whom to wake."""

    def __init__(
        self, *, latency: float = 0.0, start: datetime | None = None, name: str | None = None
    ) -> None:
        self.name = to_claimant(name)
        self.latency = latency
        self.committed: dict[int, Row] = {}
        self.tasks: dict[str, TaskState] = {}
        self.locks: dict[Key, Transaction] = {}
        self.new_id: Callable[[], int] = itertools.count(1).__next__
        self._start = start
        self._zero: datetime | None = None
        # In the order of their arrival: a simulation is to go the same way every time.
        self._plantons: dict[Planton, None] = {}
        self._unlocked = trio.Event()
        self._task_locks: dict[str, trio.Lock] = {}
        self.registry = MemoryFleet(self.work, self.to_datetime)

    async def __aenter__(self) -> Self:
        """Storages are context managers; this one has nothing to open."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nor to close."""

    async def migrate(self) -> int:
        """There are no tables to bring up to date."""
        return 0

    def schema(self) -> str:
        """Nor is there any SQL."""
        return ""

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Service for `Planton(services=[storage.serve])`: wakes a task when a slot frees up."""
        self._plantons[planton] = None
        try:
            await keep_registered(planton, self.registry, task_status=task_status)
        finally:
            del self._plantons[planton]

    @asynccontextmanager
    async def transaction(self, lock: str | None = None) -> AsyncIterator[Transaction]:
        """Begin a transaction: committed when the block ends, undone when it raises.

        Args:
            lock: Task whose row to lock first, as a strict claim does.
        """
        await self.work()
        task_lock = self._task_locks.setdefault(lock, trio.Lock()) if lock else None
        transaction = Transaction(self)
        try:
            if task_lock is not None:
                await task_lock.acquire()
            yield transaction
            transaction.commit()
        finally:
            transaction.close()
            if (
                task_lock is not None
                and task_lock.statistics().owner is trio.lowlevel.current_task()
            ):
                task_lock.release()

    async def work(self) -> None:
        """Take the time that a call takes; the first call is when time begins."""
        self.to_datetime(0)
        await trio.sleep(self.latency)

    def note_unlock(self) -> None:
        """Let those go on who wait for a lock."""
        self._unlocked.set()
        self._unlocked = trio.Event()

    def to_datetime(self, seconds: float) -> datetime:
        """Give the date of a time of trio's clock."""
        if self._zero is None:
            start = self._start or datetime.now(UTC)
            self._zero = start - timedelta(seconds=trio.current_time())
        return self._zero + timedelta(seconds=seconds)

    def to_seconds(self, date: datetime) -> float:
        """Give the time of trio's clock at a date."""
        return (date - self.to_datetime(0)).total_seconds()

    async def _until_unlocked(
        self, transaction: Transaction, find: Callable[[], Iterable[Row | Key]]
    ) -> None:
        """Wait until nobody else has locked what `find` finds; no checkpoint follows."""
        while not all(
            transaction.may_lock(each.key if isinstance(each, Row) else each) for each in find()
        ):
            await self._unlocked.wait()

    def _wake(self, task_names: Iterable[str]) -> None:
        for name in task_names:
            for planton in self._plantons:
                try:
                    planton.wake(name)
                except UnknownTaskError:
                    pass  # a task of another Planton
