"""Promises about what is wrong: bad input gets an error that names it, and harms only itself."""

import json
import math
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import trio

from planton._errors import InvalidArgumentError, InvalidQueryError, InvalidTaskError, PlantonError
from planton._events import ErrorEvent, InstructionEvent
from planton._planton import Planton
from planton.storage._arguments import NAME_LENGTH
from planton.testing._collector import EventCollector
from planton.testing.conformance._base import (
    Hooks,
    at_once,
    claim,
    claim_one,
    enqueue,
    failing,
    names,
    receipts,
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

    async def test_a_report_that_makes_no_sense_is_refused(self, storage: Any) -> None:
        """And the claim stays as it is."""
        claimed = await claim_one(storage, payload=1, retries=1)
        before = await record(storage, "a")
        receipt = claimed.receipt
        await refuse_each(storage.complete, "result", ({1, 2}, math.nan, object()), receipt)
        await refuse_each(storage.fail, "retry_in", NO_SECONDS, receipt, "broken")
        await refuse_each(storage.fail, "error", (None, 5), receipt)
        await refuse_each(storage.advance, "payload", ({1},), receipt)
        await refuse_each(storage.advance, "retries", NO_COUNT, receipt, 2)
        await refuse_each(storage.advance, "run_in", NO_SECONDS, receipt, 2)
        await refuse_each(storage.take_over, "lease", (0, *NO_SECONDS), receipt)

        assert before == await record(storage, "a")
        assert (receipt,) == (await storage.heartbeat(receipt)).applied

    async def test_operations_that_make_no_sense_are_refused(self, storage: Any) -> None:
        """By the name of the argument."""
        await refuse_each(storage.set_concurrency, "concurrency", (0, *NO_COUNT), "task")
        await refuse_each(storage.prune, "older_than", NO_SECONDS)
        await refuse_each(storage.find, "older_than", NO_SECONDS)
        await refuse_each(storage.find, "status", ("pending", "", 5))
        await refuse_each(storage.find, "instruction", (5,))
        await refuse_each(storage.find, "limit", NO_COUNT)
        await refuse_each(storage.retry, "instructions", ("abc", [1]), "task")
        await refuse_each(storage.set_concurrency, "task_name", ("", None, 5), concurrency=1)
        for operation in (storage.pause, storage.resume, storage.retry):
            await refuse_each(operation, "task_name", ("", None, 5))

        assert [] == await storage.stats()

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


# JSON that Python does not read; a table may refuse it.
UNREADABLE = ("7" * 5000, "[" * 900 + "]" * 900 + " ", f'{{"a": {"9" * 6000}}}')


class HarmPromises(Hooks):
    """What others have done, or do at the same time, goes on."""

    async def test_a_row_that_cannot_be_read_ends_by_itself(self, storage: Any) -> None:
        """With the reason; those beside it are delivered, and nobody holds its slot."""
        await self.insert(storage, "task", "good", "1")
        unreadable = [payload for payload in UNREADABLE if not _is_readable(payload)]
        for number, payload in enumerate(unreadable):
            await self.insert(storage, "task", f"bad {number}", payload)
        await enqueue(storage, "task", "last")
        claimed = await claim(storage.queue_task("task", concurrency=9))

        assert ["good", "last"] == names(claimed)
        assert ["good", "last"] == sorted(await storage.get_active_instructions("task"))
        for number in range(len(unreadable)):
            found = await record(storage, f"bad {number}")
            assert found.status in ("failed", "dead")
            assert "payload" in str(found.error)

    async def test_a_row_that_cannot_be_read_hides_no_other(self, storage: Any) -> None:
        """From those who look: it is found and counted as any."""
        await self.insert(storage, "task", "bad", UNREADABLE[0])
        await enqueue(storage, "task", "good", payload=1)
        (stats,) = await storage.stats()

        assert [("bad", "queued"), ("good", "queued")] == await statuses(storage)
        assert 2 == stats.queued

    async def test_a_statement_that_fails_stops_no_other_task(self, storage: Any) -> None:
        """Nor those whose claims travel in the same call, nor what consumers report meanwhile."""
        await self.add_rows(storage, 1)
        limit = "%(limit)s" if "%(limit)s" in self.select_sql else ":limit"
        bad = storage.claim_task("bad", sql=f"SELECT NULL LIMIT {limit}", delay=0.01)
        tasks = [storage.queue_task(name, delay=0.01) for name in ("one", "two")]
        planton = Planton(tasks=[bad, *tasks])
        seen = EventCollector(planton)

        @planton.on(InstructionEvent)
        async def complete(event: InstructionEvent) -> None:
            await storage.complete(event.receipt)

        with trio.fail_after(30):
            async with planton:
                await seen.wait_for(ErrorEvent)
                await enqueue(storage, "one", *"abc")
                await enqueue(storage, "two", *"abc")
                await seen.wait_for(InstructionEvent, 6)

        assert {("bad", InvalidQueryError)} == {
            (event.task_name, type(event.error)) for event in seen.of(ErrorEvent)
        }

    async def test_a_report_that_is_refused_stops_no_other(self, storage: Any) -> None:
        """Of those that are made at the same time, and share a commit."""
        await enqueue(storage, "task", *map(str, range(10)))
        claimed = receipts(await claim(storage.queue_task("task", concurrency=10)))

        async def report(receipt: str, result: Any) -> Any:
            with suppress(PlantonError):
                return (await storage.complete(receipt, result)).applied

        calls = [partial(report, each, number) for number, each in enumerate(claimed)]
        calls[4] = partial(report, claimed[4], {4})  # no JSON
        answers = await at_once(*calls, partial(report, "no receipt", None))

        assert {(each,) for each in claimed} - {(claimed[4],)} == {*answers} - {None}
        assert ["4"] == await storage.get_active_instructions("task")

    async def test_a_claim_that_is_ended_twice_in_one_commit_ends_once(self, storage: Any) -> None:
        """By reports of different kinds at the same time: the first wins."""
        receipt = (await claim_one(storage, retries=1)).receipt
        ends = (storage.complete, failing(storage), storage.release)
        done = await at_once(*(partial(end, receipt) for end in ends))

        assert 1 == sum(len(each.applied) for each in done)
        assert 1 == len(await statuses(storage))


def _is_readable(payload: str) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True
