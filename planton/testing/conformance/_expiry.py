"""Promises of what comes back: deliveries, expired leases, and claims that were given back."""

from datetime import timedelta
from typing import Any

from planton.testing.conformance._base import (
    Hooks,
    attempt,
    claim,
    claim_first,
    clock,
    enqueue,
    failing,
    names,
    queue_up,
    receipts,
    record,
    statuses,
)


class ExpiryPromises(Hooks):
    """`deliveries` bounds how often a lease may expire; what else comes back is not counted."""

    async def test_only_an_expired_lease_uses_up_the_last_delivery(self, storage: Any) -> None:
        """A release, a give-back, or a failure with retries left does not make it dead."""
        ends: dict[str, Any] = {
            "release": storage.release,
            "give back": None,
            "fail": failing(storage),
        }
        for name, end in ends.items():
            options: Any = {"retries": 1, "lease": 30, "deliveries": 1}
            task, first = await claim_first(storage, task_name=name, **options)
            await (task.release([first]) if end is None else end(first.receipt))

            assert [("a", "queued")] == await statuses(storage, name), name
            (second,) = await claim(task)
            assert 2 == second.delivery, name
            await self.advance(storage, 31)
            assert [] == await claim(task), name
            assert [("a", "dead")] == await statuses(storage, name), name

    async def test_used_up_claims_end_whoever_notices(self, storage: Any, other: Any) -> None:
        """Also if this dispatcher does not offer their tags, and however many they are."""
        options: Any = {"concurrency": 3, "lease": 10, "deliveries": 1}
        await claim(await queue_up(storage, "a", "b", "c", tags=["gpu"], **options))
        await enqueue(storage, "task", "d", "e")
        await self.advance(storage, 11)
        unable = other.queue_task("task", **options)

        assert ["d"] == names(await claim(unable, 1))
        assert [(name, "dead") for name in "abc"] == (await statuses(storage))[:3]
        assert ["d"] == await storage.get_active_instructions("task")
        assert ["e"] == names(await claim(unable))

    async def test_what_is_queued_again_waits_for_a_claim_that_expires(self, storage: Any) -> None:
        """The expired one is delivered again first, never both at the same time."""
        task, _ = await claim_first(storage, payload="first", concurrency=5, lease=30)
        await enqueue(storage, "task", "a", payload="second")
        await self.advance(storage, 31)
        (again,) = await claim(task)

        assert ("first", 2) == (again.payload, again.delivery)
        assert [] == await claim(task)
        await storage.complete(again.receipt)
        (last,) = await claim(task)
        assert ("second", 1) == (last.payload, last.delivery)

    async def test_what_is_queued_again_follows_one_that_died(self, storage: Any) -> None:
        """In the very claim that ends the other, whose slot it takes."""
        task, _ = await claim_first(storage, payload="first", lease=30, deliveries=1)
        await enqueue(storage, "task", "a", payload="second")
        await self.advance(storage, 31)
        (second,) = await claim(task)

        assert ("second", 1) == (second.payload, second.delivery)
        assert [("a", "dead"), ("a", "running")] == await statuses(storage)

    async def test_a_claim_that_is_not_offered_meets_its_successor(
        self, storage: Any, other: Any
    ) -> None:
        """It is the same unit of work: it is queued once, and claimable by whoever offers that."""
        await claim_first(storage, tags=["gpu"], lease=30)
        await enqueue(storage, "task", "a", payload="second")
        await self.advance(storage, 31)
        (second,) = await claim(other.queue_task("task", lease=30))

        assert "second" == second.payload
        assert [("a", "running")] == await statuses(storage)

    async def test_the_count_of_give_backs_begins_anew_with_the_work(self, storage: Any) -> None:
        """`advance` shows that it was delivered; an expired lease does not."""
        for name in ("advance", "expire"):
            task, claimed = await claim_first(storage, name, lease=30)
            await task.release([claimed])
            (claimed,) = await claim(task)
            if name == "advance":
                await storage.advance(claimed.receipt, "next")
            else:
                await self.advance(storage, 31)
                (claimed,) = await claim(task)
            before = await clock(storage)
            await task.release([claimed])
            run_at = (await record(storage, name)).run_at
            pause = timedelta(seconds=0 if name == "advance" else 1)

            assert before <= run_at - pause <= await clock(storage), name
            await self.advance(storage, 2)
            await storage.complete(receipts(await claim(task)))

    async def test_a_batch_has_an_order(self, storage: Any) -> None:
        """First what expired, then the queue."""
        task = await queue_up(storage, "z", "y", concurrency=9, lease=30)

        assert ["z", "y"] == names(await claim(task, 2))
        await self.advance(storage, 31)
        await enqueue(storage, "task", "low")
        await enqueue(storage, "task", "high", priority=1)
        assert ["z", "y", "high", "low"] == names(await claim(task))

    async def test_a_batch_tells_what_was_active_before(self, storage: Any) -> None:
        """With what had expired, and with what ends as dead; nothing of a task that is paused."""
        task = await queue_up(storage, "a", "b", concurrency=3, lease=30, deliveries=2)
        counted = [(await attempt(task, 1)).active, (await attempt(task)).active]
        for _ in range(3):
            await self.advance(storage, 31)
            counted.append((await attempt(task)).active)

        assert [0, 1, 2, 2, 0] == counted
        await storage.pause("task")
        assert (await attempt(task)).active is None

    async def test_a_stale_receipt_ends_nothing_beside_a_good_one(self, storage: Any) -> None:
        """Not even if both claims were made together: receipts are compared as a whole."""
        task, late = await claim_first(storage, concurrency=2, lease=30)
        await self.advance(storage, 31)
        await enqueue(storage, "task", "b")
        again, good = await claim(task)
        done = await storage.complete([late.receipt, good.receipt])

        assert ((good.receipt,), (late.receipt,)) == (done.applied, done.stale)
        assert [again.instruction] == await storage.get_active_instructions("task")
