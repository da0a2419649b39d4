"""Cron and daily times at changes of the clock that happened, or by today's rules will."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from planton import delays
from planton._calendar import Daily, Fold, next_instant


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local_times(delay: delays.CalendarDelay, start: str, count: int) -> list[str]:
    """The next times after `start`, an ISO local time, as the local clock shows them."""
    moment = datetime.fromisoformat(start).replace(tzinfo=delay.timezone).astimezone(UTC)
    found = []
    for _ in range(count):
        moment = delay.next_after(moment)
        found.append(moment.astimezone(delay.timezone).isoformat(timespec="minutes"))
    return found


GAPS = (
    # zone, time of day, the evening before, next two with "forward", next two with "skip"
    (
        "Europe/Lisbon",
        "01:30",
        "2026-03-28T12:00",
        ("2026-03-29T02:30+01:00", "2026-03-30T01:30+01:00"),
        ("2026-03-30T01:30+01:00", "2026-03-31T01:30+01:00"),
    ),
    (
        "America/New_York",
        "02:30",
        "2026-03-07T12:00",
        ("2026-03-08T03:30-04:00", "2026-03-09T02:30-04:00"),
        ("2026-03-09T02:30-04:00", "2026-03-10T02:30-04:00"),
    ),
    (
        "Australia/Lord_Howe",  # by half an hour
        "02:15",
        "2026-10-03T12:00",
        ("2026-10-04T02:45+11:00", "2026-10-05T02:15+11:00"),
        ("2026-10-05T02:15+11:00", "2026-10-06T02:15+11:00"),
    ),
    (
        "America/Sao_Paulo",  # midnight itself is missing
        "00:00",
        "2018-11-03T12:00",
        ("2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"),
        ("2018-11-05T00:00-02:00", "2018-11-06T00:00-02:00"),
    ),
    (
        "Africa/Casablanca",  # the end of Ramadan
        "02:30",
        "2026-03-21T12:00",
        ("2026-03-22T03:30+01:00", "2026-03-23T02:30+01:00"),
        ("2026-03-23T02:30+01:00", "2026-03-24T02:30+01:00"),
    ),
    (
        "Pacific/Apia",  # across the date line: 30 December 2011 was left out
        "09:00",
        "2011-12-29T12:00",
        ("2011-12-31T09:00+14:00", "2012-01-01T09:00+14:00"),
        ("2011-12-31T09:00+14:00", "2012-01-01T09:00+14:00"),
    ),
    (
        "Africa/Monrovia",  # from -00:44:30, in the middle of a minute
        "00:20",
        "1972-01-06T12:00",
        ("1972-01-07T01:04+00:00", "1972-01-08T00:20+00:00"),
        ("1972-01-08T00:20+00:00", "1972-01-09T00:20+00:00"),
    ),
)


@pytest.mark.parametrize(("zone", "at", "start", "forward", "skip"), GAPS)
def test_a_time_in_a_gap_is_moved_or_left_out(zone, at, start, forward, skip) -> None:
    """A time that does not exist is read with the old offset, or that day has none."""
    assert list(forward) == local_times(delays.at(at, zone), start, 2)
    assert list(skip) == local_times(delays.at(at, zone, gap="skip"), start, 2)


FOLDS = (
    # zone, time of day, the day before, first, second, the day after
    (
        "Europe/Lisbon",
        "01:30",
        "2026-10-24T12:00",
        "2026-10-25T01:30+01:00",
        "2026-10-25T01:30+00:00",
        "2026-10-26T01:30+00:00",
    ),
    (
        "America/New_York",
        "01:30",
        "2026-10-31T12:00",
        "2026-11-01T01:30-04:00",
        "2026-11-01T01:30-05:00",
        "2026-11-02T01:30-05:00",
    ),
    (
        "Australia/Lord_Howe",
        "01:45",
        "2026-04-04T12:00",
        "2026-04-05T01:45+11:00",
        "2026-04-05T01:45+10:30",
        "2026-04-06T01:45+10:30",
    ),
    (
        "America/Sao_Paulo",  # the last hour of the day before
        "23:30",
        "2018-02-17T12:00",
        "2018-02-17T23:30-02:00",
        "2018-02-17T23:30-03:00",
        "2018-02-18T23:30-03:00",
    ),
    (
        "Africa/Casablanca",  # Ramadan begins
        "02:30",
        "2026-02-14T12:00",
        "2026-02-15T02:30+01:00",
        "2026-02-15T02:30+00:00",
        "2026-02-16T02:30+00:00",
    ),
)


@pytest.mark.parametrize(("zone", "at", "start", "first", "second", "next_day"), FOLDS)
def test_a_repeated_time_counts_as_the_policy_says(
    zone, at, start, first, second, next_day
) -> None:
    """Of a time that occurs twice, `fold` takes the first, the second or both."""
    delay = {fold: delays.at(at, zone, fold=fold) for fold in ("first", "second", "both")}

    assert [first, next_day] == local_times(delay["first"], start, 2)
    assert [second, next_day] == local_times(delay["second"], start, 2)
    assert [first, second, next_day] == local_times(delay["both"], start, 3)


def test_a_date_left_out_altogether_is_moved_or_left_out() -> None:
    """Samoa had no 30 December 2011: a yearly task of that day runs on the 31st, or next year."""
    forward = delays.cron("0 9 30 12 *", "Pacific/Apia")
    skip = delays.cron("0 9 30 12 *", "Pacific/Apia", gap="skip")

    assert ["2011-12-31T09:00+14:00"] == local_times(forward, "2011-06-01T00:00", 1)
    assert ["2011-12-31T09:00+14:00"] == local_times(forward, "2011-12-31T08:59", 1)
    assert ["2012-12-30T09:00+14:00"] == local_times(skip, "2011-06-01T00:00", 1)


def test_moved_and_regular_times_that_meet_are_one() -> None:
    """02:15 moves to 03:15, which is wanted anyway: that is one time, not two."""
    delay = delays.cron("15 2,3 * * *", "America/New_York")

    assert [
        "2026-03-08T03:15-04:00",
        "2026-03-09T02:15-04:00",
    ] == local_times(delay, "2026-03-07T12:00", 2)


@pytest.mark.parametrize(
    ("expression", "expected"),
    (
        ("30 * * * *", [f"2026-10-25T0{hour}:30:00+00:00" for hour in range(4)]),
        ("30 */1 * * *", [f"2026-10-25T0{hour}:30:00+00:00" for hour in range(4)]),
        ("0 30 * * * *", [f"2026-10-25T0{hour}:30:00+00:00" for hour in range(4)]),
        ("30 0-3 * * *", [f"2026-10-25T0{hour}:30:00+00:00" for hour in (0, 2, 3)]),
        ("0 30 0-3 * * *", [f"2026-10-25T0{hour}:30:00+00:00" for hour in (0, 2, 3)]),
    ),
)
def test_auto_repeats_periodic_times_only(expression: str, expected: list[str]) -> None:
    """When the clock goes back, `auto` keeps a `*` hour going and runs fixed hours once."""
    delay = delays.cron(expression, "Europe/Lisbon")
    moment, found = utc("2026-10-24T23:59"), []
    for _ in expected:
        moment = delay.next_after(moment)
        found.append(moment.isoformat())

    assert expected == found


@pytest.mark.parametrize("change", ("2026-03-29T01:00", "2026-10-25T01:00"))
def test_every_second_stays_every_second(change: str) -> None:
    """`* * * * * *` goes on in steps of one second through a gap and a fold."""
    delay = delays.cron("* * * * * *", "Europe/Lisbon")

    for seconds in range(-3, 4):
        moment = utc(change) + timedelta(seconds=seconds)
        assert moment + timedelta(seconds=1) == delay.next_after(moment)


def test_the_second_occurrences_are_left_out_to_the_second() -> None:
    """With `first`, nothing happens from the change until the repeated hour is over."""
    delay = delays.cron("* * * * * *", "Europe/Lisbon", fold="first")

    assert utc("2026-10-25T00:59:59") == delay.next_after(utc("2026-10-25T00:59:58"))
    assert utc("2026-10-25T02:00:00") == delay.next_after(utc("2026-10-25T00:59:59"))
    assert utc("2026-10-25T02:00:01") == delay.next_after(utc("2026-10-25T02:00:00"))


def test_the_first_occurrences_are_left_out_to_the_second() -> None:
    """With `second`, nothing happens in the hour that will be repeated."""
    delay = delays.cron("* * * * * *", "Europe/Lisbon", fold="second")

    assert utc("2026-10-24T23:59:59") == delay.next_after(utc("2026-10-24T23:59:58"))
    assert utc("2026-10-25T01:00:00") == delay.next_after(utc("2026-10-24T23:59:59"))


@pytest.mark.parametrize(
    ("fold", "expected"),
    (
        ("first", ("17T17:57:41", "18T17:57:41", "20T17:57:41")),
        ("second", ("17T17:57:41", "19T17:57:41", "20T17:57:41")),
        ("both", ("17T17:57:41", "18T17:57:41", "19T17:57:41", "20T17:57:41")),
    ),
)
def test_a_whole_day_may_be_repeated(fold: Fold, expected: tuple[str, ...]) -> None:
    """When Alaska changed hands it had 19 October 1867 twice, but for some hours."""
    juneau, nine = ZoneInfo("America/Juneau"), Daily("09:00")
    moment = utc("1867-10-17T12:00")
    for text in expected:
        for early in (timedelta(hours=6), timedelta(seconds=1)):  # also from long after the change
            moment = max(moment, utc(f"1867-10-{text}") - early)

            assert utc(f"1867-10-{text}") == next_instant(nine, juneau, moment, fold, "forward")
        moment = utc(f"1867-10-{text}")


@pytest.mark.parametrize("hours", range(1, 120))
def test_a_fold_is_seen_ahead_from_any_distance(hours: int) -> None:
    """With `second`, a time is left out however far ahead its repetition is: here, a day."""
    juneau, nine = ZoneInfo("America/Juneau"), datetime(1867, 10, 19, 9)
    moment = utc("1867-10-18T18:00") - timedelta(hours=hours)

    def once(after: datetime) -> datetime | None:
        return nine if nine > after else None

    assert utc("1867-10-19T17:57:41") == next_instant(once, juneau, moment, "second", "skip")


@pytest.mark.parametrize("hours", range(1, 120))
def test_a_time_is_found_from_any_distance(hours: int) -> None:
    """Neither the end of a search nor the start of the next hides a time."""
    moment = utc("2026-01-20T04:00") - timedelta(hours=hours)

    assert utc("2026-01-20T04:00") == delays.cron("0 4 20 1 *").next_after(moment)


def test_half_an_hour_of_gap_and_fold_on_lord_howe() -> None:
    """A periodic task of 20 minutes keeps to the wall clock, which jumps by 30."""
    delay = delays.cron("*/20 * * * *", "Australia/Lord_Howe")

    assert [
        "2026-10-04T01:40+10:30",
        "2026-10-04T02:30+11:00",  # 02:00, moved
        "2026-10-04T02:40+11:00",
        "2026-10-04T02:50+11:00",  # 02:20, moved
        "2026-10-04T03:00+11:00",
    ] == local_times(delay, "2026-10-04T01:20", 5)


def test_two_tasks_of_different_zones_meet_at_the_same_instant() -> None:
    """What is returned is UTC, whatever zone the moment and the expression are in."""
    delay = delays.at("09:00", "Asia/Kolkata")
    moment = utc("2026-07-01T00:00")
    elsewhere = moment.astimezone(delays.at("00:00", "America/New_York").timezone)

    assert utc("2026-07-01T03:30") == delay.next_after(moment) == delay.next_after(elsewhere)
    assert UTC == delay.next_after(elsewhere).tzinfo


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    (
        ("0 12 29 2 *", "2097-01-01T00:00", "2104-02-29T12:00"),  # 2100 is no leap year
        ("0 12 1 1 *", "2026-01-01T12:00", "2027-01-01T12:00"),
        ("0 12 L * *", "2026-02-01T00:00", "2026-02-28T12:00"),
        ("0 12 13 * 5", "2026-03-01T00:00", "2026-03-06T12:00"),  # either day field
        ("*/7 12 1 1 *", "2026-01-01T12:55:59.999999", "2026-01-01T12:56"),
        ("0 12 * * MON#1", "2026-03-02T12:00", "2026-04-06T12:00"),
    ),
)
def test_far_times_are_found(expression: str, after: str, expected: str) -> None:
    """Jumps over long stretches without a time miss none."""
    assert utc(expected) == delays.cron(expression).next_after(utc(after))


def test_the_time_of_day_may_have_microseconds() -> None:
    """`at` is as exact as `datetime.time`."""
    delay = delays.at("03:00:00.000001", "UTC")

    assert utc("2026-01-01T03:00:00.000001") == delay.next_after(utc("2026-01-01T03:00"))
    assert utc("2026-01-02T03:00:00.000001") == delay.next_after(utc("2026-01-01T03:00:00.000001"))
