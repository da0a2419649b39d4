"""Claims while somebody's snapshot is held open, so that the server keeps every dead row."""

import json
import math

import psycopg
import pytest
import trio

from planton import ScheduleRequest
from planton.storage import ClaimRequest, Rule
from planton.testing.conformance._base import claim, enqueue, names
from planton_postgres import PostgresStorage
from planton_postgres._claim import Bounds, Claim
from planton_postgres._statements import Statements

SQL = Statements()
RULE = Rule(task_name="task", claimed_by="me", lease=60.0)
PENDING = "INSERT INTO planton_pending (task_name, instruction, priority, run_at) VALUES "
PAST = "now() - interval '{} seconds'"
FILL = """
INSERT INTO planton_pending (task_name, instruction, priority, run_at)
SELECT 'task', n, n %% 3, now() - interval '1 hour' FROM generate_series(1, %s) AS n
"""
END = "DELETE FROM planton_active WHERE instruction = ANY (%s)"


@pytest.fixture
def database(schema_dsn):
    """A connection, and the task's row."""

    async def migrate():
        async with PostgresStorage(schema_dsn) as storage:
            await storage.migrate()

    trio.run(migrate)
    with psycopg.connect(schema_dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
        yield connection


@pytest.fixture
async def storage(database, schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        yield storage


@pytest.fixture
def holder(schema_dsn):
    """Somebody who has looked, and goes on in the same transaction."""
    with psycopg.connect(schema_dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1 FROM pg_class")
        yield connection


@pytest.fixture
def bounds():
    """Bounds that are used from the first claim on, which begins at the front."""
    return Bounds(stopped=[2**31 - 1, "-infinity", 0], until=math.inf)


def queue(database, *rows):
    """Enqueue instructions, each with its priority and the seconds since it was due."""
    for instruction, priority, ago in rows:
        database.execute(f"{PENDING} ('task', %s, %s, {PAST.format(ago)})", (instruction, priority))


def claimed(database, bounds, limit, concurrency=1000):
    """Claim as a backend does, by bounds that it has; the instructions, and what was active."""
    one = Claim(ClaimRequest(RULE, concurrency, limit), bounds, lambda: 0.0)
    rows = database.execute(SQL["claim"], one.parameters(is_alone=True)).fetchall()
    answer = one.read(rows)
    return [row.instruction for row in answer.rows], answer.active


# What was passed over is left out


def test_a_claim_goes_on_where_the_last_one_stopped(database, bounds):
    """What is new of a higher priority is found by a look from the front."""
    queue(database, ("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    claimed(database, bounds, 3)
    queue(database, ("e", 5, 10), ("f", 1, 10), ("g", 9, 99), ("h", 3, 99), ("i", -7, 99))

    assert ["d", "f", "i"] == claimed(database, bounds, 10)[0]
    assert ["g", "e", "h"] == claimed(database, Bounds(), 10)[0]


def test_a_claim_that_leaves_something_out_takes_the_first_of_the_rest(database, bounds):
    """By priority, then time; not more than its limit, of all priorities together."""
    queue(database, ("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    claimed(database, bounds, 1)

    assert [["b", "c"], ["d"]] == [claimed(database, bounds, 2)[0] for _ in range(2)]


def test_what_appears_behind_is_found_by_looking_at_all(database, bounds):
    """A late commit, an earlier time: not where a claim goes on, but when it looks at all."""
    queue(database, ("a", 0, 50))
    claimed(database, bounds, 1)
    queue(database, ("late", 0, 60))

    assert [[], ["late"]] == [claimed(database, each, 1)[0] for each in (bounds, Bounds())]


@pytest.mark.parametrize("at", ("infinity", "4000-01-01 BC"))
def test_any_time_can_be_passed(database, bounds, at):
    """At any priority."""
    query = f"{PENDING} ('task', %s, %s, %s)"
    database.execute(query, ("a", -(2**31), "4001-01-01 BC"))
    claimed(database, bounds, 1)
    database.execute(query, ("b", -(2**31), at))
    database.execute(query, ("c", 2**31 - 1, at))

    assert ([] if at == "infinity" else ["b"]) == claimed(database, bounds, 2)[0]
    assert ([] if at == "infinity" else ["c"]) == claimed(database, Bounds(), 2)[0]


# The count of what is active


def test_what_was_queued_long_ago_is_counted_when_it_is_active(database):
    """Its claim has a higher number than those that were there, and not that of its queuing."""
    queue(database, ("old", 0, -3600), *((str(n), 0, 90 - n) for n in range(4)))
    claimed(database, Bounds(), 2, concurrency=2)
    database.execute("UPDATE planton_pending SET run_at = now() WHERE instruction = 'old'")
    database.execute("UPDATE planton_pending SET priority = 1 WHERE instruction = 'old'")
    database.execute(END, (["0"],))

    assert (["old"], 1) == claimed(database, Bounds(), 2, concurrency=2)
    assert ([], 2) == claimed(database, Bounds(), 2, concurrency=2)


def test_numbers_that_begin_anew_are_counted_from_the_beginning(database, bounds):
    """After TRUNCATE … RESTART IDENTITY."""
    queue(database, *((str(n), 0, 90 - n) for n in range(9)))
    for _ in range(3):
        claimed(database, bounds, 2)
    database.execute("TRUNCATE planton_pending, planton_active RESTART IDENTITY")
    queue(database, *((str(n), 0, 9 - n) for n in range(3)))
    claimed(database, Bounds(), 2)

    assert 2 == claimed(database, bounds, 1)[1]


@pytest.mark.parametrize("until", (-math.inf, math.inf))
def test_the_cap_holds_whatever_was_passed(database, until):
    """Claims and ends in turn, of several dispatchers: the count is always that of the table."""
    queue(database, *((str(n), 0, 900 - n) for n in range(200)))
    dispatchers = [Bounds(until=until) for _ in range(3)]
    query = "SELECT instruction FROM planton_active ORDER BY id"
    for turn in range(40):
        before = [name for (name,) in database.execute(query)]
        _, active = claimed(database, dispatchers[turn % 3], 3, concurrency=7)
        found = [name for (name,) in database.execute(query)]
        database.execute(END, (found[turn % 4 :: 3],))

        assert len(before) == active
        assert len(found) <= 7


# What a dispatcher does


def pages(database, bounds):
    """How many pages of the server a claim of 100 reads; it is undone."""
    one = Claim(ClaimRequest(RULE, 1000, 100), bounds, lambda: 0.0)
    with database.transaction(force_rollback=True):
        query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL['claim'].rstrip(';')}"
        cursor = database.execute(query, one.parameters(is_alone=True))
        plan = cursor.fetchone()[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def test_a_claim_under_an_open_snapshot_reads_as_little_as_at_first(database, holder):
    """After 20,000 rows about as many pages as in fresh tables."""
    database.execute(FILL, [25_000])
    database.execute("ANALYZE")
    pages(database, Bounds())
    fresh, bounds = pages(database, Bounds()), Bounds()
    for _ in range(40):
        found, _ = claimed(database, bounds, 500)
        database.execute(END, (found,))
        bounds.until = math.inf
    full, bounded = pages(database, Bounds()), pages(database, bounds)

    assert full > 2 * fresh, (fresh, full, bounded)
    assert bounded < 1.5 * fresh, (fresh, full, bounded)


def request(limit):
    return ScheduleRequest(
        task_name="task",
        active_instructions=(),
        concurrency=1000,
        limit=limit,
        attempt_number=0,
    )


async def churn(storage, task, rows):
    for _ in range(rows // 500):
        batch = await task.schedule(request(500))
        await storage.complete([claim.receipt for claim in batch.claims])


async def test_a_late_commit_is_found_within_a_second(storage, database, schema_dsn, holder):
    """Whoever goes on where it was comes again soon, though nothing wakes it."""
    database.execute(FILL, [6000])
    task = storage.queue_task("task", concurrency=1000, delay=3600)
    with psycopg.connect(schema_dsn) as late:
        late.execute(f"{PENDING} ('task', 'late', 0, {PAST.format(7200)})")
        await churn(storage, task, 6000)
        late.commit()
        found, began = [], trio.current_time()
        while not found:
            batch = await task.schedule(request(100))
            found += [claim.instruction for claim in batch.claims]
            if not found:
                await trio.sleep(batch.due_in)

    assert ["late"] == found
    assert trio.current_time() - began < 5, "a second, on a machine that has nothing else to do"


async def test_late_commits_do_not_starve_behind_a_stream(storage, database, schema_dsn, holder):
    """Though there is always more than there is room for, behind where a claim goes on."""
    database.execute(FILL, [20_000])
    task = storage.queue_task("task", concurrency=1000, delay=3600)
    with psycopg.connect(schema_dsn) as late:
        late.execute(f"{PENDING} ('task', 'late', 2, {PAST.format(7200)})")
        await churn(storage, task, 6000)
        late.commit()
        found = set()
        for _ in range(26):
            batch = await task.schedule(request(500))
            found |= {claim.instruction for claim in batch.claims}
            await storage.complete([claim.receipt for claim in batch.claims])
            if "late" in found:
                break
            await trio.sleep(0.1)

    assert "late" in found
    assert [(True,)] == database.execute("SELECT count(*) > 0 FROM planton_pending").fetchall()


async def test_a_late_commit_is_found_at_once_where_no_dead_rows_are_in_the_way(storage, database):
    """Nothing is passed over that costs nothing."""
    await enqueue(storage, "task", "a")
    task = storage.queue_task("task", concurrency=9)
    first = names(await claim(task))
    queue(database, ("late", 0, 60))

    assert [["a"], ["late"]] == [first, names(await claim(task))]


# For how long bounds are used


def learnt(bounds, now=0.0, **state):
    """Have a claim read what the server has answered."""
    everything = {
        "active": 0, "held": 0, "claimed": 0, "cap": 9, "mode": None, "problem": None,
        "stopped": [0, "2026-01-01T00:00:00+00:00", 1], "moved": 0, "is_full": False,
        "walked": 0, "took": 0.0, "clock": 0.0, "first_expiry": None, "next_due": None,
    }  # fmt: skip
    answer = json.dumps(everything | state)
    one = Claim(ClaimRequest(RULE, 9, 9), bounds, lambda: now)
    return one.read([("state", None, None, answer, None, None)])


@pytest.mark.parametrize(
    ("walked", "took", "seconds"),
    ((999, 1.0, 0.0), (1001, 0.002, 0.04), (1001, 0.04, 0.8), (10**7, 9.0, 1.0)),
)
def test_all_is_looked_at_again_the_sooner_the_cheaper_it_is(walked, took, seconds):
    """At once where little is in the way, after a second at the latest; then it is due."""
    bounds = Bounds()
    learnt(bounds, walked=walked, took=took)
    learnt(bounds, now=seconds / 2, walked=0, took=0.001)

    assert math.isclose(seconds, bounds.until)
    if seconds:
        assert math.isclose(seconds / 2, learnt(bounds, now=seconds / 2).due_in)
    assert learnt(bounds, now=seconds).due_in is None


def test_a_look_that_takes_nothing_has_stopped_where_the_last_one_did():
    """The dead rows in front of that are still in the way."""
    bounds = Bounds()
    learnt(bounds, walked=2000, took=1.0)
    learnt(bounds, now=5.0, walked=2000, took=1.0, stopped=None)

    assert [0, "2026-01-01T00:00:00+00:00", 1] == bounds.stopped


def test_priorities_that_were_emptied_are_passed_over(database, holder):
    """They are above those where there is something, and every claim would read past them."""
    database.execute(FILL, [9000])
    bounds = Bounds()
    for _ in range(15):
        found, _ = claimed(database, bounds, 500)
        database.execute(END, (found,))
    bounds.until = math.inf
    bounded = pages(database, bounds)

    assert 0 == bounds.stopped[0]
    assert bounded < pages(database, Bounds())
