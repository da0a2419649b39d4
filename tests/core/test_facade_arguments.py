"""`Storage` looks at every argument before anything is written, whatever database is below."""

import inspect
import math
from datetime import datetime, timedelta

import pytest

from planton import InvalidArgumentError, InvalidTaskError
from planton.testing import MemoryStorage
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
        "key": (None, 1, "a\\", "a\\\\\\"),
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
    for flag in ("retry", "lower_priority"):
        await refuse_each(storage.fail, flag, (0, 1, "no", None), receipt, "broken")
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


@pytest.mark.parametrize("field", ("limit", "get_active_instructions", "release", "cap", "laese"))
def test_a_field_that_a_storage_fills_or_no_task_has_is_refused(storage, field):
    """It was taken and did nothing."""
    with pytest.raises(InvalidTaskError, match=f"Task.{field} is None: give some of concurrency"):
        storage.queue_task("task", **{field: None})
