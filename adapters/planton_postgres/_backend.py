"""PostgreSQL as a backend of storages."""

import json
from collections.abc import Collection, Hashable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import attrs
import psycopg
import trio

from planton import StorageError
from planton.storage import (
    Caller,
    Claimed,
    ClaimRequest,
    Filter,
    InstructionRecord,
    NewInstruction,
    Report,
    Rule,
    Status,
    TaskStats,
    Watcher,
    are_new,
    to_rows,
)
from planton_postgres import _operate, _schema, _wake
from planton_postgres._claim import Bounds, Claim, Looked, to_datetime
from planton_postgres._database import Connection, Database, Parameters, Rows, with_utf8
from planton_postgres._errors import to_storage_error, translated
from planton_postgres._fleet import Fleet
from planton_postgres._query import Query
from planton_postgres._reports import Found, by_kind, found_by, parameters_of

T = TypeVar("T")
# Of more tasks it is first asked which have anything at all: mostly that is all.
_FEW = 50
# Seconds that `migrate` waits for a lock on the tables.
LOCK_TIMEOUT = 5.0
# Of errors of these classes another item of the batch may be the cause: each is sent by itself.
_OF_AN_ITEM = ("22", "23", "40", "42", "54", "55", "P0", "PL", "XX")


class PostgresBackend(Fleet):
    """A `planton.storage.Backend`; see there for what its methods promise.

    Args:
        database: Where.
        keeps: Whether there is a history.
        unlogged: Whether `migrate` makes tables that are not logged.
        listen_dsn: Where changes are listened for.
    """

    def __init__(
        self, database: Database, *, keeps: bool, unlogged: bool, listen_dsn: str | None
    ) -> None:
        super().__init__(database)
        self.database = database.name
        self.identity: Hashable = ("postgresql", database.conninfo)
        self._keeps = keeps
        self._unlogged = unlogged
        self._listen_dsn = with_utf8(listen_dsn) if listen_dsn else database.conninfo
        self._known: set[str] = set()
        self._bounds: WeakKeyDictionary[Rule, Bounds] = WeakKeyDictionary()
        self._described: WeakSet[Rule] = WeakSet()

    async def open(self) -> None:
        self._known.clear()
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def migrate(self, lock_timeout: float = LOCK_TIMEOUT) -> int:
        change = partial(
            _schema.migrate,
            database=self.database,
            unlogged=self._unlogged,
            lock_timeout=lock_timeout,
        )
        try:
            return await self._database.change_tables(change, patience=lock_timeout)
        except StorageError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            refused = error
        holders = await self._database.change_tables(_schema.holders)
        problem = f"a lock on its tables was not to be had within {lock_timeout:g} s"
        who = holders or "whoever held it has let go of it: try again"
        raise StorageError(self.database, f"{problem}: {who}") from refused

    def schema(self) -> str:
        return _schema.script()

    def check_statement(self, task_name: str, sql: str) -> None:
        Query(task_name, sql).check()

    # Claims and reports

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        if requests and requests[0].rule.statement is not None:
            return [], [await self._claim_by_statement(requests[0])]
        await self._introduce(requests)
        begun = await self._begin(requests, looks=not reports)
        claims = [each for each in begun if isinstance(each, Claim)]
        found, answers = await self._commit(reports, claims)
        rest = iter(answers)
        return found, [each if isinstance(each, Claimed) else next(rest) for each in begun]

    async def _claim_by_statement(self, request: ClaimRequest) -> Claimed | Exception:
        """Claim for a task with a statement, in a commit of its own.

        A cancellation takes effect while the statement runs: it is undone then.
        """
        await self._introduce([request])
        (begun,) = await self._begin([request], looks=True)
        if isinstance(begun, Claimed):
            return begun

        async def claim(connection: Connection) -> Claimed | Exception:
            if request.rule not in self._described:
                await Query(request.rule.task_name, request.rule.statement or "").describe(
                    connection
                )
                self._described.add(request.rule)
            _, (answer,) = await self._together(connection, [], [begun])
            return answer

        return await self._database.use_for_statement(claim)

    async def _introduce(self, requests: Sequence[ClaimRequest]) -> None:
        """Give tasks the row that is their lock, before their first claim."""
        unknown = sorted({request.rule.task_name for request in requests} - self._known)
        if unknown:
            await self._database.rows("introduce", {"task_names": unknown})
            self._known.update(unknown)

    async def _begin(
        self, requests: Sequence[ClaimRequest], *, looks: bool
    ) -> list[Claim | Claimed]:
        """Return a claim for each request, or its answer if a look says that nothing is there.

        What is expected to find something is not looked at, nor what comes with reports: they may
        free its slots. A cron task is, in any case: its kept time is needed.
        """
        wanted = [
            place
            for place, request in enumerate(requests)
            if request.rule.cron is not None or (looks and not request.is_expected)
        ]
        looked = await self._look([requests[place] for place in wanted]) if wanted else []
        by_place = dict(zip(wanted, looked, strict=True))
        return [
            await self._begun(request, by_place.get(place), looks=looks)
            for place, request in enumerate(requests)
        ]

    async def _begun(
        self, request: ClaimRequest, looked: Looked | None, *, looks: bool
    ) -> Claim | Claimed:
        bounds = self._bounds.setdefault(request.rule, Bounds())
        claim = Claim(request, bounds, trio.current_time)
        if looked is None:
            return claim
        is_new = request.rule.cron is not None and looked.kept is None
        others = await self._kept_times(request.rule.task_name) if is_new else {}
        fires = looked.reckoned(request.rule, request.limit, others)
        if fires is not None:
            kept = None if looked.kept is None else to_datetime(looked.kept)
            claim.reckon(kept, fires)
        answer = looked.answer(request, fires) if looks else None
        return claim if answer is None else answer

    async def _kept_times(self, task_name: str) -> dict[str, datetime]:
        rows = await self._database.rows("kept_times", {"task_name": task_name})
        return {key: to_datetime(at) for key, at in rows}

    async def _look(self, requests: Sequence[ClaimRequest]) -> list[Looked]:
        if len(requests) > _FEW and (busy := await self._busy(len(requests))) is not None:
            few = [
                request
                for request in requests
                if request.rule.task_name in busy or request.rule.cron is not None
            ]
            found = iter(await self._look_at(few))
            asked = set(map(id, few))
            return [
                next(found) if id(request) in asked else Looked(request.rule.task_name)
                for request in requests
            ]
        return await self._look_at(requests)

    async def _busy(self, limit: int) -> set[str] | None:
        """Return the tasks that have anything queued or active; None if they are too many."""
        rows = await self._database.rows("busy", {"limit": limit})
        return None if len(rows) > limit else {name for (name,) in rows}

    async def _look_at(self, requests: Sequence[ClaimRequest]) -> list[Looked]:
        if not requests:
            return []
        asked = [
            {
                "place": place,
                "task_name": request.rule.task_name,
                "key": request.rule.key,
                "tags": request.rule.tags,
                "cron": request.rule.cron and request.rule.cron.key,
            }
            for place, request in enumerate(requests)
        ]
        rows = await self._database.rows("look", {"asked": json.dumps(asked)})
        return [Looked(*row[1:]) for row in sorted(rows)]

    async def _commit(
        self, reports: Sequence[Report], claims: Sequence[Claim]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        """Apply reports and claim in one commit; if that fails, each by itself."""
        if not reports and not claims:
            return [], []
        try:
            return await self._use(reports, claims)
        except psycopg.Error as error:
            if len(reports) + len(claims) == 1 or not _is_of_an_item(error):
                raise to_storage_error(self.database, error) from error
        found = [await self._alone([report], []) for report in reports]
        answers = [await self._alone([], [claim]) for claim in claims]
        return (
            [one if isinstance(one, Exception) else one[0][0] for one in found],
            [one if isinstance(one, Exception) else one[1][0] for one in answers],
        )

    async def _alone(self, reports: Sequence[Report], claims: Sequence[Claim]) -> Any:
        try:
            return await self._use(reports, claims)
        except psycopg.Error as error:
            return to_storage_error(self.database, error)

    async def _use(
        self, reports: Sequence[Report], claims: Sequence[Claim]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        """Apply reports and claim in one commit.

        Raises:
            psycopg.Error: The first error; all is undone.
        """
        failure: psycopg.Error | None = None

        async def send(connection: Connection) -> tuple[list[Any], list[Any]] | None:
            nonlocal failure
            try:
                return await self._together(connection, reports, claims)
            except psycopg.Error as error:
                failure = error
                return None

        done = await self._database.use(send)
        if done is None:
            assert failure is not None
            raise failure
        return done

    async def _together(
        self, connection: Connection, reports: Sequence[Report], claims: Sequence[Claim]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        kinds = by_kind(reports)
        is_alone = len(claims) == 1 and not reports
        statements: list[tuple[str, Parameters]] = [
            *((kind[0].kind, parameters_of(kind, keeps=self._keeps)) for kind in kinds),
            *(("claim", claim.parameters(is_alone=is_alone)) for claim in claims),
        ]
        rows = await self._database.together(connection, statements)
        found: dict[Report, Found] = {}
        for kind, changed in zip(kinds, rows, strict=False):
            found.update(zip(kind, found_by(kind, changed), strict=True))
        answers = [
            await self._read(connection, claim, answer)
            for claim, answer in zip(claims, rows[len(kinds) :], strict=True)
        ]
        return [found[report] for report in reports], answers

    async def _read(self, connection: Connection, claim: Claim, rows: Rows) -> Claimed | Exception:
        claimed = claim.read(rows)
        if claimed is None:
            # Somebody has deleted the row of the task: it gets it anew at its next attempt.
            self._known.discard(claim.request.rule.task_name)
            return Claimed(concurrency=claim.request.concurrency, outcome="locked")
        if isinstance(claimed.error, psycopg.Error):
            claimed.error = to_storage_error(self.database, claimed.error)
        elif claimed.error is not None and not claimed.rows:
            # The server's own words have the place of the error, which it forgets while it runs.
            with translated(self.database):
                await _query(claim.request.rule).describe(connection)
        return claimed

    # Producers and operators

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        found: dict[str, list[str]] = {name: [] for name in task_names}
        for name, instruction in await self._database.rows("active", {"task_names": list(found)}):
            found[name].append(instruction)
        return [found[name] for name in task_names]

    dialect = "postgresql"

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        parameters = {"new": to_rows(new, datetime.isoformat)}
        return are_new(new, await self._database.rows("enqueue", parameters))

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        sql = self._database.sql["enqueue"].replace("%(new)s", ":new")
        with translated(self.database):
            return are_new(new, await caller.fetch(sql, new=to_rows(new, datetime.isoformat)))

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        await self._database.rows("pause" if is_paused else "resume", {"task_name": task_name})

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        parameters = {"task_name": task_name, "concurrency": concurrency}
        await self._database.rows("set_concurrency", parameters)

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        names = None if instructions is None else list(instructions)
        return await self._database.transaction(
            lambda connection: _operate.retry(connection, self._database.sql, task_name, names)
        )

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        named = None if instructions is None else list(instructions)
        parameters = {"task_name": task_name, "instructions": named}

        async def delete(connection: Connection) -> int:
            cursor = await connection.execute(self._database.sql["drop"], parameters)
            return cursor.rowcount

        return await self._database.use(delete)

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        rows = await self._database.rows("find", attrs.asdict(wanted))
        return [_operate.to_record(row) for row in rows]

    async def stats(self) -> list[TaskStats]:
        return [_operate.to_stats(row) for row in await self._database.rows("stats")]

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        await self._database.rows("forget_expressions")
        parameters = {"older_than": older_than, "statuses": list(statuses), "limit": limit}

        async def delete(connection: Connection) -> int:
            cursor = await connection.execute(self._database.sql["prune"], parameters)
            return cursor.rowcount

        return await self._database.use(delete)

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        statement = "wake_on_change" if is_wanted else "ignore_changes"
        parameters = {"table": table, "task_name": task_name}
        return await self._database.use(
            lambda connection: _operate.wake_on_change(
                connection, self._database.sql, statement, parameters
            )
        )

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        await _wake.listen(self._database, self._listen_dsn, watcher, task_status)


def _query(rule: Rule) -> Query:
    return Query(rule.task_name, rule.statement or "")


def _is_of_an_item(error: psycopg.Error) -> bool:
    return (error.sqlstate or "").startswith(_OF_AN_ITEM)
