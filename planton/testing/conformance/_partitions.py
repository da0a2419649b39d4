"""Promises of partitions: a cap on each, turns between them, order within one."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import trio

from planton._events import InstructionEvent
from planton._planton import Planton
from planton._task import Claim
from planton.testing.conformance._base import (
    Hooks,
    attempt,
    claim,
    claim_at_once,
    clock,
    enqueue,
    names,
    receipts,
    record,
    refuse_each,
    statuses,
)
from planton.testing.conformance._due import an_hour


class PartitionPromises(Hooks):
    """Tenants, hosts, customers: what one of them has queued is not the others' trouble."""

    async def test_a_claim_says_of_which_partition_it_is(self, storage: Any) -> None:
        """So do its event and its record; none is an empty text."""
        await storage.enqueue_many("task", [{"instruction": "a", "partition": "ä"}, "b"])
        claimed = await claim(storage.queue_task("task", concurrency=2))
        found = {each.instruction: each.partition for each in await storage.find()}
        event = InstructionEvent.from_json(InstructionEvent.of("task", claimed[0]).to_json())

        assert ["ä", ""] == [each.partition for each in claimed]
        assert {"a": "ä", "b": ""} == found
        assert "ä" == event.partition

    async def test_a_partition_is_a_text(self, storage: Any) -> None:
        """Of as many bytes as a name; how many of it may run is a number."""
        wrong = [None, 1, "a\0", "x" * 501]
        await refuse_each(storage.enqueue, "partition", wrong, "task", "a")
        await refuse_each(
            storage.queue_task, "partition_concurrency", [0, True, 1.5, "1", 2**31], "task"
        )
        assert await storage.enqueue("task", "a", partition="x" * 500)

    async def test_no_partition_has_more_active_than_it_may(self, storage: Any, other: Any) -> None:
        """However many dispatchers claim at the same time."""
        for number in range(6):
            for partition in "abc":
                await enqueue(storage, "task", f"{partition}{number}", partition=partition)
        options = {"concurrency": 20, "partition_concurrency": 2}
        tasks = [each.queue_task("task", **options) for each in (storage, other)]
        for _ in range(3):
            claimed = await claim_at_once(tasks * 3)
            claimed += await claim(tasks[1])

            assert {"a": 2, "b": 2, "c": 2} == Counter(each.partition for each in claimed)
            assert [] == await claim(tasks[0])
            await other.complete(receipts(claimed))

        assert [] == await claim(tasks[0])

    async def test_what_has_no_partition_is_not_limited(self, storage: Any) -> None:
        """It takes turns with the partitions, as one of them, and starves none."""
        await enqueue(storage, "task", *"123456")
        await enqueue(storage, "task", *"abc", partition="a")
        task = storage.queue_task("task", concurrency=20, partition_concurrency=1)

        assert [["1", "a"], ["2", "3"]] == [sorted(names(await claim(task, 2))) for _ in range(2)]
        assert ["4", "5", "6"] == names(await claim(task))

    async def test_a_task_without_the_option_ignores_partitions(self, storage: Any) -> None:
        """High priorities first, then by arrival."""
        await enqueue(storage, "task", "1", "2", partition="a")
        await enqueue(storage, "task", "3", partition="b")
        await enqueue(storage, "task", "0", partition="a", priority=1)

        assert ["0", "1", "2"] == names(await claim(storage.queue_task("task", concurrency=3)))

    async def test_partitions_take_turns(self, storage: Any, other: Any) -> None:
        """Whatever their backlogs, whoever claims: none is served twice before all were once."""
        partitions = [f"p{number:03}" for number in range(60)]
        backlog = [f"{number}" for number in range(200)]
        await storage.enqueue_many(
            "task", [{"instruction": each, "partition": "p005"} for each in backlog]
        )
        await storage.enqueue_many(
            "task",
            [{"instruction": f"{p} {n}", "partition": p} for p in partitions for n in range(2)],
        )
        options = {"concurrency": 10, "partition_concurrency": 3}
        tasks = [each.queue_task("task", **options) for each in (storage, other)]
        for _ in range(2):
            served: list[str] = []
            for number in range(6):
                claimed = await claim(tasks[number % 2])
                served += [each.partition for each in claimed]
                await storage.complete(receipts(claimed))

            assert partitions == sorted(served)

    async def test_a_turn_is_fair_when_there_is_room_for_more(self, storage: Any) -> None:
        """Those that have less leave the rest to the others, who share it equally."""
        for partition, count in {"a": 30, "b": 2, "c": 30}.items():
            instructions = [f"{partition}{number}" for number in range(count)]
            await enqueue(storage, "task", *instructions, partition=partition)
        task = storage.queue_task("task", concurrency=40, partition_concurrency=15)

        assert {"a": 4, "b": 2, "c": 4} == Counter(each.partition for each in await claim(task, 10))
        assert {"a": 11, "c": 11} == Counter(each.partition for each in await claim(task))

    async def test_within_a_partition_the_order_is_that_of_the_queue(self, storage: Any) -> None:
        """High priorities first; then by time, then by arrival."""
        now = await clock(storage)
        await enqueue(storage, "task", "3", "4", partition="a")
        await enqueue(storage, "task", "b", partition="b", priority=-5)
        await enqueue(storage, "task", "2", partition="a", run_at=now - timedelta(seconds=9))
        await enqueue(storage, "task", "1", partition="a", priority=1)
        await enqueue(
            storage, "task", "later", partition="a", priority=9, run_at=now + timedelta(hours=1)
        )
        task = storage.queue_task("task", concurrency=9, partition_concurrency=1)
        order: list[str] = []
        while claimed := await claim(task):
            order += names(claimed)
            await storage.complete(receipts(claimed))

        assert ["1", "2", "3", "4"] == [each for each in order if each != "b"]
        assert "b" in order[:2]

    async def test_whatever_becomes_of_a_claim_its_partition_stays(self, storage: Any) -> None:
        """Released, failed, retried, postponed, or lost with its consumer."""
        task = storage.queue_task("task", concurrency=2, lease=10, partition_concurrency=1)
        await enqueue(storage, "task", "a", partition="acme", retries=1)
        ways = (
            storage.release,
            lambda receipt: storage.fail(receipt, "broken"),
            lambda receipt: storage.advance(receipt, payload=1, run_in=0),
            lambda receipt: task.release([Claim(instruction="a", receipt=receipt)]),
            lambda _: self.advance(storage, 11),
            lambda receipt: storage.fail(receipt, "broken", retry=False),
        )
        for end in ways:
            (claimed,) = await claim(task)
            await end(claimed.receipt)

            assert ("acme", "acme") == (claimed.partition, (await record(storage, "a")).partition)
        await storage.retry("task")
        assert ["acme"] == [each.partition for each in await claim(task)]

    async def test_an_expired_claim_keeps_its_room(self, storage: Any) -> None:
        """Whoever rescues it takes no other of the same partition."""
        task = storage.queue_task("task", concurrency=9, lease=10, partition_concurrency=1)
        await enqueue(storage, "task", "1", "2", partition="a")
        await claim(task)
        await self.advance(storage, 11)
        await enqueue(storage, "task", "3", partition="b")

        assert [("1", 2), ("3", 1)] == [
            (each.instruction, each.delivery) for each in await claim(task)
        ]

    async def test_what_is_active_waits_and_others_of_its_partition_do_not(
        self, storage: Any
    ) -> None:
        """It is queued again: the next one of the partition is taken."""
        task = storage.queue_task("task", concurrency=9, partition_concurrency=2)
        await enqueue(storage, "task", "1", partition="a")
        await claim(task)
        await enqueue(storage, "task", "1", "2", partition="a")

        assert ["2"] == names(await claim(task))

    async def test_only_what_is_offered_takes_part(self, storage: Any) -> None:
        """A partition that has nothing of it is passed over."""
        await enqueue(storage, "task", "a1", partition="a", tags=["gpu"])
        await enqueue(storage, "task", "b1", "c1", partition="b")
        await enqueue(storage, "task", "b2", partition="c")
        task = storage.queue_task("task", key="b%", concurrency=2, partition_concurrency=1)

        assert ["b1", "b2"] == names(await claim(task))

    async def test_full_partitions_are_said_and_not_polled(self, storage: Any) -> None:
        """The attempt is `limited`; the end of a lease, or what is due later, is the next time."""
        task = storage.queue_task(
            "task", concurrency=9, lease=80, delay=an_hour, partition_concurrency=1
        )
        later = await clock(storage) + timedelta(seconds=50)
        await enqueue(storage, "task", "1", "2", partition="a")
        await enqueue(storage, "task", "3", partition="b", run_at=later)
        await claim(task)
        for _ in range(2):
            batch = await attempt(task)

            assert ([], "limited", 1) == (batch.claims, batch.outcome, batch.active)
            assert batch.due_in is not None
            assert 40 < batch.due_in <= 50.001

    async def test_the_end_of_a_claim_lets_the_next_of_its_partition_run(
        self, storage: Any
    ) -> None:
        """At once, however long the delay."""
        task = storage.queue_task("task", concurrency=9, delay=an_hour, partition_concurrency=1)
        instructions = [str(number) for number in range(10)]
        await enqueue(storage, "task", *instructions, partition="a")
        seen: list[str] = []
        with trio.fail_after(60):
            planton = Planton(tasks=[task], services=[storage.serve])
            async with planton, planton.events(InstructionEvent) as stream:
                while len(seen) < len(instructions):
                    event = await anext(stream)
                    seen.append(event.instruction)
                    await storage.complete(event.receipt)

        assert instructions == seen

    async def test_a_lower_limit_ends_nothing(self, storage: Any) -> None:
        """What is active goes on; no other is taken until there is room again."""
        await enqueue(storage, "task", *"12345", partition="a")
        claimed = await claim(storage.queue_task("task", concurrency=3, partition_concurrency=3))
        task = storage.queue_task("task", concurrency=9, partition_concurrency=2)

        assert [] == await claim(task)
        await storage.complete(receipts(claimed)[:2])
        assert ["4"] == names(await claim(task))

    async def test_rows_that_are_marked_beyond_the_room_wait_in_the_queue(
        self, storage: Any, other: Any
    ) -> None:
        """With their partition; nothing is lost, and the dispatcher comes again at once."""
        await self.add_rows(storage, *range(1, 8), 11, 12)
        task = storage.claim_task(
            "task", sql=self.partition_claim_sql, concurrency=4, partition_concurrency=2, retries=1
        )
        first: Any = await attempt(task)

        assert [("1", "0"), ("2", "0")] == _owned(first.claims)
        assert 0 == first.due_in
        assert [("3", "0"), ("4", "0")] == [
            (each.instruction, each.partition) for each in await storage.find(status="queued")
        ]
        more = other.claim_task(
            "task", sql=self.partition_claim_sql, concurrency=9, partition_concurrency=2
        )
        assert [("11", "1"), ("12", "1")] == _owned((await attempt(more)).claims)
        assert [*"34567"] == [
            name for name, status in await statuses(storage) if status == "queued"
        ]
        await storage.complete([each.receipt for each in first.claims])
        assert ["3", "4"] == names(await claim(task))

    async def test_rows_that_are_found_beyond_the_room_are_left_out(self, storage: Any) -> None:
        """They do not hide those behind them, and are found again when there is room."""
        await self.add_rows(storage, *range(10, 20), 31, 32, 21)
        task = storage.claim_task(
            "task", sql=self.partition_select_sql, concurrency=4, partition_concurrency=2
        )
        first: Any = await attempt(task)

        assert [("10", "1"), ("21", "2"), ("31", "3"), ("11", "1")] == _owned(first.claims)
        assert [] == await storage.find(status="queued")
        await self.remove_rows(storage, 10)
        await storage.complete(first.claims[0].receipt)
        assert ["12"] == names(await claim(task))

    async def test_what_comes_back_of_the_users_rows_keeps_to_the_same_rule(
        self, storage: Any
    ) -> None:
        """What failed waits in the queue for room in its partition; new rows of it do, too."""
        await self.add_rows(storage, 1)
        task = storage.claim_task(
            "task", sql=self.partition_claim_sql, concurrency=4, partition_concurrency=1, retries=1
        )
        (first,) = await claim(task)
        await self.add_rows(storage, 2, 11)
        second = await claim(task)
        await storage.fail(first.receipt, "broken")

        assert ["11"] == names(second)
        assert ["2"] == names(await claim(task))
        assert [] == await claim(task)


def _owned(claims: Sequence[Any]) -> list[tuple[str, str]]:
    return [(each.instruction, each.partition) for each in claims]
