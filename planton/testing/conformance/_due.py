"""Promises of what is not due yet, and of what comes back: leases, deliveries, give-backs."""

from datetime import timedelta
from typing import Any

import trio

from planton._events import InstructionEvent
from planton._planton import Planton
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


def an_hour(attempt_number: int) -> float:
    """Return a delay that a storage cannot know, as nobody but the core calls the function."""
    return 3600.0 if attempt_number else 0.0


class DuePromises(Hooks):
    """`due_in` of what comes, of what comes back, and of what is lost."""

    async def test_a_dispatcher_is_there_when_something_becomes_due(self, storage: Any) -> None:
        """Queued for later, failed for now, lost with its consumer, or a time of the calendar."""
        options = {"delay": an_hour, "lease": 1}
        soon = await clock(storage) + timedelta(seconds=1)
        later = await queue_up(storage, "a", task_name="later", run_at=soon, **options)
        lost, _ = await claim_first(storage, task_name="lost", **options)
        failed, broken = await claim_first(storage, task_name="failed", retries=1, **options)
        await storage.fail(broken.receipt, "broken", retry_in=1)
        tasks = [later, failed, lost, storage.cron_task("cron", "* * * * * *", **options)]
        awaited = {task.name for task in tasks}
        async with Planton(tasks=tasks) as planton, planton.events(InstructionEvent) as stream:
            while awaited:
                with trio.move_on_after(60) as scope:
                    awaited.discard((await anext(stream)).task_name)
                assert not scope.cancelled_caught, f"nothing came of {awaited}"

    async def test_the_next_time_is_told_whatever_the_delay(self, storage: Any) -> None:
        """The dispatcher cuts its delay to it; the storage need not know how long that is."""
        later = await clock(storage) + timedelta(seconds=100)
        for number, delay in enumerate((3600, 10, an_hour)):
            name = f"task{number}"
            task = await queue_up(storage, "a", task_name=name, run_at=later, delay=delay)

            _assert_near(100, await attempt(task))

    async def test_the_time_of_a_retry_is_told(self, storage: Any) -> None:
        """As that of whatever is queued for later; `retry_in` counts from the report on."""
        task, failed = await claim_first(storage, retries=1, delay=an_hour)
        await storage.fail(failed.receipt, "broken", retry_in=40)
        before = await attempt(task)
        await self.advance(storage, 41)

        _assert_near(40, before)
        assert ([], ["a"]) == (before.claims, names(await claim(task)))

    async def test_the_end_of_a_lease_is_told(self, storage: Any) -> None:
        """Of those that are active, and of the very claim that is made; a timeout may be sooner."""
        for name, options in (("task", {}), ("short", {"timeout": 50})):
            task = storage.queue_task(name, delay=an_hour, lease=80, concurrency=2)
            await enqueue(storage, name, "a", **options)

            for _ in range(2):
                _assert_near(options.get("timeout", 80), await attempt(task))

    async def test_what_is_due_later_is_told_beside_expired_leases(self, storage: Any) -> None:
        """One is taken over, another one ends as dead and frees the only slot."""
        for name, options in (("over", {"concurrency": 2}), ("dead", {"deliveries": 1})):
            given: dict[str, Any] = {"task_name": name, "delay": an_hour, "lease": 30, **options}
            task, _ = await claim_first(storage, **given)
            later = await clock(storage) + timedelta(seconds=51)
            await enqueue(storage, name, "b", run_at=later)
            await self.advance(storage, 31)

            _assert_near(20, await attempt(task))

    async def test_a_claim_that_its_limit_ended_is_followed_by_another(self, storage: Any) -> None:
        """At once: the cap has room, by an override, or because consumers had less."""
        await enqueue(storage, "task", *"abcdef")
        later = await clock(storage) + timedelta(seconds=40)
        task = await queue_up(storage, "g", run_at=later, concurrency=2, delay=an_hour)
        await storage.set_concurrency("task", 8)
        batches = [await attempt(task), await attempt(task, 1), await attempt(task, 5)]

        assert [2, 1, 3] == [len(batch.claims) for batch in batches]
        assert [0, 0] == [batch.due_in for batch in batches[:2]]
        _assert_near(40, batches[2])

    async def test_a_time_that_finds_no_slot_is_told_once_there_is_one(self, storage: Any) -> None:
        """While the cap is reached only the end of a lease is; the freed slot wakes the task."""
        later = await clock(storage) + timedelta(seconds=40)
        task, claimed = await claim_first(storage, delay=an_hour, lease=80)
        await enqueue(storage, "task", "b", run_at=later)

        _assert_near(80, await attempt(task))
        await storage.complete(claimed.receipt)
        _assert_near(40, await attempt(task))

    async def test_what_waits_for_its_own_claim_is_not_due(self, storage: Any) -> None:
        """It was queued again while it is active: the end of the lease is the next time."""
        task, _ = await claim_first(storage, delay=an_hour, lease=80, concurrency=3)
        await enqueue(storage, "task", "a")
        for _ in range(2):
            batch = await attempt(task)

            assert [] == batch.claims
            _assert_near(80, batch)

    async def test_only_what_is_offered_is_told(self, storage: Any) -> None:
        """Not what another dispatcher has the tags or the key for."""
        now = await clock(storage)
        for number, options in enumerate(({"tags": ["gpu"]}, {}, {})):
            later = now + timedelta(seconds=20 + 20 * number)
            await enqueue(storage, "task", f"{'ab'[number > 1]}{number}", run_at=later, **options)

        _assert_near(60, await attempt(storage.queue_task("task", delay=an_hour, key="b%")))
        _assert_near(40, await attempt(storage.queue_task("task", delay=an_hour)))

    async def test_nothing_is_told_when_nothing_comes(self, storage: Any) -> None:
        """Nothing is queued, or it is due already."""
        task = storage.queue_task("task", delay=an_hour, concurrency=2)

        assert (await attempt(task)).due_in is None
        _, only = await claim_first(storage, delay=an_hour, concurrency=2)
        await storage.complete(only.receipt)
        assert (await attempt(task)).due_in is None


def _assert_near(seconds: float, batch: Any) -> None:
    assert batch.due_in is not None
    # A time that was stored as a float is not given back to the last digit.
    assert seconds - 10 < batch.due_in <= seconds + 0.001


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

    async def test_one_not_offered_meets_its_successor(self, storage: Any, other: Any) -> None:
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
