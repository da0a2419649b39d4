"""What `planton explain` says first: why a task does not dispatch, and who is to blame."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio

from planton import InstructionEvent, Planton
from planton.cli._verdict import MOST, Situation, verdict
from planton.storage import LOST_AFTER
from planton.testing import MemoryStorage


@pytest.fixture
async def storage():
    async with MemoryStorage(name="web:1") as storage:
        yield storage


async def situation(storage, name="task"):
    """What the command finds."""
    dispatchers = await storage.dispatchers()
    by_id = {each.id: each for each in dispatchers}
    return Situation(
        stats=next((each for each in await storage.stats() if each.task_name == name), None),
        running=await storage.find(task_name=name, status="running", limit=MOST),
        queued=await storage.find(task_name=name, status="queued", limit=MOST),
        told=[(each, by_id[each.dispatcher_id]) for each in await storage.decisions(name)],
        dispatchers=dispatchers,
    )


async def found_while_running(storage, *tasks, on=None, seconds=20.0):
    planton = Planton(tasks=tasks, storages=[storage])
    if on is not None:
        planton.on(InstructionEvent, on)
    async with planton:
        await trio.sleep(seconds)
        return verdict(await situation(storage))


@asynccontextmanager
async def paused_planton(storage):
    """One that has told the storage of its task."""
    planton = Planton(tasks=[storage.queue_task("task")], storages=[storage])
    planton.on(InstructionEvent, keep)
    planton.pause("task")
    async with planton:
        await trio.sleep(20)
        yield


async def keep(event):
    """Take it, and never end it."""


async def test_nobody_has_the_task(autojump_clock, storage):
    """It waits for ever."""
    await storage.enqueue("task", "1")

    found = verdict(await situation(storage))

    assert "nobody dispatches it: no dispatcher that runs has this task" == found


async def test_who_holds_the_slots_is_named(autojump_clock, storage):
    """And when the first of them is free at the latest."""
    for number in range(3):
        await storage.enqueue("task", str(number))
    task = storage.queue_task("task", concurrency=2, lease=3030)

    found = await found_while_running(storage, task, on=keep)

    assert "saturated: 2 of 2 active, held by web:1 (2); the first lease ends in 50 min" == found


async def test_a_holder_that_is_lost_is_named_so(autojump_clock, storage):
    """Since when: it is the one to look after."""
    await storage.enqueue("task", "1")
    task = storage.queue_task("task", lease=3030)
    own = {"host": "web", "pid": 1, "version": "1", "started_at": 0.0}
    async with Planton(tasks=[task], storages=[storage]) as planton:
        planton.on(InstructionEvent, keep)
        await trio.sleep(20)
        sql = "UPDATE planton_dispatcher SET host = :host, pid = :pid"
        storage.connection.execute(sql, own)
        found = await situation(storage)
    (dispatcher,) = found.dispatchers
    lost = _silent(dispatcher)

    told = verdict(attrs.evolve(found, dispatchers=[lost]))

    assert f"held by web:1 (1, lost since {lost.seen_at:%H:%M} UTC)" in told


async def test_all_that_had_it_are_lost(autojump_clock, storage):
    """Then that is why."""
    task = storage.queue_task("task")
    async with Planton(tasks=[task], storages=[storage]):
        await trio.sleep(20)
        found = await situation(storage)
    ((report, dispatcher),) = found.told

    told = verdict(attrs.evolve(found, told=[(report, _silent(dispatcher))]))

    assert told.startswith(f"nobody dispatches it: {dispatcher.host}:{dispatcher.pid} was lost ")


def _silent(dispatcher):
    return attrs.evolve(dispatcher, silent_for=LOST_AFTER + 1)


@pytest.mark.parametrize(
    ("tags", "told"),
    (
        (["gpu"], "1 queued ask for tags nobody offers: gpu"),
        (["eu", "gpu"], "1 queued ask for tags nobody offers: gpu"),
        (["eu", "us"], "1 queued ask for tags no dispatcher has together"),
    ),
)
async def test_tags_that_nobody_offers_are_named(autojump_clock, storage, tags, told):
    """By two dispatchers, each of which has one."""
    await storage.enqueue("task", "1", tags=tags)
    planton = Planton(tasks=[storage.queue_task("task", tags=["eu"])], storages=[storage])
    planton.on(InstructionEvent, keep)
    async with planton:
        await trio.sleep(20)
        found = await situation(storage)
    ((report, dispatcher),) = found.told
    other = attrs.evolve(report, tags=("us",))
    found = attrs.evolve(found, told=[(report, dispatcher), (other, dispatcher)])

    assert told == verdict(found)


async def test_a_task_that_nobody_takes_is_told(autojump_clock, storage):
    """Neither a handler nor a listener."""
    await storage.enqueue("task", "1")

    found = await found_while_running(storage, storage.queue_task("task"))

    assert "nothing is claimed: no dispatcher has a handler or a listener for it" == found


async def test_a_pause_is_told(autojump_clock, storage):
    """That of the storage, and that of the processes."""
    await storage.enqueue("task", "1")
    async with paused_planton(storage):
        here = verdict(await situation(storage))
        await storage.pause("task")
        everywhere = verdict(await situation(storage))

    assert "paused in each process that has it" == here
    assert "paused: nothing is claimed until `planton resume`" == everywhere


async def test_attempts_that_fail_are_told_with_their_error(autojump_clock, storage):
    """Whatever is queued."""
    task = storage.claim_task("task", sql="SELECT id FROM such LIMIT :limit", delay=1)

    found = await found_while_running(storage, task, on=keep)

    assert found.startswith("its attempts fail: ")
    assert "no such table: such" in found


async def test_when_nothing_is_due_the_next_time_is_told(autojump_clock, storage):
    """As that of a retry that waits."""
    await storage.enqueue("task", "1", run_at=datetime.now(UTC) + timedelta(seconds=7300))

    found = await found_while_running(storage, storage.queue_task("task"), on=keep)

    assert "nothing is due; the next is, in 2 h" == found


async def test_an_empty_queue_is_told(autojump_clock, storage):
    """A storage does not know the rows of the user's own tables."""
    found = await found_while_running(storage, storage.queue_task("task"), on=keep)

    assert found.startswith("nothing is queued in the storage; ")


