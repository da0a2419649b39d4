"""Promises to operators: pause, concurrency, retry, find, stats, prune."""

from datetime import timedelta
from typing import Any

import pytest

from planton._errors import InvalidArgumentError
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


async def end_three(storage: Any) -> Any:
    """Return a task with one instruction that failed, one that died, and one that succeeded."""
    task = await do.queue_up(storage, "dead", "failed", "succeeded", payload=7, concurrency=10)
    dead, failed, succeeded = do.receipts(await do.claim(task))
    await storage.fail(dead, "broken")
    await storage.fail(failed, "broken", retry=False)
    await storage.complete(succeeded, "fine")
    return task


class OperationPromises(Hooks):
    """They are kept in the storage, for all dispatchers to see."""

    async def test_a_paused_task_claims_nothing(self, storage: Any, other: Any) -> None:
        """In no process, not even claims that expired, until it is resumed; others go on."""
        await do.enqueue(storage, "task", "a", "b")
        tasks = [each.queue_task("task", concurrency=2, lease=30) for each in (storage, other)]
        await do.claim(tasks[0], 1)
        await other.pause("task")
        await other.pause("task")
        await self.advance(storage, 31)

        assert [[], []] == [await do.claim(task) for task in tasks]
        await do.claim_first(storage, task_name="another")
        for _ in range(2):
            await storage.resume("task")
        assert ["a", "b"] == sorted(do.names(await do.claim(tasks[1])))

    async def test_the_concurrency_can_be_overridden(self, storage: Any, other: Any) -> None:
        """In all dispatchers, whatever was paused, until it is given back to the code."""
        task = await do.queue_up(storage, *"abcdef", concurrency=5)
        await other.set_concurrency("task", 2)
        await storage.pause("task")
        await storage.resume("task")
        first = await do.claim(task)

        assert (["a", "b"], []) == (do.names(first), await do.claim(task))
        await other.set_concurrency("task", None)
        assert ["c", "d", "e"] == do.names(await do.claim(task))

    async def test_all_that_failed_can_be_retried(self, storage: Any) -> None:
        """The failed and the dead, not the succeeded; they begin anew."""
        task = await end_three(storage)

        assert (0, 0) == (await storage.retry("task", []), await storage.retry("unknown"))
        assert 2 == await storage.retry("task")
        assert 0 == await storage.retry("task")
        assert ["dead queued", "failed queued", "succeeded succeeded"] == await do.statuses(storage)
        again = do.table(await do.claim(task), "instruction payload delivery")
        assert [("dead", 7, 1), ("failed", 7, 1)] == sorted(again)

    async def test_a_retry_forgets_all_failures(self, storage: Any) -> None:
        """Of one that failed several times, for it was enqueued by hand: the last comes back."""
        for payload in (1, 2):
            task, claimed = await do.claim_first(storage, payload=payload)
            await storage.fail(claimed.receipt, "broken")

        assert ["a dead"] * 2 == await do.statuses(storage)
        assert 1 == await storage.retry("task")
        assert ["a queued"] == await do.statuses(storage)
        assert 2 == (await do.claim(task))[0].payload

    async def test_named_ones_can_be_retried(self, storage: Any) -> None:
        """However they ended; with one that is active, queued or unknown none is, by its name."""
        task = await end_three(storage)
        await do.enqueue(storage, "task", "active")
        await do.claim(task)
        await do.enqueue(storage, "task", "queued")
        await do.enqueue(storage, "another", "elsewhere")
        before = await do.statuses(storage)
        for instruction in ("active", "queued", "unknown", "elsewhere"):
            with pytest.raises(InvalidArgumentError, match=instruction):
                await storage.retry("task", ["dead", instruction])

            assert before == await do.statuses(storage)
        assert 2 == await storage.retry("task", ["succeeded", "dead"])
        again = ["dead queued", "failed failed", "queued queued", "succeeded queued"]
        assert ["active running", *again] == await do.statuses(storage)

    async def test_what_is_back_already_is_not_retried_with_the_rest(self, storage: Any) -> None:
        """One that died and was queued anew, or succeeded later, is left alone."""
        task = await end_three(storage)
        await do.enqueue(storage, "task", "dead", "failed")
        _, failed = do.receipts(await do.claim(task))
        await storage.complete(failed)

        assert 0 == await storage.retry("task")

    async def test_find_filters(self, storage: Any) -> None:
        """By status, task, instruction, age, and up to a number; the oldest first."""
        await end_three(storage)
        await self.advance(storage, 60)
        await do.claim_first(storage, "x", "y", task_name="other")

        async def found(**filters: Any) -> list[str]:
            return [each.instruction for each in await storage.find(**filters)]

        assert ["dead", "failed", "succeeded", "x", "y"] == await found()
        assert ["dead", "failed"] == await found(limit=2)
        assert ["x", "y"] == await found(task_name="other")
        assert ["dead", "failed", "succeeded"] == await found(older_than=30)
        assert [] == await found(older_than=30, task_name="other")
        assert ["x"] == await found(instruction="x", limit=1)
        assert [] == await found(instruction="x", task_name="task")
        for status in ("dead", "failed", "succeeded"):
            assert [status] == await found(status=status)
        assert (["y"], ["x"]) == (await found(status="queued"), await found(status="running"))
        assert [] == await found(status="queued", task_name="task")

    async def test_stats_count_every_task(self, storage: Any) -> None:
        """By name, with what was set; a task without instructions counts, too."""
        await end_three(storage)
        await do.claim_first(storage, "x", "y", "z", task_name="other")
        await storage.pause("idle")
        await storage.set_concurrency("task", 4)
        idle, other, task = await storage.stats()

        assert ("idle", 0, True, None) == do.fields(idle, "task_name queued paused concurrency")
        assert ("other", 2, 1, 0, False) == do.fields(other, "task_name queued running dead paused")
        assert ("task", 0, 0, 1, 1, 1, 4) == do.fields(
            task, "task_name queued running succeeded failed dead concurrency"
        )

    async def test_stats_tell_what_waits_for_how_long(self, storage: Any) -> None:
        """Since when the oldest is due, if that is in the past; what is due later does not wait."""
        past = await do.clock(storage) - timedelta(hours=1)
        await do.enqueue(storage, "task", "a", run_at=past)
        await self.advance(storage, 60)
        await do.enqueue(storage, "task", "b")
        run_at = (await do.record(storage, "a")).run_at
        await do.enqueue(storage, "later", "c", run_at=run_at + timedelta(days=365))
        waiting = {each.task_name: each.oldest_due_at for each in await storage.stats()}

        assert (run_at, None) == (waiting["task"], waiting["later"])

    async def test_what_is_retried_is_told_as_new(self, storage: Any) -> None:
        """Without its result, due now; what was due in the past is told as it was given."""
        past = await do.clock(storage) - timedelta(hours=1)
        task = await do.queue_up(storage, "a", run_at=past)
        queued = await do.record(storage, "a")
        assert abs(queued.run_at - past) < timedelta(milliseconds=1)
        await do.end_next(task, storage.complete, {"rows": 1})
        before = await do.clock(storage)
        await storage.retry("task", ["a"])
        again = await do.record(storage, "a")

        assert ("queued", None, None, 0) == do.fields(again, "status result ended_at delivery")
        assert before <= again.run_at <= await do.clock(storage)
        assert queued.created_at == again.created_at
        assert 1 == len(await do.claim(task))

    async def test_drop_deletes_what_is_queued(self, storage: Any) -> None:
        """Those that are named or all of the task; what runs, what ended and others stay."""
        await end_three(storage)
        await do.enqueue(storage, "task", "a", "b", "c", "d")
        await do.enqueue(storage, "other", "a")
        await do.claim(storage.queue_task("task"), 1)

        assert 1 == await storage.drop("task", ["a", "b", "unknown"])
        assert 2 == await storage.drop("task")
        assert 0 == await storage.drop("task", [])
        left = ["a running", "dead dead", "failed failed", "succeeded succeeded"]
        assert left == await do.statuses(storage)
        assert ["a queued"] == await do.statuses(storage, "other")

    async def test_prune_deletes_what_ended_long_ago(self, storage: Any) -> None:
        """And nothing else, by status if that is named; how many."""
        task = await end_three(storage)

        assert [1, 0] == [await storage.prune(status="succeeded") for _ in range(2)]
        assert ["dead dead", "failed failed"] == await do.statuses(storage)
        assert (0, 0) == (await storage.prune(status=[]), await storage.prune(older_than=30))
        await self.advance(storage, 60)
        await do.enqueue(storage, "task", "a", "b", "c")
        active = await do.claim(task, 1)
        await do.end_next(task, storage.complete)
        assert 2 == await storage.prune(older_than=30, status=["failed", "dead", "succeeded"])
        assert ["a running", "b succeeded", "c queued"] == await do.statuses(storage)
        assert (1, 0) == (await storage.prune(), await storage.prune())
        assert 1 == len((await storage.heartbeat(do.receipts(active))).applied)
