"""The strict claim: counts and claims in one transaction, which only one has at a time per task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import trio
from psycopg.types.json import Jsonb

from planton import Batch, Claim, ScheduleRequest
from planton.storage import CronTimes
from planton_postgres._cron import Fires, fires_of
from planton_postgres._database import Connection, Database, fetch
from planton_postgres._driver import Statement
from planton_postgres._found import Fire, Found, found_from, to_claim
from planton_postgres._passed import Memory, Passed
from planton_postgres._rule import ClaimRule
from planton_postgres._source import Source
from planton_postgres._statements import CLAIM

# Up to so many tasks are asked for at once; the statements are told a line for each of them.
_FEW = 50

Answer: TypeAlias = Batch | Exception


class Claimer:
    """Claims for the tasks of one storage.

    Args:
        database: Where.
        keep: Whether there is a history.
        rest: Gives the seconds that a task with nothing to do may rest, because it would be woken;
            0 if it would not.
        name: Who claims.
    """

    def __init__(
        self, database: Database, *, keep: bool, rest: Callable[[], float], name: str
    ) -> None:
        self._database = database
        self._keep = keep
        self._name = name
        self._rest = rest
        self.rules: dict[str, ClaimRule] = {}
        self._known: set[str] = set()
        self._memory = Memory(trio.current_time)

    async def from_queue(self, requests: Sequence[ScheduleRequest]) -> list[Batch]:
        """Claim for tasks that have nothing but the queue: one round trip for all of them.

        Of very many it is first asked which have anything; mostly that is all.
        """
        busy = requests if len(requests) <= _FEW else await self._busy(requests)
        found = await self._queued(busy) if busy else {}
        nothing = Found.nothing()
        return [self._batch(each, found.get(each.task_name, nothing)) for each in requests]

    async def _queued(self, requests: Sequence[ScheduleRequest]) -> dict[str, Found]:
        async def claim(connection: Connection) -> dict[str, Found]:
            return await self._common(connection, requests, commit=True)

        await self._introduce(requests)
        return self._learnt_from(await self._database.claim(claim))

    async def _busy(self, requests: Sequence[ScheduleRequest]) -> Sequence[ScheduleRequest]:
        """Leave out tasks that have nothing queued and nothing active."""
        limit = len(requests)
        rows = await self._database.rows(CLAIM["busy"], {"limit": limit})
        if len(rows) > limit:
            return requests  # those of others may have hidden one of these
        busy = {name for (name,) in rows}
        return [request for request in requests if request.task_name in busy]

    async def from_source(self, request: ScheduleRequest) -> Batch:
        """Claim for a task that has a source of its own: three round trips, or four.

        A cancellation takes effect while the user's statement runs: it is undone then.
        """

        async def claim(connection: Connection) -> Found:
            try:
                return await self._with_source(connection, request)
            except BaseException:
                await connection.rollback()  # noqa: ASYNC102  bounded by settle_limit
                raise

        await self._introduce([request])
        found = await self._database.claim_in_parts(claim)
        self._learnt_from({request.task_name: found})
        return self._batch(request, found)

    async def from_sources(self, requests: Sequence[ScheduleRequest]) -> list[Answer]:
        """Claim for several, each in a transaction of its own; one that fails undoes no other."""
        answers: dict[str, Answer] = {**await self._at_rest(requests)}

        async def claim(request: ScheduleRequest) -> None:
            try:
                answers[request.task_name] = await self.from_source(request)
            except Exception as error:
                answers[request.task_name] = error

        try:
            async with trio.open_nursery() as nursery:
                for request in requests:
                    if request.task_name not in answers:
                        nursery.start_soon(claim, request)
        except BaseExceptionGroup as group:
            # Some were cancelled, but what others have committed must be heard of. The
            # cancellation strikes again, at the caller's next checkpoint.
            if group.split(trio.Cancelled)[1] or not any(map(_has_claims, answers.values())):
                raise
        return [answers.get(request.task_name, Batch([])) for request in requests]

    async def _at_rest(self, requests: Sequence[ScheduleRequest]) -> dict[str, Batch]:
        """Give the answers of cron tasks with nothing to do: one look for all of them."""
        timed = [each for each in requests if self.rules[each.task_name].times is not None]
        if len(timed) < 2:
            return {}
        looked = await self._database.use(lambda connection: self._look(connection, timed))
        self._known.update(name for name, found in looked.items() if found.is_known)
        return {
            request.task_name: self._batch(request, found)
            for request in timed
            if (found := looked[request.task_name]).is_known and not found.is_wanted
        }

    async def _look(
        self, connection: Connection, requests: Sequence[ScheduleRequest]
    ) -> dict[str, Found]:
        passed: dict[str, Passed | None] = {each.task_name: None for each in requests}
        parameters = self._parameters(requests, passed, locks=False)
        return found_from(await fetch(connection, CLAIM["lock"], parameters), [], passed)

    def _parameters(
        self,
        requests: Sequence[ScheduleRequest],
        passed: Mapping[str, Passed | None],
        *,
        locks: bool,
    ) -> dict[str, Any]:
        asked = [
            self.rules[each.task_name].asked(each) | {"passed": passed[each.task_name]}
            for each in requests
        ]
        common = {"keep": self._keep, "claimed_by": self._name, "locks": locks}
        return {"asked": Jsonb(asked), **common}

    def _batch(self, request: ScheduleRequest, found: Found) -> Batch:
        """Give it as a schedule answers."""
        next_in = found.next_in(self.rules[request.task_name].delay, self._rest())
        due_in = found.due_in(request.attempt_number + 1)
        return Batch(found.claims, active=found.active, next_in=next_in, due_in=due_in)

    async def _introduce(self, requests: Sequence[ScheduleRequest]) -> None:
        """Give tasks the row that is their lock, before their first claim.

        Not after a claim that finds none: what it has claimed for others would have to be kept
        through whatever happens to the second claim.
        """
        unknown = sorted({request.task_name for request in requests} - self._known)
        if unknown:
            await self._database.count(CLAIM["introduce"], {"task_names": unknown})
            self._known.update(unknown)

    def _learnt_from(self, found: dict[str, Found]) -> dict[str, Found]:
        """Note, after the commit, what was found, and how soon to look at all of a queue again.

        Tasks whose row somebody has deleted are forgotten: they get it anew at their next attempt.
        """
        self._known -= {name for name, one in found.items() if not one.is_known}
        for name, one in found.items():
            if one.trail is not None:
                self._memory.note(name, one.passed, one.trail)
            elif one.has_looked and not one.passed:
                self._memory.seen_all(name)
            if one.passed:
                one.look_in = self._memory.look_in(name)
        return found

    async def _common(
        self, connection: Connection, requests: Sequence[ScheduleRequest], *, commit: bool
    ) -> dict[str, Found]:
        """Lock, count, take over, claim from the queue, in one round trip."""
        passed = {each.task_name: self._memory.passed(each.task_name) for each in requests}
        parameters = self._parameters(requests, passed, locks=True)
        statements = [
            Statement(CLAIM["begin"], prepare=False),
            Statement(CLAIM["lock"], parameters),
            Statement(CLAIM["claim"], parameters),
        ]
        if commit:
            statements.append(Statement(CLAIM["commit"], prepare=False))
        _, lock, claim, *_ = await connection.run_pipeline(statements)
        return found_from(lock, claim, passed)

    async def _with_source(self, connection: Connection, request: ScheduleRequest) -> Found:
        """Claim what all kinds do, then from the source for the room that is left, and commit."""
        with self._database.limited(shield=True):
            common = await self._common(connection, [request], commit=False)
        found = common[request.task_name]
        given, fires = await self._given(connection, request.task_name, found)
        with self._database.limited(shield=True):
            found.claims += await self._finish(connection, request.task_name, found, given, fires)
        found.next_fire_at = fires.look_at
        return found

    async def _given(
        self, connection: Connection, task_name: str, found: Found
    ) -> tuple[list[str], Fires]:
        """Ask the source; its instructions, and what becomes of the time table."""
        rule = self.rules[task_name]
        if rule.times is not None:
            fires = await self._from_times(connection, task_name, rule.times, found)
            return fires.due, fires
        if rule.source is None or not found.room:
            return [], Fires()
        with self._database.limited(shield=False):
            return await self._from_table(connection, task_name, rule.source, found), Fires()

    async def _from_times(
        self, connection: Connection, task_name: str, times: CronTimes, found: Found
    ) -> Fires:
        """Look at the time table, as it is now that nobody else can change it."""
        if found.is_held:
            with self._database.limited(shield=True):
                rows = await fetch(connection, CLAIM["fires"], {"task_name": task_name})
            found.now = rows[0][0]
            found.fires = {key: Fire(*fire) for _, key, *fire in rows if key is not None}
        return fires_of(times, found)

    async def _from_table(
        self, connection: Connection, task_name: str, source: Source, found: Found
    ) -> list[str]:
        """Run the user's statement; what it gave that is not recorded yet."""
        parameters = {"task_name": task_name, "is_marked": source.marks}
        *_, ((active, others),) = await connection.run_pipeline(
            [
                Statement(CLAIM["replan"], prepare=False),
                Statement(CLAIM["replan_too"], prepare=False),
                Statement(CLAIM["claims"], parameters),
                Statement(CLAIM["known"], parameters),
            ]
        )
        if source.marks:
            return await source.run(connection, found.room, active, found.now)
        # A plain SELECT finds what is active again, and others that are not to be claimed. These
        # may be many and are rarely in front: it is asked for them if they took all the places.
        limit = found.room + len(active)
        given = await source.run(connection, limit, active, found.now)
        if not others or len(given) < limit:
            return given
        recorded = await connection.execute(CLAIM["record"], self._row(task_name, given, found))
        claims = [to_claim(*row) for row in await recorded.fetchall()]
        found.claims += claims
        found.room -= len(claims)
        if not found.room:
            return []
        return await source.run(connection, limit + others, active, found.now)

    async def _finish(
        self,
        connection: Connection,
        task_name: str,
        found: Found,
        given: list[str],
        fires: Fires,
    ) -> list[Claim]:
        """Record what the source gave, and commit, in one round trip; the claims."""
        statements = []
        if given:
            statements.append(Statement(CLAIM["record"], self._row(task_name, given, found)))
        if fires.next_at is not None:
            statements.append(Statement(CLAIM["fire_next"], self._kept(task_name, fires)))
        elif not (given or found.claims):
            statements.append(Statement(CLAIM["lazily"], prepare=False))
        statements.append(Statement(CLAIM["commit"], prepare=False))
        recorded, *_ = await connection.run_pipeline(statements)
        return [to_claim(*row) for row in recorded] if given else []

    def _kept(self, task_name: str, fires: Fires) -> dict[str, Any]:
        key = self.rules[task_name].cron
        kept = {
            "key": key,
            "next_fire_at": fires.next_at,
            "shared": fires.shared,
            "gone": fires.gone,
        }
        return {"task_name": task_name, **kept}

    def _row(self, task_name: str, given: list[str], found: Found) -> dict[str, Any]:
        rule = self.rules[task_name]
        is_marked = rule.source is not None and rule.source.marks
        return {
            "task_name": task_name,
            "instructions": given,
            "retries": rule.retries,
            "lease": rule.lease,
            "claimed_by": self._name,
            "is_marked": is_marked,
            "is_time": rule.times is not None,
            "room": None if is_marked else found.room,
        }


def _has_claims(answer: Answer) -> bool:
    return isinstance(answer, Batch) and bool(answer.claims)
