"""What cron and daily delays are, and what they refuse."""

import subprocess
import sys
from datetime import UTC, datetime, time, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from planton import InvalidArgumentError, delays
from planton.delays import CalendarDelay

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def refusal(function, *arguments, **options) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        function(*arguments, **options)
    return caught.value


def test_the_delay_is_the_time_from_now() -> None:
    """Calling a delay gives seconds, whatever the attempt number."""
    delay = delays.cron("30 12 * * *", now=lambda: NOON)

    assert [1800.0, 1800.0] == [delay(0), delay(10**6)]


def test_a_time_that_is_now_is_over() -> None:
    """The delay is never 0: at the very time it is a whole period, before it a little."""
    early = NOON - timedelta(microseconds=1)

    assert 60.0 == delays.cron("* * * * *", now=lambda: NOON)(0)
    assert 86_400.0 == delays.at(time(12), "UTC", now=lambda: NOON)(0)
    assert 0.000001 == delays.cron("* * * * *", now=lambda: early)(0)


def test_now_may_be_in_any_zone() -> None:
    """An aware time is an instant."""
    elsewhere = NOON.astimezone(ZoneInfo("Asia/Kathmandu"))

    assert 1800.0 == delays.cron("30 12 * * *", now=lambda: elsewhere)(0)


@pytest.mark.parametrize("delay", (delays.cron("* * * * * *"), delays.at("00:00", "UTC")))
def test_now_is_the_time_of_day_by_default(delay: CalendarDelay) -> None:
    """Without `now`, the system's clock is read at each call."""
    before = datetime.now(UTC)

    assert 0 < delay(0) <= 86_400
    assert delay.next_after(before) > before


def test_the_expression_is_read_in_utc_by_default() -> None:
    """`timezone` may be left out of `cron`."""
    assert datetime(2026, 7, 2, 3, tzinfo=UTC) == delays.cron("0 3 * * *").next_after(NOON)


def test_six_fields_begin_with_seconds() -> None:
    """A sixth field, in front, is the second."""
    delay = delays.cron("*/10 * * * * *")

    assert NOON + timedelta(seconds=10) == delay.next_after(NOON + timedelta(seconds=1))


@pytest.mark.parametrize(
    "zone", ("Asia/Tokyo", ZoneInfo("Asia/Tokyo"), timezone(timedelta(hours=9)))
)
def test_a_zone_is_a_name_or_a_tzinfo(zone: object) -> None:
    """Names, ZoneInfo objects and fixed offsets mean the same."""
    assert datetime(2026, 7, 1, 18, tzinfo=UTC) == delays.at("03:00", zone).next_after(NOON)


def test_a_time_is_a_string_or_a_time() -> None:
    """`at` reads ISO strings."""
    assert delays.at("03:30", "UTC") == delays.at(time(3, 30), "UTC")


def test_calendar_delays_say_what_they_are() -> None:
    """The repr shows what was asked for, with `auto` worked out."""
    assert (
        "CalendarDelay(times=Cron(expression='*/5 * * * *'), "
        "timezone='Europe/Lisbon', fold='both', gap='forward')"
    ) == repr(delays.cron("*/5 * * * *", "Europe/Lisbon"))
    assert (
        "CalendarDelay(times=Daily(time=datetime.time(3, 0)), "
        "timezone='UTC', fold='first', gap='skip')"
    ) == repr(delays.at("03:00", "UTC", gap="skip"))


@pytest.mark.parametrize(
    "expression",
    (
        *("", "*", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "a * * * *"),
        *("*/0 * * * *", "5-1 * * * *", ", * * * *", "@daily", "* * * * MON#6", "9" * 5000),
        *("9" * 5000 + " * * * *", None, 5, b"* * * * *", ["*"] * 5),
    ),
)
def test_what_is_no_cron_expression_is_refused(expression: object) -> None:
    """An error names the expression and says how to write one."""
    error = refusal(delays.cron, expression)

    assert ("expression", expression) == (error.argument, error.value)
    assert "five fields" in str(error)


def test_the_reason_is_kept() -> None:
    """What cronsim said is in the message, and its error is the cause."""
    error = refusal(delays.cron, "0 24 * * *")

    assert "Bad hour" in str(error)
    assert "CronSimError" == type(error.__cause__).__name__


@pytest.mark.parametrize("expression", ("0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"))
def test_a_date_that_no_month_has_is_refused(expression: str) -> None:
    """No February has 30 days: an error at once, not a task that never runs."""
    assert "expression" == refusal(delays.cron, expression).argument


