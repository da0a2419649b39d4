"""What `Storage` itself promises, whatever database is below: it is written once."""

import inspect
import math
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import pytest
import trio

from planton import (
    DuplicateTaskNameError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    InvalidTaskError,
    Planton,
    PlantonError,
)
from planton.storage import Reports, Storage
from planton.storage._fleet import new_registration
from planton.testing import EventCollector, MemoryStorage
from planton.testing.conformance import _base as do

NO_SECONDS = (-1, math.nan, math.inf, True, "60")
NO_COUNT = (-1, True, 1.5, "1")
NO_NAME = ("", None, 1)


@pytest.fixture
def storage():
    return MemoryStorage()


async def refuse_each(call, argument, values, *others, **options):
    """Expect that a call refuses each of some values of an argument, and names it."""
    for value in values:
        with pytest.raises(InvalidArgumentError, match=argument):
            answer = call(*others, **{**options, argument: value})
            if inspect.isawaitable(answer):
                await answer


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


async def test_it_has_the_methods_of_a_storage(storage):
    """An executor needs its reports alone."""
    assert isinstance(storage, Storage)
    assert isinstance(storage, Reports)


# Every argument is looked at before anything is written.


async def test_what_cannot_be_queued_is_refused(storage):
    """By the name of the argument."""
    good = {"task_name": "task", "instruction": "a"}
    bad = {
        "task_name": (*NO_NAME, "x" * 501),
        "instruction": (*NO_NAME, b"a", "x" * 2001),
        "payload": ({1, 2}, math.nan, object(), {"a": math.inf}, nested(100_000)),
        "priority": (True, 1.5, "1", None),
        "run_at": (datetime(2030, 1, 1), "2030-01-01", 1e9),
        "tags": ("gpu", [1], 5),
        "retries": NO_COUNT,
        "timeout": (0, *NO_SECONDS),
        "partition": (None, 1, "a\0", "x" * 501),
    }
    for argument, values in bad.items():
        await refuse_each(storage.enqueue, argument, values, **good)

    assert [] == await storage.find()


async def test_many_are_queued_or_none(storage):
    """One that cannot be used is an error that names it."""
    bad = {
        "instruction": ["", 5, None, {"payload": 1}],
        "priority": [{"instruction": "b", "priority": "high"}],
        "color": [{"instruction": "b", "color": "red"}],
    }
    for word, values in bad.items():
        for value in values:
            with pytest.raises(InvalidArgumentError, match=word):
                await storage.enqueue_many("task", ["a", value])
    no_list = ("abc", {"instruction": "a"}, 5)
    await refuse_each(storage.enqueue_many, "instructions", no_list, "task")

    assert [] == await storage.find()


async def test_a_timedelta_is_taken_for_seconds(storage):
    """For a lease as for whatever else is given in seconds."""
    task = storage.queue_task("task", lease=timedelta(minutes=1), delay=timedelta(seconds=1))
    await storage.enqueue("task", "a", timeout=timedelta(minutes=2))
    (only,) = await do.claim(task)

    assert (60.0, 120.0) == (only.lease, only.timeout)
    await storage.fail(only.receipt, "no", retry_in=timedelta(hours=1), retries=1)

    assert "queued" == (await do.record(storage, "a")).status
    assert [] == await storage.find(older_than=timedelta(days=1))


async def test_a_task_that_makes_no_sense_is_refused(storage):
    """When it is made, and its name stays free."""
    bad = {
        "lease": (0, None, *NO_SECONDS),
        "deliveries": (0, *NO_COUNT),
        "partition_concurrency": (0, True, 1.5, "1", 2**31),
        "tags": ("gpu", [1], 5),
        "key": (None, 1),
    }
    for argument, values in bad.items():
        await refuse_each(storage.queue_task, argument, values, "task")
    for option, value in {"concurrency": 0, "delay": -1, "timeout": 0}.items():
        with pytest.raises(InvalidTaskError, match=option):
            storage.queue_task("task", **{option: value})
    await refuse_each(storage.claim_task, "sql", (None, b"SELECT 1"), "task")
    storage.queue_task("task")


