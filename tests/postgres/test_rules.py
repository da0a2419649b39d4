"""Rules of the claim on PostgreSQL: receipts, locks of others, planner settings."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio

from planton import StorageError
from planton.testing.conformance._base import claim, enqueue, names, receipts, request
from planton_postgres import PostgresStorage
from planton_postgres._driver import TrioConnection

EXPIRE = "UPDATE planton_active SET lease_expires_at = clock_timestamp()"
QUEUE = "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', %s)"


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


async def rows(connection, statement, parameters=None):
    return await (await connection.execute(statement, parameters)).fetchall()


async def blocked(observer):
    """Wait until somebody waits for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    while (await rows(observer, query))[0][0] < 1:
        await trio.sleep(0.005)


# Times, receipts, columns


async def test_a_claim_is_later_than_every_end_that_it_did_not_count(storage, connection, observer):
    """Whoever adds up claims and ends by their times finds no more than the cap."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task")
    await claim(task)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute("LOCK TABLE planton_active")
            nursery.start_soon(claim, task)
            await blocked(observer)
            await connection.execute("DELETE FROM planton_active")
            ((ended_at,),) = await rows(connection, "SELECT clock_timestamp()")
    ((instruction, claimed_at),) = await rows(
        observer, "SELECT instruction, claimed_at FROM planton_active"
    )

    assert "b" == instruction
    assert claimed_at > ended_at


def every_report(storage):
    """The reports of a consumer."""
    return {
        "heartbeat": storage.heartbeat,
        "complete": storage.complete,
        "fail": partial(storage.fail, error="broken", retries=1),
        "release": storage.release,
        "advance": storage.advance,
        "postpone": partial(storage.advance, run_in=60),
        "take over": storage.take_over,
    }


@pytest.mark.parametrize("name", every_report(PostgresStorage("postgresql://localhost/app")))
async def test_a_batch_with_a_stale_receipt_leaves_the_new_claim_alone(storage, observer, name):
    """Though the other receipt of the batch has the token of that claim: they are pairs."""
    await enqueue(storage, "task", "a")
    task = storage.queue_task("task", concurrency=2)
    (stale,) = receipts(await claim(task))
    await observer.execute(EXPIRE)
    await enqueue(storage, "task", "b")
    again, good = receipts(await claim(task))
    query = "SELECT t FROM planton_active AS t WHERE instruction = 'a'"
    before = await rows(observer, query)
    done = await every_report(storage)[name]([stale, good])

    assert again.partition(".")[2] == good.partition(".")[2]
    assert (stale,) == done.stale
    assert before == await rows(observer, query)


VALUES = {
    "task_name": "'task'",
    "instruction": "'a'",
    "payload": "'{\"x\": 1}'",
    "priority": "7",
    "tags": "'{x,y}'",
    "retries": "3",
    "timeout": "50",
    "partition": "'north'",
    "delivery": "2",
    "failures": "1",
    "undelivered": "1",
    "error": "'broken'",
    "created_at": "'2026-01-01Z'",
}


async def test_what_an_instruction_has_moves_with_it(storage, observer):
    """All columns that the tables share, there and back, but for what a report changes."""
    await observer.execute(
        f"INSERT INTO planton_pending ({', '.join(VALUES)}) VALUES ({', '.join(VALUES.values())})"
    )
    task = storage.queue_task("task", tags=["x", "y"])
    tables = {}

    async def note(step, table):
        statement = f"SELECT to_jsonb(t) FROM planton_{table} AS t"
        ((tables[step],),) = await rows(observer, statement)

    await note("queued", "pending")
    for step, end, table, options in (
        ("released", "release", "pending", {}),
        ("retried", "fail", "pending", {"error": "broken"}),
        ("failed", "fail", "ended", {"error": "broken", "retry": False}),
        ("succeeded", "complete", "ended", {}),
    ):
        await observer.execute("UPDATE planton_pending SET run_at = clock_timestamp()")
        (claimed,) = await claim(task)
        await note(f"{step}: active", "active")
        await getattr(storage, end)(claimed.receipt, **options)
        await note(step, table)
        if step == "failed":
            await storage.retry("task", ["a"])
            await note("queued again", "pending")
    told = {"id", "token", "run_at", "claimed_at", "claimed_by", "lease", "lease_expires_at"}
    told |= {"delivery", "failures", "undelivered", "retries", "status", "result", "ended_at"}
    told |= {"superseded"}
    kept = set(VALUES) - told

    assert {"pending": set(), "active": set()} == {
        "pending": set(tables["queued"]) - told - kept,
        "active": set(tables["released: active"]) - told - kept,
    }, "a column that this test does not know"
    first = {name: tables["queued"][name] for name in kept}
    for step, values in tables.items():
        assert first == {name: values[name] for name in kept}, step
    counted = {
        "released: active": (3, 1, 1, 3),
        "released": (3, 1, 0, 3),
        "retried": (4, 2, 0, 2),
    }
    for step, expected in counted.items():
        found = tables[step]
        assert expected == tuple(
            found[name] for name in ("delivery", "failures", "undelivered", "retries")
        ), step


# Open transactions of others


@pytest.fixture
async def opened(schema_dsn):
    """A transaction of a user's that has queued `a` and goes on."""
    async with await TrioConnection.connect(schema_dsn) as connection:

        async def begin():
            await connection.execute("BEGIN")
            await connection.execute(QUEUE, ["a"])
            return connection

        yield begin


