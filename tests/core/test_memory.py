"""The in-memory storage has the transactions of a real one, and the core keeps its word on it."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from planton import InstructionEvent, InvalidArgumentError, Planton, Task
from planton.testing import EventCollector, MemoryStorage


async def test_an_uncommitted_claim_is_invisible_and_locked():
    """Others neither see it nor get it."""
    storage = MemoryStorage()
    storage.add("task", "a", "b")
    async with storage.transaction() as mine, storage.transaction() as other:
        assert ["a"] == [claim.instruction for claim in mine.claim("task", 1)]
        assert ["a"] == [row.instruction for row in mine.rows("task", "active")]
        assert [] == other.rows("task", "active")
        assert [] == await storage.get_active_instructions("task")
        assert ["b"] == [claim.instruction for claim in other.claim("task", 2)]

    assert ["a", "b"] == await storage.get_active_instructions("task")


async def test_a_transaction_that_raises_leaves_nothing_behind():
    """Neither changes nor locks."""
    storage = MemoryStorage()
    storage.add("task", "a")
    with pytest.raises(OSError, match="down"):
        async with storage.transaction(lock="task") as transaction:
            transaction.claim("task", 1)
            raise OSError("down")
    async with storage.transaction(lock="task") as transaction:
        assert ["a"] == [claim.instruction for claim in transaction.claim("task", 5)]


@pytest.mark.parametrize(("is_strict", "most"), ((True, 1), (False, 4)))
async def test_the_strict_cap_holds_over_four_dispatchers_and_the_advisory_does_not(
    is_strict, most
):
    """Limit 1 ran 4 at once: that is what count-then-claim does, here as on a database."""
    storage = MemoryStorage(latency=0.01)
    storage.add("task", *map(str, range(50)))
    running = highest = 0

    async def consume(event):
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await trio.sleep(0.1)
        running -= 1
        await storage.complete(event.receipt)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            if is_strict:
                task = storage.claim_task("task", delay=0.05)
            else:
                task = Task(name="task", schedule=storage.schedule, delay=0.05)
            planton = Planton(get_active_instructions=storage.get_active_instructions, tasks=[task])
            planton.on(InstructionEvent, lambda event: nursery.start_soon(consume, event))
            nursery.start_soon(planton.run)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()

    assert most == highest
    assert 50 == len(storage.instructions("task", "ended"))


async def test_an_expired_lease_is_delivered_again_and_the_late_write_refused():
    """At least once, and fenced."""
    storage = MemoryStorage()
    storage.add("task", "a", payload={"to": "x"})
    planton = Planton(tasks=[storage.claim_task("task", lease=10, delay=1)])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(15)
        first, second = seen.of(InstructionEvent)
        late = await storage.complete(first.receipt)
        await storage.heartbeat(second.receipt)
        done = await storage.complete([second.receipt, "0" * 16])

    assert (1, 2) == (first.delivery, second.delivery)
    assert {"to": "x"} == second.payload
    assert ((), (first.receipt,)) == (late.applied, late.stale)
    assert ((second.receipt,), ("0" * 16,)) == (done.applied, done.stale)
    assert ["a"] == storage.instructions("task", "ended")


async def test_a_heartbeat_keeps_the_lease():
    """For as long as the work lives."""
    storage = MemoryStorage()
    storage.add("task", "a")
    planton = Planton(tasks=[storage.claim_task("task", lease=10, delay=1)])
    seen = EventCollector(planton)
    async with planton:
        for _ in range(10):
            await trio.sleep(5)
            for event in seen.of(InstructionEvent):
                await storage.heartbeat(event.receipt)

    assert 1 == len(seen.instructions)


async def test_a_claim_without_a_lease_lasts():
    """The advisory schedule sets none."""
    storage = MemoryStorage()
    storage.add("task", "a")
    planton = Planton(
        get_active_instructions=storage.get_active_instructions,
        tasks=[Task(name="task", schedule=storage.schedule)],
    )
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)
        await storage.heartbeat(seen.of(InstructionEvent)[0].receipt)
        await trio.sleep(10_000)

    assert 1 == len(seen.instructions)


class Refusing:
    def __call__(self, event):
        raise OSError("no")


async def test_what_is_released_is_claimed_again():
    """The task's own release gives back what its listener refused."""
    storage = MemoryStorage()
    storage.add("task", "a")
    planton = Planton(tasks=[storage.claim_task("task", delay=1.0)])
    planton.on(InstructionEvent, (refuse := Refusing()))
    async with planton:
        await trio.sleep(1.5)
        planton.off(InstructionEvent, refuse)

        assert ["a"] == storage.instructions("task", "pending")
        seen = EventCollector(planton)
        await seen.wait_for(InstructionEvent)

    assert 2 == seen.of(InstructionEvent)[0].delivery


async def test_a_write_waits_for_the_lock_of_another_transaction():
    """Like a row lock."""
    storage = MemoryStorage()
    storage.add("task", "a")
    async with storage.transaction() as transaction:
        (claim,) = transaction.claim("task", 1, lease=5)
    await trio.sleep(6)

    async def take_over():
        async with storage.transaction() as transaction:
            transaction.claim("task", 1)
            await trio.sleep(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_over)
        await trio.sleep(1)
        late = await storage.complete(claim.receipt)

    assert (claim.receipt,) == late.stale
    assert 9 == trio.current_time()


async def test_what_is_there_already_is_not_added_again():
    """Whatever has become of it."""
    storage = MemoryStorage()
    storage.add("task", "a", "b")
    storage.add("task", "b", "b", "c")

    assert ["a", "b", "c"] == storage.instructions("task", "pending")


async def test_it_is_used_like_any_other_storage():
    """Opened and migrated; tasks of other Plantons are not disturbed by a wake-up."""
    async with MemoryStorage() as storage:
        assert 0 == await storage.migrate()
        planton, other = (
            Planton(tasks=tasks, services=[storage.serve])
            for tasks in ([storage.queue_task("task", delay=3600)], [])
        )
        seen = EventCollector(planton)
        with trio.fail_after(60):
            async with planton, other:
                await storage.enqueue("task", "a")
                await seen.wait_for(InstructionEvent)


def test_there_is_no_sql():
    """Nobody has to apply any."""
    assert "" == MemoryStorage().schema()


async def test_dates_follow_the_clock_of_trio_from_a_start_on():
    """A simulation begins when it is told to."""
    start = datetime(2030, 1, 1, tzinfo=UTC)
    storage = MemoryStorage(start=start)
    await trio.sleep(100)
    await storage.enqueue("task", "a")
    await trio.sleep(3600)
    await storage.enqueue("task", "b")
    a, b = await storage.find()

    assert (start, timedelta(hours=1)) == (a.created_at, b.created_at - a.created_at)
    (stats,) = await storage.stats()
    assert start == stats.oldest_due_at


@pytest.mark.parametrize("name", ("", 7))
def test_a_name_that_is_none_is_refused(name):
    """What is claimed is to name somebody."""
    with pytest.raises(InvalidArgumentError, match="name"):
        MemoryStorage(name=name)


def test_a_name_is_kept():
    """Of the storage, for what it claims."""
    assert "echo-1" == MemoryStorage(name="echo-1").name
