"""Partitions on PostgreSQL: real processes, rows that others hold, plans, the user's statement."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import trio

from planton import InvalidQueryError
from planton.testing.conformance._base import attempt, claim, enqueue, names

DISPATCHER = """
import random, sys, trio
from planton import InstructionEvent, Planton
from planton_postgres import PostgresStorage

async def main():
    async with PostgresStorage(sys.argv[1]) as storage, trio.open_nursery() as consumers:
        task = storage.queue_task("work", concurrency=8, delay=0.002, partition_concurrency=2)
        planton = Planton(tasks=[task], services=[storage.serve])

        async def consume(event):
            await trio.sleep(random.uniform(0.005, 0.02))
            await storage.complete(event.receipt)

        planton.on(InstructionEvent, lambda event: consumers.start_soon(consume, event))
        await planton.run()

trio.run(main)
"""
# Every claim, with how many of its partition are active by then: claims of a task take turns.
WATCH = """
CREATE TABLE watched (partition text, active bigint);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO watched SELECT partition, count(*) FROM planton_active GROUP BY partition;
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT ON planton_active EXECUTE FUNCTION watch();
"""


async def test_four_dispatchers_never_exceed_the_room_of_a_partition(
    storage, observer, rows, schema_dsn
):
    """At no instant; and they fill it."""
    await observer.execute(WATCH)
    work = [{"instruction": f"{n}", "partition": "abc"[n % 3]} for n in range(120)]
    await storage.enqueue_many("work", work)
    arguments = [sys.executable, "-c", DISPATCHER, schema_dsn]
    processes = [subprocess.Popen(arguments) for _ in range(4)]
    try:
        with trio.fail_after(60):
            while (await storage.stats())[0].succeeded < len(work):
                await trio.sleep(0.05)
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)

    query = "SELECT partition, max(active) FROM watched GROUP BY partition ORDER BY partition"
    assert [("a", 2), ("b", 2), ("c", 2)] == await rows(observer, query)


async def test_a_row_that_others_hold_is_passed_over(storage, session):
    """So is a partition all of whose rows are held; the others get its turn."""
    for partition in "abcd":
        await enqueue(storage, "task", *(f"{partition}{n}" for n in "12"), partition=partition)
    task = storage.queue_task("task", concurrency=9, partition_concurrency=1)
    async with session.transaction():
        held = ["a1", "b1", "b2"]
        await session.execute(
            "SELECT FROM planton_pending WHERE instruction = ANY (%s) FOR UPDATE", [held]
        )

        assert ["a2", "c1", "d1"] == names(await claim(task, 3))
    assert ["b1"] == names(await claim(task))


async def test_what_has_no_partition_is_found_behind_many(storage):
    """A thousand of a priority that are due and stand in front; not more."""
    await storage.enqueue_many(
        "task", [{"instruction": f"{n}", "partition": "a"} for n in range(999)]
    )
    await enqueue(storage, "task", "none")
    task = storage.queue_task("task", concurrency=9, partition_concurrency=1)

    assert ["0", "none"] == names(await claim(task))


async def test_very_many_priorities_of_partitions(storage):
    """High ones first; what has no partition is looked for in as many of them as it can be."""
    for level in range(40):
        await enqueue(storage, "task", f"{level}", partition="a", priority=level)
    await enqueue(storage, "task", "none", priority=20)
    task = storage.queue_task("task", concurrency=9, partition_concurrency=3)

    assert ["39", "38", "37", "none"] == names(await claim(task))


@pytest.mark.parametrize(
    ("columns", "partition"),
    (("id, 'ä'", "ä"), ("id, id", "1"), ("id, NULL", ""), ("id, ''", ""), ("id", "")),
)
async def test_the_second_column_is_the_partition(storage, observer, columns, partition):
    """Whatever its type; NULL is none, and so is no second column."""
    await observer.execute("CREATE TABLE item (id bigint)")
    await observer.execute("INSERT INTO item VALUES (1)")
    sql = f"DELETE FROM item WHERE id <= %(limit)s RETURNING {columns}"

    assert [partition] == [each.partition for each in await claim(storage.claim_task("t", sql=sql))]


@pytest.mark.parametrize(
    ("columns", "problem"),
    (("id, 'a', 'b'", "a second one, its partition; it gives id"), ("id, repeat('x', 501)", "501")),
)
async def test_a_second_column_that_is_no_partition_is_refused(
    storage, observer, rows, columns, problem
):
    """And nothing of the statement is left."""
    await observer.execute("CREATE TABLE item (id bigint)")
    await observer.execute("INSERT INTO item VALUES (1)")
    sql = f"DELETE FROM item WHERE id <= %(limit)s RETURNING {columns}"

    with pytest.raises(InvalidQueryError, match=problem):
        await claim(storage.claim_task("t", sql=sql))
    assert [(1,)] == await rows(observer, "SELECT id FROM item")


async def test_a_statement_may_leave_out_full_partitions(storage, observer):
    """By a parameter; then nothing of theirs goes to the queue."""
    await observer.execute("CREATE TABLE item (id bigint, owner text)")
    await observer.execute("INSERT INTO item SELECT n, 'big' FROM generate_series(1, 9) AS n")
    await observer.execute("INSERT INTO item VALUES (10, 'small')")
    sql = """
    DELETE FROM item WHERE id = ANY (ARRAY(
        SELECT id FROM item WHERE owner <> ALL (%(full)s) ORDER BY id LIMIT %(limit)s
    )) RETURNING id, owner
    """
    task = storage.claim_task("t", sql=sql, concurrency=9, partition_concurrency=2)
    first = await attempt(task, 2)
    second = await attempt(task)

    assert [["1", "2"], ["10"]] == [names(each.claims) for each in (first, second)]
    assert [] == await storage.find(status="queued")


async def test_any_language_can_say_the_partition(storage, observer):
    """The last argument of the function."""
    await observer.execute("SELECT planton_enqueue('task', 'a', partition => 'acme')")

    assert ["acme"] == [each.partition for each in await storage.find()]


NEXT_YEAR = datetime.now(UTC) + timedelta(days=365)
ITEMS = "CREATE TABLE item (id text, owner text, place integer, is_marked boolean DEFAULT false)"
MARK = """
WITH {first} new AS (UPDATE item SET is_marked = true WHERE NOT is_marked RETURNING *)
SELECT id, owner FROM new ORDER BY place LIMIT %(limit)s
"""


async def mark(storage, observer, items, first=""):
    """Claim by a statement that marks some items."""
    for place, (name, owner) in enumerate(items):
        sql = "INSERT INTO item (id, owner, place) VALUES (%s, %s, %s)"
        await observer.execute(sql, [name, owner, place])
    options = {"concurrency": 9, "partition_concurrency": 1}
    return names(await claim(storage.claim_task("task", sql=MARK.format(first=first), **options)))


async def test_an_instruction_that_is_given_with_two_partitions_is_of_the_first(storage, observer):
    """It is counted, and recorded, for that one."""
    await observer.execute(ITEMS)
    before = await mark(storage, observer, [("y", "b")])
    after = await mark(storage, observer, [("x", "b"), ("x", "a")])
    (queued,) = await storage.find(status="queued")

    assert (["y"], []) == (before, after)
    assert ("x", "b") == (queued.instruction, queued.partition)


async def test_what_ends_during_the_claim_and_is_marked_again_waits_in_the_queue(storage, observer):
    """It was not counted for the partition that it has now."""
    await observer.execute(ITEMS)
    before = await mark(storage, observer, [("x", "a"), ("y", "b")])
    ends = "ended AS (DELETE FROM planton_active WHERE instruction = 'x'),"
    after = await mark(storage, observer, [("x", "b")], first=ends)
    (queued,) = await storage.find(status="queued")

    assert (["x", "y"], []) == (before, after)
    assert ("x", "b") == (queued.instruction, queued.partition)


async def test_what_has_no_partition_is_found_below_very_many_priorities(storage):
    """Of others, that are not due for long."""
    for priority in range(1, 40):
        name = f"p{priority}"
        await enqueue(storage, "task", name, partition="p", priority=priority, run_at=NEXT_YEAR)
    await storage.enqueue("task", "due")

    assert ["due"] == names(
        await claim(storage.queue_task("task", concurrency=9, partition_concurrency=1))
    )


async def test_the_dead_rows_of_partitions_are_not_counted(storage, observer, ask):
    """They are in another index than that which the bound of a queue is about."""
    await storage.enqueue_many(
        "task", [{"instruction": f"{n}", "partition": "a"} for n in range(2000)]
    )
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    _, state = await ask(partition_concurrency=1)

    assert (0, None) == (state["walked"], state["stopped"])
