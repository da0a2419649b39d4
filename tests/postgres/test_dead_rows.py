"""Claims while somebody's snapshot is held open, so that the server keeps every dead row."""

import json

import psycopg
import pytest
import trio

from planton import ScheduleRequest
from planton.storage import ClaimRequest, Rule
from planton.testing.conformance._base import claim, names, receipts
from planton_postgres._claim import Bounds, Claim

PENDING = "INSERT INTO planton_pending (task_name, instruction, priority, run_at) VALUES "
PAST = "now() - interval '{} seconds'"


@pytest.fixture
async def storage(storage):
    await storage.set_concurrency("task", 1000)
    return storage


@pytest.fixture
async def queue(observer):
    """Enqueue instructions, each with its priority and the seconds since it was due."""

    async def queue(*rows):
        for instruction, priority, ago in rows:
            statement = f"{PENDING} ('task', %s, %s, {PAST.format(ago)})"
            await observer.execute(statement, [instruction, priority])

    return queue


@pytest.fixture
async def take(storage, ask):
    """Claim some more, passing over what was passed; what is taken, and what is passed then."""

    async def take(limit, passed, server=None):
        if server is None:
            _, state = await ask(limit=0)
            server = state["server"]
        taken, state = await ask(limit=limit, passed=passed, server=server)
        return [name for *_, name in taken], state["passed"]

    return take


# What was passed is left out


