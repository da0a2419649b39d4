"""Promises to those who work in steps, grant retries, or take over what a broker brought."""

from functools import partial
from typing import Any

from planton.testing.conformance._base import (
    Hooks,
    at_once,
    claim,
    claim_first,
    claim_one,
    end_next,
    enqueue,
    fields,
    queue_up,
    receipts,
    record,
)
from planton.testing.conformance._reports import reports


class AdvancePromises(Hooks):
    """How far the work has come survives whatever happens next."""

    async def test_a_claim_goes_on_with_another_payload(self, storage: Any) -> None:
        """Under the same receipt, as if it had just been claimed for the first time."""
        task, first = await claim_first(storage, payload=1, retries=1, timeout=100, lease=30)
        await storage.fail(first.receipt, "broken")
        (second,) = await claim(task)
        await self.advance(storage, 20)
        done = await storage.advance(second.receipt, {"step": 2}, retries=7)
        found = await record(storage, "a")

        assert (second.receipt,) == done.applied
        assert ("running", {"step": 2}, 7, 1, None) == fields(
            found, "status payload retries delivery error"
        )
        await self.advance(storage, 20)
        assert [] == await claim(task)
        assert (second.receipt,) == (await storage.complete(second.receipt)).applied

    async def test_after_a_crash_the_next_one_gets_the_last_payload(self, storage: Any) -> None:
        """And knows that somebody had begun with it."""
        task, first = await claim_first(storage, payload=1, lease=30)
        await storage.advance(first.receipt, 2)
        await self.advance(storage, 31)
        (second,) = await claim(task)

        assert (2, 2) == (second.payload, second.delivery)
        assert (first.receipt,) == (await storage.advance(first.receipt, 3)).stale
        assert 2 == (await record(storage, "a")).payload

    async def test_work_may_go_on_later(self, storage: Any) -> None:
        """It holds no slot while it waits, and comes as if it was new."""
        await enqueue(storage, "task", "b", priority=2)
        task, first = await claim_first(storage, payload=1, priority=3, timeout=50, lease=30)
        done = await storage.advance(first.receipt, [2], retries=1, run_in=60)
        found = await record(storage, "a")
        other = await end_next(task, storage.complete)
        await self.advance(storage, 55)

        assert (first.receipt,) == done.applied
        assert ("queued", [2], 1, 0, 3, 50) == fields(
            found, "status payload retries delivery priority timeout"
        )
        assert "b" == other.instruction
        assert [] == await claim(task)
        await self.advance(storage, 10)
        (again,) = await claim(task)
        assert ("a", [2], 1) == (again.instruction, again.payload, again.delivery)
        assert (first.receipt,) == (await storage.complete(first.receipt)).stale

    async def test_the_time_out_begins_anew_with_each_payload(self, storage: Any) -> None:
        """It is for one delivery of one payload."""
        task, claimed = await claim_first(storage, timeout=40, lease=30)
        await self.advance(storage, 25)
        await storage.advance(claimed.receipt, 2)
        await self.advance(storage, 25)
        await storage.heartbeat(claimed.receipt)

        assert [] == await claim(task)
        await self.advance(storage, 16)
        assert 1 == len(await claim(task))

    async def test_retries_are_granted_to_what_has_none(self, storage: Any) -> None:
        """When it fails for the first time, no more after that; as many again by `retry`."""
        task = await queue_up(storage, "a")
        for _ in range(2):
            for number in range(3):
                await end_next(task, storage.fail, f"broken {number}", retries=2)
            found = await record(storage, "a")

            assert ("dead", "broken 2", 3) == fields(found, "status error delivery")
            await storage.retry("task")

    async def test_what_the_instruction_brought_goes_first(self, storage: Any) -> None:
        """The one that enqueues knows more than the one that works."""
        task = await queue_up(storage, "a", retries=1)
        for _ in range(2):
            await end_next(task, storage.fail, "broken", retries=5)

        assert "dead" == (await record(storage, "a")).status

    async def test_a_claim_tells_how_long_it_lasts(self, storage: Any) -> None:
        """So that a consumer, wherever it is, knows how often to renew it and when to stop."""
        await enqueue(storage, "task", "a", timeout=40)
        task = await queue_up(storage, "b", lease=30, concurrency=2)
        claims = await claim(task)
        await self.advance(storage, 31)
        again = await claim(task)

        assert [(30, 40), (30, None)] == [(each.lease, each.timeout) for each in claims]
        assert {(30, 40), (30, None)} == {(each.lease, each.timeout) for each in again}


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

    async def test_the_timeout_begins_with_the_take_over(self, storage: Any) -> None:
        """What it waited in the broker is not counted; the lease is not longer than that time."""
        task, claimed = await claim_first(storage, timeout=40, lease=30)
        await self.advance(storage, 25)
        (new,) = (await storage.take_over(claimed.receipt, lease=100)).receipts.values()
        await self.advance(storage, 39)
        await storage.heartbeat(new)

        assert [] == await claim(task)
        await self.advance(storage, 2)
        assert 1 == len(await claim(task))
