"""SQLite as a backend of storages."""

import os
import sqlite3
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

import trio

from planton.storage import (
    Backend,
    Caller,
    Claimed,
    ClaimRequest,
    NewInstruction,
    Receipt,
    Report,
    Watcher,
    are_new,
    to_rows,
)
from planton_sqlite import _open, _schema, _statements
from planton_sqlite._claim import Claim
from planton_sqlite._owner import Owner, Work
from planton_sqlite._query import Query
from planton_sqlite._reports import Reports
from planton_sqlite._watch import Sights, watch

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]
Found: TypeAlias = Mapping[Receipt, str]
Committed: TypeAlias = tuple[Sequence[Found], Sequence[Claimed]]
Exchanged: TypeAlias = tuple[list[Found | Exception], list[Claimed | Exception]]


class SQLiteBackend(Backend):
    """A `planton.storage.Backend`; see there for what its methods promise."""

    def __init__(
        self,
        database: str,
        file: str,
        owner: Owner,
        *,
        keeps: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.file = file
        self.identity: Hashable = ("sqlite", os.path.realpath(file))
        self._owner = owner
        self._keeps = keeps
        self._clock = clock
        self._is_checked = False
        self._sights = Sights(clock)

    async def open(self) -> None:
        self._is_checked = False
        await self._owner.start()

    async def close(self) -> None:
        await self._owner.close()

    def hurry(self, while_: Callable[[], bool]) -> None:
        self._owner.hurry(while_)

    async def migrate(self) -> int:
        return await self._owner.write(lambda own: _schema.migrate(own, self.database))

    def schema(self) -> str:
        return _schema.script()

    def check_statement(self, task_name: str, sql: str) -> None:
        query = Query(task_name, sql)
        query.check()
        if os.path.exists(self.file):
            connection = _open.connect_existing(self.file)
            try:
                query.explain(connection)
            finally:
                connection.close()

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> Exchanged:
        if not reports and not any(request.is_expected for request in requests):
            # Polling does not stand in the queue of those who write.
            looked = await self._read(lambda own: [self._look(own, each) for each in requests])
            answers: list[Claimed | Exception] = [each for each in looked if each is not None]
            if len(answers) == len(requests):
                return [], answers
        return await self._exchange(reports, requests)

    async def _exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> Exchanged:
        """Exchange in one commit; what fails together in halves, until it harms only itself."""
        count = len(reports) + len(requests)
        # A statement of the user's may run for ever: a cancellation ends it.
        shield = all(request.rule.statement is None for request in requests)
        try:
            done = await self._write(
                lambda own: self.exchange_within(own, reports, requests), shield=shield
            )
            return [*done[0]], [*done[1]]
        except Exception as error:
            # A full disk or a lost file is an error of all of them.
            if _open.is_of_database(error):
                raise
            if count == 1:
                return [error] * len(reports), [error] * len(requests)
        half, rest = count // 2, max(count // 2 - len(reports), 0)
        found: list[Found | Exception] = []
        claimed: list[Claimed | Exception] = []
        with trio.CancelScope(shield=True):  # of a half that is committed
            for some, asked in (
                (reports[:half], requests[:rest]),
                (reports[half:], requests[rest:]),
            ):
                try:
                    answers, outcomes = await self._exchange(some, asked)
                except Exception as error:
                    answers, outcomes = [error] * len(some), [error] * len(asked)
                found += answers
                claimed += outcomes
        return found, claimed

    def exchange_within(
        self,
        own: sqlite3.Connection,
        reports: Sequence[Report],
        requests: Sequence[ClaimRequest],
    ) -> Committed:
        """Apply reports, then claim, within a transaction."""
        found = Reports(own, self._clock, keeps=self._keeps).apply(reports) if reports else []
        return found, [self._claim(own, request) for request in requests]

    def _claim(self, own: sqlite3.Connection, request: ClaimRequest) -> Claimed:
        claim = Claim(own, request, self._clock)
        answer = claim.run()
        self._sights.note(request.rule, claim, answer)
        return answer

    def _look(self, own: sqlite3.Connection, request: ClaimRequest) -> Claimed | None:
        claim = Claim(own, request, self._clock)
        answer = claim.look()
        if answer is not None:
            self._sights.note(request.rule, claim, answer)
        return answer

    def _has_changed(self, own: sqlite3.Connection, request: ClaimRequest) -> bool:
        claim = Claim(own, request, self._clock)
        return self._sights.has_changed(request.rule, claim, claim.look())

    dialect = "sqlite"

    async def rows(self, statement: str, **parameters: Any) -> Rows:
        run = self._write if _statements.writes(statement) else self._read
        return await run(lambda own: self.rows_within(own, statement, **parameters))

    def rows_within(self, own: sqlite3.Connection, statement: str, **parameters: Any) -> Rows:
        return _statements.run(own, statement, self._clock(), parameters)

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        return are_new(new, await self.rows("enqueue", new=to_rows(new, datetime.timestamp)))

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        await self.check_caller(caller)
        (sql,) = _statements.SCRIPTS["enqueue"]
        parameters = {"new": to_rows(new, datetime.timestamp), "now": self._clock()}
        await _schema.check_within(caller, self.database)
        return are_new(new, await caller.fetch(sql, **parameters))

    async def check_caller(self, caller: Caller) -> None:
        await _open.check_caller(caller, self.file)

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        return await self._write(
            lambda own: _statements.wake_on_change(own, table, task_name, is_wanted=is_wanted)
        )

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self._read(lambda _: None)  # the tables are there, and of this version
        await watch(self._owner, watcher, self._has_changed, task_status)

    async def _read(self, function: Work[T]) -> T:
        return await self._owner.read(partial(self._checked, function))

    async def _write(self, function: Work[T], *, shield: bool = True) -> T:
        return await self._owner.write(partial(self._checked, function), shield=shield)

    def _checked(self, function: Work[T], own: sqlite3.Connection) -> T:
        """Let `function` see only tables of this version."""
        if not self._is_checked:
            _schema.check(own, self.database)
            self._is_checked = True
        return function(own)