@pytest.mark.parametrize("kind", ("release", "fail", "postpone"))
async def test_a_report_that_waits_for_an_open_transaction_holds_up_no_other(storage, opened, kind):
    """It is told, and nothing is lost; what was reported with it is done."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2)
    a, b = receipts(await claim(task))
    user = await opened()
    failed, done = [], []

    async def report():
        try:
            await every_report(storage)[kind](a)
        except StorageError as error:
            failed.append(error)

    async def complete():
        done.append(await storage.complete(b))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            nursery.start_soon(complete)
    active = await storage.get_active_instructions("task")
    await user.execute("ROLLBACK")

    assert [(b,)] == [each.applied for each in done]
    assert [True] == ["lock timeout" in str(error) for error in failed]
    assert ["a"] == active
    assert (a,) == (await every_report(storage)[kind](a)).applied


async def test_a_claim_does_not_wait_to_queue_what_it_does_not_offer(storage, observer, opened):
    """That stays active, and holds its slot until it can be queued; the others are."""
    for instruction in ("a", "b"):
        await enqueue(storage, "task", instruction, tags=["gpu"])
    await claim(storage.queue_task("task", concurrency=3, tags=["gpu"]))
    await observer.execute(EXPIRE)
    user = await opened()
    await enqueue(storage, "task", "c")
    task = storage.queue_task("task", concurrency=3)
    claims = []
    with trio.fail_after(5):
        while not claims:
            claims = await claim(task)
    active = await storage.get_active_instructions("task")
    await user.execute("COMMIT")

    assert ["c"] == names(claims)
    assert ["a", "c"] == active
    assert ["b"] == [each.instruction for each in await storage.find(status="queued") if each.tags]


async def test_a_statement_that_marks_what_waits_for_an_open_transaction_is_undone(
    storage, observer, opened
):
    """It would be lost: it is active, and cannot be queued."""
    await observer.execute("CREATE TABLE job (id text, is_sent boolean)")
    await observer.execute("INSERT INTO job VALUES ('a', false)")
    sql = "UPDATE job SET is_sent = true WHERE NOT is_sent AND %(limit)s > 0 RETURNING id"
    task = storage.claim_task("task", sql=sql, concurrency=3)
    (first,) = await claim(task)
    await observer.execute("UPDATE job SET is_sent = false")
    user = await opened()
    with trio.fail_after(5), pytest.raises(StorageError, match="lock timeout"):
        await claim(task)
    marked = await rows(observer, "SELECT is_sent FROM job")
    await user.execute("ROLLBACK")
    again = await claim(task)
    await storage.complete(first.receipt)

    assert ([(False,)], []) == (marked, again)
    assert ["a"] == names(await claim(task))


async def test_programs_that_queue_the_same_in_other_orders_do_not_deadlock(postgres_dsn, observer):
    """And neither do reports and claims beside them."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    instructions = [str(n) for n in range(60)]
    async with PostgresStorage(postgres_dsn) as one, PostgresStorage(postgres_dsn) as other:
        await one.migrate()

        async def produce(storage, order):
            for _ in range(25):
                await storage.enqueue_many("task", instructions[::order])

        async def consume(storage, order):
            task = storage.queue_task("task", concurrency=40)
            for _ in range(25):
                ours = receipts(await claim(task))[::order]
                await storage.release(ours[::2])
                await storage.complete(ours[1::2])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for storage, order in ((one, 1), (other, -1)):
                    nursery.start_soon(produce, storage, order)
                    nursery.start_soon(consume, storage, order)
    async with await TrioConnection.connect(postgres_dsn) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")

        assert [(0,)] == await rows(connection, deadlocks)


async def test_an_instruction_that_is_active_twice_is_loud(storage, observer):
    """Nothing is claimed, and nothing is lost: the queue keeps it."""
    await enqueue(storage, "task", "a")
    await observer.execute(
        "CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO planton_active (token, task_name, instruction, delivery, created_at,"
        " claimed_at, lease, lease_expires_at) VALUES (1, NEW.task_name, NEW.instruction, 1,"
        " now(), now(), 60, now()); RETURN NEW; END $$"
    )
    await observer.execute(
        "CREATE TRIGGER twice BEFORE INSERT ON planton_active FOR EACH ROW"
        " WHEN (NEW.token <> 1) EXECUTE FUNCTION twice()"
    )
    with pytest.raises(StorageError, match="planton_active"):
        await claim(storage.queue_task("task"))

    assert ["queued"] == [found.status for found in await storage.find()]


async def test_very_many_tasks_that_are_all_idle_are_told_so_by_one_look(storage):
    """Which have anything is all that is asked."""
    tasks = [storage.queue_task(f"task {n}", concurrency=3) for n in range(60)]
    for _ in range(2):  # at first they may find something
        answers = await tasks[0].schedule.many([request(task) for task in tasks])

    assert {(0, 3, None)} == {(each.active, each.concurrency, each.due_in) for each in answers}


async def test_very_many_tasks_that_are_all_busy_are_claimed_for(storage):
    """Of so many it is asked first which have anything; here that are all."""
    later = datetime.now(UTC) + timedelta(hours=1)
    tasks = [storage.queue_task(f"task {n}") for n in range(60)]
    await enqueue(storage, tasks[1].name, "active")
    await claim(tasks[1])
    for task in tasks:
        await enqueue(storage, task.name, "a", run_at=later if task is not tasks[0] else None)
    answers = await tasks[0].schedule.many([request(task) for task in tasks])

    assert ["task 0"] == [
        task.name for task, answer in zip(tasks, answers, strict=True) if answer.claims
    ]
