"""What bad input gets: an error that names it, and nothing changed."""

import math
from datetime import datetime, timedelta
from random import Random
from typing import Any

from planton._errors import InvalidArgumentError, InvalidTaskError
from planton.storage._arguments import NAME_LENGTH
from planton.testing.conformance._base import (
    Hooks,
    claim,
    claim_one,
    record,
    refuse_each,
    refused,
    statuses,
)
from planton.testing.conformance._reports import reports

NO_SECONDS = (-1, math.nan, math.inf, True, "60")
NO_COUNT = (-1, True, 1.5, "1")


class InputPromises(Hooks):
    """Every argument is looked at before anything is written."""

    async def test_what_cannot_be_queued_is_refused(self, storage: Any) -> None:
        """By the name of the argument."""
        good: dict[str, Any] = {"task_name": "task", "instruction": "a"}
        bad = {
            "task_name": ("", None, 1),
            "instruction": ("", None, 1, b"a"),
            "payload": ({1, 2}, math.nan, object(), {"a": math.inf}, _nested(100_000)),
            "priority": (True, 1.5, "1", None),
            "run_at": (datetime(2030, 1, 1), "2030-01-01", 1e9),
            "tags": ("gpu", [1], 5),
            "retries": NO_COUNT,
            "timeout": (0, *NO_SECONDS),
        }
        for argument, values in bad.items():
            await refuse_each(storage.enqueue, argument, values, **good)

        assert [] == await storage.find()

    async def test_the_longest_names_go_all_the_way(self, storage: Any) -> None:
        """Of characters that no index makes shorter; one byte more is refused."""
        random = Random(1)
        name = "".join(chr(random.randrange(0x1F300, 0x1F9FF)) for _ in range(NAME_LENGTH // 4))
        long = "".join(chr(random.randrange(0x1F300, 0x1F9FF)) for _ in range(500))
        assert await storage.enqueue(name, long)
        await refuse_each(storage.enqueue, "task_name", [name + "a"], instruction="a")
        await refuse_each(storage.enqueue, "instruction", [long + "a"], task_name="task")
        (only,) = await claim(storage.queue_task(name))

        assert long == only.instruction
        assert (only.receipt,) == (await storage.fail(only.receipt, "no", retry=False)).applied
        assert 1 == await storage.retry(name)

    async def test_a_timedelta_is_taken_for_seconds(self, storage: Any) -> None:
        """For a lease as for whatever else is given in seconds."""
        task = storage.queue_task("task", lease=timedelta(minutes=1), delay=timedelta(seconds=1))
        await storage.enqueue("task", "a", timeout=timedelta(minutes=2))
        (only,) = await claim(task)

        assert (60.0, 120.0) == (only.lease, only.timeout)
        await storage.fail(only.receipt, "no", retry_in=timedelta(hours=1), retries=1)

        assert "queued" == (await record(storage, "a")).status
        assert [] == await storage.find(older_than=timedelta(days=1))

    async def test_a_task_that_makes_no_sense_is_refused(self, storage: Any) -> None:
        """When it is made, and its name stays free."""
        bad = {
            "lease": (0, None, *NO_SECONDS),
            "deliveries": (0, *NO_COUNT),
            "tags": ("gpu", [1], 5),
            "key": (None, 1),
        }
        for argument, values in bad.items():
            await refuse_each(storage.queue_task, argument, values, "task")
        for option, value in {"concurrency": 0, "delay": -1, "timeout": 0}.items():
            with refused(InvalidTaskError, option):
                storage.queue_task("task", **{option: value})
        storage.queue_task("task")

    async def test_a_time_table_that_makes_no_sense_is_refused(self, storage: Any) -> None:
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

    async def test_a_malformed_receipt_is_refused(self, storage: Any) -> None:
        """It cannot be one that the storage gave; the good ones beside it are left alone."""
        claimed = await claim_one(storage)
        for report in (*reports(storage).values(), storage.take_over):
            for receipt in ("", "1", "no receipt of ours", "1; DROP TABLE x", "9" * 40, 5, None):
                with refused(InvalidArgumentError, "receipt"):
                    await report([claimed.receipt, receipt])
            with refused(InvalidArgumentError, "receipt"):
                await report("")

        assert (claimed.receipt,) == (await storage.heartbeat(claimed.receipt)).applied

    async def test_a_result_that_is_not_json_is_refused(self, storage: Any) -> None:
        """And the claim is not ended."""
        claimed = await claim_one(storage)
        values = ({1, 2}, math.nan, object())
        await refuse_each(storage.complete, "result", values, claimed.receipt)

        assert "running" == (await record(storage, "a")).status

    async def test_a_failure_that_makes_no_sense_is_refused(self, storage: Any) -> None:
        """And the claim is not ended."""
        claimed = await claim_one(storage, retries=1)
        await refuse_each(storage.fail, "retry_in", NO_SECONDS, claimed.receipt, "broken")
        await refuse_each(storage.fail, "error", (None, 5), claimed.receipt)

        assert "running" == (await record(storage, "a")).status

    async def test_operations_that_make_no_sense_are_refused(self, storage: Any) -> None:
        """By the name of the argument."""
        await refuse_each(storage.set_concurrency, "concurrency", (0, *NO_COUNT), "task")
        await refuse_each(storage.prune, "older_than", NO_SECONDS)
        await refuse_each(storage.find, "older_than", NO_SECONDS)
        await refuse_each(storage.find, "status", ("pending", "", 5))
        await refuse_each(storage.find, "instruction", (5,))
        await refuse_each(storage.find, "limit", NO_COUNT)
        await refuse_each(storage.retry, "instructions", ("abc", [1]), "task")

        assert [] == await storage.stats()

    async def test_a_task_name_that_is_none_is_refused(self, storage: Any) -> None:
        """By all operations that need one."""
        for operation in (storage.pause, storage.resume, storage.retry):
            await refuse_each(operation, "task_name", ("", None, 5))
        await refuse_each(storage.set_concurrency, "task_name", ("", None, 5), concurrency=1)

        assert [] == await statuses(storage)

    async def test_migrating_again_changes_nothing(self, storage: Any) -> None:
        """And what is there stays."""
        claimed = await claim_one(storage)

        assert 0 == await storage.migrate()
        assert (claimed.receipt,) == (await storage.complete(claimed.receipt)).applied
        assert [] == await claim(storage.queue_task("another"))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
