"""The claim on PostgreSQL: what is counted under which lock, what it waits for, what undoes it."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import InstructionEvent, InvalidArgumentError, Planton, StorageError
from planton.testing import EventCollector
from planton.testing.conformance._base import (
    attempt,
    claim,
    claim_at_once,
    enqueue,
    names,
    receipts,
    request,
)
from planton_postgres import PostgresStorage

TABLE = "CREATE TABLE account (id bigint PRIMARY KEY, sent_at timestamptz)"
CLAIM_SQL = """
UPDATE account SET sent_at = %(now)s
WHERE id IN (SELECT id FROM account WHERE sent_at IS NULL ORDER BY id LIMIT %(limit)s)
RETURNING id
"""
ACTIVE = """
INSERT INTO planton_active (
    token, task_name, instruction, delivery, created_at, claimed_at, lease, lease_expires_at
)
VALUES (1, 'task', %s, 1, now(), now(), 60, now() + interval '1 minute')
"""
QUEUE = "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', %s)"


@pytest.fixture
async def accounts(storage, observer):
    await observer.execute(TABLE)
    await observer.execute("INSERT INTO account SELECT generate_series(1, 9)")


def with_option(dsn, option):
    escaped = option.replace(" ", "\\ ")
    return make_conninfo(dsn, options=f"{conninfo_to_dict(dsn)['options']} -c {escaped}")


# Isolation and locks


@pytest.mark.parametrize("level", ("read committed", "repeatable read", "serializable"))
async def test_the_cap_holds_under_each_default_isolation(storage, level):
    """Dispatchers that offer different keys, and so lock no row of the queue in common."""
    dsn = with_option(storage.conninfo, f"default_transaction_isolation={level}")
    await storage.enqueue_many("task", [f"k{n % 4}.{n}" for n in range(80)])
    most, ended = 0, []

    async def work(key):
        nonlocal most
        async with PostgresStorage(dsn) as dispatcher:
            task = dispatcher.queue_task("task", concurrency=3, key=key)
            while len(ended) < 80:
                claims = await claim(task)
                active = await storage.get_active_instructions("task")
                most = max(most, len(active))
                ended.extend(names(claims))
                await dispatcher.complete(receipts(claims))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(work, f"k{number}.%")

    assert most <= 3
    assert 80 == len(set(ended)) == len(ended)


async def test_another_isolation_is_refused(storage, observer, ask):
    """Its count would be as old as its transaction."""
    async with observer.transaction():
        await observer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(Exception, match="planton_claim needs READ COMMITTED"):
            await ask()


async def test_what_is_active_is_counted_after_the_lock_is_held(storage, connection, rows, blocked):
    """A claim that is committed while another one waits is counted by that."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2)
    await claim(task, 1)
    found = []

    async def claim_meanwhile():
        found.append(await attempt(task))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute("LOCK TABLE planton_task IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(claim_meanwhile)
            await blocked()
            await connection.execute(ACTIVE, ["x"])

    assert [([], 2)] == [(batch.claims, batch.active) for batch in found]


async def test_a_claim_is_later_than_every_end_that_it_has_not_counted(
    storage, connection, rows, blocked, observer
):
    """So that an audit by times finds no more active ones than the cap."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task")
    await claim(task)
    found = []

    async def claim_meanwhile():
        found.extend(names(await claim(task)))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with connection.transaction():
                await connection.execute("LOCK TABLE planton_active IN ACCESS EXCLUSIVE MODE")
                nursery.start_soon(claim_meanwhile)
                await blocked()
                await connection.execute("DELETE FROM planton_active")
                await connection.execute("CREATE TABLE ended AS SELECT clock_timestamp() AS at")

    assert ["b"] == found
    query = "SELECT claimed_at > (SELECT at FROM ended) FROM planton_active"
    assert [(True,)] == await rows(observer, query)


async def test_the_lock_tells_locked_unknown_and_paused_apart(storage, connection, ask):
    """And does not wait for any of them."""
    await storage.set_concurrency("task", 1)
    async with connection.transaction():
        await connection.execute("SELECT FROM planton_task FOR UPDATE")
        found = [(await ask())[1], (await ask("nobody's"))[1]]
    await storage.pause("task")

    assert ["locked", "unknown", "paused"] == [*found, (await ask())[1]]


async def test_one_that_was_turned_away_comes_again_soon(storage, connection):
    """Within 50 ms, also if nobody wakes it; jitter keeps two from meeting again."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2, delay=3600)
    await claim(task, 1)
    async with connection.transaction():
        await connection.execute("SELECT FROM planton_task FOR UPDATE")
        waits = [(await attempt(task)).due_in for _ in range(5)]

    assert all(0.005 <= each <= 0.05 for each in waits)
    assert 5 == len(set(waits))


async def test_an_idle_or_saturated_task_writes_nothing(storage, observer, rows):
    """No lock, no transaction id: nothing to flush however often it polls."""
    await enqueue(storage, "task", "a", "b")
    task, idle = storage.queue_task("task"), storage.queue_task("idle")
    for each in (task, task, idle):
        await claim(each)
    before = await rows(observer, "SELECT pg_current_xact_id()")
    for _ in range(10):
        await claim(task)
        await claim(idle)
    after = await rows(observer, "SELECT pg_current_xact_id()")

    assert 1 == int(after[0][0]) - int(before[0][0])


async def test_a_request_of_a_later_or_an_earlier_version_is_understood(storage, ask):
    """What is not known is ignored, and what is missing has a default."""
    await enqueue(storage, "task", "a", tags=["x"])
    await enqueue(storage, "task", "b")
    await storage.resume("task")
    await claim(storage.queue_task("task", concurrency=1, tags=["x"]), 1)
    found, state = await ask(flow={"later": [1, None]}, partition_concurrency=3)

    assert ["b"] == [name for *_, name in found]
    assert 1 == state["active"]


# What is active stays in the queue


async def test_what_is_queued_again_while_it_is_active_is_neither_lost_nor_claimed(storage):
    """It waits for the end of that claim, also when that expires and is taken over."""
    await enqueue(storage, "task", "a")
    task = storage.queue_task("task", concurrency=3, lease=0.1)
    await claim(task)
    await enqueue(storage, "task", "a", "b", payload="again")
    first = names(await claim(task))
    await trio.sleep(0.15)
    rescued = await claim(task)
    await storage.complete(receipts(rescued))
    last = await claim(task)

    assert (["b"], ["a", "b"]) == (first, sorted(names(rescued)))
    assert [("a", "again", 1)] == [(each.instruction, each.payload, each.delivery) for each in last]


async def test_a_conflict_when_a_claim_is_recorded_is_loud(storage, observer, ask, rows):
    """It cannot happen; if it does, nothing is deleted that was not recorded."""
    await storage.set_concurrency("task", 100)
    await observer.execute(ACTIVE, ["a"])
    await observer.execute(QUEUE, ["a"])
    (lowest,) = (await rows(observer, "SELECT max(id) + 1 FROM planton_active"))[0]
    _, state = await ask(limit=1)
    # A bound that is wrong: it hides what is active.
    with pytest.raises(Exception, match="duplicate key"):
        await ask(lowest=lowest, server=state["server"])

    assert [("a",)] == await rows(observer, "SELECT instruction FROM planton_pending")


# Nothing in it waits for another transaction


@pytest.fixture
async def three(storage):
    """Three claims of a task, whose leases are over."""
    await enqueue(storage, "task", "a", "b", "c", tags=["gpu"])
    claims = await claim(storage.queue_task("task", concurrency=9, lease=0.01, tags=["gpu"]))
    await trio.sleep(0.02)
    return claims


async def test_rows_that_somebody_has_locked_are_left_for_later(storage, connection):
    """Who has them may be about to delete them."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2)
    async with connection.transaction():
        await connection.execute("DELETE FROM planton_pending WHERE instruction = 'a'")

        with trio.fail_after(5):
            assert ["b"] == names(await claim(task))
    assert [] == await claim(task)


async def test_an_end_in_an_open_transaction_holds_up_no_claim(storage, connection, three):
    """Of an expired claim that is queued again."""
    await enqueue(storage, "task", "a", tags=["gpu"])
    task = storage.queue_task("task", concurrency=9, tags=["gpu"], deliveries=1)
    async with connection.transaction():
        await connection.execute("DELETE FROM planton_active WHERE instruction = 'a'")
        with trio.fail_after(5):
            found = await attempt(task)
    later = await claim(task)

    assert ([], 3) == (found.claims, found.active), "b and c have ended as dead"
    assert ["a"] == names(later)


async def test_what_is_not_offered_is_given_back_but_for_what_somebody_queues(
    storage, connection, three, ask, rows, observer
):
    """That one keeps its slot until the next claim; another dispatcher waits for nothing."""
    async with connection.transaction():
        await connection.execute(QUEUE, ["b"])
        began = trio.current_time()
        _, state = await ask(concurrency=3)
        took = trio.current_time() - began
        active = await storage.get_active_instructions("task")

    assert (3, 1, ["b"]) == (state["active"], state["held"], active)
    assert took < 1
    claimed, _ = await ask(concurrency=3)
    assert ["b"] == [name for *_, name in claimed], "as it is queued now"


async def test_very_many_that_somebody_queues_stop_no_claim(storage, connection, ask):
    """It waits for some of them, and gives the others up until the next time."""
    await storage.enqueue_many(
        "task", [{"instruction": str(n), "tags": ["gpu"]} for n in range(300)]
    )
    await claim(storage.queue_task("task", concurrency=300, lease=0.01, tags=["gpu"]))
    await trio.sleep(0.02)
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO planton_pending (task_name, instruction)"
            " SELECT 'task', n FROM generate_series(0, 299) AS n"
        )
        with trio.fail_after(1.2):
            _, state = await ask(concurrency=300, limit=1)

    assert 300 == state["held"]


# Blocked, timed out, cancelled, killed

TABLES = ("planton_task", "planton_active", "planton_pending", "planton_ended", "account")


@pytest.fixture
async def fill(storage, observer, accounts):
    """One that is expired, one that is used up, one that is queued, and the user's rows."""
    for name, delivery in (("used up", 5), ("expired", 1)):
        await observer.execute(ACTIVE, [name])
        await observer.execute(
            "UPDATE planton_active SET delivery = %s, lease_expires_at = now()"
            " WHERE instruction = %s",
            [delivery, name],
        )
    await enqueue(storage, "task", "queued")
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    return storage.claim_task("task", sql=CLAIM_SQL, concurrency=4, deliveries=5)


@pytest.fixture
def assert_nothing_changed(storage, observer, rows):
    async def check():
        query = "SELECT instruction, status FROM planton_instruction ORDER BY 1"
        found = await rows(observer, query)

        assert [("expired", "running"), ("queued", "queued"), ("used up", "running")] == found
        assert [(0,)] == await rows(observer, "SELECT count(sent_at) FROM account")
        task = storage.claim_task("task 2", sql=CLAIM_SQL)
        assert ["1"] == names(await claim(task)), "the connections are usable"

    return check


@pytest.fixture
def assert_all_is_claimed(observer, rows):
    async def check(task):
        claims = await claim(task)

        assert ["expired", "queued", "1", "2"] == names(claims)
        assert [("used up",)] == await rows(observer, "SELECT instruction FROM planton_ended")

    return check


@pytest.mark.parametrize("table", TABLES)
async def test_a_blocked_claim_goes_on_when_it_can(
    fill, connection, blocked, assert_all_is_claimed, table
):
    """Each table that it reads or writes, locked as a whole in turn, as by a migration."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(assert_all_is_claimed, fill)
            await blocked()


@pytest.mark.parametrize("table", TABLES)
async def test_a_claim_that_is_blocked_for_too_long_is_undone(
    storage, fill, connection, observer, assert_nothing_changed, assert_all_is_claimed, table
):
    """It says where to look; afterwards everything is as before."""
    async with PostgresStorage(storage.conninfo, statement_timeout=0.15) as hasty:
        late = hasty.claim_task("task", sql=CLAIM_SQL, concurrency=4, deliveries=5)
        with trio.fail_after(10):
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StorageError, match="statement_timeout"):
                    await claim(late)
        await assert_nothing_changed()
    await observer.execute("UPDATE account SET sent_at = NULL")
    await assert_all_is_claimed(fill)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("function", ("pg_cancel_backend", "pg_terminate_backend"))
async def test_a_claim_whose_backend_is_ended_is_undone(
    fill, connection, observer, blocked, assert_nothing_changed, table, function
):
    """By an administrator; the next attempt has a connection again."""
    with trio.fail_after(10):
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_an_error, fill)
                await blocked()
                await observer.execute(
                    f"SELECT {function}(pid) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
    await assert_nothing_changed()


async def expect_an_error(task):
    with pytest.raises(StorageError):
        await claim(task)


async def test_a_cancelled_statement_of_the_users_is_undone_at_once(
    fill, connection, blocked, assert_nothing_changed
):
    """It may wait for the user's own locks; nobody waits for it longer than asked."""
    with trio.fail_after(10):
        async with connection.transaction():
            await connection.execute("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim, fill)
                await blocked()
                nursery.cancel_scope.cancel()
    await assert_nothing_changed()


async def test_a_slow_statement_holds_up_neither_reports_nor_other_tasks(
    storage, accounts, connection, blocked
):
    """A claim with a statement of the user's is a commit of its own."""
    await enqueue(storage, "queue", "a", "b")
    queue = storage.queue_task("queue")
    (first,) = await claim(queue)
    slow = storage.claim_task("slow", sql=CLAIM_SQL)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(claim, slow)
            await blocked()

            assert (first.receipt,) == (await storage.complete(first.receipt)).applied
            assert ["b"] == names(await claim(queue))


async def test_reports_get_through_while_claims_are_blocked(storage, accounts, connection):
    """One connection is left for them."""
    await enqueue(storage, "queue", "a")
    (claimed,) = await claim(storage.queue_task("queue"))
    async with PostgresStorage(storage.conninfo, pool_size=2) as small:
        tasks = [small.claim_task(f"t{i}", sql=CLAIM_SQL) for i in range(3)]
        with trio.fail_after(5):
            async with connection.transaction():
                await connection.execute("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(partial(claim, task))
                    done = await small.complete(claimed.receipt)
                    nursery.cancel_scope.cancel()

    assert (claimed.receipt,) == done.applied


# Very many tasks at once


async def attempt_many(storage, count, **options):
    """The answers for as many queue tasks, asked for in one call; by name."""
    tasks = [storage.queue_task(f"task {n}", concurrency=2, **options) for n in range(count)]
    answers = await tasks[0].schedule.many([request(task) for task in tasks])
    # They are expected to find something at first: the second time they are looked at.
    again = await tasks[0].schedule.many([request(task) for task in tasks])
    return {
        task.name: answer if answer.claims else later
        for task, answer, later in zip(tasks, answers, again, strict=True)
    }


async def test_very_many_tasks_get_what_each_of_them_has(storage, observer):
    """Though it is first asked which of them have anything: due, expired, later, or active."""
    await enqueue(storage, "task 3", "due")
    await enqueue(storage, "task 5", "later", run_at=datetime.now(UTC) + timedelta(seconds=30))
    for number in (7, 9):
        await enqueue(storage, f"task {number}", "held")
        await claim(storage.queue_task(f"task {number}"))
    await observer.execute(
        "UPDATE planton_active SET lease_expires_at = now() WHERE task_name = 'task 9'"
    )
    async with PostgresStorage(storage.conninfo) as dispatcher:
        answers = await attempt_many(dispatcher, 200, delay=50)

    claimed = {name: names(answer.claims) for name, answer in answers.items() if answer.claims}
    assert {"task 3": ["due"], "task 9": ["held"]} == claimed
    assert {0: 198, 1: 2} == Counter(answer.active for answer in answers.values())
    assert ["task 5"] == [
        name for name, answer in answers.items() if answer.due_in and answer.due_in <= 30
    ]


async def test_a_task_that_is_new_takes_nothing_from_those_beside_it(storage):
    """What is claimed for them in the same call is delivered."""
    old, new = [storage.queue_task(name) for name in ("old", "new")]
    assert [] == await claim(old)
    await enqueue(storage, "old", "a")
    answers = await old.schedule.many([request(task) for task in (old, new)])

    assert [["a"], []] == [names(answer.claims) for answer in answers]


async def test_a_task_whose_row_was_deleted_gets_it_anew(storage, observer):
    """Somebody has emptied the tables under a running dispatcher."""
    task = storage.queue_task("task")
    await claim(task)
    await observer.execute("TRUNCATE planton_task, planton_pending, planton_active")
    await enqueue(storage, "task", "a")

    assert [[], ["a"]] == [names(await claim(task)) for _ in range(2)]


async def test_other_tasks_do_not_hide_those_that_are_asked_for(storage):
    """However many there are that another program has queued for."""
    for number in range(120):
        await enqueue(storage, f"other {number}", "a")
    await enqueue(storage, "task 3", "due")
    async with PostgresStorage(storage.conninfo) as dispatcher:
        answers = await attempt_many(dispatcher, 100)

    assert ["task 3"] == [name for name, answer in answers.items() if answer.claims]


async def test_very_many_priorities_cost_little(storage, observer):
    """Somebody gives each instruction one of its own, as its time."""
    await observer.execute(
        "INSERT INTO planton_pending (task_name, instruction, priority, run_at)"
        " SELECT 'task', n, n, now() + interval '1 hour' FROM generate_series(1, 20000) AS n"
    )
    await enqueue(storage, "task", "due", priority=-5)
    task = storage.queue_task("task")
    with trio.fail_after(2):
        found = await attempt(task)
        later = await attempt(task)

    assert ["due"] == names(found.claims)
    assert later.due_in is not None


# The rest


async def test_many_that_claim_at_once_share_what_there_is(storage, other):
    """None fails, though each finds the other claiming."""
    await storage.enqueue_many("task", map(str, range(40)))
    tasks = [each.queue_task("task", concurrency=40) for each in (storage, other)]
    seen = []
    with trio.fail_after(20):
        while len(seen) < 40:
            seen += names(await claim_at_once(tasks * 4))

    assert 40 == len(set(seen)) == len(seen)


@pytest.mark.parametrize("receipt", ("", "abc", "1", "1.", ".1", "1.-1", "1.1.1", "1." + "9" * 30))
async def test_a_malformed_receipt_is_an_error(storage, receipt):
    """It cannot be one of ours."""
    with pytest.raises(InvalidArgumentError, match="receipt"):
        await storage.complete(receipt)


async def test_retention_zero_keeps_no_history(schema_dsn):
    """Whatever the end."""
    async with PostgresStorage(schema_dsn, retention=0, migrate=True) as storage:
        await enqueue(storage, "task", "a", "b")
        a, b = await claim(storage.queue_task("task", concurrency=2))
        await storage.complete(a.receipt)
        await storage.fail(b.receipt, "broken")

        assert [] == await storage.find()


async def test_the_dispatcher_and_the_storage_together(storage, accounts):
    """Freed slots are filled at once."""
    task = storage.claim_task("send", sql=CLAIM_SQL, delay=3600)
    planton = Planton(tasks=[task], services=[storage.serve])
    seen = EventCollector(planton)
    with trio.fail_after(10):
        async with planton:
            planton.wake()
            for number in range(9):
                events = await seen.wait_for(InstructionEvent, number + 1)
                await storage.complete(events[number].receipt)

    assert list("123456789") == seen.instructions
