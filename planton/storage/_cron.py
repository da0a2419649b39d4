"""Which times of a cron task are dispatched now, and which is kept as the next; pure.

A next time is kept for each time table of a task. There are two of them while a new version of a
program is deployed that has another expression: then the times of both are dispatched, one that
they share once, and none goes missing because the other began anew.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, Self, TypeAlias, get_args

import attrs

from planton import delays
from planton._calendar import Gap
from planton._errors import InvalidArgumentError

Misfire: TypeAlias = Literal["skip", "once", "all"]
# A time that is later than this was missed: nobody was there, or there was no slot.
MISSED = timedelta(minutes=1)
TICK = datetime.resolution
# Of one whose next time was not dispatched for so long nobody is left that has it.
GONE = timedelta(hours=1)


@attrs.frozen
class KeptTime:
    """The next time of a time table, as a storage keeps it.

    Attributes:
        at: The time.
        is_done: Whether it was dispatched by another time table of the task, which has it, too;
            then the one after it is next.
    """

    at: datetime
    is_done: bool = False


@attrs.frozen(kw_only=True)
class FireTimes:
    """What becomes of the time tables of a task.

    Attributes:
        due: The times to dispatch.
        next_at: The next time to keep of the time table that was asked.
        shared: Keys of other time tables whose next time is dispatched with it: it is done.
        gone: Keys of other time tables that nobody has any more: to be deleted.
    """

    due: list[datetime]
    next_at: datetime
    shared: list[str]
    gone: list[str]


@attrs.frozen
class CronTimes:
    """The fire times of a cron task.

    Attributes:
        key: Changes when the times do; the next time is kept by it.
        delay: Knows the times.
        misfire: What becomes of those that were missed.
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
        fold: Literal["auto", "first", "second", "both"] = "auto",
        gap: Gap = "forward",
    ) -> Self:
        """Read what `cron_task` was given, or raise `InvalidArgumentError`."""
        if misfire not in get_args(Misfire):
            remedy = f"give one of {', '.join(get_args(Misfire))}"
            raise InvalidArgumentError("misfire", misfire, remedy)
        delay = delays.cron(expression, timezone, fold, gap)
        return cls(json.dumps([expression, str(timezone), fold, gap]), delay, misfire)

    def fires(self, kept: Mapping[str, KeptTime], now: datetime, room: int) -> FireTimes:
        """Tell what becomes of the time tables of a task, which nobody else may change meanwhile.

        Args:
            kept: What is kept of all time tables of the task, by their keys.
            now: The time by the storage's clock.
            room: How many may be claimed.
        """
        due, next_at = self.claimable(self._first(kept, now), now, room)
        others = [(key, time.at) for key, time in kept.items() if key != self.key]
        return FireTimes(
            due=due,
            next_at=next_at,
            shared=[key for key, at in others if at in due],
            gone=[key for key, at in others if at < now - GONE],
        )

    def _first(self, kept: Mapping[str, KeptTime], now: datetime) -> datetime:
        ours = kept.get(self.key)
        if ours is None:
            return self._left_behind(kept, now) or self.delay.next_after(now)
        return self.delay.next_after(ours.at) if ours.is_done else ours.at

    def _left_behind(self, kept: Mapping[str, KeptTime], now: datetime) -> datetime | None:
        """Give a time of ours that an older version was stopped before it could dispatch."""
        come = [time.at for time in kept.values() if time.at <= now and not time.is_done]
        return min((at for at in come if self.delay.next_after(at - TICK) == at), default=None)

    def claimable(
        self, next_at: datetime, now: datetime, room: int
    ) -> tuple[list[datetime], datetime]:
        """Give the times to dispatch, `room` at the most, and the next time to keep.

        Args:
            next_at: The next time that is kept.
            now: The time by the storage's clock.
            room: How many may be claimed; with none nothing changes.
        """
        if room <= 0 or next_at > now:
            return [], next_at
        first = self._first_wanted(next_at, now - MISSED)
        times: list[datetime] = []
        while first <= now and len(times) < room:
            times.append(first)
            first = self.delay.next_after(first)
        return times, first

    def _first_wanted(self, next_at: datetime, missed: datetime) -> datetime:
        """Pass over missed times, those before `missed`, that the policy leaves out."""
        if self.misfire == "all" or next_at >= missed:
            return next_at
        if self.misfire == "skip":
            return self.delay.next_after(missed - TICK)
        return self._last_before(next_at, missed)

    def _last_before(self, first: datetime, end: datetime) -> datetime:
        """Give the last time before `end`; `first` is one."""
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
