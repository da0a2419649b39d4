"""SQLite as a backend of storages."""

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import trio

from planton.storage import (
    Answer,
    Caller,
    Claimed,
    ClaimRequest,
    DispatcherRecord,
    Filter,
    InstructionRecord,
    NewInstruction,
    Receipt,
    Registration,
    Report,
    Status,
    TaskReport,
    TaskStats,
    Watcher,
)
from planton_sqlite import _fleet, _open, _operate, _schema
from planton_sqlite._claim import CLAIM, Claim
from planton_sqlite._query import Query
from planton_sqlite._reports import Reports
from planton_sqlite._watch import Connected, Sights, watch

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Found: TypeAlias = Mapping[Receipt, str]
Exchanged: TypeAlias = tuple[list[Found | Exception], list[Claimed | Exception]]


class Runner(Protocol):
    """Runs work on the connection: a thread that owns it, or nothing but a call."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def hurry(self, while_: Callable[[], bool]) -> None: ...

    async def read(self, function: Work[T]) -> T: ...

    async def write(self, function: Work[T], look: Work[T | None] | None = None) -> T: ...

    def when_idle(
        self, work: Callable[[Connected], None] | None, interval: float = 0.0
    ) -> None: ...


class SQLiteBackend:
    """A `planton.storage.Backend`; see there for what its methods promise."""

    def __init__(
        self,
        database: str,
        file: str,
        runner: Runner,
        *,
        keeps: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.file = file
        self.identity: Hashable = ("sqlite", os.path.realpath(file))
        self._runner = runner
        self._keeps = keeps
        self._clock = clock
        self._is_checked = False
        self._sights = Sights(clock)

    async def open(self) -> None:
        self._is_checked = False
        await self._runner.start()

    async def close(self) -> None:
        await self._runner.close()

    def hurry(self, while_: Callable[[], bool]) -> None:
        self._runner.hurry(while_)

    async def migrate(self) -> int:
        return await self._runner.write(lambda own: _schema.migrate(own, self.database))

    def schema(self) -> str:
        return _schema.script()

    def check_statement(self, task_name: str, sql: str) -> None:
        query = Query(task_name, sql)
        query.check()
        if os.path.exists(self.file):
            connection = _open.connect_existing(self.file)
            try:
                query.is_marking(connection)
            finally:
                connection.close()

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> Exchanged:
        def run(own: sqlite3.Connection) -> Exchanged:
            return self.exchange_within(own, reports, requests)

        def look(own: sqlite3.Connection) -> Exchanged | None:
            looked = [self._look(own, request) for request in requests]
            nothing: list[Claimed | Exception] = [one for one in looked if one is not None]
            return ([], nothing) if len(nothing) == len(looked) else None

        is_write = bool(reports) or any(request.is_expected for request in requests)
        return await self._write(run, None if is_write else look)

    def exchange_within(
        self,
        own: sqlite3.Connection,
        reports: Sequence[Report],
        requests: Sequence[ClaimRequest],
    ) -> Exchanged:
        """Apply reports, then claim, within a transaction.

        Together; if that fails, each by itself, so that each harms only itself.
        """
        together = self._undone(own, partial(self._exchanged, own, reports, requests))
        if not isinstance(together, Exception):
            return together
        found: list[Found | Exception] = []
        for report in reports:
            one = self._undone(own, partial(self._exchanged, own, [report], ()))
            found.append(one if isinstance(one, Exception) else one[0][0])
        claimed: list[Claimed | Exception] = []
        for request in requests:
            one = self._undone(own, partial(self._exchanged, own, (), [request]))
            claimed.append(one if isinstance(one, Exception) else one[1][0])
        return found, claimed

    def _exchanged(
        self,
        own: sqlite3.Connection,
        reports: Sequence[Report],
        requests: Sequence[ClaimRequest],
    ) -> Exchanged:
        found = Reports(own, self._clock, keeps=self._keeps).apply(reports) if reports else []
        return [*found], [self._claim(own, request) for request in requests]

    def _claim(self, own: sqlite3.Connection, request: ClaimRequest) -> Claimed:
        claim = Claim(own, request, self._clock)
        answer = claim.run()
        self._sights.note(request.rule, claim, answer)
        return answer

    def _undone(self, own: sqlite3.Connection, function: Callable[[], T]) -> T | Exception:
        """Return what `function` does, or its error, which undoes only what it did itself."""
        own.execute("SAVEPOINT item")
        try:
            result: T | Exception = function()
        except Exception as error:
            # A full disk or a lost file is an error of all of them.
            if not own.in_transaction or _open.is_of_database(error):
                raise
            own.execute("ROLLBACK TO item")
            result = error
            if isinstance(error, sqlite3.Error):
                result = _open.to_storage_error(self.database, error)
        own.execute("RELEASE item")
        return result

    def _look(self, own: sqlite3.Connection, request: ClaimRequest) -> Claimed | None:
        claim = Claim(own, request, self._clock)
        answer = claim.look()
        if answer is not None:
            self._sights.note(request.rule, claim, answer)
        return answer

    def _has_changed(self, own: sqlite3.Connection, request: ClaimRequest) -> bool:
        claim = Claim(own, request, self._clock)
        return self._sights.has_changed(request.rule, claim, claim.look())

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        return await self._read(
            lambda own: [
                [name for (name,) in own.execute(CLAIM["active"], {"task_name": task_name})]
                for task_name in task_names
            ]
        )

    dialect = "sqlite"

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        return await self._write(lambda own: _operate.enqueue(own, new, self._clock()))

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        await self.check_caller(caller)
        try:
            await _schema.check_within(caller, self.database)
            return await _operate.enqueue_within(caller, new, self._clock())
        except sqlite3.Error as error:
            raise _open.to_storage_error(self.database, error) from error

    async def check_caller(self, caller: Caller) -> None:
        await _open.check_caller(caller, self.file)

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        await self._write(
            lambda own: _operate.change_task(
                own,
                "pause" if is_paused else "resume",
                task_name=task_name,
                now=self._clock(),
            )
        )

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        parameters = {"task_name": task_name, "concurrency": concurrency}
        await self._write(lambda own: _operate.change_task(own, "set_concurrency", **parameters))

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        return await self._write(
            lambda own: _operate.retry(own, task_name, instructions, self._clock())
        )

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        return await self._write(lambda own: _operate.drop(own, task_name, instructions))

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        return await self._read(lambda own: _operate.find(own, wanted, self._clock()))

    async def stats(self) -> list[TaskStats]:
        return await self._read(lambda own: _operate.stats(own, self._clock()))

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        return await self._write(
            lambda own: _operate.prune(own, older_than, statuses, limit, self._clock())
        )

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        return await self._write(
            lambda own: _operate.wake_on_change(own, table, task_name, is_wanted=is_wanted)
        )

    async def register(self, registration: Registration) -> None:
        await self._write(lambda own: _fleet.register(own, registration, self._clock()))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Collection[str]
    ) -> Answer:
        return await self._write(
            lambda own: _fleet.beat(own, dispatcher_id, tasks, reports, gone, self._clock())
        )

    async def deregister(self, dispatcher_id: str) -> None:
        await self._write(lambda own: _fleet.deregister(own, dispatcher_id))

    async def dispatchers(self) -> list[DispatcherRecord]:
        return await self._read(lambda own: _fleet.dispatchers(own, self._clock()))

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        return await self._write(
            lambda own: _fleet.request_stop(own, dispatcher_ids, self._clock())
        )

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        return await self._read(lambda own: _fleet.decisions(own, task_name))

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self._read(lambda _: None)  # the tables are there, and of this version
        await watch(self._runner, watcher, self._has_changed, self.database, task_status)

    async def _read(self, function: Work[T]) -> T:
        return await self._runner.read(self._checked(function))

    async def _write(self, function: Work[T], look: Work[T | None] | None = None) -> T:
        checked_look = None if look is None else self._checked(look)
        return await self._runner.write(self._checked(function), checked_look)

    def _checked(self, function: Work[T]) -> Work[T]:
        """Let `function` see only tables of this version."""
        if self._is_checked:
            return function

        def checked(own: sqlite3.Connection) -> T:
            if not self._is_checked:
                _schema.check(own, self.database)
                self._is_checked = True
            return function(own)

        return checked
