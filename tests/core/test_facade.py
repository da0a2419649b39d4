"""What `Storage` itself promises, whatever database is below: it is written once."""

from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest
import trio

from planton import (
    DuplicateTaskNameError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    PlantonError,
)
from planton.storage import Reports, Storage
from planton.storage._fleet import new_registration
from planton.testing import EventCollector, MemoryStorage
from planton.testing.conformance import _base as do


@pytest.fixture
def storage():
    return MemoryStorage()


async def test_it_has_the_methods_of_a_storage(storage):
    """An executor needs its reports alone."""
    assert isinstance(storage, Storage)
    assert isinstance(storage, Reports)


async def test_a_report_that_is_refused_stops_no_other(storage):
    """Of those that are made at the same time, and share a commit."""
    await do.enqueue(storage, "task", *map(str, range(10)))
    claimed = do.receipts(await do.claim(storage.queue_task("task", concurrency=10)))

    async def report(receipt, result):
        with suppress(PlantonError):
            return (await storage.complete(receipt, result)).applied

    calls = [partial(report, each, number) for number, each in enumerate(claimed)]
    calls[4] = partial(report, claimed[4], {4})  # no JSON
    answers = await do.at_once(*calls, partial(report, "no receipt", None))

    assert {(each,) for each in claimed} - {(claimed[4],)} == {*answers} - {None}
    assert ["4"] == await storage.get_active_instructions("task")


async def test_different_reports_may_be_sent_together(storage):
    """Each is answered by itself; a receipt that is none spoils no other report."""
    await do.enqueue(storage, "task", "a", "b", "c")
    a, b, c = do.receipts(await do.claim(storage.queue_task("task", concurrency=3)))
    await storage.complete(c)
    done, strange, released = await storage.report_many(
        [("complete", [a], ("1",)), ("complete", ["strange"], ("1",)), ("release", [b, c], ())]
    )

    assert ((a,), ()) == (done.applied, done.stale)
    assert isinstance(strange, InvalidArgumentError)
    assert ((b,), (c,)) == (released.applied, released.stale)
    assert 1 == (await do.record(storage, "a")).result
    assert [] == await storage.report_many([])


async def test_a_task_can_be_made_again(storage):
    """After `unregister`, or for another Planton: each claims by what it was made with."""
    await do.enqueue(storage, "task", "a", "b:1", "b:2")
    await do.enqueue(storage, "beside", "1")
    first = storage.queue_task("task", key="a%", lease=30)
    second = storage.queue_task("task", key="b%", concurrency=3, lease=60)
    beside = storage.queue_task("beside")
    claims = [*await do.claim(second, 1), *await do.claim(first)]

    assert ["b:1"] == do.names(claims)
    await storage.complete(claims[0].receipt)
    claims = [*await do.claim(first), *await do.claim(second), *await do.claim(beside)]
    assert [("a", 30.0), ("b:2", 60.0), ("1", 60.0)] == [
        (each.instruction, each.lease) for each in claims
    ]
    assert [] == await do.claim(storage.cron_task("task", "0 0 29 2 *", concurrency=9))


async def test_a_task_can_be_unregistered_and_made_again(storage):
    """In a Planton that runs; two of a name at the same time are what it refuses."""
    task = storage.queue_task("task", delay=0.01)
    again = storage.queue_task("task", delay=3600, concurrency=3)
    planton = Planton(tasks=[task], storages=[storage])
    seen = EventCollector(planton)
    with trio.fail_after(30):
        async with planton:
            with pytest.raises(DuplicateTaskNameError, match="task"):
                planton.register(again)
            planton.unregister("task")
            planton.register(again)
            await do.enqueue(storage, "task", "a", "b", "c")
            await seen.wait_for(InstructionEvent, 3)

    assert ["a", "b", "c"] == sorted(seen.instructions)


async def test_one_that_no_listener_takes_does_not_starve_the_others(storage):
    """Although what was given back comes first, and there is one slot."""
    await do.enqueue(storage, "task", "poison", priority=9)
    await do.enqueue(storage, "task", "a", "b")
    planton = Planton(tasks=[storage.queue_task("task", delay=0.01)])
    EventCollector(planton, ErrorEvent)
    taken = []

    @planton.on(InstructionEvent)
    async def take(event):
        if event.instruction == "poison":
            raise ValueError(event.instruction)
        taken.append(event.instruction)
        await storage.complete(event.receipt)
        if event.instruction == "b":
            planton.request_stop()

    with trio.fail_after(30):
        await planton.run()

    assert ["a", "b"] == taken
    assert "queued" == (await do.record(storage, "poison")).status


async def test_times_are_read_in_a_time_zone(storage):
    """The same wall-clock time is another instant elsewhere."""
    first = (await do.clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    expression = f"{first.second} {first.minute} {first.hour} * * *"
    kolkata = storage.cron_task("kolkata", expression, timezone="Asia/Kolkata", delay=1e6)
    utc = storage.cron_task("utc", expression, timezone="UTC", delay=1e6)
    here, there = [(await do.attempt(task)).due_in for task in (utc, kolkata)]

    assert abs((there - here) % 86400 - (86400 - 5.5 * 3600)) < 5


@pytest.mark.parametrize(("policy", "hours"), (("skip", []), ("once", [2]), ("all", [0, 1, 2])))
async def test_missed_times_are_dispatched_by_policy(storage, policy, hours):
    """None, the last, or all; one that is less than a minute late was not missed."""
    first = (await do.clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    expression = f"{first.second} {first.minute} * * * *"
    task = storage.cron_task("cron", expression, misfire=policy, concurrency=9, lease=1e6)

    assert [] == await do.claim(task)
    await trio.sleep(3 * 3600)
    expected = [(first + timedelta(hours=each)).isoformat() for each in hours]
    assert expected == do.names(await do.claim(task))
    await trio.sleep(1800 + 30)
    assert 1 == len(await do.claim(task))


async def test_a_dispatcher_is_known_while_it_runs(storage):
    """With its machine and process; its row goes when it ends."""
    async with Planton(tasks=[storage.queue_task("task")], storages=[storage]):
        (seen,) = await storage.dispatchers()

    own = new_registration()
    assert (own.host, own.pid, own.version) == (seen.host, seen.pid, seen.version)
    assert [] == await storage.dispatchers()
    assert [] == await storage.decisions()


@pytest.mark.parametrize("options", ({}, {"partition_concurrency": 1, "concurrency": 9}))
async def test_an_ended_claim_wakes_its_task(storage, options):
    """A freed slot, of the task or of a partition, does not wait for the next poll."""
    await do.enqueue(storage, "task", *"abc", partition="p")
    task = storage.queue_task("task", delay=3600, **options)
    planton = Planton(tasks=[task], storages=[storage])
    seen = EventCollector(planton)
    with trio.fail_after(30):
        async with planton:
            planton.wake()
            for count, end in enumerate((storage.complete, do.failing(storage)), 1):
                events = await seen.wait_for(InstructionEvent, count)
                await end(events[-1].receipt)
            await seen.wait_for(InstructionEvent, 3)

    assert ["a", "b", "c"] == seen.instructions
