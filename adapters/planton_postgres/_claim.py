"""Asks planton_claim, and reads its answer; and what a claim remembers for the next one."""

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from planton.storage import Claimed, ClaimedRow, ClaimRequest, Fires, Rule, to_datetime
from planton_postgres._query import Query

# So many entries of the index that a look at the queue from its front read in vain are dead rows.
_MANY = 1000
# Then claims go on where the last one stopped, for that many times as long as it took, for a second
# at the most: what was committed late in front of that, or has a higher priority, waits no longer.
_TIMES, _MOST_SECONDS = 20.0, 1.0
_MOST = 2**31 - 1  # of the function's integers
_LAST = 253402300799.0  # the last second that a datetime holds


@attrs.define(eq=False)
class Bounds:
    """What skips dead rows of the queue; see "Limits" in docs/postgres.md.

    Attributes:
        stopped: The priority, the time and the id of the last row taken.
        until: When the queue is to be looked at from the front again.
        mode: What is known of the user's statement; see planton_ask.
    """

    stopped: list[Any] | None = None
    until: float = -math.inf
    mode: str = "reads"


class Claim:
    """One claim of one task.

    Args:
        request: What is asked for.
        bounds: What earlier claims by the same rule have learnt.
        clock: Returns a time in seconds that never goes back.
    """

    def __init__(self, request: ClaimRequest, bounds: Bounds, clock: Callable[[], float]) -> None:
        self.request = request
        self._bounds = bounds
        self._clock = clock
        self._token = secrets.randbits(63)
        self._uses_bounds = clock() < bounds.until
        self._fires: Fires | None = None
        self._kept: datetime | None = None

    def reckon(self, kept: datetime | None, fires: Fires) -> None:
        """Note which times of a cron task fire, reckoned from the kept one."""
        self._kept, self._fires = kept, fires

    def parameters(self, *, is_alone: bool) -> dict[str, str]:
        """Return the parameters of the statement `claim`."""
        rule, bounds, request = self.request.rule, self._bounds, self.request
        asked: dict[str, Any] = {
            "limit": min(request.limit, _MOST),
            "concurrency": min(request.concurrency, _MOST),
            "lease": rule.lease,
            "deliveries": rule.deliveries,
            "key": rule.key,
            "tags": rule.tags,
            "claimed_by": rule.claimed_by,
            "token": self._token,
            "keeps": rule.keeps,
            "partition_concurrency": rule.partition_concurrency,
            "stopped": bounds.stopped if self._uses_bounds else None,
            "is_alone": is_alone,
        }
        if rule.statement is not None:
            statement = Query(rule.task_name, rule.statement).statement
            asked |= {"statement": statement, "mode": bounds.mode, "retries": rule.retries}
        if self._fires is not None and rule.cron is not None:
            asked |= {
                "cron": rule.cron.key,
                "retries": 0,
                "kept": self._kept and self._kept.isoformat(),
                "fires": [time.isoformat() for time in self._fires.due],
                "next_fire_at": self._fires.next_at.isoformat(),
            }
        return {"task_name": rule.task_name, "request": json.dumps(asked)}

    def read(self, rows: Sequence[tuple[Any, ...]]) -> Claimed | None:
        """Read what planton_claim returned; None if the task is not known to the database."""
        kind = rows[-1][0]
        if kind == "unknown":
            return None
        if kind != "state":
            return Claimed(concurrency=self.request.concurrency, outcome=kind)
        state = json.loads(rows[-1][3])
        self._learn(state)
        token = self._token
        claimed = [ClaimedRow((row_id, token), *rest) for _, row_id, *rest in rows[:-1]]
        rescued = sum(row[0] == "rescued" for row in rows[:-1])
        claimed[:rescued] = sorted(claimed[:rescued], key=lambda row: row.receipt)
        return Claimed(
            rows=claimed,
            active=state["active"],
            concurrency=state["cap"],
            outcome="limited" if state["is_full"] and not claimed else None,
            due_in=self._due_in(state),
            error=self._error(state["problem"]),
        )

    def _learn(self, state: dict[str, Any]) -> None:
        bounds, now = self._bounds, self._clock()
        bounds.stopped = state["stopped"] or bounds.stopped
        bounds.mode = state["mode"] or bounds.mode
        if not self._uses_bounds:
            seconds = min(state["took"] * _TIMES, _MOST_SECONDS)
            bounds.until = now + seconds if state["walked"] > _MANY else now

    def _due_in(self, state: dict[str, Any]) -> float | None:
        """Return the seconds until an attempt may find something; see `Claimed`."""
        has_slots = state["held"] < state["cap"]
        if has_slots and (state["claimed"] >= self.request.limit or state["moved"]):
            return 0.0
        times = [state["first_expiry"]]
        if has_slots:
            times.append(state["next_due"])
            if self._fires is not None:
                times.append(self._fires.next_at.timestamp())
        waits = [max(at - state["clock"], 0.0) for at in times if at is not None]
        if has_slots and self._uses_bounds:
            waits.append(max(self._bounds.until - self._clock(), 0.0))
        return min(waits, default=None)

    def _error(self, problem: dict[str, Any] | None) -> Exception | None:
        if problem is None:
            return None
        rule = self.request.rule
        return Query(rule.task_name, rule.statement or "").problem(problem)


@attrs.frozen
class Looked:
    """What a look found, without a lock; times are seconds since 1970 by the server's clock."""

    task_name: str
    is_paused: bool | None = None
    concurrency: int | None = None
    active: int = 0
    first_expiry: float | None = None
    first_due: float | None = None
    kept: float | None = None
    clock: float = 0.0

    def reckoned(self, rule: Rule, limit: int, others: Mapping[str, datetime]) -> Fires | None:
        """Return which times of a cron task fire; None for other tasks."""
        if rule.cron is None:
            return None
        now = to_datetime(self.clock)
        kept = rule.cron.first(others, now) if self.kept is None else to_datetime(self.kept)
        return rule.cron.fires(kept, now, limit)

    def answer(self, request: ClaimRequest, fires: Fires | None) -> Claimed | None:
        """Return what a claim that finds nothing would; None if it may find something."""
        cap = request.concurrency if self.concurrency is None else self.concurrency
        if self.is_paused:
            return Claimed(concurrency=cap, outcome="paused")
        has_slots = self.active < cap
        times = [self.first_expiry]
        if has_slots:
            if request.rule.statement is not None or (fires is not None and self.kept is None):
                return None
            times += [self.first_due, None if fires is None else self.kept]
        if any(at is not None and at <= self.clock for at in times):
            return None
        waits = [at - self.clock for at in times if at is not None and at < _LAST]
        wait = min(waits, default=None)
        return Claimed(active=self.active, concurrency=cap, due_in=wait)
