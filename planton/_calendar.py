"""When wall-clock times happen in real time, through every change of a zone's UTC offset.

Pure: no clock is read here. Between two changes of its UTC offset a clock on the wall and UTC map
one to one. So a zone is cut into *stretches* of constant offset, and a policy for folds and gaps
does nothing but shorten or add stretches:

    gap, "forward"    the old clock goes on for as long as the gap, beside the new one (RFC 5545)
    gap, "skip"       nothing: no stretch shows the times that do not exist
    fold, "first"     the new clock begins only when the repeated times are over
    fold, "second"    the old clock ends before the times that will be repeated
    fold, "both"      nothing: two stretches show the repeated times

Instants are aware UTC datetimes; times on the wall are naive datetimes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

import attrs

from planton._errors import InvalidArgumentError

Fold: TypeAlias = Literal["first", "second", "both"]
Gap: TypeAlias = Literal["forward", "skip"]
NextWall: TypeAlias = Callable[[datetime], datetime | None]  # strictly after; None is never

TICK = datetime.resolution
ZERO = timedelta(0)
DAY = timedelta(days=1)  # Python allows only UTC offsets of less than a day, either way
REACH = timedelta(hours=26)  # a change matters this long; none ever moved a clock by over 24 h
WINDOW = timedelta(hours=52)  # above twice DAY, so that a jump always lands within it
STEP = timedelta(hours=12)  # the two nearest changes in tzdata are 167 hours apart; a test watches
HORIZON = timedelta(days=51 * 366)  # as far as cronsim looks, and a little more


@attrs.frozen
class Stretch:
    """From `start` until before `end`, a clock shows UTC + `offset`."""

    start: datetime
    end: datetime
    offset: timedelta


def next_instant(
    next_wall: NextWall, zone: tzinfo, moment: datetime, fold: Fold, gap: Gap
) -> datetime | None:
    """Return the first instant after `moment` at which the wall shows a wanted time."""
    after, horizon = moment, moment + HORIZON
    while after < horizon:
        end = after + WINDOW
        clocks = apply_policy(stretches(zone, after - REACH, end + REACH), fold, gap)
        found = min(wanted(clocks, next_wall, after, end), default=None)
        if found is not None:
            return found
        # Whatever the offset, no wanted time is shown before this one: skip what lies between.
        wall = next_wall(wall_at(end, -DAY))
        if wall is None:
            return None
        after = max(end, instant_of(wall, DAY)) - TICK
    return None


def wanted(
    clocks: Iterable[Stretch], next_wall: NextWall, after: datetime, end: datetime
) -> Iterable[datetime]:
    """Return the first wanted instant of each clock that lies after `after` and before `end`."""
    for clock in clocks:
        # A stretch contains its start and `next_wall` looks strictly after, hence the tick.
        low, high = max(after, clock.start - TICK), min(end, clock.end)
        wall = next_wall(wall_at(low, clock.offset)) if low < high else None
        if wall is not None and instant_of(wall, clock.offset) < high:
            yield instant_of(wall, clock.offset)


def apply_policy(segments: Sequence[Stretch], fold: Fold, gap: Gap) -> list[Stretch]:
    """Shorten and add stretches so that every one of their wall times is meant."""
    clocks = list(segments)
    for index, (old, new) in enumerate(pairwise(segments)):
        shift = new.offset - old.offset
        if shift > ZERO and gap == "forward":
            clocks.append(Stretch(new.start, new.start + shift, old.offset))
        elif shift < ZERO and fold == "first":
            clocks[index + 1] = attrs.evolve(clocks[index + 1], start=new.start - shift)
        elif shift < ZERO and fold == "second":
            clocks[index] = attrs.evolve(clocks[index], end=old.end + shift)
    return clocks


def stretches(zone: tzinfo, start: datetime, end: datetime) -> list[Stretch]:
    """Cut the time from `start` to `end` wherever the UTC offset of `zone` changes."""
    cuts = [start, *changes(zone, start, end), end]
    return [Stretch(a, b, offset_at(zone, a)) for a, b in pairwise(cuts)]


def changes(zone: tzinfo, start: datetime, end: datetime) -> Iterable[datetime]:
    """Find the instants, whole seconds, from `start` to `end` when the UTC offset changes."""
    left, before = start.replace(microsecond=0), offset_at(zone, start)
    while left < end:
        right = left + STEP
        offset = offset_at(zone, right)
        if offset != before:
            yield change_between(zone, left, before)
        left, before = right, offset


def change_between(zone: tzinfo, left: datetime, before: timedelta) -> datetime:
    """Find to the second where the offset, `before` at `left`, changes within a step."""

    def changed(second: int) -> bool:
        return offset_at(zone, left + timedelta(seconds=second)) != before

    seconds = range(int(STEP.total_seconds()))
    return left + timedelta(seconds=bisect_left(seconds, True, key=changed))


def offset_at(zone: tzinfo, instant: datetime) -> timedelta:
    # From UTC to local is never ambiguous, so the quirks of `fold` do not enter.
    return instant.astimezone(zone).utcoffset() or ZERO


def wall_at(instant: datetime, offset: timedelta) -> datetime:
    return (instant + offset).replace(tzinfo=None)


def instant_of(wall: datetime, offset: timedelta) -> datetime:
    return wall.replace(tzinfo=UTC) - offset


def _to_time(value: object) -> time:
    remedy = 'give a time of day without tzinfo or fold, such as "03:00" or datetime.time(3)'
    try:
        parsed: object = time.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InvalidArgumentError("time", value, remedy) from error
    if not isinstance(parsed, time) or parsed.tzinfo is not None or parsed.fold:
        raise InvalidArgumentError("time", value, remedy)
    return parsed


@attrs.frozen
class Daily:
    """One time of day, on every day."""

    time: time = attrs.field(converter=_to_time)

    def __call__(self, after: datetime) -> datetime:
        today = datetime.combine(after, self.time)
        return today if today > after else today + DAY


def _check_expression(_: object, __: object, expression: str) -> None:
    remedy = "give five fields (minute hour day month weekday), or six with seconds first"
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        problem = "planton.delays.cron needs cronsim: pip install 'planton[cron]'"
        raise ImportError(problem, name="cronsim") from error
    if not isinstance(expression, str):
        raise InvalidArgumentError("expression", expression, remedy)
    try:
        CronSim(expression, datetime.min)
    except (CronSimError, ValueError) as error:
        raise InvalidArgumentError("expression", expression, f"{error}; {remedy}") from error


@attrs.frozen
class Cron:
    """The times that a cron expression names."""

    expression: str = attrs.field(validator=_check_expression)

    def __call__(self, after: datetime) -> datetime | None:
        from cronsim import CronSim  # late, so that all else works without it

        # Given an aware time cronsim has rules of its own for gaps and folds; given a naive one it
        # only iterates. To parse anew takes 15 µs and keeps to its public interface.
        return next(CronSim(self.expression, after), None)

    @property
    def is_periodic(self) -> bool:
        return self.expression.split()[-4].startswith("*")


def to_zone(timezone: str | tzinfo) -> tzinfo:
    if isinstance(timezone, tzinfo):
        return timezone
    try:
        return ZoneInfo(timezone)
    except (LookupError, ValueError, OSError, TypeError) as error:
        remedy = "give an IANA name such as 'Europe/Lisbon'; the package tzdata brings them all"
        raise InvalidArgumentError("timezone", timezone, remedy) from error


def to_instant(argument: str, value: object) -> datetime:
    remedy = "give an aware datetime from 1900 to before 9900, such as datetime.now(UTC)"
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidArgumentError(argument, value, remedy)
    if not 1900 <= value.year < 9900:
        raise InvalidArgumentError(argument, value, remedy)
    return value.astimezone(UTC)
