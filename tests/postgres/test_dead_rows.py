"""Claims while somebody's snapshot is held open, so that the server keeps every dead row."""

import math
from itertools import count

import psycopg
import pytest
import trio
from planton_postgres._passed import Memory, Trail
from psycopg.types.json import Jsonb

from planton import ScheduleRequest
from planton_postgres import PostgresStorage
from planton_postgres._statements import CLAIM, END

PENDING = "INSERT INTO planton_pending (task_name, instruction, priority, run_at) VALUES "
PAST = "now() - interval '{} seconds'"


async def migrate(dsn):
    async with PostgresStorage(dsn) as storage:
        await storage.migrate()


@pytest.fixture
def database(schema_dsn):
    """A connection, and the task's row."""
    trio.run(migrate, schema_dsn)
    with psycopg.connect(schema_dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO planton_task VALUES ('task')")
        yield connection


@pytest.fixture
async def storage(database, schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        yield storage


def queue(database, *rows):
    """Enqueue instructions, each with its priority and the seconds since it was due."""
    for instruction, priority, ago in rows:
        database.execute(f"{PENDING} ('task', %s, %s, {PAST.format(ago)})", (instruction, priority))


def asked(limit, passed, concurrency=100):
    rule = {"task_name": "task", "concurrency": concurrency, "key": "%", "tags": [], "lease": 60}
    more = {"limit": limit, "source": "queue", "looks_ahead": True, "passed": passed}
    return {"asked": Jsonb([rule | more]), "keep": True, "locks": True, "claimed_by": "me"}


def claim(database, limit, passed, **options):
    """What is claimed, and what step 0 tells: the active ones, what was passed, what was left."""
    with database.transaction():
        looked = database.execute(CLAIM["lock"], asked(limit, passed, **options)).fetchone()
        rows = database.execute(CLAIM["claim"], asked(limit, passed, **options)).fetchall()
    if not rows:
        return [], looked[2], None, None
    _, _, active, _, _, _, (last, has_more, _, _), *_ = rows[0]
    return [row[4] for row in rows[1:]], active, last, has_more


# What was passed is left out


def test_a_claim_goes_on_at_each_priority_where_it_was(database):
    """And finds what is new: later, of a priority between, above or below."""
    queue(database, ("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    _, _, passed, has_more = claim(database, 3, {})

    assert {"5", "1"} == set(passed)
    assert has_more
    queue(database, ("e", 5, 10), ("f", 1, 10), ("g", 9, 99), ("h", 3, 99), ("i", -7, 99))
    assert ["g", "e", "h", "d", "f", "i"] == claim(database, 10, passed)[0]


def test_a_claim_that_leaves_something_out_takes_the_first_of_the_rest(database):
    """By priority, then time; not more than its limit, of all priorities together."""
    queue(database, ("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    _, _, passed, _ = claim(database, 1, {})

    assert [["b", "c"], ["d"]] == [claim(database, 2, passed)[0] for _ in range(2)]


def test_what_appears_behind_is_found_by_looking_at_all(database):
    """A late commit, an earlier time: not where a claim goes on, but when it looks at all."""
    queue(database, ("a", 0, 50))
    passed = claim(database, 1, {})[2]
    queue(database, ("late", 0, 60))

    assert [[], ["late"]] == [claim(database, 1, each)[0] for each in (passed, {})]


@pytest.mark.parametrize("at", ("infinity", "-infinity"))
def test_any_time_can_be_passed(database, at):
    """As no time is too early for a queue."""
    database.execute(f"{PENDING} ('task', 'a', -2147483648, %s)", ("-infinity",))
    passed = claim(database, 1, {})[2]
    database.execute(f"{PENDING} ('task', 'b', 2147483647, %s)", (at,))

    assert (["b"] if at == "-infinity" else []) == claim(database, 1, passed)[0]


# The count of what is active


def numbers(database):
    query = "SELECT instruction, number FROM planton_active ORDER BY number"
    return dict(database.execute(query).fetchall())


def active_from(database):
    return database.execute("SELECT active_from FROM planton_task").fetchone()[0]


def test_the_count_begins_with_the_first_claim_there_is(database):
    """Also one that was made long ago: it moves to where the others are."""
    queue(database, *((str(n), 0, 90 - n) for n in range(6)))
    claim(database, 3, None)
    before = numbers(database)
    claim(database, 1, {})

    assert 0 < max(before.values()) < active_from(database) == min(numbers(database).values())
    assert 4 == claim(database, 1, None)[1]


def test_what_somebody_has_locked_is_counted_where_it_is(database, schema_dsn):
    """A heartbeat under way, say; the claim does not wait for it."""
    queue(database, *((str(n), 0, 90 - n) for n in range(6)))
    claim(database, 3, None)
    before = numbers(database)
    with psycopg.connect(schema_dsn) as other:
        other.execute("SELECT FROM planton_active WHERE instruction = '1' FOR UPDATE")
        claim(database, 1, {})

    assert before["1"] == active_from(database) == numbers(database)["1"]
    assert 4 == claim(database, 1, None)[1]


def test_a_report_reaches_a_claim_that_has_moved(database, schema_dsn):
    """Its receipt is the same, also for an end that waited for the claim that moves it."""
    queue(database, *((str(n), 0, 90 - n) for n in range(6)))
    claim(database, 3, None)
    receipts = [str(row[0]) for row in database.execute("SELECT receipt FROM planton_active")]
    claim(database, 1, {})
    ends = {"receipts": receipts, "results": [None] * 3, "keep": True}

    assert 3 == len(database.execute(END["complete"], ends).fetchall())
    assert 1 == claim(database, 1, None)[1]


def test_numbers_that_begin_anew_are_counted_from_the_beginning(database):
    """After TRUNCATE … RESTART IDENTITY."""
    queue(database, *((str(n), 0, 90 - n) for n in range(9)))
    for passed in (None, {}, {}):
        claim(database, 2, passed)
    database.execute("TRUNCATE planton_active RESTART IDENTITY")
    claim(database, 2, None)

    assert 2 == claim(database, 1, None)[1]


@pytest.mark.parametrize("passed", (None, {}))
def test_the_cap_holds_whatever_was_passed(database, passed):
    """Claims, ends and moves in turn: the count is always that of the table."""
    queue(database, *((str(n), 0, 900 - n) for n in range(200)))
    for turn in range(25):
        _, active, last, _ = claim(database, 3, passed, concurrency=7)
        found = numbers(database)
        oldest = list(found)[turn % 3 :: 3]
        database.execute("DELETE FROM planton_active WHERE instruction = ANY (%s)", (oldest,))
        passed = last if turn % 4 and last else passed and {}

        assert active <= 7
        assert len(found) <= 7
        assert min(found.values()) >= active_from(database)


# What a dispatcher does


def pages(database, statement, parameters):
    query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.rstrip(';')}"
    plan = database.execute(query, parameters).fetchone()[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def pages_of_a_claim(database, passed):
    with database.transaction(force_rollback=True):
        return sum(
            pages(database, CLAIM[name], asked(100, passed, 1000)) for name in ("lock", "claim")
        )


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


async def test_a_claim_under_an_open_snapshot_reads_as_little_as_at_first(
    storage, database, schema_dsn
):
    """In pages of the server: after 20,000 rows about as many as in fresh tables."""
    fill = f"{PENDING.removesuffix('VALUES ')} SELECT 'task', n, n %% 3, now() - interval '1 hour' "
    fill = fill.replace("%%", "%") + "FROM generate_series(1, 25000) AS n"
    database.execute(fill)
    database.execute("ANALYZE")
    task = storage.queue_task("task", concurrency=1000)
    with psycopg.connect(schema_dsn) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM planton_active")
        fresh = pages_of_a_claim(database, None)
        await churn(storage, task, 20_000)
        full = pages_of_a_claim(database, None)
        passed = task.schedule._claimer._memory._queues["task"].passed
        claim(database, 1, {}, concurrency=1000)  # a look at all, which moves the count
        bounded = pages_of_a_claim(database, passed)

    assert full > 2 * fresh
    assert bounded < 1.5 * fresh, (fresh, full, bounded, passed)


async def test_a_late_commit_is_found_within_a_second(storage, database, schema_dsn):
    """Whoever goes on where it was comes again soon, though nothing wakes it."""
    database.execute(
        "INSERT INTO planton_pending (task_name, instruction)"
        " SELECT 'task', n FROM generate_series(1, 5000) AS n"
    )
    task = storage.queue_task("task", concurrency=1000, delay=3600)
    with psycopg.connect(schema_dsn) as holder, psycopg.connect(schema_dsn) as late:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM planton_active")
        late.execute(f"{PENDING} ('task', 'late', 0, {PAST.format(60)})")
        await churn(storage, task, 5000)
        late.commit()
        found = []
        for _ in range(3):
            batch = await task.schedule(request(100))
            found += [claim.instruction for claim in batch.claims]
            if found:
                break
            await trio.sleep(batch.due_in)

            assert batch.due_in <= 1

    assert ["late"] == found


async def test_dead_rows_that_are_in_the_way_are_noticed(storage, database, schema_dsn):
    """And forgotten when there are none."""
    database.execute(
        "INSERT INTO planton_pending (task_name, instruction)"
        " SELECT 'task', n FROM generate_series(1, 6000) AS n"
    )
    task = storage.queue_task("task", concurrency=1000)
    memory = task.schedule._claimer._memory
    with psycopg.connect(schema_dsn) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM planton_active")
        await churn(storage, task, 3000)
        noticed = memory.passed("task")
    database.execute("VACUUM planton_pending")
    database.execute("VACUUM planton_active")
    with trio.fail_after(10):
        while memory.passed("task") is not None:
            await churn(storage, task, 500)
            await trio.sleep(0.1)

    assert noticed is not None


# What is kept of what was passed


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def memory(clock):
    return Memory(clock)


WALKED = 100_000


def test_nothing_is_left_out_where_little_is_in_the_way(memory):
    """So that a late commit is found at once, as long as that costs nothing."""
    memory.note("task", None, Trail({}, True, 999))

    assert memory.passed("task") is None


@pytest.mark.parametrize(
    ("walked", "seconds"), ((1000, 0.01), (50_000, 0.5), (100_000, 1.0), (10**7, 1.0))
)
def test_all_is_looked_at_again_the_sooner_the_cheaper_it_is(memory, clock, walked, seconds):
    """After a second at the latest."""
    memory.note("task", None, Trail({}, True, walked))
    memory.note("task", {}, Trail({"0": [1, 1]}, True, walked))
    clock.now = seconds - 0.001

    assert {"0": [1, 1]} == memory.passed("task")
    assert math.isclose(0.001, memory.look_in("task"))
    clock.now = seconds
    assert {} == memory.passed("task")
    assert 0 == memory.look_in("task")


def test_going_on_does_not_put_off_the_look_at_all(memory, clock):
    """However many claims there are meanwhile."""
    memory.note("task", {}, Trail({"0": [1, 1], "3": [1, 1]}, True, WALKED))
    for n in count(2):
        clock.now += 0.3
        if not (passed := memory.passed("task")):
            break
        memory.note("task", passed, Trail({"0": [n, n]}, False, 0))

    assert 5 == n
    assert {"0": [4, 4], "3": [1, 1]} == passed if passed else {} == passed


@pytest.mark.parametrize(
    ("trail", "kept"),
    (
        (Trail({}, False, WALKED), {"5", "3", "1"}),
        (Trail({}, True, WALKED), set()),
        (Trail({"3": [1, 1]}, False, WALKED), {"5", "3", "1"}),
        (Trail({"3": [1, 1]}, True, WALKED), {"5", "3"}),
        (Trail({"7": [1, 1]}, True, WALKED), {"7"}),
    ),
)
def test_a_look_at_all_keeps_what_it_has_left_behind_empty(memory, clock, trail, kept):
    """And nothing of the priority where it stopped but that, nor below, where it was not."""
    memory.note("task", None, Trail({"5": [9, 9], "3": [9, 9], "1": [9, 9]}, True, WALKED))
    clock.now = 1.0
    memory.note("task", {}, trail)

    assert kept == set(memory.passed("task"))
    assert all(memory.passed("task")[key] == last for key, last in trail.last.items())


def test_a_look_at_all_that_finds_nothing_is_enough_for_a_while(memory, clock):
    """It need not be done again at once."""
    memory.note("task", None, Trail({"0": [1, 1]}, True, WALKED))
    clock.now = 5.0
    memory.seen_all("task")
    memory.seen_all("another")
    clock.now = 5.9

    assert {"0": [1, 1]} == memory.passed("task")
    assert memory.passed("another") is None
