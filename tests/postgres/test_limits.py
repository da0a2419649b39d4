"""Very many, very large, never: what a claim on PostgreSQL costs, and that it goes on."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from planton.testing.conformance._base import attempt, claim, enqueue, names, receipts


async def fill(observer, count, rows):
    await observer.execute(
        "INSERT INTO planton_pending (task_name, instruction, priority, run_at, tags)"
        f" SELECT 'task', {rows} FROM generate_series(1, %s) AS n",
        [count],
    )


async def test_very_many_priorities_cost_little(storage, observer):
    """Somebody gives each instruction one of its own, such as a time."""
    await fill(observer, 20_000, "n, n, now() + interval '1 hour', '{}'")
    await enqueue(storage, "task", "last", priority=-7)
    await enqueue(storage, "task", "due", priority=-5)
    task = storage.queue_task("task", concurrency=5)
    with trio.fail_after(2):
        found = await attempt(task)
        again = await attempt(task)

    assert ["due", "last"] == names(found.claims)
    assert 0 < again.due_in <= 60, "the leases of those two"


async def test_a_claim_reads_no_priority_below_where_its_room_is_filled(storage, observer, ask):
    """Each would cost a step in the index, under the lock of the task."""
    await fill(observer, 20_000, "n, n, now() - interval '1 hour', '{}'")
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    found, state = await ask(limit=3)

    assert ["20000", "19999", "19998"] == [instruction for _, _, instruction in found]
    assert state["walked"] < 20


async def test_very_many_that_are_not_offered_do_not_hide_when_something_is_due(storage, observer):
    """It may be attempted too early, and never too late."""
    await fill(observer, 3000, "n, 0, now() + n * interval '1 second', '{gpu}'")
    run_at = datetime.now(UTC) + timedelta(seconds=2500)
    await enqueue(storage, "task", "ours", run_at=run_at)
    task = storage.queue_task("task")
    found = [await attempt(task) for _ in range(2)]

    assert all(900 < each.due_in <= 1000 for each in found)


async def test_very_many_that_somebody_queues_stop_no_claim(storage, connection, observer):
    """They are not offered, and cannot be given back: some are waited for, not long, not all."""
    options = [{"instruction": str(n), "tags": ["gpu"]} for n in range(1000)]
    await storage.enqueue_many("task", options)
    await claim(storage.queue_task("task", concurrency=1000, lease=0.01, tags=["gpu"]))
    await trio.sleep(0.02)
    task = storage.queue_task("task", concurrency=1001)
    await enqueue(storage, "task", "ours")
    async with connection.transaction():
        await fill(connection, 1000, "n - 1, 0, now(), '{}'")
        with trio.fail_after(3):
            assert ["ours"] == names(await claim(task))


@pytest.mark.parametrize("until", ("infinity", "9999-12-31"))
async def test_a_lease_that_somebody_has_set_to_never_hides_nothing(storage, observer, until):
    """By hand, to hold something; what else is claimed is delivered."""
    await enqueue(storage, "task", "held")
    task = storage.queue_task("task", concurrency=2)
    await claim(task)
    await observer.execute("UPDATE planton_active SET lease_expires_at = %s", [until])
    await enqueue(storage, "task", "a")
    found = await attempt(task)
    idle = [await attempt(task) for _ in range(2)]

    assert ["a"] == names(found.claims)
    assert [0, 0] == [len(each.claims) for each in idle]


async def test_a_concurrency_that_no_column_holds_is_one_without_limit(storage):
    """It is cut; an error would stop the task."""
    await enqueue(storage, "task", "a")

    assert ["a"] == names(await claim(storage.queue_task("task", concurrency=10**12)))


async def test_a_request_of_a_later_or_an_earlier_version_is_understood(storage, ask):
    """What is not known is ignored, and what is missing has a default."""
    await enqueue(storage, "task", "a", tags=["x"])
    await enqueue(storage, "task", "b")
    await claim(storage.queue_task("task", concurrency=1, tags=["x"]), 1)
    found, state = await ask(flow={"later": [1, None]}, partition_concurrency=3)

    assert ["b"] == [name for *_, name in found]
    assert 1 == state["active"]


async def test_the_lock_tells_locked_unknown_and_paused_apart(storage, connection, ask):
    """And does not wait for any of them."""
    await storage.set_concurrency("task", 1)
    async with connection.transaction():
        await connection.execute("SELECT FROM planton_task FOR UPDATE")
        found = [(await ask())[1], (await ask("nobody's"))[1]]
    await storage.pause("task")

    assert ["locked", "unknown", "paused"] == [*found, (await ask())[1]]


async def test_reports_are_made_though_a_claim_beside_them_cannot_be(storage, observer):
    """What a claim is to look at is locked as a whole; a report that comes with it is not lost."""
    await enqueue(storage, "task", "a")
    (claimed,) = await claim(storage.queue_task("task"))
    cron = storage.cron_task("cron", "* * * * *")
    await observer.execute("ALTER TABLE planton_cron RENAME TO hidden")
    answers = []

    async def complete():
        answers.append(await storage.complete(receipts([claimed])))

    async def fire():
        with pytest.raises(Exception, match="planton_cron"):
            await claim(cron)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complete)
        nursery.start_soon(fire)

    assert [(claimed.receipt,)] == [each.applied for each in answers]
