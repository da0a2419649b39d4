"""The strict claim: it counts and claims in one transaction, which only one process has at a time.

The steps have the names of those of planton_postgres/functions/claim.sql. Here `BEGIN IMMEDIATE`,
which the caller has executed, is the lock: nobody else adds or ends anything before the commit.
Active is what has a row in planton_active, also when its lease is over: the cap is one over rows.
"""

import json
import math
import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from operator import itemgetter
from typing import Any

from planton.storage import Claimed, ClaimedRow, ClaimRequest, Fires, load_statements, to_datetime
from planton_sqlite._open import is_of_database
from planton_sqlite._query import Query

_END_EXHAUSTED = ("end_exhausted", "drop_exhausted")
_REQUEUE_NOT_OFFERED = ("requeue_not_offered", "drop_not_offered")
CLAIM = load_statements(__package__, "claim.sql")
_HIGHEST, _MOST = 2**63 - 1, 2**31 - 1


class Claim:
    """One claim of one task.

    The connection is within BEGIN IMMEDIATE for `run`, and in no transaction for `look`.
    """

    is_paused: bool
    concurrency: int  # the one in force
    changes: int  # counted by the triggers of `wake_on_change`
    turn: str  # the partition that was served last
    held = 0  # what is active by now, expired ones included

    def __init__(
        self, connection: sqlite3.Connection, request: ClaimRequest, clock: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._request = request
        self._rule = request.rule
        self._clock = clock
        self._rows: list[ClaimedRow] = []
        self._next_due: list[float] = []
        self._most = request.rule.partition_concurrency
        self._partitions: dict[str, int] = {}  # how many of each are active by now
        self._moved = 0  # how many were given and wait for room in their partition
        self._parameters: dict[str, Any] = {
            "task_name": self._rule.task_name,
            "claimed_by": self._rule.claimed_by,
            "lease": self._rule.lease,
            "deliveries": self._rule.deliveries,
            "keeps": self._rule.keeps,
            "key": to_glob(self._rule.key),
            "tags": json.dumps(self._rule.tags),
            "retries": self._rule.retries,
            "token": secrets.randbits(63),
        }

    def run(self) -> Claimed:
        """Claim up to what the cap and the limit leave room for."""
        self._lock()
        if self.is_paused:
            return self._paused()
        self._count()
        if self._first_expiry <= self._now:
            self._rescue()
        self._take()
        error = self._ask()
        self._fire()
        return self._claimed(error=error)

    def look(self) -> Claimed | None:
        """Return what a claim that finds nothing would; None if it may find something."""
        self._lock()
        if self.is_paused:
            return self._paused()
        self._count()
        if self._first_expiry <= self._now:
            return None
        if self._room > 0 and (self._rule.statement is not None or self._is_due()):
            return None
        return self._claimed()

    # 1. lock: the write transaction is the lock

    def _lock(self) -> None:
        # Without a row nothing is overridden.
        row = self._execute("task").fetchone() or (False, None, 0, "")
        is_paused, override, self.changes, self.turn = row
        self.is_paused = bool(is_paused)
        self.concurrency = self._request.concurrency if override is None else override

    # 2. count what is active; the time is read after that

    def _count(self) -> None:
        self._count_after(-math.inf)
        self._active = self.held
        self._now = self._parameters["now"] = self._clock()

    def _count_after(self, time: float) -> None:
        """Count; the first lease that ends is one that ends after some time."""
        self.held, first_expiry = self._execute("count", after=time).fetchone()
        self._first_expiry = math.inf if first_expiry is None else first_expiry
        if self._most is not None:
            self._partitions = dict(self._execute("partitions").fetchall())

    # 3. rescue claims whose lease is over; they hold their slots already

    def _rescue(self) -> None:
        for statement in _END_EXHAUSTED + _REQUEUE_NOT_OFFERED:
            self._execute(statement)
        # No more of the others start than may run beside what is left.
        (others,) = self._execute("others").fetchone()
        room = min(self._request.limit, self.concurrency - others)
        if room > 0:
            self._add(self._execute("rescue", room=room).fetchall())
        self._count_after(self._now)

    # 4. room

    @property
    def _room(self) -> int:
        return max(0, min(self._request.limit - len(self._rows), self.concurrency - self.held))

    # 5. take due rows of the queue: with partitions, these take turns; else priority by priority

    def _take(self) -> None:
        room = self._room
        due = self._take_by_priority("due", room) if self._most is None else self._take_turns(room)
        if due:
            ids = str(due)  # of numbers, which JSON writes as Python does
            self._record(self._execute("record_due", ids=ids).fetchall())
            self._execute("drop_due", ids=ids)
        if len(due) < room:
            self._next_due.append(self._first_due(self._now))

    def _take_by_priority(self, statement: str, room: int, taken: int = 0) -> list[int]:
        due: list[tuple[int]] = []
        levels = self._levels()
        while len(due) < taken + room and (level := next(levels, None)) is not None:
            due += self._execute(statement, level=level, room=taken + room).fetchall()
        return [row_id for (row_id,) in due[taken : taken + room]]

    def _levels(self) -> Iterator[int]:
        """Return the priorities of what is queued, the highest first."""
        level = _HIGHEST
        while level is not None:
            (level,) = self._execute("next_level", level=level).fetchone()
            if level is not None:
                yield level

    def _take_turns(self, room: int) -> list[int]:
        """Take of partition after partition, from the one after that which was served last on.

        First each that has room and something due gives one, then those that did give as many as
        each of them may: how long a backlog is gives nobody more.
        """
        due: list[int] = []
        taken: Counter[str] = Counter()
        turn, quota = self.turn, 1
        ring = self._execute("ring", turn=turn)
        members: Iterable[str] = (partition for (partition,) in ring)
        while len(due) < room:
            others = []
            for partition in members:
                if found := self._due_of(partition, quota, taken[partition]):
                    due += found
                    taken[partition] += len(found)
                    turn = partition
                if len(found) == quota:
                    others.append(partition)
                if len(due) >= room:
                    break
            if not others:
                break
            members, quota = others, max(1, (room - len(due)) // len(others))
        ring.close()
        if turn != self.turn:
            self._execute("keep_turn", turn=turn)
        self._partitions = dict(taken + Counter(self._partitions))
        return due

    def _due_of(self, partition: str, number: int, taken: int = 0) -> list[int]:
        """Return due rows of a partition that has room, besides those that were taken."""
        if not partition:
            return self._take_by_priority("due_of_none", number, taken)
        room = min(number, self._room_of(partition) - taken)
        if room <= 0:
            return []
        found = self._execute("due_of_partition", partition=partition, room=room, taken=taken)
        return [row_id for (row_id,) in found]

    def _room_of(self, partition: str) -> float:
        if self._most is None or not partition:
            return math.inf
        return self._most - self._partitions.get(partition, 0)

    def _is_due(self) -> bool:
        if self._most is None:
            first = self._first_due(-math.inf)
            is_due = first <= self._now
        else:
            first = self._first_due(self._now)
            ring = self._execute("ring", turn=self.turn)
            is_due = any(self._due_of(partition, 1) for (partition,) in ring)
            ring.close()
        times = [first]
        if self._rule.cron is not None:
            times.append(self._kept_times().get(self._rule.cron.key, self._now))
        self._next_due += times
        return is_due or any(time <= self._now for time in times)

    def _is_limited(self) -> bool:
        """Tell whether nothing was found for what is due is of partitions that are full."""
        is_full = any(self._room_of(partition) <= 0 for partition in self._partitions)
        return (
            is_full
            and not self._rows
            and self._room > 0
            and self._first_due(-math.inf) <= self._now
        )

    def _first_due(self, after: float) -> float:
        """Return when the first that is due after some time is due."""
        found = [
            self._execute("next_due", level=level, after=after).fetchone()
            for level in self._levels()
        ]
        return min((first for (first,) in filter(None, found)), default=math.inf)

    # 6. ask the user's own statement for the room that is left; fires of a cron task

    def _ask(self) -> Exception | None:
        """Claim what the user's statement returns; its error, which undoes only itself."""
        if self._rule.statement is None or self._room <= 0:
            return None
        self._connection.execute("SAVEPOINT ask")
        try:
            self._claim_given(Query(self._rule.task_name, self._rule.statement))
        except Exception as error:
            if not self._connection.in_transaction or is_of_database(error):
                raise  # a full disk, or OR ROLLBACK in the statement: nothing of the claim is left
            self._connection.execute("ROLLBACK TO ask")
            self._connection.execute("RELEASE ask")
            return error
        self._connection.execute("RELEASE ask")
        return None

    def _claim_given(self, query: Query) -> None:
        """Claim what the statement gives; queue what it has marked and will not give again.

        What does not mark finds its rows again while they are active, queued, or failed for good:
        it is asked for more, so that those behind them are reached.
        """
        marks = query.is_marking(self._connection)
        full = [name for name in self._partitions if self._room_of(name) <= 0]
        # They may be many, and most statements do not look at them.
        active = self._names("active") if "active" in query.sql else []
        parameters = {"active": json.dumps(active), "now": self._now, "full": json.dumps(full)}
        limit = self._room if marks else self._room + self.held
        while True:
            ran = query.run(self._connection, {**parameters, "limit": limit})
            given, moved = self._within(ran, marks=marks)
            if marks or len(given) == self._room or len(ran) < limit:
                break
            limit = min(limit * 8, _MOST)
        if marks:
            self._requeue(ran, given)
        self._record_given(given)
        self._moved = moved if marks else 0

    def _within(self, ran: Mapping[str, str], *, marks: bool) -> tuple[dict[str, str], int]:
        """Return what is to be recorded, and how many are beyond the room of their partitions.

        What is active or queued is not; nor is what failed for good and is found again, of which
        one of each partition comes before a second one.
        """
        known = set(self._names("known", given=_pairs(ran), marks=marks))
        turns: Counter[str] = Counter()
        new = []
        for name, partition in ran.items():
            if name not in known:
                turns[partition] += 1
                new.append((turns[partition], name, partition))
        within = [each for each in new if each[0] <= self._room_of(each[2])]
        if not marks and self._most is not None:
            within.sort(key=itemgetter(0))
        given = {name: partition for _, name, partition in within[: self._room]}
        return given, len(new) - len(within)

    def _requeue(self, ran: Mapping[str, str], given: Mapping[str, str]) -> None:
        if self.changes:
            # What a claim changes in the user's table does not wake its own task.
            self._execute("note_changes", changes=self.changes)
        if rest := {name: owner for name, owner in ran.items() if name not in given}:
            self._execute("requeue_given", given=_pairs(rest))

    def _names(self, statement: str, **parameters: Any) -> list[str]:
        return [name for (name,) in self._execute(statement, **parameters)]

    def _fire(self) -> None:
        times, room = self._rule.cron, self._room
        if times is None:
            return
        kept = {key: to_datetime(at) for key, at in self._kept_times().items()}
        now = to_datetime(self._now)
        next_at = kept.get(times.key) or times.first(kept, now)
        fires = times.fires(next_at, now, room)
        fired = dict.fromkeys(self._fired(fires), "")
        known = set(self._names("known", given=_pairs(fired), marks=True))
        self._record_given({name: "" for name in fired if name not in known})
        if kept.get(times.key) != fires.next_at:
            self._execute("keep_time", cron=times.key, next_fire_at=fires.next_at.timestamp())
            self._execute("forget_expressions", cron=times.key)
            self._execute("forget_fired")
        self._next_due.append(fires.next_at.timestamp())

    def _fired(self, fires: Fires) -> list[str]:
        """Return the times that no other expression of the task has fired before."""
        return [
            time.astimezone(UTC).isoformat()
            for time in fires.due
            if self._execute("fire", fire_at=time.timestamp()).rowcount
        ]

    def _kept_times(self) -> dict[str, float]:
        return dict(self._execute("kept_times").fetchall())

    # 7. record each with a new receipt

    def _record_given(self, given: Mapping[str, str]) -> None:
        if given:
            self._record(self._execute("record_given", given=_pairs(given)).fetchall())

    def _record(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.held += len(rows)
        self._add(rows)

    def _add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Note claims, in the order of their ids: RETURNING promises none."""
        token = self._parameters["token"]
        self._rows += [
            ClaimedRow((row_id, token), name, payload, delivery, timeout, partition)
            for row_id, name, payload, delivery, timeout, partition in sorted(rows)
        ]

    def _paused(self) -> Claimed:
        return Claimed(concurrency=self.concurrency, outcome="paused")

    def _claimed(self, *, error: Exception | None = None) -> Claimed:
        return Claimed(
            rows=self._rows,
            active=self._active,
            concurrency=self.concurrency,
            outcome="limited" if self._is_limited() else None,
            due_in=self._due_in(),
            error=error,
        )

    def _due_in(self) -> float | None:
        """Return the seconds until an attempt may find something; see `Claimed`."""
        has_slots = self.held < self.concurrency
        if has_slots and (len(self._rows) >= self._request.limit or self._moved):
            return 0.0
        times = [self._first_expiry, *(self._next_due if has_slots else ())]
        wait = min((time for time in times if time > self._now), default=math.inf) - self._now
        return None if wait == math.inf else wait

    def _execute(self, statement: str, **parameters: Any) -> sqlite3.Cursor:
        return self._connection.execute(CLAIM[statement], {**self._parameters, **parameters})


def _pairs(given: Mapping[str, str]) -> str:
    return json.dumps(list(given.items()))


def to_glob(key: str) -> str:
    r"""Return a pattern for LIKE as one for GLOB, for which case counts as it does elsewhere.

    Examples:
        >>> [to_glob(key) for key in ("user:%", r"a\_1", "a_*")]
        ['user:*', 'a_1', 'a?[*]']
    """
    glob, is_escaped = "", False
    for character in key:
        if character == "\\" and not is_escaped:
            is_escaped = True
            continue
        special = None if is_escaped else {"%": "*", "_": "?"}.get(character)
        glob += special or (f"[{character}]" if character in "*?[" else character)
        is_escaped = False
    return glob
