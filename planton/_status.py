"""What can be asked about a task: where it stands, and what was decided about it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import attrs
import trio

State: TypeAlias = Literal["waiting", "attempting", "paused", "stopped"]
WakeUps: TypeAlias = Literal["live", "polling"]
CapInForce: TypeAlias = Literal["advisory", "strict", "locked"]

DECISIONS_KEPT = 20
# Attempts that only looked in vain.
QUIET = frozenset(("nothing", "saturated", "full", "locked", "limited"))
# These take turns many times a second: those of one kind within so many seconds are one line.
CHATTER, CHATTER_WITHIN = QUIET | {"dispatched"}, 1.0


@attrs.frozen(kw_only=True)
class TaskStatus:
    """Where a task stands. Counts are those of the last attempt, not asked for anew.

    Attributes:
        name: Name of the task.
        state: `"waiting"` for its next attempt, `"attempting"`, `"paused"`, or `"stopped"` when
            Planton does not run.
        attempt_number: Attempts in a row that dispatched nothing.
        last_attempt_at: When the last attempt ended; None before the first.
        next_attempt_at: When the next attempt is due; None unless waiting, while services start
            or the run ends, and if it is never due by itself.
        active: How many instructions were active after the last attempt; None if not known.
        concurrency: Most active instructions that are in force, an override of the source
            included; None if a callback has yet to say.
        cap: `"strict"` when the storage keeps the concurrency exactly, over all processes;
            `"locked"` when the task's lock does, for as long as it holds;
            `"advisory"` when it is counted first and claimed later, which is best effort as
            soon as there is a second dispatcher.
        last_error: Type and text of the last error; None if there has been none.
        consecutive_errors: Attempts in a row that failed.
        overdue: Whether an attempt should have ended by now and has not: it is hung, a consumer
            does not take what it claimed, or the loop is blocked.
        wake_ups: `"live"` when whatever changes in the storage wakes the task; `"polling"` when
            that is turned off or broken, so that it is found by the next attempt; None when the
            source of the task does not say.
        consumed: Whether a consumer takes the task, or a listener its instructions. Nothing is
            claimed for it otherwise.
        failing: What its consumer says is wrong with the work, such as that many instructions in a
            row have failed; None if nothing is.
        saturated_for: For how many seconds all attempts have found it saturated; None if the
            last one did not.
        stuck: Whether it is saturated for longer than its lease, or than ten minutes if that is
            longer: what holds its slots may never end.
        decisions: How many decisions there were so far, but for attempts that only looked again
            in vain; it grows when there is something new to `explain`.
    """

    name: str
    state: State
    attempt_number: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    active: int | None
    concurrency: int | None
    cap: CapInForce
    last_error: str | None
    consecutive_errors: int
    overdue: bool
    wake_ups: WakeUps | None = None
    consumed: bool = True
    failing: str | None = None
    saturated_for: float | None = None
    stuck: bool = False
    decisions: int = 0


def wall_time(at: float) -> datetime | None:
    """Return the time of day for a time of trio's clock, in this run; None if it never comes."""
    try:
        return datetime.now(UTC) + timedelta(seconds=at - trio.current_time())
    except OverflowError:
        return None


@attrs.define(eq=False)
class Decision:
    """What was decided about a task, perhaps several times in a row: the last of one kind."""

    kind: str
    words: object  # its str says it in words
    since: float  # when the first of them was made (Unix time)
    at: float  # when the last was made, by `clock` the same by trio's clock
    clock: float | None
    times: int = 0

    def __str__(self) -> str:
        at = datetime.fromtimestamp(self.at, UTC)
        since = datetime.fromtimestamp(self.since, UTC)
        if self.times == 1:
            return f"{self.words} ({at:%H:%M:%S} UTC)"
        span = f"{self.times} times since {since:%Y-%m-%d %H:%M:%S}"
        return f"{self.words} ({at:%H:%M:%S} UTC, {span})"


class Decisions:
    """The last decisions about one task; an idle night takes one line, not thousands.

    Attributes:
        count: How many there were, but for those by which a task only looked again in vain.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[Decision] = []

    def __iter__(self) -> Iterator[str]:
        return map(str, self._kept)

    def add(self, kind: str, words: object, now: float, clock: float | None = None) -> None:
        kept = self._kept
        is_again = bool(kept) and kept[-1].kind == kind
        self.count += not (is_again and kind in QUIET)
        if not is_again:
            known = self._find_chatter(kind, clock)
            if known is not None:
                kept.remove(known)
            kept.append(known or Decision(kind, words, now, now, clock))
            del kept[:-DECISIONS_KEPT]
        last = kept[-1]
        last.words, last.at, last.clock, last.times = words, now, clock, last.times + 1

    def _find_chatter(self, kind: str, clock: float | None) -> Decision | None:
        """Return the line that one of `kind` is added to, if dispatching and quiet take turns."""
        for decision in reversed(self._kept):
            if clock is None or decision.clock is None or {kind, decision.kind} - CHATTER:
                return None
            if clock - decision.clock > CHATTER_WITHIN:
                return None
            if decision.kind == kind:
                return decision
        return None
