"""Which times of a cron task fire now, and which is kept as the next; pure."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, Self, TypeAlias, get_args

import attrs

from planton import delays
from planton._calendar import Fold, Gap
from planton._errors import InvalidArgumentError

Misfire: TypeAlias = Literal["skip", "once", "all"]
# A time that is later than this was missed: no dispatcher ran, or there was no slot.
MISSED = timedelta(minutes=1)
TICK = datetime.resolution


@attrs.frozen
class Fires:
    """Times of a cron task that fire now.

    Attributes:
        due: The times, oldest first.
        next_at: The first time after them; it is kept once all of them were taken.
    """

    due: list[datetime]
    next_at: datetime


@attrs.frozen
class CronTimes:
    """The fire times of a cron task.

    A storage keeps the next time of each expression that a task has, by `key`: two versions of a
    program may have different ones during a deploy. It also keeps a row for each time that has
    fired, so that a time of both fires once; the row goes when all expressions are past it.

    Attributes:
        key: Changes when the times do.
        delay: Computes the times.
        misfire: What becomes of times that were missed.
    """

    key: str
    delay: delays.CalendarDelay
    misfire: Misfire

    @classmethod
    def of(
        cls,
        expression: str,
        *,
        timezone: str,
        misfire: Misfire,
        fold: Fold | Literal["auto"] = "auto",
        gap: Gap = "forward",
    ) -> Self:
        """Check the arguments of `cron_task`, or raise `InvalidArgumentError`."""
        if misfire not in get_args(Misfire):
            remedy = f"give one of {', '.join(get_args(Misfire))}"
            raise InvalidArgumentError("misfire", misfire, remedy)
        delay = delays.cron(expression, timezone, fold, gap)
        return cls(json.dumps([expression, str(timezone), fold, gap]), delay, misfire)

    def first(self, kept: Mapping[str, datetime], now: datetime) -> datetime:
        """Return the first time to keep for this expression.

        That is the first time after now; or one that has come and that another expression of the
        task has left, if it is one of ours as well: a new version takes over what the old one was
        stopped before.

        Args:
            kept: The next times of the other expressions of the task.
            now: The time by the storage's clock.
        """
        left = [at for at in kept.values() if at <= now and self.delay.next_after(at - TICK) == at]
        return min(left, default=None) or self.delay.next_after(now)

    def fires(self, next_at: datetime, now: datetime, limit: int) -> Fires:
        """Return the times that fire now.

        Args:
            next_at: The next time that is kept.
            now: The time by the storage's clock.
            limit: How many at most; with 0 nothing changes.
        """
        if limit <= 0 or next_at > now:
            return Fires([], next_at)
        first = self._first_wanted(next_at, now - MISSED)
        times: list[datetime] = []
        while first <= now and len(times) < limit:
            times.append(first)
            first = self.delay.next_after(first)
        return Fires(times, first)

    def _first_wanted(self, next_at: datetime, missed: datetime) -> datetime:
        """Pass over missed times, those before `missed`, that the policy leaves out."""
        if self.misfire == "all" or next_at >= missed:
            return next_at
        if self.misfire == "skip":
            return self.delay.next_after(missed - TICK)
        return self._last_before(next_at, missed)

    def _last_before(self, first: datetime, end: datetime) -> datetime:
        """Return the last time before `end`; `first` is one."""
        # Times cannot be counted back: look ahead from further and further before the end.
        step = timedelta(minutes=1)
        while end - step > first:
            found = self.delay.next_after(end - step)
            if found < end:
                first = found
                break
            step *= 4
        while (following := self.delay.next_after(first)) < end:
            first = following
        return first
