"""Cron times: which of them are dispatched, whatever was missed, through every change of clocks."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from planton import InstructionEvent, Planton
from planton.storage import CronTimes, Fires
from planton.testing import EventCollector, MemoryStorage

NOON = datetime(2026, 3, 27, 12, tzinfo=UTC)
EXPRESSIONS = ("* * * * *", "*/7 * * * *", "0 * * * *", "30 1 * * *", "*/20 * * * * *", "0 3 1 * *")


def table(expression, misfire, timezone="Europe/Lisbon"):
    return CronTimes.of(expression, timezone=timezone, misfire=misfire)


def all_times(times, first, now):
    """Every time from `first` to `now`, one by one."""
    found = [first]
    while (following := times.delay.next_after(found[-1])) <= now:
        found.append(following)
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("late", (0, 1, 59, 60, 61, 119, 3600, 5000, 86400))
def test_what_fires_is_what_counting_one_by_one_gives(expression, late):
    """For each policy; and the next time is the first that is later than now."""
    times = table(expression, "all")
    first = times.delay.next_after(NOON)
    now = first + timedelta(seconds=late)
    everything = all_times(times, first, now)
    missed = [time for time in everything if time < now - timedelta(minutes=1)]
    fresh = everything[len(missed) :]
    following = times.delay.next_after(everything[-1])
    wanted = {"all": everything, "once": missed[-1:] + fresh, "skip": fresh}

    for misfire, due in wanted.items():
        fires = table(expression, misfire).fires(first, now, 20_000)
        assert Fires(due, following) == fires, misfire


def test_what_finds_no_slot_stays():
    """No room changes nothing; less room than times takes the oldest."""
    times = table("0 * * * *", "all")
    first = times.delay.next_after(NOON)
    now = first + timedelta(hours=3)

    assert Fires([], first) == times.fires(first, now, 0)
    assert Fires([first], first + timedelta(hours=1)) == times.fires(first, now, 1)


def test_nothing_fires_before_its_time():
    """Whatever the room."""
    first = NOON + timedelta(hours=1)

    assert Fires([], first) == table("0 * * * *", "all").fires(first, NOON, 5)


def test_years_of_downtime_are_passed_over_quickly():
    """A million missed minutes are not counted one by one."""
    now = NOON + timedelta(days=700)
    fires = table("0 * * * * *", "once").fires(NOON, now + timedelta(seconds=30), 1)

    assert [now - timedelta(minutes=1)] == fires.due


@pytest.mark.parametrize("misfire", ("skip", "once", "all"))
@pytest.mark.parametrize(
    "start", (datetime(2026, 3, 26, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC))
)
async def test_two_dispatchers_for_a_week_with_a_change_of_clocks(autojump_clock, misfire, start):
    """Each fire time once in the fleet, through downtime of one and of both."""
    storage = MemoryStorage(start=start, latency=0.01)
    expression = "30 */2 * * *"
    seen = []

    async def dispatch(up, down):
        """Run a dispatcher, again and again, with breaks."""
        while True:
            task = storage.cron_task(
                "cron",
                expression,
                timezone="Europe/Lisbon",
                misfire=misfire,
                concurrency=5,
                delay=600,
            )
            planton = Planton(tasks=[task])
            collected = EventCollector(planton)

            @planton.on(InstructionEvent)
            async def consume(event):
                seen.append(event.instruction)
                await storage.complete(event.receipt)

            async with planton:
                await trio.sleep(up * 3600)
            assert [] == collected.errors
            await trio.sleep(down * 3600)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch, 20, 9)
        nursery.start_soon(dispatch, 31, 13)
        await trio.sleep(7 * 24 * 3600)
        nursery.cancel_scope.cancel()
    times = table(expression, misfire)
    expected = all_times(times, times.delay.next_after(start), start + timedelta(days=7))

    assert len(seen) == len(set(seen))
    assert sorted(seen) == seen
    given = [datetime.fromisoformat(instruction) for instruction in seen]
    assert set(given) <= set(expected)
    if misfire == "all":
        assert expected[: len(given)] == given
        assert len(given) > 80, "but for those of a downtime that has not ended"
    else:
        assert 70 < len(given) < len(expected)


@pytest.mark.parametrize("latency", (0.0, 0.01))
async def test_a_rolling_deploy_loses_no_time_and_repeats_none(autojump_clock, latency):
    """Two versions side by side, then the new one alone, then the old one after a rollback."""
    storage = MemoryStorage(start=NOON + timedelta(seconds=30), latency=latency)
    old, new = "*/10 * * * *", "5,20,31,40 * * * *"
    seen = []

    async def dispatch(expression, delay, start, end):
        """Run a dispatcher of a version from and to some minutes after noon."""
        await trio.sleep(start * 60)
        task = storage.cron_task("cron", expression, delay=delay, concurrency=99)
        planton = Planton(tasks=[task])

        @planton.on(InstructionEvent)
        async def consume(event):
            seen.append(datetime.fromisoformat(event.instruction))
            await storage.complete(event.receipt)

        async with planton:
            await trio.sleep((end - start) * 60)

    async with trio.open_nursery() as nursery:
        for expression, delay, *span in (
            (old, 7, 0, 128),
            (new, 11, 61, 343),
            (old, 5, 62, 128),
            (new, 13, 125, 343),
            (old, 7, 335, 400),
        ):
            nursery.start_soon(dispatch, expression, delay, *span)

    def between(expression, start, end):
        """Its times, which begin with those of an hour before."""
        times = table(expression, "all", "UTC")
        found = all_times(times, NOON, NOON + timedelta(minutes=end))
        return {time for time in found if time > NOON + timedelta(minutes=start)}

    expected = between(old, 0, 128) | between(new, 61, 343) | between(old, 335, 400)
    # The last one that the old version missed while it was away: taken as soon as it is back.
    missed, back = [NOON + timedelta(minutes=minutes) for minutes in (330, 335)]
    assert sorted(expected | {missed}, key=lambda at: back if at == missed else at) == seen
