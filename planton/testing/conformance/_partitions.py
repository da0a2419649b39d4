"""Promises of partitions: a cap on each, turns between them, order within one."""

from collections import Counter
from datetime import timedelta
from typing import Any

from planton._task import Claim
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class PartitionPromises(Hooks):
    """Tenants, hosts, customers: what one of them has queued is not the others' trouble."""

    async def test_no_partition_has_more_active_than_it_may(self, storage: Any, other: Any) -> None:
        """However many dispatchers claim at the same time."""
        for number in range(6):
            for partition in "abc":
                await do.enqueue(storage, "task", f"{partition}{number}", partition=partition)
        options = {"concurrency": 20, "partition_concurrency": 2}
        tasks = [each.queue_task("task", **options) for each in (storage, other)]
        for _ in range(3):
            claimed = await do.claim_at_once(tasks * 3)
            claimed += await do.claim(tasks[1])

            assert {"a": 2, "b": 2, "c": 2} == Counter(each.partition for each in claimed)
            assert [] == await do.claim(tasks[0])
            await other.complete(do.receipts(claimed))

    async def test_what_has_no_partition_is_not_limited(self, storage: Any) -> None:
        """It takes turns with the partitions, as one of them, and starves none."""
        await do.enqueue(storage, "task", *"123456")
        await do.enqueue(storage, "task", *"abc", partition="a")
        task = storage.queue_task("task", concurrency=20, partition_concurrency=1)

        assert {"1", "a"} == set(do.names(await do.claim(task, 2)))
        assert ["2", "3"] == do.names(await do.claim(task, 2))
        assert ["4", "5", "6"] == do.names(await do.claim(task))

    async def test_a_task_without_the_option_ignores_partitions(self, storage: Any) -> None:
        """High priorities first, then by arrival."""
        await do.enqueue(storage, "task", "1", "2", partition="a")
        await do.enqueue(storage, "task", "3", partition="b")
        await do.enqueue(storage, "task", "0", partition="a", priority=1)
        task = storage.queue_task("task", concurrency=3)

        assert ["0", "1", "2"] == do.names(await do.claim(task))

    async def test_partitions_take_turns(self, storage: Any, other: Any) -> None:
        """Whatever their backlogs, whoever claims: none is served twice before all were once."""
        partitions = [f"p{number:03}" for number in range(60)]
        many = [{"instruction": f"{number}", "partition": "p005"} for number in range(200)]
        few = [{"instruction": f"{p} {n}", "partition": p} for p in partitions for n in range(2)]
        await storage.enqueue_many("task", many + few)
        options = {"concurrency": 10, "partition_concurrency": 3}
        tasks = [each.queue_task("task", **options) for each in (storage, other)]
        for _ in range(2):
            served: list[str] = []
            for task in tasks * 3:
                claimed = await do.claim(task)
                served += [each.partition for each in claimed]
                await storage.complete(do.receipts(claimed))

            assert partitions == sorted(served)

    async def test_a_turn_is_fair_when_there_is_room_for_more(self, storage: Any) -> None:
        """Those that have less leave the rest to the others, who share it equally."""
        for partition, count in {"a": 30, "b": 2, "c": 30}.items():
            instructions = [f"{partition}{number}" for number in range(count)]
            await do.enqueue(storage, "task", *instructions, partition=partition)
        task = storage.queue_task("task", concurrency=40, partition_concurrency=15)
        few, many = await do.claim(task, 10), await do.claim(task)

        assert {"a": 4, "b": 2, "c": 4} == Counter(each.partition for each in few)
        assert {"a": 11, "c": 11} == Counter(each.partition for each in many)

    async def test_within_a_partition_the_order_is_that_of_the_queue(self, storage: Any) -> None:
        """High priorities first; then by time, then by arrival."""
        now = await do.clock(storage)
        past, future = now - timedelta(seconds=9), now + timedelta(hours=1)
        await do.enqueue(storage, "task", "3", "4", partition="a")
        await do.enqueue(storage, "task", "b", partition="b", priority=-5)
        await do.enqueue(storage, "task", "2", partition="a", run_at=past)
        await do.enqueue(storage, "task", "1", partition="a", priority=1)
        await do.enqueue(storage, "task", "later", partition="a", priority=9, run_at=future)
        task = storage.queue_task("task", concurrency=9, partition_concurrency=1)
        order: list[str] = []
        while claimed := await do.claim(task):
            order += do.names(claimed)
            await storage.complete(do.receipts(claimed))

        assert ["1", "2", "3", "4"] == [each for each in order if each != "b"]
        assert "b" in order[:2]

    async def test_whatever_becomes_of_a_claim_its_partition_stays(self, storage: Any) -> None:
        """Released, failed, retried, postponed, or lost with its consumer."""
        task = storage.queue_task("task", concurrency=2, lease=10, partition_concurrency=1)
        await do.enqueue(storage, "task", "a", partition="acme", retries=1)
        ways = (
            storage.release,
            do.failing(storage),
            lambda receipt: storage.advance(receipt, payload=1, run_in=0),
            lambda receipt: task.release([Claim(instruction="a", receipt=receipt)]),
            lambda _: self.advance(storage, 11),
            lambda receipt: storage.fail(receipt, "broken", retry=False),
        )
        for end in ways:
            (claimed,) = await do.claim(task)
            await end(claimed.receipt)
            found = await do.record(storage, "a")

            assert ("acme", "acme") == (claimed.partition, found.partition)
        await storage.retry("task")
        assert ["acme"] == [each.partition for each in await do.claim(task)]

    async def test_the_next_of_a_partition_passes_what_is_active(self, storage: Any) -> None:
        """It is queued again, and waits: the next one of the partition is taken."""
        task = storage.queue_task("task", concurrency=9, partition_concurrency=2)
        await do.enqueue(storage, "task", "1", partition="a")
        await do.claim(task)
        await do.enqueue(storage, "task", "1", "2", partition="a")

        assert ["2"] == do.names(await do.claim(task))

    async def test_only_what_is_offered_takes_part(self, storage: Any) -> None:
        """A partition that has nothing of it is passed over."""
        await do.enqueue(storage, "task", "a1", partition="a", tags=["gpu"])
        await do.enqueue(storage, "task", "b1", "c1", partition="b")
        await do.enqueue(storage, "task", "b2", partition="c")
        task = storage.queue_task("task", key="b%", concurrency=2, partition_concurrency=1)

        assert ["b1", "b2"] == do.names(await do.claim(task))

    async def test_full_partitions_are_said_and_not_polled(self, storage: Any) -> None:
        """The attempt is `limited`; the end of a lease, or what is due later, is the next time.

        An expired claim keeps its room: whoever rescues it takes no other of the same partition.
        """
        task = storage.queue_task("task", concurrency=9, lease=80, partition_concurrency=1)
        later = await do.clock(storage) + timedelta(seconds=50)
        await do.enqueue(storage, "task", "1", "2", partition="a")
        await do.enqueue(storage, "task", "3", partition="b", run_at=later)
        await do.claim(task)
        for _ in range(2):
            batch = await do.attempt(task)

            assert ([], "limited", 1) == (batch.claims, batch.outcome, batch.active)
            do.assert_due_in(50, batch)
        await self.advance(storage, 81)
        again = await do.claim(task)
        assert [("1", 2), ("3", 1)] == do.table(again, "instruction delivery")

    async def test_a_lower_limit_ends_nothing(self, storage: Any) -> None:
        """What is active goes on; no other is taken until there is room again."""
        await do.enqueue(storage, "task", *"12345", partition="a")
        claimed = await do.claim(storage.queue_task("task", concurrency=3, partition_concurrency=3))
        task = storage.queue_task("task", concurrency=9, partition_concurrency=2)

        assert [] == await do.claim(task)
        await storage.complete(do.receipts(claimed)[:2])
        assert ["4"] == do.names(await do.claim(task))

    async def test_rows_marked_beyond_the_room_are_queued(self, storage: Any, other: Any) -> None:
        """With their partition; nothing is lost, and the dispatcher comes again at once."""
        await self.add_rows(storage, *range(1, 8), 11, 12)
        options: Any = {"sql": self.partition_claim_sql, "partition_concurrency": 2}
        task = storage.claim_task("task", concurrency=4, retries=1, **options)
        first = await do.attempt(task)
        queued = await storage.find(status="queued")
        more = await do.claim(other.claim_task("task", concurrency=9, **options))

        assert [("1", "0"), ("2", "0")] == do.table(first.claims, "instruction partition")
        assert 0 == first.due_in
        assert [("3", "0"), ("4", "0")] == do.table(queued, "instruction partition")
        assert [("11", "1"), ("12", "1")] == do.table(more, "instruction partition")
        assert [*"34567"] == do.names(await storage.find(status="queued"))
        await storage.complete(do.receipts(first.claims))
        assert ["3", "4"] == do.names(await do.claim(task))

    async def test_rows_found_beyond_the_room_are_left_out(self, storage: Any) -> None:
        """They do not hide those behind them, and are found again when there is room."""
        await self.add_rows(storage, *range(10, 20), 31, 32, 21)
        options: Any = {"sql": self.partition_select_sql, "partition_concurrency": 2}
        task = storage.claim_task("task", concurrency=4, **options)
        first = await do.claim(task)
        found = do.table(first, "instruction partition")

        assert [("10", "1"), ("21", "2"), ("31", "3"), ("11", "1")] == found
        assert [] == await storage.find(status="queued")
        await self.remove_rows(storage, 10)
        await storage.complete(first[0].receipt)
        assert ["12"] == do.names(await do.claim(task))

    async def test_rows_that_come_back_keep_to_the_same_rule(self, storage: Any) -> None:
        """What failed waits in the queue for room in its partition; new rows of it do, too."""
        await self.add_rows(storage, 1)
        options: Any = {"sql": self.partition_claim_sql, "partition_concurrency": 1}
        task = storage.claim_task("task", concurrency=4, retries=1, **options)
        (first,) = await do.claim(task)
        await self.add_rows(storage, 2, 11)
        second = await do.claim(task)
        await storage.fail(first.receipt, "broken")

        assert ["11"] == do.names(second)
        assert ["2"] == do.names(await do.claim(task))
        assert [] == await do.claim(task)
