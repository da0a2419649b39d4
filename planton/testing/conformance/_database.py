"""Promises that only some storages make; a subclass says which (see `Hooks`)."""

from contextlib import suppress
from typing import Any

import pytest
import trio

from planton._errors import InvalidQueryError
from planton.storage._arguments import to_claimant
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class RollBackError(Exception):
    """Ends a transaction of the user's."""


class DatabasePromises(Hooks):
    """The caller's own transactions, transactions in the way, and the user's own tables."""

    async def test_enqueue_is_part_of_the_callers_transaction(self, storage: Any) -> None:
        """Unseen before it is committed; rolled back with it, as if it had never been."""
        with suppress(RollBackError):
            async with self.transaction(storage) as connection:
                await storage.enqueue("task", "a", connection=connection)
                raise RollBackError
        async with self.transaction(storage) as connection:
            assert await storage.enqueue("task", "a", payload=1, connection=connection)
            assert not await storage.enqueue("task", "a", connection=connection)
            assert [] == await storage.find()
        (claimed,) = await do.claim(storage.queue_task("task"))

        assert ("a", 1) == (claimed.instruction, claimed.payload)

    async def test_a_transaction_in_the_way_loses_nothing(self, storage: Any, other: Any) -> None:
        """Claims wait for it or go away empty; afterwards each instruction is claimed once."""
        await do.enqueue(storage, "task", *"abcd")
        tasks = [each.queue_task("task", concurrency=4) for each in (storage, other)]
        seen: list[str] = []

        async def one(task: Any) -> None:
            seen.extend(do.names(await do.claim(task, 1)))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery, self.locked(storage, "task"):
                for task in tasks * 2:
                    nursery.start_soon(one, task)
                await trio.sleep(0.2)

                assert [] == seen
            for task in tasks:
                seen += do.names(await do.claim(task))

        assert ["a", "b", "c", "d"] == sorted(seen)
        assert ["a", "b", "c", "d"] == sorted(await storage.get_active_instructions("task"))

    async def test_a_plain_insert_queues(self, storage: Any) -> None:
        """Of two columns, from any language; the rest has defaults."""
        await self.insert(storage, "task", "a")
        (claimed,) = await do.claim(storage.queue_task("task"))

        assert ("a", None, 1) == (claimed.instruction, claimed.payload, claimed.delivery)

    async def test_rows_of_a_table_become_instructions(self, storage: Any, other: Any) -> None:
        """Each once, under the cap, whoever claims; their deliveries can be used up."""
        await self.add_rows(storage, *range(1, 8))
        options: Any = {"concurrency": 3, "lease": 30, "deliveries": 1}
        one, two = [
            each.claim_task("task", sql=self.claim_sql, **options) for each in (storage, other)
        ]
        first = await do.claim(one)

        assert [] == await do.claim(two)
        await storage.complete(do.receipts(first)[:2])
        second = await do.claim(two)
        assert [["1", "2", "3"], ["4", "5"]] == [sorted(do.names(first)), sorted(do.names(second))]
        assert to_claimant(None) == (await do.record(storage, "4")).claimed_by
        await self.advance(storage, 31)
        assert ["6", "7"] == sorted(do.names(await do.claim(one)))
        assert 3 == len(await storage.find(status="dead"))

    async def test_what_comes_back_precedes_the_users_table(self, storage: Any) -> None:
        """Retries, as many as the task says, are taken before new rows."""
        await self.add_rows(storage, 1, 2, 3)
        task = storage.claim_task("task", sql=self.claim_sql, retries=1)
        first = await do.end_next(task, storage.fail, "broken")
        second = await do.end_next(task, storage.fail, "broken")
        (third,) = await do.claim(task)

        assert ["1", "1", "2"] == do.names([first, second, third])
        assert [1, 2, 1] == [each.delivery for each in (first, second, third)]
        assert "dead" == (await do.record(storage, "1")).status

    async def test_a_row_that_is_claimed_again_while_it_is_active_waits(self, storage: Any) -> None:
        """The user's statement has marked it as claimed: it runs after the claim in hand."""
        await self.add_rows(storage, 1)
        task = storage.claim_task("task", sql=self.claim_sql, concurrency=5)
        (first,) = await do.claim(task)
        await self.add_rows(storage, 1)

        assert [] == await do.claim(task)
        await storage.complete(first.receipt)
        second = await do.end_next(task, storage.complete)

        assert ["1", "1"] == do.names([first, second])
        assert [] == await do.claim(task)
        assert ["1 succeeded"] * 2 == await do.statuses(storage)

    async def test_rows_that_disappear_when_the_work_is_done(self, storage: Any) -> None:
        """A plain SELECT finds what is active again and again, and none is claimed twice.

        They come in the order in which the statement returns them, after what is queued.
        """
        await self.add_rows(storage, 1, 2, 3, 4)
        await do.enqueue(storage, "task", "a")
        task = storage.claim_task("task", sql=self.select_sql, concurrency=3)
        first = await do.claim(task)
        await self.remove_rows(storage, 1)
        await storage.complete(first[1].receipt)
        second = await do.claim(task)

        assert [["a", "1", "2"], ["3"]] == [do.names(first), do.names(second)]
        assert [] == await do.claim(task)

    async def test_rows_that_failed_for_good_do_not_starve_the_rest(
        self, storage: Any, other: Any
    ) -> None:
        """A plain SELECT leaves them out, until they are retried or forgotten."""
        await self.add_rows(storage, 1, 2, 3, 4)
        task, again = [each.claim_task("task", sql=self.select_sql) for each in (storage, other)]
        dead = await do.end_next(task, storage.fail, "broken")
        failed = await do.end_next(again, storage.fail, "broken", retry=False)
        (done,) = await do.claim(task)
        await self.remove_rows(storage, 3)
        await storage.complete(done.receipt)
        (last,) = await do.claim(again)

        assert ["1", "2", "3", "4"] == do.names([dead, failed, done, last])
        await storage.retry("task", ["2"])
        await storage.complete(last.receipt)
        retried = await do.end_next(task, storage.complete)
        await self.remove_rows(storage, 2, 4)

        assert (["2"], []) == (do.names([retried]), await do.claim(task))
        await storage.prune()
        assert ["1"] == do.names(await do.claim(task))

    async def test_a_row_that_failed_twice_is_found_again_after_a_retry(self, storage: Any) -> None:
        """By a plain SELECT: none of its failures is left."""
        await self.add_rows(storage, 1)
        task = storage.claim_task("task", sql=self.select_sql)
        for _ in range(2):
            await do.end_next(task, storage.fail, "broken")
            await do.enqueue(storage, "task", "1")
        await do.end_next(task, storage.fail, "broken")
        assert [] == await do.claim(task)
        await storage.retry("task", ["1"])
        await do.end_next(task, storage.complete)

        assert ["1"] == do.names(await do.claim(task))

    async def test_a_success_after_a_failure_counts(self, storage: Any) -> None:
        """A later success counts, however it came about; a later failure does so again."""
        await self.add_rows(storage, 1, 2)
        task = storage.claim_task("task", sql=self.select_sql)
        await do.end_next(task, storage.fail, "broken")
        await do.enqueue(storage, "task", "1")
        claimed = await do.end_next(task, storage.complete)
        again = await do.end_next(task, storage.fail, "broken")
        (second,) = await do.claim(task)

        assert ["1", "1", "2"] == do.names([claimed, again, second])

    async def test_a_statement_without_limit_is_refused(self, storage: Any) -> None:
        """It could claim too much."""
        with pytest.raises(InvalidQueryError, match=r"task.*limit"):
            storage.claim_task("task", sql="SELECT 1")
