"""What is known of a task within its claim."""

from datetime import datetime
from typing import Any

import attrs

from planton import Batch, Claim
from planton_postgres._rule import ClaimRule


@attrs.frozen
class Fire:
    """The next time of a time table; when it is done, the one after it."""

    at: datetime
    is_done: bool


@attrs.define
class Found:
    """What is known of a task after the statements that all kinds of claims have in common.

    Attributes:
        is_known: Whether the task has its row in the database.
        active: How many were active before.
        next_fire_at: When a cron task fires next, by its own time table.
        next_due_at: When something in the queue becomes due.
        now: The time, by the database's clock.
        is_held: Whether this transaction alone may claim for the task.
        room: How many more may be claimed from the task's own source.
        fires: The next times of all time tables of a cron task, by their keys.
        claims: What was taken over, and what was due in the queue.
    """

    is_known: bool
    active: int
    next_fire_at: datetime | None
    now: datetime
    next_due_at: datetime | None
    is_held: bool = False
    room: int = 0
    fires: dict[str, Fire] = attrs.field(factory=dict)
    claims: list[Claim] = attrs.field(factory=list)

    def batch(self, rule: ClaimRule) -> Batch:
        """Give it as a schedule answers."""
        return Batch(self.claims, active=self.active, next_in=self._next_in(rule.delay))

    def _next_in(self, delay: float | None) -> float | None:
        """Give the seconds until there is something to do, if that is before the next attempt."""
        moments = [at for at in (self.next_due_at, self.next_fire_at) if at and at > self.now]
        if delay is None or not moments:
            return None
        seconds = (min(moments) - self.now).total_seconds()
        return seconds if seconds < delay else None


def found_from(looked: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> dict[str, Found]:
    """Read what `lock` and `claim` gave; by task."""
    found = {name: Found(*known) for name, *known, _, _ in looked}
    for step, name, active, room, *claim in rows:
        if step == 0:
            found[name].is_held = True
            found[name].active, found[name].room = active, room
        else:
            found[name].claims.append(to_claim(*claim))
    return found


def to_claim(
    instruction: str,
    receipt: str,
    payload: Any,
    delivery: int,
    lease: float,
    timeout: float | None,
) -> Claim:
    """Read a claim."""
    return Claim(
        instruction=instruction,
        receipt=receipt,
        payload=payload,
        delivery=delivery,
        lease=lease,
        timeout=timeout,
    )
