"""The cap where sequences and tables changed behind it: set back, not copied, truncated."""

import pytest

from planton.testing.conformance._base import attempt, claim, names
from planton_postgres import PostgresStorage

# So many ids are drawn that the bound of a task is moved.
DRAWN = 2500


@pytest.fixture
async def storages(schema_dsn):
    """Two storages with tasks of one name, and of others."""
    async with PostgresStorage(schema_dsn) as storage, PostgresStorage(schema_dsn) as other:
        await storage.migrate()
        yield storage, other


async def bound(connection, task_name):
    query = "SELECT ids_from FROM planton_task WHERE task_name = %s"
    ((found,),) = await (await connection.execute(query, [task_name])).fetchall()
    return found


async def set_sequence(connection, value):
    await connection.execute("SELECT setval('planton_claim_id', %s, false)", [value])


async def learnt(storage, connection, task):
    """Let a task learn a bound far above the first ids."""
    await set_sequence(connection, DRAWN)
    for instruction in ("draws", "learns"):
        await storage.enqueue(task.name, instruction)
        (one,) = await claim(task)
        await storage.complete(one.receipt)
    assert DRAWN == await bound(connection, task.name)


async def enqueue(storage, task_name, count, prefix="n"):
    for number in range(count):
        assert await storage.enqueue(task_name, f"{prefix}{number}")


async def test_a_sequence_that_is_set_back_does_not_break_the_cap(storages, connection):
    """What is claimed with low numbers is counted, also by storages that knew higher ones."""
    storage, other = storages
    task, same = storage.queue_task("a", concurrency=3), other.queue_task("a", concurrency=3)
    await learnt(storage, connection, task)
    await set_sequence(connection, 1)
    await enqueue(storage, "a", 9)

    assert 3 == len(await claim(same))
    assert [] == await claim(task)
    assert [] == await claim(same)
    assert 3 == (await attempt(task)).active


async def test_a_sequence_that_is_set_back_during_a_claim_does_not_break_the_cap(
    storages, connection
):
    """As late as can be: by the user's own statement, after the count."""
    storage, other = storages
    await learnt(storage, connection, storage.queue_task("a"))
    sql = """
        SELECT setval('planton_claim_id', 1, false) + number
        FROM generate_series(1, %(limit)s::integer) AS number
    """
    task, same = (each.claim_task("a", sql=sql, concurrency=3) for each in (storage, other))

    assert 3 == len(await claim(task))
    assert [] == await claim(same)
    assert 3 == (await attempt(task)).active


async def test_tasks_heal_the_sequence_beside_each_other(storages, connection):
    """Each task draws ids above its own bound, whatever another one has set the sequence to."""
    storage, other = storages
    low, high = storage.queue_task("low", concurrency=2), other.queue_task("high", concurrency=2)
    await learnt(storage, connection, low)
    await set_sequence(connection, 10 * DRAWN)
    await enqueue(storage, "high", 1, "first")
    await storage.complete([str(each.receipt) for each in await claim(high)])
    await enqueue(storage, "low", 9)
    await enqueue(storage, "high", 9)

    for value in (1, DRAWN, 20 * DRAWN, 1):
        await set_sequence(connection, value)
        for task in (low, high):
            claimed = await claim(task)
            assert 2 == len(claimed)
            assert [] == await claim(task)
            await storage.release([str(each.receipt) for each in claimed])
    ids = "SELECT count(*) FROM planton_active"

    assert [(0,)] == await (await connection.execute(ids)).fetchall()


async def test_numbers_that_are_taken_are_passed_over(storages, connection):
    """A sequence that was not copied with the rows gives no claim the number of another one."""
    storage, _ = storages
    held, task = (storage.queue_task(name, concurrency=20) for name in ("held", "task"))
    await enqueue(storage, "held", 9)
    assert 9 == len(await claim(held))
    await set_sequence(connection, 1)
    await enqueue(storage, "task", 9)

    assert 9 == len(await claim(task))
    assert 9 == (await attempt(held)).active


async def test_a_queue_whose_numbers_were_set_back_takes_and_gives_all(storages, connection):
    """Two rows of one number are two instructions: neither is refused, and neither lost."""
    storage, _ = storages
    await enqueue(storage, "a", 3)
    await connection.execute("SELECT setval('planton_pending_id_seq', 1, false)")
    await enqueue(storage, "a", 3, "again")
    await connection.execute("SELECT setval('planton_pending_id_seq', 1, false)")
    by_hand = "SELECT planton_enqueue('a', 'by hand')"
    assert [(True,)] == await (await connection.execute(by_hand)).fetchall()
    task = storage.queue_task("a", concurrency=2)

    found = []
    while claimed := await claim(task):
        found += names(claimed)
        await storage.complete([str(each.receipt) for each in claimed])

    assert sorted(["n0", "n1", "n2", "again0", "again1", "again2", "by hand"]) == sorted(found)


@pytest.mark.parametrize(
    "statement",
    (
        "TRUNCATE planton_task",
        "TRUNCATE planton_active RESTART IDENTITY",
        "TRUNCATE planton_task, planton_pending, planton_active, planton_ended RESTART IDENTITY",
        "DELETE FROM planton_task",
    ),
)
async def test_the_cap_holds_after_a_truncation(storages, connection, statement):
    """Bounds are truncated with the task; storages that are open remember none."""
    storage, other = storages
    task, same = storage.queue_task("a", concurrency=3), other.queue_task("a", concurrency=3)
    await learnt(storage, connection, task)
    await connection.execute(statement)
    await set_sequence(connection, 1)
    await enqueue(storage, "a", 9)

    claimed = [*await claim(same), *await claim(same)]  # the first finds its row gone

    assert 3 == len(claimed)
    assert [] == [*await claim(task), *await claim(task)]


async def test_a_claim_far_above_the_bound_does_not_hide_lower_ones(storages, connection):
    """Set back while the only active claim has a high number and the bound is low still."""
    storage, _ = storages
    task = storage.queue_task("a", concurrency=2)
    await enqueue(storage, "a", 1, "first")
    (first,) = await claim(task)
    await set_sequence(connection, 2 * DRAWN)
    await enqueue(storage, "a", 9)
    assert 1 == len(await claim(task))
    await storage.complete([str(first.receipt)])
    await set_sequence(connection, 1)

    assert 1 == len(await claim(task))
    assert [] == await claim(task)
    assert [] == await claim(task)
    assert 2 == (await attempt(task)).active
