"""Promises of the queue: what is enqueued, and in which order it comes out."""

from datetime import UTC, timedelta, timezone
from typing import Any

import trio

from planton._errors import DuplicateTaskNameError, InvalidArgumentError
from planton._events import InstructionEvent
from planton._planton import Planton
from planton.testing._collector import EventCollector
from planton.testing.conformance._base import (
    Hooks,
    claim,
    claim_first,
    claim_one,
    clock,
    enqueue,
    failing,
    fields,
    names,
    queue_up,
    record,
    refuse_each,
    refused,
    statuses,
)


class QueuePromises(Hooks):
    """Priorities, times, tags, keys, and what is queued twice."""

    async def test_an_instruction_is_queued_once(self, storage: Any, other: Any) -> None:
        """The second time it answers False and changes nothing."""
        assert await storage.enqueue("task", "a", payload=1)
        assert not await other.enqueue("task", "a", payload=2, priority=9)
        assert await other.enqueue("another", "a")

        assert (1, 0) == fields(await record(storage, "a"), "payload priority")

    async def test_what_is_active_can_be_queued_again(self, storage: Any) -> None:
        """It is claimed after that claim has ended, never at the same time."""
        task, first = await claim_first(storage, concurrency=5)
        await enqueue(storage, "task", "a", payload="again")

        assert [] == await claim(task)
        await storage.complete(first.receipt)
        (second,) = await claim(task)

        assert ("a", "again", 1) == (second.instruction, second.payload, second.delivery)

    async def test_what_is_queued_and_given_back_is_one_unit_of_work(self, storage: Any) -> None:
        """A claim that comes back meets its successor in the queue: it is there once."""
        for number, back in enumerate((storage.release, failing(storage))):
            name = f"task{number}"
            claimed = await claim_one(storage, name, retries=1)
            await enqueue(storage, name, "a")
            await back(claimed.receipt)

            assert [("a", "queued")] == await statuses(storage, name)

    async def test_priority_then_time_then_arrival(self, storage: Any) -> None:
        """High priorities first; the earlier due of equals; then first come, first served."""
        now = await clock(storage)
        await enqueue(storage, "task", "3", run_at=now - timedelta(seconds=5))
        await enqueue(storage, "task", "4", "5", run_at=now - timedelta(seconds=4))
        await enqueue(storage, "task", "2", run_at=now - timedelta(seconds=9))
        await enqueue(storage, "task", "1", priority=1)
        await enqueue(storage, "task", "6", priority=-1, run_at=now - timedelta(days=1))
        task = storage.queue_task("task", concurrency=6)

        assert ["1", "2"] == names(await claim(task, 2))
        assert ["3", "4", "5", "6"] == names(await claim(task))

    async def test_what_is_due_later_waits(self, storage: Any) -> None:
        """Until its time by the storage's clock, in whatever zone it was given."""
        zone = timezone(timedelta(hours=5))
        later = (await clock(storage)).astimezone(zone) + timedelta(hours=1)
        task = await queue_up(storage, "a", run_at=later)

        assert [] == await claim(task)
        found = await record(storage, "a")
        assert abs(found.run_at - later) < timedelta(milliseconds=1)
        assert UTC.utcoffset(None) == found.run_at.utcoffset()
        await self.advance(storage, 3599 - 10)

        assert [] == await claim(task)
        await self.advance(storage, 12)
        assert ["a"] == names(await claim(task))

    async def test_only_keys_that_match(self, storage: Any) -> None:
        """As LIKE of SQL: `%` any characters, `_` one; case counts, a backslash takes it back."""
        everything = ["a", "a1", "a_1", "aX1", "A1", "b*", "b?", "a%", "[a]"]
        expected = {
            "a%": ["a", "a1", "a_1", "aX1", "a%"],
            "a_1": ["a_1", "aX1"],
            r"a\_1": ["a_1"],
            r"a\%": ["a%"],
            "b*": ["b*"],
            "[a]": ["[a]"],
            "%": everything,
        }
        for number, (key, wanted) in enumerate(expected.items()):
            await enqueue(storage, f"task{number}", *everything)
            task = storage.queue_task(f"task{number}", key=key, concurrency=20)

            assert wanted == names(await claim(task)), key

    async def test_only_those_all_of_whose_tags_are_offered(self, storage: Any) -> None:
        """An instruction without tags goes anywhere; to a task that offers none, only such."""
        for name, tags in (("none", []), ("a", ["gpu"]), ("b", ["gpu", "eu"]), ("c", ["us"])):
            await enqueue(storage, "task", name, tags=tags)
        able = storage.queue_task("task", tags=["eu", "gpu"], concurrency=9)

        assert ["none", "a", "b"] == names(await claim(able))
        await enqueue(storage, "task", "more")
        assert ["more"] == names(await claim(storage.queue_task("task", concurrency=9)))

    async def test_work_of_a_dead_consumer_goes_to_those_that_offer_it(
        self, storage: Any, other: Any
    ) -> None:
        """Whoever notices does not take what it has no tags or no key for, and frees the slots."""
        able = await queue_up(storage, "a:1", tags=["gpu"], concurrency=3, lease=10)
        await enqueue(storage, "task", "b:1", "a:2")
        await claim(able)
        await self.advance(storage, 11)
        await enqueue(storage, "task", "a:3", "a:4")
        unable = other.queue_task("task", key="a:%", concurrency=3)

        assert ["a:2", "a:3", "a:4"] == names(await claim(unable))
        assert [("a:1", "queued"), ("b:1", "queued")] == [
            each for each in await statuses(storage) if each[1] == "queued"
        ]
        assert 1 == (await record(storage, "a:1")).delivery

    async def test_a_task_can_be_made_again(self, storage: Any) -> None:
        """After `unregister`, or for another Planton: each claims by what it was made with."""
        await enqueue(storage, "task", "a", "b:1", "b:2")
        await enqueue(storage, "beside", "1")
        first = storage.queue_task("task", key="a%", lease=30)
        second = storage.queue_task("task", key="b%", concurrency=3, lease=60)
        beside = storage.queue_task("beside")
        claims = [*await claim(second, 1), *await claim(first)]

        assert ["b:1"] == names(claims)
        await storage.complete(claims[0].receipt)
        claims = [*await claim(first), *await claim(second), *await claim(beside)]
        assert [("a", 30.0), ("b:2", 60.0), ("1", 60.0)] == [
            (each.instruction, each.lease) for each in claims
        ]
        assert [] == await claim(storage.cron_task("task", "0 0 29 2 *", concurrency=9))

    async def test_a_task_can_be_unregistered_and_made_again(self, storage: Any) -> None:
        """In a Planton that runs; two of a name at the same time are what it refuses."""
        task = storage.queue_task("task", delay=0.01)
        again = storage.queue_task("task", delay=3600, concurrency=3)
        planton = Planton(tasks=[task], storages=[storage])
        seen = EventCollector(planton)
        with trio.fail_after(30):
            async with planton:
                with refused(DuplicateTaskNameError, "task"):
                    planton.register(again)
                planton.unregister("task")
                planton.register(again)
                await enqueue(storage, "task", "a", "b", "c")
                await seen.wait_for(InstructionEvent, 3)

        assert ["a", "b", "c"] == sorted(seen.instructions)

    async def test_everything_is_kept(self, storage: Any) -> None:
        """What was queued can be read as it was given."""
        payload = {"a": [1, "é", None, True, {"b": 2.5}]}
        await enqueue(
            storage, "t", "a", payload=payload, priority=-3, tags=["x", "y"], retries=2, timeout=1.5
        )
        found = await record(storage, "a", "t")

        assert ("t", "a", "queued", payload) == fields(
            found, "task_name instruction status payload"
        )
        assert (-3, ("x", "y"), 2, 1.5) == fields(found, "priority tags retries timeout")
        assert (0, None, None, None, None, None) == fields(
            found, "delivery result error claimed_at lease_expires_at ended_at"
        )

    async def test_any_json_is_a_payload(self, storage: Any) -> None:
        """Scalars, too; None is none."""
        payloads: list[Any] = [None, 0, False, "", "text", [], {}, 2**53, "null"]
        for number, payload in enumerate(payloads):
            await enqueue(storage, "task", str(number), payload=payload)
        claimed = await claim(storage.queue_task("task", concurrency=20))

        assert payloads == [each.payload for each in claimed]

    async def test_any_text_is_an_instruction(self, storage: Any) -> None:
        """But an empty one, which names no work. It is bound, never pasted."""
        instructions = ["'; DROP TABLE planton_active; --", '"', "%", "é\n☃", "{}", ":limit", " "]
        await enqueue(storage, "it's", *instructions)
        task = storage.queue_task("it's", concurrency=20)

        assert instructions == names(await claim(task))

    async def test_many_are_queued_at_once(self, storage: Any) -> None:
        """In their order, each with its own options; how many were not queued already."""
        await enqueue(storage, "task", "b", payload="first")
        count = await storage.enqueue_many(
            "task",
            ["a", "b", {"instruction": "c", "payload": 3, "priority": 1, "tags": ["x"]}, "d", "a"],
        )
        more = await storage.enqueue_many("task", (str(number) for number in range(1000)))
        claimed = await claim(storage.queue_task("task", concurrency=2000, tags=["x"]))

        assert (3, 1000) == (count, more)
        assert ["c", "b", "a", "d", *map(str, range(1000))] == names(claimed)
        assert [3, "first", None] == [each.payload for each in claimed[:3]]
        assert 0 == await storage.enqueue_many("task", [])

    async def test_many_are_queued_or_none(self, storage: Any) -> None:
        """One that cannot be used is an error that names it."""
        bad: dict[str, list[Any]] = {
            "instruction": ["", 5, None, {"payload": 1}],
            "priority": [{"instruction": "b", "priority": "high"}],
            "color": [{"instruction": "b", "color": "red"}],
        }
        for word, values in bad.items():
            for value in values:
                with refused(InvalidArgumentError, word):
                    await storage.enqueue_many("task", ["a", value])
        await refuse_each(
            storage.enqueue_many, "instructions", ("abc", {"instruction": "a"}, 5), "task"
        )

        assert [] == await storage.find()

    async def test_a_cancelled_enqueue_is_heard_or_not_done(self, storage: Any) -> None:
        """What is in the queue was answered with True."""
        heard = []
        for number in range(30):
            with trio.move_on_after(number * 0.00005):
                await storage.enqueue("task", str(number))
                heard.append(str(number))

        assert sorted(heard) == [instruction for instruction, _ in await statuses(storage)]
