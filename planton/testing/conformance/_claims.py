"""Promises of the strict claim: cap, leases, take over, release."""

from datetime import timedelta
from functools import partial
from typing import Any

from planton.storage._arguments import to_claimant
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class ClaimPromises(Hooks):
    """One transaction counts and claims, whoever else does so at the same time."""

    async def test_the_cap_counts_what_is_active(self, storage: Any) -> None:
        """Never more than the concurrency, and the answer tells what was active before."""
        task = await do.queue_up(storage, *"abcde", concurrency=3)
        first, second = await do.attempt(task), await do.attempt(task)

        assert (3, 0) == (len(first.claims), first.active)
        assert (0, 3) == (len(second.claims), second.active)

    async def test_two_dispatchers_keep_one_cap(self, storage: Any, other: Any) -> None:
        """However many claim at the same time, nobody gets what another has.

        One that finds another claiming waits for it, or goes away empty and comes again.
        """
        await do.enqueue(storage, "task", *map(str, range(12)))
        tasks = [each.queue_task("task", concurrency=3) for each in (storage, other)]
        seen: list[str] = []
        for count in (3, 6, 9, 12):
            claimed = await do.claim_at_once(tasks * 3)
            claimed += await do.claim(tasks[0])
            seen += do.names(claimed)

            assert count == len(seen)
            assert 3 == len(await storage.get_active_instructions("task"))
            await other.complete(do.receipts(claimed))

        assert sorted(map(str, range(12))) == sorted(seen)

    async def test_many_tasks_are_claimed_in_one_call(self, storage: Any) -> None:
        """The answers come in the order of the questions."""
        await do.enqueue(storage, "one", "a")
        await do.enqueue(storage, "three", "b", "c")
        tasks = [storage.queue_task(name, concurrency=2) for name in ("one", "two", "three")]
        batches = await tasks[0].schedule.many([do.request(task) for task in tasks])
        active = await storage.get_active_instructions.many(["three", "two", "one"])

        assert [["a"], [], ["b", "c"]] == [do.names(batch.claims) for batch in batches]
        assert [["b", "c"], [], ["a"]] == [sorted(each) for each in active]

    async def test_an_expired_lease_changes_hands(self, storage: Any, other: Any) -> None:
        """All that a consumer gets is delivered again, and holds the one slot that it held.

        The receipt and the number of the delivery, which counts from 1, are others.
        """
        given = {"payload": {"to": ["ä", None, 1.5]}, "timeout": 40, "partition": "ä"}
        names = "payload timeout partition instruction lease delivery"
        _, before = await do.claim_first(storage, lease=30, **given)
        await do.enqueue(storage, "task", "b")
        task = other.queue_task("task", lease=20)
        await self.advance(storage, 29)

        assert [] == await do.claim(task)
        await self.advance(storage, 2)
        (after,) = await do.claim(task)
        assert (*given.values(), "a", 30, 1) == do.fields(before, names)
        assert (*given.values(), "a", 20, 2) == do.fields(after, names)
        assert before.receipt != after.receipt
        assert ["a"] == await storage.get_active_instructions("task")

    async def test_who_has_a_claim_can_be_seen(self, storage: Any) -> None:
        """Also who had it; nobody has what is queued."""
        task = await do.queue_up(storage, "a", "b", retries=1, concurrency=2, lease=30)
        queued = (await do.record(storage, "a")).claimed_by
        first, second = await do.claim(task)
        await storage.fail(first.receipt, "no network")
        await self.advance(storage, 31)
        taken_over, again = await do.claim(task)
        running = {(await do.record(storage, each)).claimed_by for each in "ab"}
        await storage.complete(taken_over.receipt)
        await storage.fail(again.receipt, "no network")
        ended = {(await do.record(storage, each)).claimed_by for each in "ab"}
        me = to_claimant(None)

        assert second.instruction == taken_over.instruction
        assert (None, {me}, {me}) == (queued, running, ended)

    async def test_a_take_over_is_within_limit_and_override(self, storage: Any) -> None:
        """Expired claims hold slots, but no more of them start than may run now.

        One that nobody took over can still be ended: its work was not done twice.
        """
        task = await do.queue_up(storage, *"abcd", concurrency=4, lease=30)
        claimed = await do.claim(task)
        await self.advance(storage, 31)
        first = await do.claim(task, 1)
        await storage.set_concurrency("task", 2)
        second = await do.claim(task)

        assert (1, 1) == (len(first), len(second))
        assert [] == await do.claim(task)
        done = await storage.complete(do.receipts(claimed))
        assert (2, 2) == (len(done.applied), len(done.stale))

    async def test_used_up_deliveries_end_as_dead(self, storage: Any) -> None:
        """An instruction that kills its consumers is not handed out for ever; its slot is free."""
        task = await do.queue_up(storage, "a", "b", lease=30, deliveries=2)
        deliveries = []
        for _ in range(2):
            deliveries += [each.delivery for each in await do.claim(task)]
            await self.advance(storage, 31)

        assert ["b"] == do.names(await do.claim(task))
        assert [1, 2] == deliveries
        assert ["a dead", "b running"] == await do.statuses(storage)
        dead = await do.record(storage, "a")
        assert "lease" in str(dead.error)
        assert to_claimant(None) == dead.claimed_by

    async def test_released_claims_are_claimed_again_at_once(self, storage: Any) -> None:
        """They are queued as before, their deliveries counted on."""
        task, first = await do.claim_first(storage, payload=1, priority=5, tags=["x"], retries=2)
        await storage.release(first.receipt)
        released = await do.record(storage, "a")
        (second,) = await do.claim(task)

        assert (5, ("x",), 2) == (released.priority, released.tags, released.retries)
        assert ("a", 1, 2) == (second.instruction, second.payload, second.delivery)

    async def test_what_cannot_be_delivered_pauses_longer_and_longer(self, storage: Any) -> None:
        """It is claimable at once the first time, then after 1, 2, 4, … 60 seconds."""
        task = await do.queue_up(storage, "a")
        for pause in (0, 1, 2, 4, 8, 16, 32, 60, 60):
            claimed = await do.claim(task)
            before = await do.clock(storage)
            await task.release(claimed)
            run_at = (await do.record(storage, "a")).run_at

            assert before <= run_at - timedelta(seconds=pause) <= await do.clock(storage)
            await self.advance(storage, pause)

    async def test_a_report_of_a_consumer_ends_the_pauses(self, storage: Any) -> None:
        """It was delivered after all: what happened before does not count any more."""
        task = await do.queue_up(storage, "a", retries=1)
        for end in (do.failing(storage), storage.release, storage.complete):
            for _ in range(2):
                await task.release(await do.claim(task))

            assert [] == await do.claim(task)
            await self.advance(storage, 61)
            (claimed,) = await do.claim(task)
            await end(claimed.receipt)

        assert ["a succeeded"] == await do.statuses(storage)

    async def test_what_is_cancelled_is_heard_or_not_done(self, storage: Any) -> None:
        """What is in the queue was answered with True, and each claim and each end is known."""
        everything = [str(number) for number in range(30)]
        queued = await do.heard(partial(storage.enqueue, "task", each) for each in everything)

        assert sorted(map(str, queued)) == sorted(do.names(await storage.find()))
        await storage.enqueue_many("task", everything)
        for end in (storage.complete, storage.release, do.failing(storage)):
            task = storage.queue_task("task", concurrency=30)
            answers = await do.heard([partial(do.claim, task, 1)] * 30)
            claimed = [claim for answer in answers.values() for claim in answer]
            active = await storage.get_active_instructions("task")

            assert sorted(do.names(claimed)) == sorted(active)
            ended = await do.heard(partial(end, each) for each in do.receipts(claimed))
            left = [each.instruction for number, each in enumerate(claimed) if number not in ended]
            assert sorted(left) == sorted(await storage.get_active_instructions("task"))
            await storage.complete(do.receipts(claimed))
            await storage.enqueue_many("task", everything)
