"""All zones of the tzdata package, 1990 to 2040, against the definition of each policy.

The zones are read from the package itself, not through `ZoneInfo(name)`, which would prefer the
system's, of another version.
"""

import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib.resources import files
from itertools import pairwise, product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planton import _calendar, delays

DATA = files("tzdata")
NAMES = DATA.joinpath("zones").read_text().split()
BYTES = {name: DATA.joinpath("zoneinfo", *name.split("/")).read_bytes() for name in NAMES}
DISTINCT = sorted({data: name for name, data in reversed(BYTES.items())}.values())
POLICIES = list(product(("first", "second", "both"), ("forward", "skip")))
START, END = datetime(1990, 1, 1, tzinfo=UTC), datetime(2041, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


@cache
def zone_named(name: str) -> ZoneInfo:
    with DATA.joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def every(step: timedelta, start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += step


def offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    return instant.astimezone(zone).utcoffset()


def moved(data: bytes) -> list[int]:
    """The seconds since 1970 when a file in TZif format (RFC 9636) says that the offset changes."""

    def counts_at(position: int) -> tuple[int, ...]:
        return struct.unpack_from(">6l", data, position + 20)

    utc, standard, leap, times, types, letters = counts_at(0)
    start = 44 + times * 5 + types * 6 + letters + leap * 8 + standard + utc  # skips 32-bit data
    _, _, _, times, types, _ = counts_at(start)
    body = start + 44
    instants = struct.unpack_from(f">{times}q", data, body)
    indices = data[body + times * 8 : body + times * 9]
    offsets = [struct.unpack_from(">l", data, body + times * 9 + 6 * n)[0] for n in range(types)]
    pairs = zip(instants, pairwise([0, *indices]), strict=True)
    return [instant for instant, (old, new) in pairs if offsets[old] != offsets[new]]


@cache
def changes(name: str) -> list[datetime]:
    """When the clock of a zone is changed: as its file lists, and from then on by its rule."""
    zone = zone_named(name)
    listed = [EPOCH + n * SECOND for n in moved(BYTES[name])]
    found = {instant for instant in listed if START <= instant < END}
    has_rule = b"," in BYTES[name].splitlines()[-1]
    rest = every(timedelta(days=6), max([START, *listed]), END) if has_rule else ()
    for (left, before), (right, after) in pairwise((day, offset(zone, day)) for day in rest):
        while before != after and right - left > MINUTE:
            middle = left + (right - left) // 2 // MINUTE * MINUTE
            left, right = (middle, right) if offset(zone, middle) == before else (left, middle)
        if before != after:
            found.add(right)
    return sorted(found)


# The oracle: what the policies mean, by the `fold` of the standard library, one time after another


def counts(wall: datetime, fold: str) -> bool:
    """Whether a local time that exists is one of those that `fold` takes."""
    repeated = wall.replace(fold=0).utcoffset() != wall.replace(fold=1).utcoffset()
    return not repeated or fold == "both" or wall.fold == (fold == "second")


def exists(wall: datetime) -> bool:
    """Whether the clock of its zone ever shows a time."""
    back = wall.astimezone(UTC).astimezone(wall.tzinfo)
    return back.replace(tzinfo=None) == wall.replace(tzinfo=None)


def oracle(
    wanted: Callable[[datetime], bool],
    zone: ZoneInfo,
    span: tuple[datetime, datetime],
    policy: tuple[str, str],
    step: timedelta = MINUTE,
) -> list[datetime]:
    """All wanted instants from `span[0]` until before `span[1]`."""
    start, end = span
    fold, gap = policy
    found = set()
    for instant in every(step, start, end):
        wall = instant.astimezone(zone)
        if wanted(wall) and counts(wall, fold):
            found.add(instant)
    # What was moved into the span was meant at a local time less than 15 hours from UTC.
    naive = ((start - 15 * HOUR).replace(tzinfo=None), (end + 15 * HOUR).replace(tzinfo=None))
    for wall in every(step, *naive) if gap == "forward" else ():
        if wanted(wall) and not exists(wall.replace(tzinfo=zone)):
            found.add(wall.replace(tzinfo=zone, fold=0).astimezone(UTC))  # fold 0: old offset
    return sorted(instant for instant in found if start <= instant < end)


def walk(next_after: Callable[[datetime], datetime], start: datetime, end: datetime) -> list:
    """What one gets by asking for the next time over and over."""
    found = [next_after(start - datetime.resolution)]
    while found[-1] < end:
        found.append(next_after(found[-1]))
    return found[:-1]


# Strategies: a cron field is its text and the numbers it stands for, listed by hand

zones = st.sampled_from(NAMES).map(zone_named)
moments = st.datetimes(START.replace(tzinfo=None), END.replace(tzinfo=None), timezones=st.just(UTC))
minutes = st.sampled_from(
    [
        ("*", range(60)),
        ("*/7", range(0, 60, 7)),
        ("0", [0]),
        ("30", [30]),
        ("59", [59]),
        ("1,16,47", [1, 16, 47]),
    ]
)
hours = st.sampled_from(
    [
        ("*", range(24)),
        ("*/3", range(0, 24, 3)),
        *((str(hour), [hour]) for hour in (0, 1, 2, 3, 23)),
        ("0-4", range(5)),
        ("9,23", [9, 23]),
    ]
)
weekdays = st.sampled_from(
    [("*", range(7)), ("*", range(7)), ("1-5", range(1, 6)), ("0", [0]), ("6,0", [6, 0])]
)
policies = st.sampled_from(POLICIES)
times = st.times().map(lambda time: time.replace(fold=0))


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, Callable[[datetime], bool]]:
    """A cron expression and, without cronsim, whether a time matches it."""
    (minute, minute_set), (hour, hour_set) = draw(minutes), draw(hours)
    weekday, weekday_set = draw(weekdays)

    def wanted(wall: datetime) -> bool:
        day = wall.isoweekday() % 7
        return wall.minute in minute_set and wall.hour in hour_set and day in weekday_set

    return f"{minute} {hour} * * {weekday}", wanted


@st.composite
def changed_zones(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """A zone and a change of its clock; any moment where the clock was never changed."""
    name = draw(st.sampled_from(NAMES))
    return zone_named(name), draw(st.sampled_from(changes(name) or [START + 1000 * HOUR]))


@given(changed_zones(), expressions(), policies, st.integers(-40, 40))
@settings(deadline=None, max_examples=40)
def test_near_a_change_the_times_are_those_of_the_definition(
    changed, expression, policy, hours_off
) -> None:
    """Nothing is missed, doubled or invented in 40 hours around a change, in any zone."""
    zone, change = changed
    text, wanted = expression
    start = change + hours_off * HOUR - 20 * HOUR
    span = (start, start + 40 * HOUR)
    delay = delays.cron(text, zone, *policy)

    assert oracle(wanted, zone, span, policy) == walk(delay.next_after, *span)


@given(zones, moments, expressions(), policies)
@settings(deadline=None, max_examples=50)
def test_the_next_time_is_the_first_of_the_definition(zone, moment, expression, policy) -> None:
    """Asked over and over, each next time is later than the one before, with none in between."""
    text, wanted = expression
    delay = delays.cron(text, zone, *policy)
    for _ in range(3):
        minute = moment.replace(second=0, microsecond=0) + MINUTE
        moment = delay.next_after(moment)

        assert [moment] == oracle(wanted, zone, (minute, moment + MINUTE), policy)


@given(changed_zones(), expressions(), policies, st.lists(st.integers(-200_000, 200_000)))
@settings(deadline=None)
def test_a_later_moment_has_no_earlier_next_time(changed, expression, policy, seconds) -> None:
    """The next time is monotone in the moment."""
    zone, change = changed
    delay = delays.cron(expression[0], zone, *policy)
    found = [delay.next_after(change + timedelta(seconds=n)) for n in sorted(seconds)]

    assert sorted(found) == found


@given(changed_zones(), times, policies, st.integers(-200_000, 200_000))
@settings(deadline=None)
def test_a_daily_time_is_soon(changed, time, policy, seconds) -> None:
    """The next time of `at` is later, and at most three days off: a date and a time left out."""
    zone, change = changed
    moment = change + timedelta(seconds=seconds)

    found = delays.at(time, zone, *policy).next_after(moment)

    assert moment < found <= moment + timedelta(days=3)


# Every change of every zone. Half-hours are wanted, without cronsim, so that it is quick


def half_hours(after: datetime) -> datetime:
    return after.replace(minute=after.minute // 30 * 30, second=0, microsecond=0) + 30 * MINUTE


def following(zone: ZoneInfo, policy: tuple[str, str], moment: datetime) -> datetime:
    return _calendar.next_instant(half_hours, zone, moment, *policy)


def kind(name: str, change: datetime) -> tuple[timedelta, timedelta, int]:
    """Changes of one kind look alike on the wall."""
    zone = zone_named(name)
    wall = change + offset(zone, change)
    return offset(zone, change - MINUTE), offset(zone, change), wall.hour * 60 + wall.minute


def check_change(name: str, change: datetime) -> None:
    zone = zone_named(name)
    shift = abs(offset(zone, change) - offset(zone, change - MINUTE))
    hour = change.replace(minute=0)  # some clocks change at a minute past midnight
    span = (hour - shift - HOUR, hour + shift + 2 * HOUR)
    for policy in POLICIES:
        expected = oracle(lambda wall: wall.minute % 30 == 0, zone, span, policy, 15 * MINUTE)
        actual = walk(partial(following, zone, policy), *span)

        assert expected == actual, (name, change, policy)


def test_each_kind_of_change_is_like_the_definition() -> None:
    """One of each kind of change that any zone has had, with all policies."""
    kinds = {kind(name, change): (name, change) for name in DISTINCT for change in changes(name)}

    assert len(kinds) > 100
    for name, change in kinds.values():
        check_change(name, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_each_change_of_a_zone_is_like_the_definition(name: str) -> None:
    """All changes of all zones, with all policies."""
    for change in changes(name):
        check_change(name, change)


def test_all_changes_are_tested() -> None:
    """Whether listed or by rule: Berlin has two a year from 1990 to 2040."""
    assert 2 * 51 == len(changes("Europe/Berlin"))


def test_no_two_changes_are_so_near_that_one_is_overlooked() -> None:
    """A zone's changes, read from its file and of any year, are farther apart than a window."""
    nearest = min(
        later - earlier for data in BYTES.values() for earlier, later in pairwise(moved(data))
    )

    assert nearest > (_calendar.WINDOW + 2 * _calendar.REACH).total_seconds()
    assert nearest > _calendar.STEP.total_seconds()
    assert nearest > 6 * 24 * 3600  # what `changes` above takes for granted
