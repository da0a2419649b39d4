"""Cron tasks by the server's clock: a week with a change of clocks, downtime, a rolling deploy."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton.storage import CronTimes
from planton.testing.conformance._base import attempt, claim, names
from planton_postgres import PostgresStorage

# Found before the server's own, so that a test can set the server's clock.
CLOCK = """
CREATE TABLE clock (now timestamptz);
INSERT INTO clock VALUES ('2026-01-01');
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT now FROM clock'
"""


@pytest.fixture
def clock_dsn(schema_dsn):
    options = conninfo_to_dict(schema_dsn)["options"]
    return make_conninfo(schema_dsn, options=f"{options},pg_catalog")


@pytest.fixture
async def set_clock(clock_dsn, observer):
    """Set the server's clock; the tables are there."""
    await observer.execute(CLOCK)
    async with PostgresStorage(clock_dsn) as storage:
        await storage.migrate()

    async def set_clock(now):
        await observer.execute("UPDATE clock SET now = %s", [now])

    return set_clock


@asynccontextmanager
async def dispatchers(dsn, *expressions, **options):
    """The same task of several processes."""
    async with trio.open_nursery():
        storages = [PostgresStorage(dsn, pool_size=2) for _ in expressions]
        tasks = [
            storage.cron_task("cron", expression, concurrency=500, lease=1e8, **options)
            for storage, expression in zip(storages, expressions, strict=True)
        ]
        for storage in storages:
            await storage.__aenter__()
        try:
            yield tasks
        finally:
            for storage in storages:
                await storage.__aexit__(None, None, None)


async def fired(tasks):
    """What all of them claim at the same time."""
    seen = []

    async def one(task):
        seen.extend(names(await claim(task)))

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(one, task)
    return [datetime.fromisoformat(instruction) for instruction in seen]


def between(expression, timezone, start, end):
    """Every time after `start` and up to `end`."""
    times = CronTimes.of(expression, timezone=timezone, misfire="all")
    found = [times.delay.next_after(start)]
    while found[-1] <= end:
        found.append(times.delay.next_after(found[-1]))
    return found[:-1]


@pytest.mark.parametrize("misfire", ("skip", "once", "all"))
@pytest.mark.parametrize(
    "start", (datetime(2026, 3, 26, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC))
)
async def test_a_week_with_a_change_of_clocks_and_downtime(clock_dsn, set_clock, start, misfire):
    """Each time once in the fleet; what was missed by the policy, though one was missed by both."""
    expression, zone = "30 1,9,17 * * *", "Europe/Lisbon"  # half past one is none, or two
    times = between(expression, zone, start, start + timedelta(days=7))
    down = (times[14] - timedelta(minutes=5), times[17] + timedelta(minutes=5))
    missed = [time for time in times if down[0] < time < down[1]]
    by_policy = {"skip": [], "once": missed[-1:], "all": missed}[misfire]
    seen = []
    await set_clock(start)
    async with dispatchers(
        clock_dsn, expression, expression, timezone=zone, misfire=misfire
    ) as tasks:
        assert [] == await fired(tasks)
        for time in times:
            if not down[0] < time < down[1]:
                await set_clock(time - timedelta(seconds=1))
                seen += await fired(tasks)
                await set_clock(time + timedelta(seconds=1))
                # Only one of them at times, as if the other was down.
                seen += await fired(tasks[: 1 + time.day % 2])

    assert sorted({*times} - {*missed} | {*by_policy}) == sorted(seen)


def union(*tables):
    return sorted({time for times in tables for time in times})


START = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)
OLD, NEW = "*/10 * * * *", "5,20,31,40 * * * *"