async def test_a_claim_goes_on_at_each_priority_where_it_was(queue, take):
    """And finds what is new: later, of a priority between, above or below."""
    await queue(("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    _, passed = await take(3, {})

    assert {"5", "1"} == set(passed)
    await queue(("e", 5, 10), ("f", 1, 10), ("g", 9, 99), ("h", 3, 99), ("i", -7, 99))
    assert ["g", "e", "h", "d", "f", "i"] == (await take(10, passed))[0]


async def test_a_claim_that_leaves_something_out_takes_the_first_of_the_rest(queue, take):
    """By priority, then time; not more than its limit, of all priorities together."""
    await queue(("a", 5, 90), ("b", 5, 80), ("c", 1, 90), ("d", 1, 80))
    _, passed = await take(1, {})

    assert [["b", "c"], ["d"]] == [(await take(2, passed))[0] for _ in range(2)]


async def test_what_appears_behind_is_found_by_looking_from_the_front(queue, take):
    """A late commit, an earlier time: not where a claim goes on, but when it looks at all."""
    await queue(("a", 0, 50))
    _, passed = await take(1, {})
    await queue(("late", 0, 60))

    assert [[], ["late"]] == [(await take(1, each))[0] for each in (passed, {})]


@pytest.mark.parametrize("at", ("infinity", "-infinity", "4713-01-01 BC", "0001-01-01"))
async def test_any_time_can_be_passed(observer, take, at):
    """As no time is too early for a queue, and no number of a row too low."""
    await observer.execute(
        f"{PENDING} ('task', 'a', -2147483648, %s), ('task', 'b', 2147483647, %s)",
        ["-infinity", at],
    )
    await observer.execute("UPDATE planton_pending SET id = -id")
    first, passed = await take(1, {})
    second, _ = await take(1, passed)

    assert (["a"] if at == "infinity" else ["b"]) == first
    assert ([] if at == "infinity" else ["a"]) == second


async def test_what_was_passed_elsewhere_is_not_left_out(queue, take):
    """On another server, whose numbers and clock are others, as after a failover."""
    await queue(("a", 0, 50))

    assert ["a"] == (await take(1, {"0": ["2999-01-01", 10**9]}, server="another"))[0]


# What a dispatcher does


def pages(plan):
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


async def pages_of_a_claim(session, state):
    """How many pages a claim of a hundred touches; it is undone."""
    asked = {"limit": 100, "concurrency": 1000, "lease": 60, "token": 1}
    if state is not None:
        asked |= {key: state[key] for key in ("passed", "lowest", "server")}
    found = None
    async with session.transaction():
        cursor = await session.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM planton_claim('task', %s)",
            [json.dumps(asked)],
        )
        found = pages((await cursor.fetchone())[0][0]["Plan"])
        raise psycopg.Rollback
    return found


async def churn(storage, task, count):
    for _ in range(count // 500):
        await storage.complete(receipts(await claim(task, 500)))


@pytest.fixture
def holder(schema_dsn):
    """A session that holds a snapshot open."""
    with psycopg.connect(schema_dsn) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM pg_class")
        yield holder


async def test_a_claim_under_an_open_snapshot_reads_as_little_as_at_first(
    storage, observer, session, ask, holder
):
    """In pages of the server: after 20,000 rows about as many as in fresh tables."""
    await observer.execute(
        "INSERT INTO planton_pending (task_name, instruction, priority)"
        " SELECT 'task', n, n % 3 FROM generate_series(1, 25000) AS n"
    )
    await observer.execute("ANALYZE")
    task = storage.queue_task("task", concurrency=1000)
    for _ in range(7):  # the first executions plan
        fresh = await pages_of_a_claim(session, None)
    await churn(storage, task, 20_000)
    ((_, learnt),) = storage._backend._exchanges._bounds.items()
    bounds = {"passed": learnt.passed, "lowest": learnt.lowest, "server": learnt.server}
    bounded = await pages_of_a_claim(session, bounds)
    _, full = await ask(limit=1, concurrency=1000)
    _, after = await ask(limit=1, concurrency=1000, **bounds)

    assert {"2", "1", "0"} == set(learnt.passed)
    assert full["walked"] > 19_000
    assert after["walked"] < 600, "what was taken since the bounds were learnt"
    assert bounded < 1.5 * fresh, (fresh, bounded)


@pytest.mark.parametrize("pinned", (True, False))
async def test_a_late_commit_is_claimed_within_a_second_though_every_claim_is_filled(
    storage, observer, schema_dsn, request, pinned
):
    """In front of the bound, under a stream that always fills the room."""
    if pinned:
        request.getfixturevalue("holder")
    await observer.execute(
        "INSERT INTO planton_pending (task_name, instruction, run_at)"
        " SELECT 'task', n, now() FROM generate_series(1, 60000) AS n"
    )
    task = storage.queue_task("task", concurrency=100, delay=3600)
    with psycopg.connect(schema_dsn) as late:
        late.execute(f"{PENDING} ('task', 'late', 0, {PAST.format(60)})")
        for _ in range(60):
            await storage.complete(receipts(await claim(task)))
        late.commit()
    with trio.fail_after(5):
        began = trio.current_time()
        found = []
        while "late" not in found:
            claims = await claim(task)
            assert len(claims) == 100, "there is always more than it takes"
            await storage.complete(receipts(claims))
            found = names(claims)
        took = trio.current_time() - began

    assert took < 1.5


async def test_a_task_that_has_passed_something_over_comes_again_soon(
    storage, observer, schema_dsn, holder
):
    """Though nothing wakes it: what was committed late waits for no delay."""
    await observer.execute(
        "INSERT INTO planton_pending (task_name, instruction)"
        " SELECT 'task', n FROM generate_series(1, 5000) AS n"
    )
    task = storage.queue_task("task", concurrency=1000, delay=3600)
    with psycopg.connect(schema_dsn) as late:
        late.execute(f"{PENDING} ('task', 'late', 0, {PAST.format(60)})")
        await churn(storage, task, 5000)
        late.commit()
    found = []
    with trio.fail_after(5):
        while not found:
            batch = await task.schedule(request_of(100))
            found = names(batch.claims)
            if not found:
                assert batch.due_in <= 1
                await trio.sleep(batch.due_in)

    assert ["late"] == found


def request_of(limit):
    return ScheduleRequest(
        task_name="task", active_instructions=(), concurrency=1000, limit=limit, attempt_number=0
    )


# When bounds are used


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def one(clock):
    """Claim, and read an answer; what is asked, and what is told of `due_in`."""
    bounds = Bounds()
    rule = Rule(task_name="task", claimed_by="me", lease=60.0)

    def one(**answer):
        made = Claim(ClaimRequest(rule, 10, 5), bounds, clock)
        asked = json.loads(made.parameters(is_alone=True)["request"])
        state = {
            "active": 0, "held": 0, "claimed": 0, "cap": 10, "mode": None, "problem": None,
            "passed": {"0": ["2026-01-01", 7]}, "lowest": 7, "server": "here", "walked": 5000,
            "took": 0.01, "clock": 0.0, "first_expiry": None, "next_due": None, **answer,
        }  # fmt: skip
        claimed = made.read([("state", None, None, json.dumps(state), None, None)])
        return asked, claimed.due_in

    return one


def test_nothing_is_passed_over_where_little_is_in_the_way(one):
    """So that a late commit is found at once, as long as that costs nothing."""
    asked = [one(walked=1000)[0] for _ in range(3)]

    assert [{}, {}, {}] == [each["passed"] for each in asked]


@pytest.mark.parametrize(("took", "seconds"), ((0.001, 0.02), (0.02, 0.4), (0.05, 1.0), (9.0, 1.0)))
def test_the_queue_is_looked_at_from_the_front_the_sooner_the_cheaper_that_is(
    one, clock, took, seconds
):
    """Twenty times as long as it took, and after a second at the latest; however many claims."""
    one(took=took)
    began, used = clock.now, 0
    for _ in range(1000):
        asked, due_in = one(took=0.0001, walked=0)
        if not asked["passed"]:
            break
        used += 1
        assert due_in == pytest.approx(seconds - (clock.now - began))
        clock.now += seconds / 50

    assert used == pytest.approx(50, abs=1)


@pytest.mark.parametrize(
    ("passed", "kept"),
    (
        ({}, {"5", "3", "1"}),
        ({"3": ["2026-01-02", 9]}, {"5", "3"}),
        ({"7": ["2026-01-02", 9]}, {"7"}),
    ),
)
def test_a_look_from_the_front_keeps_what_it_has_left_empty(one, clock, passed, kept):
    """And nothing below where it stopped, where it was not."""
    one(passed={level: ["2026-01-01", 7] for level in ("5", "3", "1")})
    clock.now += 5
    one(passed=passed)
    found = one()[0]["passed"]

    assert kept == set(found)
    assert all(found[level] == last for level, last in passed.items())


def test_very_many_priorities_are_not_passed_over(one):
    """Each of them is looked at by itself: the dead rows are cheaper."""
    one(passed={str(n): ["2026-01-01", 7] for n in range(101)})

    assert one()[0]["passed"] == {}


def test_a_bound_of_what_is_active_is_believed_for_a_second(one, clock):
    """After an idle time somebody may have set the sequence back, and passed it again."""
    one(lowest=7)
    believed = one(lowest=7)[0]["lowest"]
    clock.now += 1.0

    assert (7, 0) == (believed, one()[0]["lowest"])


def test_numbers_of_the_code_that_no_column_holds_are_cut(clock):
    """A concurrency without a limit is one."""
    rule = Rule(task_name="task", claimed_by="me", lease=60.0)
    made = Claim(ClaimRequest(rule, 10**12, 10**12), Bounds(), clock)
    asked = json.loads(made.parameters(is_alone=True)["request"])

    assert 2**31 - 1 == asked["limit"] == asked["concurrency"]