async def test_the_override_of_the_storage_is_what_saturates(autojump_clock, storage):
    """Whatever the code of the dispatchers says."""
    for number in range(3):
        await storage.enqueue("task", str(number))
    await storage.set_concurrency("task", 1)

    found = await found_while_running(storage, storage.queue_task("task", concurrency=3), on=keep)

    assert found.startswith("saturated: 1 of 1 active, held by web:1 (1); ")


async def test_what_is_due_and_waits_is_told(autojump_clock, storage):
    """Such as a moment after it was queued."""
    await storage.enqueue("task", "1")
    async with paused_planton(storage):
        found = await situation(storage)
    ((report, dispatcher),) = found.told
    waiting = attrs.evolve(report, status=attrs.evolve(report.status, state="waiting"))
    stats = attrs.evolve(found.stats, oldest_due_at=datetime.now(UTC) - timedelta(seconds=200))
    found = attrs.evolve(found, stats=stats, told=[(waiting, dispatcher)])

    assert "due for 3 min, and waits for the next attempt" == verdict(found)


class Full:
    """A consumer without a free slot."""

    def capacity(self, _):
        return 0

    async def submit(self, event):
        raise AssertionError(event)


async def test_consumers_without_a_free_slot_are_told(autojump_clock, storage):
    """It is not for the next attempt to help."""
    await storage.enqueue("task", "1")
    async with Planton(tasks=[storage.queue_task("task")], storages=[storage], consumers=[Full()]):
        await trio.sleep(20)
        found = verdict(await situation(storage))

    assert "due for 0 s, and its dispatchers say: full: the consumer has no free slot" == found


async def test_full_partitions_are_told(autojump_clock, storage):
    """In the words of the dispatchers."""
    for name in "12":
        await storage.enqueue("task", name, partition="acme")
    task = storage.queue_task("task", concurrency=5, partition_concurrency=1)

    found = await found_while_running(storage, task, on=keep)

    assert "and its dispatchers say: limited: what is due waits for a limit of the source" in found


async def test_what_no_attempt_finds_is_told(autojump_clock, storage):
    """Its key, most likely."""
    await storage.enqueue("task", "b1")

    found = await found_while_running(storage, storage.queue_task("task", key="a%"), on=keep)

    assert "and attempts do not find it: no dispatcher has its key, or a transaction" in found


async def test_tags_that_nobody_offers_are_told_beside_what_is_due_later(autojump_clock, storage):
    """What is queued for later does not wait for tags yet."""
    await storage.enqueue("task", "1", tags=["gpu"])
    await storage.enqueue("task", "2", run_at=datetime.now(UTC) + timedelta(hours=1))

    found = await found_while_running(storage, storage.queue_task("task"), on=keep)

    assert "1 queued ask for tags nobody offers: gpu" == found
