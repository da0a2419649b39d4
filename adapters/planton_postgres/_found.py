"""What is known of a task within its claim."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias

import attrs

from planton import Claim
from planton.storage import KeptTime
from planton_postgres._driver import full_jitter
from planton_postgres._passed import Passed, Trail

# Nothing is compared with it: this machine's own time would be a mistake if it was.
_NEVER = datetime.min.replace(tzinfo=UTC)

Fire: TypeAlias = KeptTime


@attrs.define
class Found:
    """What is known of a task after the statements that all kinds of claims have in common.

    Attributes:
        is_known: Whether the task has its row in the database.
        active: How many were active before.
        next_fire_at: When a cron task fires next, by its own time table.
        now: The time, by the database's clock.
        next_expiry_at: When the first lease expires; it may have.
        is_wanted: Whether there was something to do, at first sight.
        next_due_at: When something in the queue becomes due.
        has_room: Whether it is neither paused nor saturated, so that the queue was looked at.
        is_held: Whether this transaction alone may claim for the task.
        room: How many more may be claimed from the task's own source.
        passed: What was left out of the queue.
        trail: What the claim came past in the queue; None if it claimed for none.
        look_in: Seconds until the whole queue is looked at again, if only a part was.
        fires: The next times of all time tables of a cron task, by their keys.
        claims: What was taken over, and what was due in the queue.
    """

    is_known: bool
    active: int
    next_fire_at: datetime | None
    now: datetime
    next_expiry_at: datetime | None
    is_wanted: bool
    next_due_at: datetime | None
    has_room: bool
    is_held: bool = False
    room: int = 0
    passed: Passed | None = None
    trail: Trail | None = None
    look_in: float | None = None
    fires: dict[str, Fire] = attrs.field(factory=dict)
    claims: list[Claim] = attrs.field(factory=list)

    @classmethod
    def nothing(cls) -> Self:
        """Make what is found of a task that has nothing queued and nothing active."""
        return cls(True, 0, None, _NEVER, None, False, None, False)

    @property
    def has_looked(self) -> bool:
        """Whether it has looked at the queue, and there was nothing to do."""
        return self.has_room and not self.is_wanted

    def next_in(self, delay: float | None, rest: float) -> float | None:
        """Give the seconds until the next attempt, where they should be more than the delay.

        With nothing to do there is no need to look every time.

        Args:
            delay: Seconds until the next attempt otherwise; None if that varies, perhaps up to
                more than a rest.
            rest: Seconds that a task with nothing to do may rest because it would be woken; 0 if
                it would not.
        """
        return rest if not self.is_wanted and delay is not None and delay < rest else None

    def due_in(self, attempt_number: int) -> float | None:
        """Give the seconds until something may become due that is not yet.

        Who was turned away by another dispatcher, which may leave something, comes again soon.

        Args:
            attempt_number: Of the next attempt.
        """
        known = (self.next_due_at, self.next_fire_at, self.next_expiry_at)
        waits = [(at - self.now).total_seconds() for at in known if at and at > self.now]
        waits += [min(each.lease or math.inf, each.timeout or math.inf) for each in self.claims]
        if self.is_wanted and not self.is_held:
            waits.append(full_jitter(attempt_number, initial=0.02, maximum=1.0))
        if self.look_in is not None:
            waits.append(self.look_in)
        return min(waits, default=None)


def found_from(
    looked: list[tuple[Any, ...]],
    rows: list[tuple[Any, ...]],
    passed: Mapping[str, Passed | None],
) -> dict[str, Found]:
    """Read what `lock` and `claim` gave; by task."""
    found = {name: Found(*known) for name, *known, _, _, _, _ in looked}
    for name, one in found.items():
        one.passed = passed[name]
    held = [row for row in rows if row[0] == 0]
    # How many rows were read so far is counted while the statement runs: the most is the last.
    walked = max((row[6][3] for row in held), default=0)
    walked -= max((row[-1] for row in looked), default=0)
    in_vain = walked - sum(row[6][2] for row in held)
    for step, name, active, room, *claim in rows:
        if step == 0:
            last, has_more, _, _ = claim[2]
            found[name].is_held = True
            found[name].active, found[name].room = active, room
            found[name].trail = Trail(last or {}, has_more, in_vain)
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
