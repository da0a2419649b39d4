"""Promises to consumers: what they report by receipt, and what becomes of late reports."""

from functools import partial
from typing import Any

import trio

from planton._errors import InvalidArgumentError
from planton.testing.conformance._base import (
    Hooks,
    at_once,
    claim,
    claim_first,
    claim_one,
    clock,
    end_next,
    enqueue,
    failing,
    fields,
    receipts,
    record,
    statuses,
)


def reports(storage: Any) -> dict[str, Any]:
    """Give the reports, each as a function of receipts."""
    return {
        "heartbeat": storage.heartbeat,
        "complete": storage.complete,
        "fail": failing(storage),
        "release": storage.release,
        "advance": lambda receipts: storage.advance(receipts, "next"),
        "advance later": lambda receipts: storage.advance(receipts, "next", run_in=0),
    }


class ReportPromises(Hooks):
    """A report changes the claim that its receipt names, and no other."""

    async def test_a_completed_claim_is_kept_with_its_result(self, storage: Any) -> None:
        """It is active no more; times are there only where they mean something."""
        claimed = await claim_one(storage, lease=30)
        before = await record(storage, "a")
        result = {"rows": [1, None, "ä"]}
        done = await storage.complete(claimed.receipt, result)
        found = await record(storage, "a")

        assert 29.9 < (before.lease_expires_at - before.claimed_at).total_seconds() < 30.1
        assert ((claimed.receipt,), ()) == (done.applied, done.stale)
        assert ("succeeded", result, None) == fields(found, "status result error")
        assert [] == await storage.get_active_instructions("task")
        assert found.created_at <= found.claimed_at <= found.ended_at <= await clock(storage)
        assert (None, None) == fields(before, "run_at ended_at")
        assert (None, None) == fields(found, "run_at lease_expires_at")

    async def test_a_report_may_be_of_many(self, storage: Any) -> None:
        """It tells which were applied and which were stale, in the order of the receipts."""
        for number, (name, report) in enumerate(reports(storage).items()):
            await enqueue(storage, f"task{number}", "a", "b", "c")
            task = storage.queue_task(f"task{number}", concurrency=3)
            a, b, c = receipts(await claim(task))
            await storage.complete(b)
            done = await report([c, b, a])

            assert ((c, a), (b,)) == (done.applied, done.stale), name
            nothing = await report([])
            assert ((), ()) == (nothing.applied, nothing.stale), name

    async def test_different_reports_may_be_sent_together(self, storage: Any) -> None:
        """Each is answered by itself; a receipt that is none spoils no other report."""
        await enqueue(storage, "task", "a", "b", "c")
        a, b, c = receipts(await claim(storage.queue_task("task", concurrency=3)))
        await storage.complete(c)
        done, strange, released = await storage.report_many(
            [("complete", [a], ("1",)), ("complete", ["strange"], ("1",)), ("release", [b, c], ())]
        )

        assert ((a,), ()) == (done.applied, done.stale)
        assert isinstance(strange, InvalidArgumentError)
        assert ((b,), (c,)) == (released.applied, released.stale)
        assert 1 == (await record(storage, "a")).result
        assert [] == await storage.report_many([])

    async def test_a_stale_receipt_changes_nothing(self, storage: Any) -> None:
        """Once a claim was taken over, all four reports of the one who lost it are refused."""
        task, late = await claim_first(storage, retries=3, lease=30)
        await self.advance(storage, 31)
        (current,) = await claim(task)
        before = await record(storage, "a")
        for name, report in reports(storage).items():
            done = await report(late.receipt)

            assert ((), (late.receipt,)) == (done.applied, done.stale), name
            assert before == await record(storage, "a"), name

        assert (current.receipt,) == (await storage.complete(current.receipt)).applied

    async def test_an_ended_or_released_claim_is_stale(self, storage: Any) -> None:
        """Each receipt names one claim, and ends it once."""
        for number, end in enumerate((storage.complete, storage.release, failing(storage))):
            claimed = await claim_one(storage, f"task{number}")
            await end(claimed.receipt)
            for report in reports(storage).values():
                assert (claimed.receipt,) == (await report(claimed.receipt)).stale

    async def test_a_receipt_is_enough_for_another_process(self, storage: Any, other: Any) -> None:
        """A storage that never heard of the task reports by nothing but the receipt."""
        for number, (name, report) in enumerate(reports(other).items()):
            claimed = await claim_one(storage, f"task{number}")

            assert (claimed.receipt,) == (await report(str(claimed.receipt))).applied, name

    async def test_a_heartbeat_renews_the_lease(self, storage: Any, other: Any) -> None:
        """By the seconds of its task, from now; the receipt stays the same."""
        task, claimed = await claim_first(storage, lease=30)
        for _ in range(3):
            await self.advance(storage, 25)

            assert (claimed.receipt,) == (await other.heartbeat(claimed.receipt)).applied
            assert [] == await claim(task)
        await self.advance(storage, 31)
        assert 1 == len(await claim(task))

    async def test_no_heartbeat_goes_beyond_the_timeout(self, storage: Any) -> None:
        """A handler that hangs and keeps beating loses its claim when its time is up."""
        task, claimed = await claim_first(storage, timeout=40, lease=30)
        await self.advance(storage, 25)
        await storage.heartbeat(claimed.receipt)
        await self.advance(storage, 10)
        await storage.heartbeat(claimed.receipt)

        assert [] == await claim(task)
        await self.advance(storage, 6)
        await storage.heartbeat(claimed.receipt)
        (again,) = await claim(task)

        assert 2 == again.delivery

    async def test_a_failure_with_retries_left_is_queued_again(self, storage: Any) -> None:
        """At once, with one retry less and the error; when none is left it ends as dead."""
        task, first = await claim_first(storage, retries=1, payload=1, priority=4)
        await storage.fail(first.receipt, "out of paper")
        queued = await record(storage, "a")
        second = await end_next(task, storage.fail, "out of ink")
        dead = await record(storage, "a")

        assert ("queued", 0, "out of paper", 4) == fields(queued, "status retries error priority")
        assert (1, 2) == (second.payload, second.delivery)
        assert ("dead", 0, "out of ink", 2) == fields(dead, "status retries error delivery")

    async def test_a_failure_that_is_not_to_be_retried_ends_as_failed(self, storage: Any) -> None:
        """Whatever retries are left."""
        claimed = await claim_one(storage, retries=5)
        await storage.fail(claimed.receipt, "no such user", retry=False)
        found = await record(storage, "a")

        assert ("failed", "no such user", 5) == (found.status, found.error, found.retries)

    async def test_a_retry_may_lower_the_priority(self, storage: Any) -> None:
        """By one, so that others come first."""
        claimed = await claim_one(storage, retries=1, priority=3)
        await storage.fail(claimed.receipt, "broken", lower_priority=True)

        assert 2 == (await record(storage, "a")).priority

    async def test_an_exception_is_kept_by_name_and_message(self, storage: Any) -> None:
        """For people who look for the reason later."""
        claimed = await claim_one(storage)
        await storage.fail(claimed.receipt, ValueError("no such user"))
        error = str((await record(storage, "a")).error)

        assert "ValueError" in error
        assert "no such user" in error

    async def test_a_cancelled_report_is_heard_or_not_made(self, storage: Any) -> None:
        """Of each of the reports that end a claim: what is active was not acknowledged."""
        for number, report in enumerate((storage.complete, storage.release, failing(storage))):
            name = f"task{number}"
            await enqueue(storage, name, *map(str, range(20)))
            claimed = await claim(storage.queue_task(name, concurrency=20))
            heard = set()
            for index, each in enumerate(claimed):
                with trio.move_on_after(index * 0.00005):
                    await report(each.receipt)
                    heard.add(each.instruction)
            active = set(await storage.get_active_instructions(name))

            assert active == {each.instruction for each in claimed} - heard

    async def test_two_reports_of_one_claim_end_it_once(self, storage: Any, other: Any) -> None:
        """Whoever comes second is told that he is late."""
        claimed = await claim_one(storage)
        calls = [partial(each.complete, claimed.receipt) for each in (storage, other)]
        done = await at_once(*calls * 2)

        assert 1 == sum(len(each.applied) for each in done)
        assert [("a", "succeeded")] == await statuses(storage)
