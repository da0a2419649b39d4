"""Promises of the strict claim: cap, leases, take over, release."""

from datetime import timedelta
from typing import Any

import trio

from planton._events import ErrorEvent, InstructionEvent
from planton._planton import Planton
from planton.storage import Reports, Storage
from planton.storage._arguments import to_claimant
from planton.testing._collector import EventCollector
from planton.testing.conformance._base import (
    Hooks,
    attempt,
    claim,
    claim_at_once,
    claim_first,
    claim_one,
    clock,
    enqueue,
    failing,
    fields,
    names,
    queue_up,
    receipts,
    record,
    request,
    statuses,
)


class ClaimPromises(Hooks):
    """One transaction counts and claims, whoever else does so at the same time."""

    async def test_it_has_the_methods_of_a_storage(self, storage: Any) -> None:
        """All storages share one facade; an executor needs its reports alone."""
        assert isinstance(storage, Storage)
        assert isinstance(storage, Reports)

    async def test_a_claim_has_a_receipt_a_payload_and_a_delivery(self, storage: Any) -> None:
        """All that a consumer gets; deliveries count from 1."""
        claimed = await claim_one(storage, payload={"to": ["ä", None, 1.5]})

        assert ("a", {"to": ["ä", None, 1.5]}, 1) == fields(claimed, "instruction payload delivery")
        assert claimed.receipt
        assert ["a"] == await storage.get_active_instructions("task")

    async def test_the_cap_counts_what_is_active(self, storage: Any) -> None:
        """Never more than the concurrency, and the answer tells what was active before."""
        task = await queue_up(storage, *"abcde", concurrency=3)
        first, second = await attempt(task), await attempt(task)

        assert (3, 0) == (len(first.claims), first.active)
        assert (0, 3) == (len(second.claims), second.active)

    async def test_two_dispatchers_keep_one_cap(self, storage: Any, other: Any) -> None:
        """However many claim at the same time, nobody gets what another has.

        One that finds another claiming waits for it, or goes away empty and comes again.
        """
        await enqueue(storage, "task", *map(str, range(12)))
        tasks = [each.queue_task("task", concurrency=3) for each in (storage, other)]
        seen: list[str] = []
        for count in (3, 6, 9, 12):
            claimed = await claim_at_once(tasks * 3)
            claimed += await claim(tasks[0])
            seen += names(claimed)

            assert count == len(seen)
            assert 3 == len(await storage.get_active_instructions("task"))
            await other.complete(receipts(claimed))

        assert sorted(map(str, range(12))) == sorted(seen)

    async def test_many_tasks_are_claimed_in_one_call(self, storage: Any) -> None:
        """The answers come in the order of the questions."""
        await enqueue(storage, "one", "a")
        await enqueue(storage, "three", "b", "c")
        tasks = [storage.queue_task(name, concurrency=2) for name in ("one", "two", "three")]
        batches = await tasks[0].schedule.many([request(task) for task in tasks])

        assert [["a"], [], ["b", "c"]] == [names(batch.claims) for batch in batches]
        assert [["b", "c"], [], ["a"]] == [
            sorted(active)
            for active in await storage.get_active_instructions.many(["three", "two", "one"])
        ]

    async def test_an_expired_lease_changes_hands(self, storage: Any, other: Any) -> None:
        """It is delivered again, with the same payload, and holds the one slot that it held."""
        _, before = await claim_first(storage, payload=1, lease=30)
        await enqueue(storage, "task", "b")
        second = other.queue_task("task", lease=30)
        await self.advance(storage, 29)

        assert [] == await claim(second)
        await self.advance(storage, 2)
        (after,) = await claim(second)

        assert ("a", 1, 2) == (after.instruction, after.payload, after.delivery)
        assert before.receipt != after.receipt
        assert ["a"] == await storage.get_active_instructions("task")

    async def test_who_has_a_claim_can_be_seen(self, storage: Any) -> None:
        """Also who had it; nobody has what is queued."""
        task = await queue_up(storage, "a", "b", retries=1, concurrency=2, lease=30)
        queued = (await record(storage, "a")).claimed_by
        first, second = await claim(task)
        await storage.fail(first.receipt, "no network")
        await self.advance(storage, 31)
        taken_over, again = await claim(task)
        running = {(await record(storage, each)).claimed_by for each in "ab"}
        await storage.complete(taken_over.receipt)
        await storage.fail(again.receipt, "no network")
        ended = {(await record(storage, each)).claimed_by for each in "ab"}
        me = to_claimant(None)

        assert second.instruction == taken_over.instruction
        assert (None, {me}, {me}) == (queued, running, ended)

    async def test_a_take_over_is_within_limit_and_override(self, storage: Any) -> None:
        """Expired claims hold slots, but no more of them start than may run now."""
        task = await queue_up(storage, *"abcd", concurrency=4, lease=30)
        await claim(task)
        await self.advance(storage, 31)
        first = await claim(task, 1)
        await storage.set_concurrency("task", 2)
        second = await claim(task)

        assert (1, 1) == (len(first), len(second))
        assert [] == await claim(task)

    async def test_an_expired_claim_can_still_be_ended(self, storage: Any) -> None:
        """As long as nobody took it over, its work was not done twice."""
        claimed = await claim_one(storage)
        await self.advance(storage, 100)

        assert (claimed.receipt,) == (await storage.complete(claimed.receipt)).applied

    async def test_used_up_deliveries_end_as_dead(self, storage: Any) -> None:
        """An instruction that kills its consumers is not handed out for ever; its slot is free."""
        task = await queue_up(storage, "a", "b", lease=30, deliveries=2)
        deliveries = []
        for _ in range(2):
            deliveries += [each.delivery for each in await claim(task)]
            await self.advance(storage, 31)

        assert ["b"] == names(await claim(task))
        assert [1, 2] == deliveries
        assert [("a", "dead"), ("b", "running")] == await statuses(storage)
        assert "lease" in str((await record(storage, "a")).error)
        assert to_claimant(None) == (await record(storage, "a")).claimed_by

    async def test_released_claims_are_claimed_again_at_once(self, storage: Any) -> None:
        """They are queued as before, their deliveries counted on."""
        task, first = await claim_first(storage, payload=1, priority=5, tags=["x"], retries=2)
        await storage.release(first.receipt)
        released = await record(storage, "a")
        (second,) = await claim(task)

        assert (5, ("x",), 2) == (released.priority, released.tags, released.retries)
        assert ("a", 1, 2) == (second.instruction, second.payload, second.delivery)

    async def test_what_cannot_be_delivered_pauses_longer_and_longer(self, storage: Any) -> None:
        """It is claimable at once the first time, then after 1, 2, 4, … 60 seconds."""
        task = await queue_up(storage, "a")
        for pause in (0, 1, 2, 4, 8, 16, 32, 60, 60):
            claimed = await claim(task)
            before = await clock(storage)
            await task.release(claimed)
            run_at = (await record(storage, "a")).run_at

            assert before <= run_at - timedelta(seconds=pause) <= await clock(storage)
            await self.advance(storage, pause)

    async def test_a_report_of_a_consumer_ends_the_pauses(self, storage: Any) -> None:
        """It was delivered after all: what happened before does not count any more."""
        task = await queue_up(storage, "a", retries=1)
        for end in (failing(storage), storage.release, storage.complete):
            for _ in range(2):
                await task.release(await claim(task))

            assert [] == await claim(task)
            await self.advance(storage, 61)
            (claimed,) = await claim(task)
            await end(claimed.receipt)

        assert [("a", "succeeded")] == await statuses(storage)

    async def test_one_that_no_listener_takes_does_not_starve_the_others(
        self, storage: Any
    ) -> None:
        """Although what was given back comes first, and there is one slot."""
        await enqueue(storage, "task", "poison", priority=9)
        await enqueue(storage, "task", "a", "b")
        planton = Planton(tasks=[storage.queue_task("task", delay=0.01)])
        EventCollector(planton, ErrorEvent)
        taken: list[str] = []

        @planton.on(InstructionEvent)
        async def take(event: InstructionEvent) -> None:
            if event.instruction == "poison":
                raise ValueError(event.instruction)
            taken.append(event.instruction)
            await storage.complete(event.receipt)
            if event.instruction == "b":
                planton.request_stop()

        with trio.fail_after(30):
            await planton.run()

        assert ["a", "b"] == taken
        assert "queued" == (await record(storage, "poison")).status

    async def test_an_ended_claim_wakes_its_task(self, storage: Any) -> None:
        """A freed slot does not wait for the next poll."""
        task = await queue_up(storage, "a", "b", "c", delay=3600)
        planton = Planton(tasks=[task], storages=[storage])
        seen = EventCollector(planton)
        with trio.fail_after(30):
            async with planton:
                planton.wake()
                for count, end in enumerate((storage.complete, failing(storage)), 1):
                    events = await seen.wait_for(InstructionEvent, count)
                    await end(events[-1].receipt)
                await seen.wait_for(InstructionEvent, 3)

        assert ["a", "b", "c"] == seen.instructions

    async def test_a_cancelled_claim_is_heard_or_not_made(self, storage: Any) -> None:
        """There is no claim whose receipt nobody knows."""
        task = await queue_up(storage, *map(str, range(30)), concurrency=30)
        heard: list[str] = []
        for number in range(30):
            with trio.move_on_after(number * 0.00005):
                heard += names(await claim(task, 1))

        assert sorted(heard) == sorted(await storage.get_active_instructions("task"))
