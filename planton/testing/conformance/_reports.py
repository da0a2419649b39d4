"""Promises to consumers: what they report by receipt, and what becomes of late reports."""

from functools import partial
from typing import Any

from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class ReportPromises(Hooks):
    """A report changes the claim that its receipt names, and no other."""

    async def test_a_completed_claim_is_kept_with_its_result(self, storage: Any) -> None:
        """It is active no more; times are there only where they mean something."""
        _, claimed = await do.claim_first(storage, lease=30)
        before = await do.record(storage, "a")
        result = {"rows": [1, None, "ä"]}
        done = await storage.complete(claimed.receipt, result)
        found = await do.record(storage, "a")

        assert 29.9 < (before.lease_expires_at - before.claimed_at).total_seconds() < 30.1
        assert ((claimed.receipt,), ()) == (done.applied, done.stale)
        assert ("succeeded", result, None) == do.fields(found, "status result error")
        assert [] == await storage.get_active_instructions("task")
        assert found.created_at <= found.claimed_at <= found.ended_at <= await do.clock(storage)
        assert (None, None) == do.fields(before, "run_at ended_at")
        assert (None, None) == do.fields(found, "run_at lease_expires_at")

    async def test_a_receipt_is_enough_for_another_process(self, storage: Any, other: Any) -> None:
        """A storage that never heard of the task reports by nothing else, one or many.

        It tells which were applied and which were stale, in the order of the receipts.
        """
        for name, report in do.reports(other).items():
            await do.enqueue(storage, name, "a", "b", "c")
            a, b, c = do.receipts(await do.claim(storage.queue_task(name, concurrency=3)))
            await storage.complete(b)
            done = await report([c, b, a])

            assert ((c, a), (b,)) == (done.applied, done.stale), name
            nothing = await report([])
            assert ((), ()) == (nothing.applied, nothing.stale), name

    async def test_a_stale_receipt_changes_nothing(self, storage: Any) -> None:
        """Once its claim was ended, given back, taken over or rescued, all reports are refused."""
        reports = {**do.reports(storage), "take over": storage.take_over}
        for way in ("complete", "fail", "release", "take over", "rescue"):
            task, late = await do.claim_first(storage, task_name=way, retries=3, lease=30)
            if way == "rescue":
                await self.advance(storage, 31)
                assert 1 == len(await do.claim(task))
            else:
                await reports[way](late.receipt)
            before = await do.record(storage, "a", way)
            for name, report in reports.items():
                assert (late.receipt,) == (await report(late.receipt)).stale, (way, name)
                assert before == await do.record(storage, "a", way), (way, name)

    async def test_a_heartbeat_renews_the_lease(self, storage: Any, other: Any) -> None:
        """By the seconds of its task, from now; the receipt stays the same."""
        task, claimed = await do.claim_first(storage, lease=30)
        for _ in range(3):
            await self.advance(storage, 25)

            assert (claimed.receipt,) == (await other.heartbeat(claimed.receipt)).applied
            assert [] == await do.claim(task)
        await self.advance(storage, 31)
        assert 1 == len(await do.claim(task))

    async def test_no_heartbeat_goes_beyond_the_timeout(self, storage: Any) -> None:
        """A handler that hangs and keeps beating loses its claim when its time is up.

        That begins anew with each payload, and with a take-over: waiting in a broker is no work.
        """
        for name in ("claim", "advance", "take over"):
            task, claimed = await do.claim_first(storage, task_name=name, timeout=40, lease=30)
            receipt = claimed.receipt
            if name != "claim":
                await self.advance(storage, 25)
            if name == "advance":
                await storage.advance(receipt, 2)
            if name == "take over":
                (receipt,) = (await storage.take_over(receipt, lease=100)).receipts.values()
            for seconds in (25, 14):
                await self.advance(storage, seconds)
                await storage.heartbeat(receipt)

            assert [] == await do.claim(task), name
            await self.advance(storage, 2)
            await storage.heartbeat(receipt)
            assert 1 == len(await do.claim(task)), name

    async def test_a_failure_with_retries_left_is_queued_again(self, storage: Any) -> None:
        """At once, with one retry less and the error; when none is left it ends as dead."""
        task, first = await do.claim_first(storage, retries=1, payload=1)
        await storage.fail(first.receipt, "out of paper")
        queued = await do.record(storage, "a")
        second = await do.end_next(task, storage.fail, "out of ink")
        dead = await do.record(storage, "a")

        assert ("queued", 0, "out of paper") == do.fields(queued, "status retries error")
        assert (1, 2) == (second.payload, second.delivery)
        assert ("dead", 0, "out of ink", 2) == do.fields(dead, "status retries error delivery")

    async def test_reports_of_one_claim_end_it_once(self, storage: Any, other: Any) -> None:
        """Of whatever kind they are: whoever comes second is told that he is late."""
        _, claimed = await do.claim_first(storage, retries=1)
        ends = [storage.complete, do.failing(other), storage.release, other.complete]
        done = await do.at_once(*(partial(end, claimed.receipt) for end in ends))

        assert 1 == sum(len(each.applied) for each in done)
        assert 1 == len(await do.statuses(storage))

    async def test_a_failure_may_end_it_or_lower_its_priority(self, storage: Any) -> None:
        """Whatever retries are left; of an exception the name and the message are kept."""
        cases: list[tuple[Any, dict[str, Any], Any]] = [
            ("no such user", {"retry": False}, ("failed", "no such user", 5, 3)),
            ("broken", {"lower_priority": True}, ("queued", "broken", 4, 2)),
            (ValueError("no"), {}, ("queued", "ValueError: no", 4, 3)),
        ]
        for number, (error, options, expected) in enumerate(cases):
            _, claimed = await do.claim_first(
                storage, task_name=f"task{number}", retries=5, priority=3
            )
            await storage.fail(claimed.receipt, error, **options)
            found = await do.record(storage, "a", f"task{number}")

            assert expected == do.fields(found, "status error retries priority")
