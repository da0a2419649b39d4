"""Promises to those who work in steps, grant retries, or take over what a broker brought."""

from functools import partial
from typing import Any

from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class AdvancePromises(Hooks):
    """How far the work has come survives whatever happens next."""

    async def test_a_claim_goes_on_with_another_payload(self, storage: Any) -> None:
        """Under the same receipt, as if it had just been claimed for the first time."""
        task, first = await do.claim_first(storage, payload=1, retries=1, timeout=100, lease=30)
        await storage.fail(first.receipt, "broken")
        (second,) = await do.claim(task)
        await self.advance(storage, 20)
        done = await storage.advance(second.receipt, {"step": 2}, retries=7)
        found = await do.record(storage, "a")

        assert (second.receipt,) == done.applied
        assert ("running", {"step": 2}, 7, 1, None) == do.fields(
            found, "status payload retries delivery error"
        )
        await self.advance(storage, 20)
        assert [] == await do.claim(task)
        assert (second.receipt,) == (await storage.complete(second.receipt)).applied

    async def test_after_a_crash_the_next_one_gets_the_last_payload(self, storage: Any) -> None:
        """And knows that somebody had begun with it."""
        task, first = await do.claim_first(storage, payload=1, lease=30)
        await storage.advance(first.receipt, 2)
        await self.advance(storage, 31)
        (second,) = await do.claim(task)

        assert (2, 2) == (second.payload, second.delivery)
        assert (first.receipt,) == (await storage.advance(first.receipt, 3)).stale
        assert 2 == (await do.record(storage, "a")).payload

    async def test_work_may_go_on_later(self, storage: Any) -> None:
        """It holds no slot while it waits, and comes as if it was new."""
        await do.enqueue(storage, "task", "b", priority=2)
        task, first = await do.claim_first(storage, payload=1, priority=3, timeout=50, lease=30)
        done = await storage.advance(first.receipt, [2], retries=1, run_in=60)
        found = await do.record(storage, "a")
        other = await do.end_next(task, storage.complete)
        await self.advance(storage, 55)

        assert (first.receipt,) == done.applied
        assert ("queued", [2], 1, 0, 3, 50) == do.fields(
            found, "status payload retries delivery priority timeout"
        )
        assert "b" == other.instruction
        assert [] == await do.claim(task)
        await self.advance(storage, 10)
        (again,) = await do.claim(task)
        assert ("a", [2], 1) == (again.instruction, again.payload, again.delivery)
        assert (first.receipt,) == (await storage.complete(first.receipt)).stale

    async def test_retries_are_granted_to_what_has_none(self, storage: Any) -> None:
        """When it fails for the first time, no more after that; as many again by `retry`.

        The one that enqueues knows more than the one that works: its number goes first.
        """
        for name, own, granted in (("granted", 0, 2), ("own", 1, 5)):
            task = await do.queue_up(storage, "a", task_name=name, retries=own)
            for more in (own or granted, granted):  # `retry` leaves none of its own
                for number in range(more + 1):
                    await do.end_next(task, storage.fail, f"broken {number}", retries=granted)
                found = await do.record(storage, "a", name)

                assert ("dead", f"broken {more}", more + 1) == do.fields(
                    found, "status error delivery"
                )
                await storage.retry(name)


class TakeOverPromises(Hooks):
    """`take_over` exchanges a receipt for a new one, once."""

    async def test_of_two_that_take_over_one_wins(self, storage: Any, other: Any) -> None:
        """At the same time, in one process or in two; the others hear that theirs is stale."""
        _, claimed = await do.claim_first(storage)
        calls = [partial(each.take_over, claimed.receipt) for each in (storage, other)]
        taken = await do.at_once(*calls * 2)
        new = [each.receipts[claimed.receipt] for each in taken if each.receipts]

        assert 1 == len(new)
        assert 3 == sum(each.stale == (claimed.receipt,) for each in taken)
        assert tuple(new) == (await storage.complete(new)).applied

    async def test_many_are_taken_over_at_once(self, storage: Any) -> None:
        """Each gets a receipt of its own; those of the past are stale."""
        await do.enqueue(storage, "task", "a", "b", "c")
        a, b, c = do.receipts(await do.claim(storage.queue_task("task", concurrency=3)))
        await storage.complete(b)
        taken = await storage.take_over([c, b, a])

        assert ([c, a], (b,)) == (list(taken.receipts), taken.stale)
        new = list(taken.receipts.values())
        assert (tuple(new), ()) == ((done := await storage.complete(new)).applied, done.stale)
        nothing = await storage.take_over([])
        assert ({}, ()) == (nothing.receipts, nothing.stale)

    async def test_the_consumer_says_how_long_its_lease_is(self, storage: Any) -> None:
        """From now on, for heartbeats as well; as before if it does not say.

        After it nothing is taken over: somebody may have it already.
        """
        for name, lease, alive in (("given", 100, 99), ("kept", None, 29)):
            task, claimed = await do.claim_first(storage, task_name=name, lease=30)
            await self.advance(storage, 20)
            (new,) = (await storage.take_over(claimed.receipt, lease=lease)).receipts.values()
            for _ in range(2):
                await self.advance(storage, alive)
                assert [] == await do.claim(task), name
                assert (new,) == (await storage.heartbeat(new)).applied, name
            await self.advance(storage, alive + 2)
            assert (new,) == (await storage.take_over(new)).stale, name
            assert 1 == len(await do.claim(task)), name