async def test_a_time_table_that_makes_no_sense_is_refused(storage):
    """When the task is made."""
    bad = {
        "expression": ("", "* * * *", "61 * * * *", "never", "0 0 30 2 *"),
        "timezone": ("Nowhere/Here", 5),
        "misfire": ("sometimes", None),
        "fold": ("third",),
        "gap": ("jump",),
        "lease": (0, -1),
        "deliveries": (0, True),
    }
    good = {"expression": "0 3 * * *"}
    for argument, values in bad.items():
        await refuse_each(storage.cron_task, argument, values, "cron", **good)
    storage.cron_task("cron", **good)


async def test_a_malformed_receipt_is_refused(storage):
    """It cannot be one that the storage gave; the good ones beside it are left alone."""
    _, claimed = await do.claim_first(storage)
    for report in (*do.reports(storage).values(), storage.take_over):
        for receipt in ("", "1", "no receipt of ours", "1; DROP TABLE x", "9" * 40, 5, None):
            with pytest.raises(InvalidArgumentError, match="receipt"):
                await report([claimed.receipt, receipt])
        with pytest.raises(InvalidArgumentError, match="receipt"):
            await report("")

    assert (claimed.receipt,) == (await storage.heartbeat(claimed.receipt)).applied


async def test_a_report_that_makes_no_sense_is_refused(storage):
    """And the claim stays as it is."""
    _, claimed = await do.claim_first(storage, payload=1, retries=1)
    before = await do.record(storage, "a")
    receipt = claimed.receipt
    await refuse_each(storage.complete, "result", ({1, 2}, math.nan, object()), receipt)
    await refuse_each(storage.fail, "retry_in", NO_SECONDS, receipt, "broken")
    await refuse_each(storage.fail, "error", (None, 5), receipt)
    await refuse_each(storage.advance, "payload", ({1},), receipt)
    await refuse_each(storage.advance, "retries", NO_COUNT, receipt, 2)
    await refuse_each(storage.advance, "run_in", NO_SECONDS, receipt, 2)
    await refuse_each(storage.take_over, "lease", (0, *NO_SECONDS), receipt)

    assert before == await do.record(storage, "a")
    assert (receipt,) == (await storage.heartbeat(receipt)).applied


async def test_operations_that_make_no_sense_are_refused(storage):
    """By the name of the argument."""
    await refuse_each(storage.set_concurrency, "concurrency", (0, *NO_COUNT), "task")
    await refuse_each(storage.prune, "older_than", NO_SECONDS)
    no_end = ("queued", "running", "never", 5, ["failed", "queued"], [1])
    await refuse_each(storage.prune, "status", no_end)
    await refuse_each(storage.find, "older_than", NO_SECONDS)
    await refuse_each(storage.find, "status", ("pending", "", 5))
    await refuse_each(storage.find, "instruction", (5,))
    await refuse_each(storage.find, "limit", NO_COUNT)
    await refuse_each(storage.retry, "instructions", ("abc", [1]), "task")
    await refuse_each(storage.set_concurrency, "task_name", NO_NAME, concurrency=1)
    for operation in (storage.pause, storage.resume, storage.retry):
        await refuse_each(operation, "task_name", NO_NAME)
    await refuse_each(storage.request_stop, "dispatcher_ids", ("a", [1], 5))
    await refuse_each(storage.decisions, "task_name", ("", 5))

    assert [] == await storage.stats()


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


# Tasks


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
            for count, end in enumerate((storage.complete, do.failing(storage)), 1):
                events = await seen.wait_for(InstructionEvent, count)
                await end(events[-1].receipt)
            await seen.wait_for(InstructionEvent, 3)

    assert ["a", "b", "c"] == seen.instructions
