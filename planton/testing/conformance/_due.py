"""Promises of what is not due yet, and of what comes back: leases, deliveries, give-backs."""

from datetime import timedelta
from typing import Any

import trio

from planton._events import InstructionEvent
from planton._planton import Planton
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class DuePromises(Hooks):
    """`due_in` of what comes, of what comes back, and of what is lost."""

    async def test_a_dispatcher_is_there_when_something_becomes_due(self, storage: Any) -> None:
        """Queued for later, failed for now, lost with its consumer, or a time of the calendar."""
        options: Any = {"delay": lambda number: 3600.0 if number else 0.0, "lease": 1}
        soon = await do.clock(storage) + timedelta(seconds=1)
        later = await do.queue_up(storage, "a", task_name="later", run_at=soon, **options)
        lost, _ = await do.claim_first(storage, task_name="lost", **options)
        failed, broken = await do.claim_first(storage, task_name="failed", retries=1, **options)
        await storage.fail(broken.receipt, "broken", retry_in=1)
        tasks = [later, failed, lost, storage.cron_task("cron", "* * * * * *", **options)]
        awaited = {task.name for task in tasks}
        async with Planton(tasks=tasks) as planton, planton.events(InstructionEvent) as stream:
            while awaited:
                with trio.move_on_after(60) as scope:
                    awaited.discard((await anext(stream)).task_name)
                assert not scope.cancelled_caught, f"nothing came of {awaited}"

    async def test_the_time_of_a_retry_is_told(self, storage: Any) -> None:
        """As that of whatever is queued for later; `retry_in` counts from the report on."""
        task, failed = await do.claim_first(storage, retries=1)
        await storage.fail(failed.receipt, "broken", retry_in=40)
        before = await do.attempt(task)
        await self.advance(storage, 41)

        do.assert_due_in(40, before)
        assert ([], ["a"]) == (before.claims, do.names(await do.claim(task)))

    async def test_the_end_of_a_lease_is_told(self, storage: Any) -> None:
        """Of those that are active, and of the very claim that is made; a timeout may be sooner."""
        for name, options in (("task", {}), ("short", {"timeout": 50})):
            task = storage.queue_task(name, lease=80, concurrency=2)
            await do.enqueue(storage, name, "a", **options)

            for _ in range(2):
                do.assert_due_in(options.get("timeout", 80), await do.attempt(task))

    async def test_what_is_due_later_is_told_beside_expired_leases(self, storage: Any) -> None:
        """One is taken over, another one ends as dead and frees the only slot."""
        for name, options in (("over", {"concurrency": 2}), ("dead", {"deliveries": 1})):
            task, _ = await do.claim_first(storage, task_name=name, lease=30, **options)
            later = await do.clock(storage) + timedelta(seconds=51)
            await do.enqueue(storage, name, "b", run_at=later)
            await self.advance(storage, 31)

            do.assert_due_in(20, await do.attempt(task))

    async def test_a_claim_that_its_limit_ended_is_followed_by_another(self, storage: Any) -> None:
        """At once: the cap has room, by an override, or because consumers had less."""
        await do.enqueue(storage, "task", *"abcdef")
        later = await do.clock(storage) + timedelta(seconds=40)
        task = await do.queue_up(storage, "g", run_at=later, concurrency=2)
        await storage.set_concurrency("task", 8)
        batches = [await do.attempt(task), await do.attempt(task, 1), await do.attempt(task, 5)]

        assert [2, 1, 3] == [len(batch.claims) for batch in batches]
        assert [0, 0] == [batch.due_in for batch in batches[:2]]
        do.assert_due_in(40, batches[2])

    async def test_a_time_that_finds_no_slot_is_told_once_there_is_one(self, storage: Any) -> None:
        """While the cap is reached only the end of a lease is; the freed slot wakes the task."""
        later = await do.clock(storage) + timedelta(seconds=40)
        task, claimed = await do.claim_first(storage, lease=80)
        await do.enqueue(storage, "task", "b", run_at=later)

        do.assert_due_in(80, await do.attempt(task))
        await storage.complete(claimed.receipt)
        do.assert_due_in(40, await do.attempt(task))

    async def test_what_waits_for_its_own_claim_is_not_due(self, storage: Any) -> None:
        """It was queued again while it is active: the end of the lease is the next time."""
        task, _ = await do.claim_first(storage, lease=80, concurrency=3)
        await do.enqueue(storage, "task", "a")
        for _ in range(2):
            batch = await do.attempt(task)

            assert [] == batch.claims
            do.assert_due_in(80, batch)

    async def test_only_what_is_offered_is_told(self, storage: Any) -> None:
        """Not what another dispatcher has the tags or the key for."""
        now = await do.clock(storage)
        for name, seconds, tags in (("a", 20, ["gpu"]), ("a1", 40, []), ("b", 60, [])):
            run_at = now + timedelta(seconds=seconds)
            await do.enqueue(storage, "task", name, run_at=run_at, tags=tags)

        do.assert_due_in(60, await do.attempt(storage.queue_task("task", key="b%")))
        do.assert_due_in(40, await do.attempt(storage.queue_task("task")))

    async def test_nothing_is_told_when_nothing_comes(self, storage: Any) -> None:
        """Nothing is queued, or it is due already."""
        task = storage.queue_task("task", concurrency=2)

        assert (await do.attempt(task)).due_in is None
        _, only = await do.claim_first(storage, concurrency=2)
        await storage.complete(only.receipt)
        assert (await do.attempt(task)).due_in is None