@pytest.mark.parametrize(("seconds", "hours"), ((28, 0.5), (120, 1.5)))
async def test_times_of_two_versions_that_run_side_by_side(clock_dsn, set_clock, seconds, hours):
    """Those of both, each once, those that they share too: nothing is lost and nothing flaps."""
    end = START + timedelta(hours=hours)
    seen, now = [], START
    await set_clock(now)
    async with dispatchers(clock_dsn, OLD, NEW, OLD, NEW) as tasks:
        await fired(tasks)
        while now < end:
            now += timedelta(seconds=seconds)
            await set_clock(now)
            # Now this one is faster, now that one.
            seen += await fired(tasks[:1]) + await fired(tasks[::-1])

    tables = [between(expression, "UTC", START, now) for expression in (OLD, NEW)]
    assert union(*tables) == sorted(seen)


async def test_a_version_that_sleeps_while_the_other_fires_loses_nothing(clock_dsn, set_clock):
    """Its next time waits for it, whatever the other does meanwhile; a shared one has been."""
    await set_clock(START)
    async with dispatchers(clock_dsn, "10 * * * *", "5,10,20 * * * *", misfire="all") as (old, new):
        await fired([old])
        await fired([new])
        seen = []
        for minute in (6, 11, 21):
            await set_clock(START.replace(minute=minute))
            seen += await fired([new])
        await set_clock(START.replace(hour=14, minute=11))
        seen += await fired([old])

    assert [(12, 5), (12, 10), (12, 20), (13, 10), (14, 10)] == [
        (time.hour, time.minute) for time in seen
    ]


async def test_times_of_an_old_version_that_has_gone_are_not_dispatched(clock_dsn, set_clock):
    """But for one of which the new version knows, too: it was stopped before it could."""
    await set_clock(START)
    async with dispatchers(clock_dsn, "0 13 * * *") as old:
        await fired(old)
    await set_clock(START.replace(hour=13, second=10))
    async with dispatchers(clock_dsn, "30 * * * *", "0,15 * * * *") as (other, heir):
        assert [] == await fired([other])
        assert [START.replace(hour=13, second=0)] == await fired([heir])
        await set_clock(START.replace(hour=15, minute=31))
        assert [15] == [time.hour for time in await fired([other])]


async def test_who_has_found_the_time_table_locked_looks_again(clock_dsn, set_clock, connection):
    """Within a second, however long its delay."""
    await set_clock(START)
    async with dispatchers(clock_dsn, "0 13 * * *", delay=600) as (task,):
        await connection.execute("INSERT INTO planton_task (task_name) VALUES ('cron')")
        async with connection.transaction():
            await connection.execute("SELECT FROM planton_task FOR UPDATE")
            batch = await attempt(task)

        assert 0 <= batch.due_in <= 1.0
        assert (await attempt(task)).due_in > 60


async def test_a_shared_time_is_remembered_until_each_version_is_past_it(
    clock_dsn, set_clock, observer
):
    """And no longer: the table of fired times does not grow with every time."""
    kept = "SELECT to_char(fire_at, 'HH24:MI') FROM planton_fired ORDER BY 1"
    await set_clock(START)
    async with dispatchers(clock_dsn, "10 * * * *", "*/5 * * * *", misfire="all") as (old, new):
        for task in (old, new):
            await fired([task])
        await set_clock(START.replace(minute=16))
        ahead = await fired([new])
        behind = await (await observer.execute(kept)).fetchall()
        late = await fired([old])
        after = await (await observer.execute(kept)).fetchall()

    assert [5, 10, 15] == [time.minute for time in ahead]
    assert ([("12:10",), ("12:15",)], [], []) == (behind, late, after)


async def test_a_time_of_two_versions_fires_once_though_its_work_has_ended(
    clock_dsn, set_clock, observer
):
    """Between the dispatchers of the one and those of the other."""
    await set_clock(START)
    async with dispatchers(clock_dsn, OLD, NEW) as tasks:
        await fired(tasks)
        seen = []
        for minute in (21, 41):
            await set_clock(START.replace(minute=minute))
            for task in tasks:
                seen += await fired([task])
                await observer.execute("DELETE FROM planton_active")

    assert sorted(set(seen)) == sorted(seen)
    assert {20, 40} <= {time.minute for time in seen}
