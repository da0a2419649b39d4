"""Claims and reports: what is looked at first, what travels together, what is sent again alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import psycopg
import trio

from planton import StorageError
from planton.storage import Claimed, ClaimRequest, Report, Rule, by_kind, found_by, to_datetime
from planton_postgres._claim import Bounds, Claim, Looked
from planton_postgres._database import Connection, Database, Parameters, Rows
from planton_postgres._errors import to_storage_error, translated
from planton_postgres._query import Query
from planton_postgres._reports import Found, parameters_of

# Of more tasks it is first asked which have anything at all: mostly that is all.
_FEW = 50
# Of errors of these classes another item of the batch may be the cause: each is sent by itself.
_OF_AN_ITEM = ("22", "23", "40", "42", "54", "55", "P0", "PL", "XX")


class Exchanges:
    """Exchanges reports and claims with a database; see `planton.storage.Backend.exchange`.

    Args:
        database: Which one.
        keeps: Whether there is a history.
    """

    def __init__(self, database: Database, *, keeps: bool) -> None:
        self._database = database
        self._keeps = keeps
        self._known: set[str] = set()
        self._bounds: WeakKeyDictionary[Rule, Bounds] = WeakKeyDictionary()
        self._described: WeakSet[Rule] = WeakSet()

    def forget(self) -> None:
        """Forget which tasks the database knows."""
        self._known.clear()

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        if requests and requests[0].rule.statement is not None:
            return [], [await self._claim_by_statement(requests[0])]
        begun: Sequence[Claim | Claimed | Exception]
        try:
            begun = await self._begin(requests, looks=not reports)
        except StorageError as error:
            begun = [error] * len(requests)  # the reports may get through
        claims = [each for each in begun if isinstance(each, Claim)]
        found, answers = await self._commit(reports, claims)
        rest = iter(answers)
        return found, [next(rest) if isinstance(each, Claim) else each for each in begun]

    async def _claim_by_statement(self, request: ClaimRequest) -> Claimed | Exception:
        """Claim for a task with a statement, in a commit of its own.

        A cancellation takes effect while the statement runs: it is undone then.
        """
        (begun,) = await self._begin([request], looks=True)
        if isinstance(begun, Claimed):
            return begun

        async def claim(connection: Connection) -> Claimed | Exception:
            if request.rule not in self._described:
                await _query(request.rule).describe(connection)
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
        """Introduce the tasks; return a claim for each request, or what a look says is its answer.

        What is expected to find something is not looked at, nor what comes with reports: they may
        free its slots. A cron task is, in any case: its kept time is needed.
        """
        await self._introduce(requests)
        wanted = [
            place
            for place, request in enumerate(requests)
            if request.rule.cron is not None or (looks and not request.is_expected)
        ]
        looked = await self._look([requests[place] for place in wanted]) if wanted else []
        kept = await self._kept_times(
            requests[place].rule.task_name
            for place, found in zip(wanted, looked, strict=True)
            if found.kept is None and requests[place].rule.cron is not None
        )
        by_place = dict(zip(wanted, looked, strict=True))
        return [
            self._begun(request, by_place.get(place), kept, looks=looks)
            for place, request in enumerate(requests)
        ]

    def _begun(
        self,
        request: ClaimRequest,
        looked: Looked | None,
        kept: Mapping[str, Mapping[str, datetime]],
        *,
        looks: bool,
    ) -> Claim | Claimed:
        fires = None
        if looked is not None:
            fires = looked.reckoned(request.rule, request.limit, kept.get(looked.task_name, {}))
            answer = looked.answer(request, fires) if looks else None
            if answer is not None:
                return answer
        claim = Claim(request, self._bounds.setdefault(request.rule, Bounds()), trio.current_time)
        if looked is not None and fires is not None:
            claim.reckon(None if looked.kept is None else to_datetime(looked.kept), fires)
        return claim

    async def _kept_times(self, task_names: Iterable[str]) -> dict[str, dict[str, datetime]]:
        """Return the kept times of cron tasks that are new, by their other expressions."""
        kept: dict[str, dict[str, datetime]] = {name: {} for name in task_names}
        if kept:
            rows = await self._database.rows("kept_times", {"task_names": list(kept)})
            for name, key, at in rows:
                kept[name][key] = to_datetime(at)
        return kept

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
        number = len(reports) + len(claims)
        try:
            return await self._use(reports, claims, tries=1 if number > 1 else 3)
        except StorageError as error:
            if number == 1 or not _is_of_an_item(error.__cause__):
                raise
        found = [await self._alone([report], []) for report in reports]
        answers = [await self._alone([], [claim]) for claim in claims]
        return (
            [one if isinstance(one, Exception) else one[0][0] for one in found],
            [one if isinstance(one, Exception) else one[1][0] for one in answers],
        )

    async def _alone(self, reports: Sequence[Report], claims: Sequence[Claim]) -> Any:
        try:
            return await self._use(reports, claims)
        except StorageError as error:
            return error

    async def _use(
        self, reports: Sequence[Report], claims: Sequence[Claim], tries: int = 3
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
        return await self._database.use(
            lambda connection: self._together(connection, reports, claims), tries=tries
        )

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
            claimed.error = to_storage_error(self._database.name, claimed.error)
        elif claimed.error is not None and not claimed.rows:
            # The server's own words have the place of the error, which it forgets while it runs.
            with translated(self._database.name):
                await _query(claim.request.rule).describe(connection)
        return claimed


def _query(rule: Rule) -> Query:
    return Query(rule.task_name, rule.statement or "")


def _is_of_an_item(error: BaseException | None) -> bool:
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return isinstance(error, psycopg.DataError)  # raised by psycopg, before it was sent
    return error.sqlstate.startswith(_OF_AN_ITEM)