@pytest.mark.parametrize(
    ("expression", "options"),
    (
        ("0 0 */5 2 MON#5", {}),  # the fifth Monday of February is a 29th
        ("30 1 * 3 0L", {"timezone": "Europe/Lisbon", "gap": "skip"}),  # always in the gap
    ),
)
def test_a_time_that_never_comes_is_refused(expression: str, options: dict[str, str]) -> None:
    """Nor is it accepted when only fifty years of looking, or the zone, tell."""
    error = refusal(delays.cron, expression, **options)

    assert ("expression", expression) == (error.argument, error.value)
    assert "no such time ever comes" in str(error)


def test_a_time_that_always_falls_in_a_gap_comes_when_moved() -> None:
    """The same expression is fine when times in gaps are moved."""
    delay = delays.cron("30 1 * 3 0L", "Europe/Lisbon", gap="forward")

    assert datetime(2027, 3, 28, 1, 30, tzinfo=UTC) == delay.next_after(NOON)


@pytest.mark.parametrize(
    "zone",
    ("", "Europe", "Europe/Atlantis", "../UTC", "/etc/localtime", "x" * 300, "a\0b", None, 1, []),
)
def test_an_unknown_zone_is_refused(zone: object) -> None:
    """Whatever zoneinfo raises for a bad name becomes one error."""
    assert "timezone" == refusal(delays.cron, "* * * * *", zone).argument
    assert "timezone" == refusal(delays.at, "03:00", zone).argument


@pytest.mark.parametrize(
    "value",
    (
        *("", "3", "25:00", "noon", "03:00+01:00", None, 3, NOON),
        *(time(3, tzinfo=UTC), time(3, fold=1)),
    ),
)
def test_what_is_no_local_time_of_day_is_refused(value: object) -> None:
    """Unreadable strings, other types, and times with a zone or a fold of their own."""
    assert "time" == refusal(delays.at, value, "UTC").argument


@pytest.mark.parametrize("value", ("later", "", None, True, ["first"]))
def test_an_unknown_policy_is_refused(value: object) -> None:
    """`fold` and `gap` take the words listed, nothing else."""
    assert "fold" == refusal(delays.cron, "* * * * *", fold=value).argument
    assert "gap" == refusal(delays.cron, "* * * * *", gap=value).argument
    assert "fold" == refusal(delays.at, "03:00", "UTC", fold=value).argument
    assert "gap" == refusal(delays.at, "03:00", "UTC", gap=value).argument


def test_a_daily_time_has_no_automatic_fold() -> None:
    """`auto` tells periodic from fixed hours; a daily time is fixed."""
    assert "fold" == refusal(delays.at, "03:00", "UTC", fold="auto").argument


@pytest.mark.parametrize(
    "moment",
    (
        *(datetime(2026, 1, 1), datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
        *(None, 0.0, time(3), "2026-01-01"),
    ),
)
def test_a_moment_without_a_zone_is_refused(moment: object) -> None:
    """Naive datetimes, other types and the ends of the calendar are no moments."""
    assert "moment" == refusal(delays.at("03:00", "UTC").next_after, moment).argument
    assert "now" == refusal(delays.at("03:00", "UTC", now=lambda: moment), 0).argument


@pytest.mark.parametrize("year", (1900, 9899))
def test_the_first_and_last_moments_have_a_next_time(year: int) -> None:
    """The limits of the calendar are inside what can be computed."""
    moment = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)

    assert datetime(year + 1, 1, 1, tzinfo=UTC) == delays.at("00:00", "UTC").next_after(moment)


def test_times_that_end_are_reported_as_such() -> None:
    """A user's own times may end; then no next one can be given."""
    delay = CalendarDelay(lambda after: None, "UTC", "first", "forward", lambda: NOON)

    assert "moment" == refusal(delay.next_after, NOON).argument


def test_cron_says_how_to_install_cronsim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cronsim, `cron` names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "cronsim", None)

    with pytest.raises(ImportError, match=r"pip install 'planton\[cron\]'") as caught:
        delays.cron("* * * * *")
    assert "cronsim" == caught.value.name


def test_all_but_cron_works_without_cronsim() -> None:
    """The core depends on attrs and trio only."""
    script = (
        "import sys; sys.modules['cronsim'] = None; from planton import delays; "
        "print(delays.constant(1)(0), delays.at('03:00', 'UTC')(0) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert b"1.0 True" == done.stdout.strip()
