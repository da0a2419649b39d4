"""Promises to those who work in steps, and to those who grant retries."""

from typing import Any

from planton.testing.conformance._base import (
    Hooks,
    claim,
    claim_first,
    claim_one,
    end_next,
    enqueue,
    fields,
    queue_up,
    record,
    refuse_each,
)


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

    async def test_no_advance_with_what_cannot_be_stored(self, storage: Any) -> None:
        """Nothing is changed."""
        claimed = await claim_one(storage, payload=1)
        await refuse_each(storage.advance, "payload", ({1},), claimed.receipt)
        for argument in ("retries", "run_in"):
            await refuse_each(storage.advance, argument, (-1,), claimed.receipt, 2)

        assert ("running", 1) == (
            (await record(storage, "a")).status,
            (await record(storage, "a")).payload,
        )

    async def test_retries_are_granted_to_what_has_none(self, storage: Any) -> None:
        """When it fails for the first time; no more are given after that."""
        task = await queue_up(storage, "a")
        for number in range(3):
            await end_next(task, storage.fail, f"broken {number}", retries=2)
        found = await record(storage, "a")

        assert ("dead", "broken 2", 3) == (found.status, found.error, found.delivery)

    async def test_what_the_instruction_brought_goes_first(self, storage: Any) -> None:
        """The one that enqueues knows more than the one that works."""
        task = await queue_up(storage, "a", retries=1)
        for _ in range(2):
            await end_next(task, storage.fail, "broken", retries=5)

        assert "dead" == (await record(storage, "a")).status

    async def test_what_is_retried_is_granted_as_many_again(self, storage: Any) -> None:
        """It begins anew."""
        task = await queue_up(storage, "a")
        for _ in range(2):
            for _ in range(2):
                await end_next(task, storage.fail, "broken", retries=1)

            assert "dead" == (await record(storage, "a")).status
            await storage.retry("task")

    async def test_a_claim_tells_how_long_it_lasts(self, storage: Any) -> None:
        """So that a consumer, wherever it is, knows how often to renew it and when to stop."""
        await enqueue(storage, "task", "a", timeout=40)
        task = await queue_up(storage, "b", lease=30, concurrency=2)
        claims = await claim(task)
        await self.advance(storage, 31)
        again = await claim(task)

        assert [(30, 40), (30, None)] == [(each.lease, each.timeout) for each in claims]
        assert {(30, 40), (30, None)} == {(each.lease, each.timeout) for each in again}