class ExpiryPromises(Hooks):
    """`deliveries` bounds how often a lease may expire; what else comes back is not counted."""

    async def test_only_an_expired_lease_uses_up_the_last_delivery(self, storage: Any) -> None:
        """A release, a give-back, or a failure with retries left does not make it dead."""
        for name in ("release", "give back", "fail"):
            options: Any = {"retries": 1, "lease": 30, "deliveries": 1}
            task, first = await do.claim_first(storage, task_name=name, **options)
            if name == "give back":
                await task.release([first])
            else:
                await do.reports(storage)[name](first.receipt)
            (second,) = await do.claim(task)

            assert 2 == second.delivery, name
            await self.advance(storage, 31)
            assert [] == await do.claim(task), name
            assert ["a dead"] == await do.statuses(storage, name), name

    async def test_used_up_claims_end_whoever_notices(self, storage: Any, other: Any) -> None:
        """Also if this dispatcher does not offer their tags, and however many they are."""
        options: Any = {"concurrency": 3, "lease": 10, "deliveries": 1}
        await do.claim(await do.queue_up(storage, "a", "b", "c", tags=["gpu"], **options))
        await do.enqueue(storage, "task", "d", "e")
        await self.advance(storage, 11)
        unable = other.queue_task("task", **options)

        assert ["d"] == do.names(await do.claim(unable, 1))
        assert ["a dead", "b dead", "c dead"] == (await do.statuses(storage))[:3]
        assert ["d"] == await storage.get_active_instructions("task")
        assert ["e"] == do.names(await do.claim(unable))

    async def test_the_count_of_give_backs_begins_anew_with_the_work(self, storage: Any) -> None:
        """`advance` shows that it was delivered; an expired lease does not."""
        for name in ("advance", "expire"):
            task, claimed = await do.claim_first(storage, task_name=name, lease=30)
            await task.release([claimed])
            (claimed,) = await do.claim(task)
            if name == "advance":
                await storage.advance(claimed.receipt, "next")
            else:
                await self.advance(storage, 31)
                (claimed,) = await do.claim(task)
            await task.release([claimed])

            assert {"advance": 1, "expire": 0}[name] == len(await do.claim(task)), name

    async def test_a_batch_has_an_order(self, storage: Any) -> None:
        """First what expired, then the queue."""
        task = await do.queue_up(storage, "z", "y", concurrency=9, lease=30)

        assert ["z", "y"] == do.names(await do.claim(task, 2))
        await self.advance(storage, 31)
        await do.enqueue(storage, "task", "low")
        await do.enqueue(storage, "task", "high", priority=1)
        assert ["z", "y", "high", "low"] == do.names(await do.claim(task))

    async def test_a_batch_tells_what_was_active_before(self, storage: Any) -> None:
        """With what had expired, and with what ends as dead; nothing of a task that is paused."""
        task = await do.queue_up(storage, "a", "b", concurrency=3, lease=30, deliveries=2)
        counted = [(await do.attempt(task, 1)).active, (await do.attempt(task)).active]
        for _ in range(3):
            await self.advance(storage, 31)
            counted.append((await do.attempt(task)).active)

        assert [0, 1, 2, 2, 0] == counted
        await storage.pause("task")
        assert (await do.attempt(task)).active is None

    async def test_a_stale_receipt_ends_nothing_beside_a_good_one(self, storage: Any) -> None:
        """Not even if both claims were made together: receipts are compared as a whole."""
        task, late = await do.claim_first(storage, concurrency=2, lease=30)
        await self.advance(storage, 31)
        await do.enqueue(storage, "task", "b")
        again, good = await do.claim(task)
        done = await storage.complete([late.receipt, good.receipt])

        assert ((good.receipt,), (late.receipt,)) == (done.applied, done.stale)
        assert [again.instruction] == await storage.get_active_instructions("task")
