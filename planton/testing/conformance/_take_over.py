"""Promises to consumers behind a broker: the same message twice runs once."""

from functools import partial
from typing import Any

from planton.testing.conformance._base import (
    Hooks,
    at_once,
    claim,
    claim_first,
    claim_one,
    enqueue,
    receipts,
    record,
    refuse_each,
)
from planton.testing.conformance._reports import reports


class TakeOverPromises(Hooks):
    """`take_over` exchanges a receipt for a new one, once."""

    async def test_of_two_that_take_over_one_wins(self, storage: Any, other: Any) -> None:
        """At the same time, in one process or in two; the others hear that theirs is stale."""
        claimed = await claim_one(storage)
        calls = [partial(each.take_over, claimed.receipt) for each in (storage, other)]
        taken = await at_once(*calls * 2)
        new = [each.receipts[claimed.receipt] for each in taken if each.receipts]

        assert 1 == len(new)
        assert 3 == sum(each.stale == (claimed.receipt,) for each in taken)
        assert tuple(new) == (await storage.complete(new)).applied

    async def test_the_old_receipt_names_nothing_any_more(self, storage: Any) -> None:
        """Whatever is reported by it is stale; the new one is as good as any."""
        for number, name in enumerate(reports(storage)):
            claimed = await claim_one(storage, f"task{number}", payload=1)
            taken = (await storage.take_over(claimed.receipt)).receipts
            before = await record(storage, "a", f"task{number}")
            late = await reports(storage)[name](claimed.receipt)

            assert (claimed.receipt,) == late.stale, name
            assert before == await record(storage, "a", f"task{number}"), name
            again = await storage.take_over(claimed.receipt)
            assert ({}, (claimed.receipt,)) == (again.receipts, again.stale), name
            new = taken[claimed.receipt]
            assert (new,) == (await reports(storage)[name](new)).applied, name

    async def test_after_its_lease_nothing_is_taken_over(self, storage: Any) -> None:
        """Somebody may have it already: it is delivered again."""
        task, claimed = await claim_first(storage, lease=30)
        await self.advance(storage, 31)

        assert (claimed.receipt,) == (await storage.take_over(claimed.receipt)).stale
        (again,) = await claim(task)
        assert 2 == again.delivery

    async def test_many_are_taken_over_at_once(self, storage: Any) -> None:
        """Each gets a receipt of its own; those of the past are stale."""
        await enqueue(storage, "task", "a", "b", "c")
        a, b, c = receipts(await claim(storage.queue_task("task", concurrency=3)))
        await storage.complete(b)
        taken = await storage.take_over([c, b, a])

        assert ([c, a], (b,)) == (list(taken.receipts), taken.stale)
        new = list(taken.receipts.values())
        assert (tuple(new), ()) == ((done := await storage.complete(new)).applied, done.stale)
        nothing = await storage.take_over([])
        assert ({}, ()) == (nothing.receipts, nothing.stale)

    async def test_the_consumer_says_how_long_its_lease_is(self, storage: Any) -> None:
        """From now on, for heartbeats as well; as before if it does not say."""
        for name, lease, alive in (("given", 100, 99), ("kept", None, 29)):
            await enqueue(storage, name, "a")
            task = storage.queue_task(name, lease=30)
            (claimed,) = await claim(task)
            await self.advance(storage, 20)
            (new,) = (await storage.take_over(claimed.receipt, lease=lease)).receipts.values()
            for _ in range(2):
                await self.advance(storage, alive)
                assert [] == await claim(task), name
                assert (new,) == (await storage.heartbeat(new)).applied, name
            await self.advance(storage, alive + 2)
            assert 1 == len(await claim(task)), name

    async def test_the_time_that_a_delivery_may_take_begins_with_the_take_over(
        self, storage: Any
    ) -> None:
        """What it waited in the broker is not counted; the lease is not longer than that time."""
        task, claimed = await claim_first(storage, timeout=40, lease=30)
        await self.advance(storage, 25)
        (new,) = (await storage.take_over(claimed.receipt, lease=100)).receipts.values()
        await self.advance(storage, 39)
        await storage.heartbeat(new)

        assert [] == await claim(task)
        await self.advance(storage, 2)
        assert 1 == len(await claim(task))

    async def test_no_take_over_with_what_makes_no_sense(self, storage: Any) -> None:
        """And the claim stays as it is."""
        claimed = await claim_one(storage)
        await refuse_each(storage.take_over, "lease", (0, -1, True, "60"), claimed.receipt)

        assert (claimed.receipt,) == (await storage.heartbeat(claimed.receipt)).applied
