"""What can be asked about a task: where it stands, and why it did what it did."""

import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import attrs
import trio

from planton._task import Cap

State: TypeAlias = Literal["waiting", "attempting", "paused", "stopped"]
WakeUps: TypeAlias = Literal["live", "polling"]

# An attempt that has not ended this many seconds after it was due makes its task overdue.
OVERDUE_AFTER = 10.0
DECISIONS_KEPT = 20
# An attempt more that ends so is nothing new.
_QUIET = ("nothing", "saturated", "full")


@attrs.frozen(kw_only=True)
class TaskStatus:
    """Where a task stands. Counts are those of the last attempt, not asked for anew.

    Attributes:
        name: Name of the task.
        state: `"waiting"` for its next attempt, `"attempting"`, `"paused"`, or `"stopped"` when
            Planton does not run.
        attempt_number: Attempts in a row that dispatched nothing.
        last_attempt_at: When the last attempt ended; None before the first.
        next_attempt_at: When the next attempt is due; None unless waiting, and while services start
            or the run ends.
        active: How many instructions were active after the last attempt; None if not known.
        concurrency: Most active instructions, as last read; None if a callback has yet to say.
        cap: `"strict"` when the storage keeps the concurrency exactly, over all processes;
            `"advisory"` when it is counted first and claimed later, which is best effort as
            soon as there is a second dispatcher.
        last_error: Type and text of the last error; None if there has been none.
        consecutive_errors: Attempts in a row that failed.
        overdue: Whether an attempt should have ended by now and has not: it is hung, a consumer
            does not take what it claimed, or the loop is blocked.
        wake_ups: `"live"` when whatever changes in the storage wakes the task; `"polling"` when
            that is turned off or broken, so that it is found by the next attempt; None when the
            source of the task does not say.
    """

    name: str
    state: State
    attempt_number: int
    last_attempt_at: datetime | None
    next_attempt_at: datetime | None
    active: int | None
    concurrency: int | None
    cap: Cap
    last_error: str | None
    consecutive_errors: int
    overdue: bool
    wake_ups: WakeUps | None = None
    decisions: int = 0


def wall_time(at: float) -> datetime:
    """Give the time of day for a time of trio's clock, in this run."""
    return datetime.now(UTC) + timedelta(seconds=at - trio.current_time())


@attrs.define
class Decision:
    """Something that was decided about a task, perhaps several times in a row.

    Attributes:
        kind: Decisions of one kind that follow each other are kept as one.
        words: Gives the last of them in words, as a str.
        since: When the first of them was made (Unix time).
        at: When the last of them was made.
        times: How many there were.
    """

    kind: str
    words: object
    since: float
    at: float
    times: int = 1

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
        news: How many there were, but for those by which a task only looked again in vain.
    """

    def __init__(self) -> None:
        self.news = 0
        self._kept: deque[Decision] | tuple[()] = ()

    def __iter__(self) -> Iterator[str]:
        return map(str, self._kept)

    def add(self, kind: str, words: object) -> None:
        now = time.time()
        if self._kept and self._kept[-1].kind == kind:
            last = self._kept[-1]
            last.words, last.at, last.times = words, now, last.times + 1
            self.news += kind not in _QUIET
            return
        self._kept = self._kept or deque(maxlen=DECISIONS_KEPT)
        self._kept.append(Decision(kind, words, now, now))
        self.news += 1
