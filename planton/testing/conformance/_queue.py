"""Promises of the queue: what is enqueued, and in which order it comes out."""

from datetime import UTC, timedelta, timezone
from typing import Any

from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks


class QueuePromises(Hooks):
    """Priorities, times, tags, keys, and what is queued twice."""

    async def test_an_instruction_is_queued_once(self, storage: Any, other: Any) -> None:
        """The second time it answers False and changes nothing."""
        assert await storage.enqueue("task", "a", payload=1)
        assert not await other.enqueue("task", "a", payload=2, priority=9)
        assert await other.enqueue("another", "a")

        assert (1, 0) == do.fields(await do.record(storage, "a"), "payload priority")

    async def test_what_is_active_can_be_queued_again(self, storage: Any, other: Any) -> None:
        """It is claimed after that claim, whatever becomes of it, never at the same time.

        What expires goes first; what ends as dead leaves its slot to the other in the same claim;
        what comes back to the queue, as it is offered no more, is one unit of work with the other.
        """
        # What becomes of the claim, how it was queued, how it is claimed, and what is claimed then.
        cases: list[tuple[str, dict[str, Any], dict[str, Any], list[tuple[str, int]]]] = [
            ("complete", {}, {}, [("second", 1)]),
            ("release", {}, {}, [("second", 1)]),
            ("fail", {"retries": 1}, {}, [("second", 1)]),
            ("expire", {}, {}, [("first", 2), ("second", 1)]),
            ("die", {}, {"deliveries": 1, "concurrency": 1}, [("second", 1)]),
            ("not offered", {"tags": ["gpu"]}, {}, [("second", 1)]),
        ]
        for case, given, options, expected in cases:
            options = {"lease": 30, "concurrency": 5, **options}
            given = {"task_name": case, "payload": "first", **given}
            task, claimed = await do.claim_first(storage, **given, **options)
            await do.enqueue(storage, case, "a", payload="second")

            assert [] == await do.claim(task), case
            if report := do.reports(storage).get(case):
                await report(claimed.receipt)
            else:
                await self.advance(storage, 31)
            seen = []
            task = other.queue_task(case, **options)
            while claims := await do.claim(task):
                seen += do.table(claims, "payload delivery")
                assert 1 == len(claims), case
                await storage.complete(do.receipts(claims))
            assert expected == seen, case

    async def test_priority_then_time_then_arrival(self, storage: Any) -> None:
        """High priorities first; the earlier due of equals; then first come, first served."""
        now = await do.clock(storage)
        await do.enqueue(storage, "task", "3", run_at=now - timedelta(seconds=5))
        await do.enqueue(storage, "task", "4", "5", run_at=now - timedelta(seconds=4))
        await do.enqueue(storage, "task", "2", run_at=now - timedelta(seconds=9))
        await do.enqueue(storage, "task", "1", priority=1)
        await do.enqueue(storage, "task", "6", priority=-1, run_at=now - timedelta(days=1))
        task = storage.queue_task("task", concurrency=6)

        assert ["1", "2"] == do.names(await do.claim(task, 2))
        assert ["3", "4", "5", "6"] == do.names(await do.claim(task))

    async def test_what_is_due_later_waits(self, storage: Any) -> None:
        """Until its time by the storage's clock, in whatever zone it was given."""
        zone = timezone(timedelta(hours=5))
        later = (await do.clock(storage)).astimezone(zone) + timedelta(hours=1)
        task = await do.queue_up(storage, "a", run_at=later)
        before = await do.attempt(task)

        assert [] == before.claims
        do.assert_due_in(3600, before)
        found = await do.record(storage, "a")
        assert abs(found.run_at - later) < timedelta(milliseconds=1)
        assert UTC.utcoffset(None) == found.run_at.utcoffset()
        await self.advance(storage, 3599 - 10)

        assert [] == await do.claim(task)
        await self.advance(storage, 12)
        assert ["a"] == do.names(await do.claim(task))

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
            await do.enqueue(storage, f"task{number}", *everything)
            task = storage.queue_task(f"task{number}", key=key, concurrency=20)

            assert wanted == do.names(await do.claim(task)), key

    async def test_only_those_all_of_whose_tags_are_offered(self, storage: Any) -> None:
        """An instruction without tags goes anywhere; to a task that offers none, only such."""
        for name, tags in (("none", []), ("a", ["gpu"]), ("b", ["gpu", "eu"]), ("c", ["us"])):
            await do.enqueue(storage, "task", name, tags=tags)
        able = storage.queue_task("task", tags=["eu", "gpu"], concurrency=9)

        assert ["none", "a", "b"] == do.names(await do.claim(able))
        await do.enqueue(storage, "task", "more")
        assert ["more"] == do.names(await do.claim(storage.queue_task("task", concurrency=9)))

    async def test_lost_work_goes_to_those_that_offer_it(self, storage: Any, other: Any) -> None:
        """Whoever notices does not take what it has no tags or no key for, and frees the slots."""
        able = await do.queue_up(storage, "a:1", tags=["gpu"], concurrency=3, lease=10)
        await do.enqueue(storage, "task", "b:1", "a:2")
        await do.claim(able)
        await self.advance(storage, 11)
        await do.enqueue(storage, "task", "a:3", "a:4")
        unable = other.queue_task("task", key="a:%", concurrency=3)

        assert ["a:2", "a:3", "a:4"] == do.names(await do.claim(unable))
        assert ["a:1", "b:1"] == sorted(do.names(await storage.find(status="queued")))
        assert 1 == (await do.record(storage, "a:1")).delivery

    async def test_everything_is_kept(self, storage: Any) -> None:
        """What was queued can be read as it was given."""
        payload = {"a": [1, "é", None, True, {"b": 2.5}]}
        given = {"priority": -3, "retries": 2, "timeout": 1.5, "partition": "ä", "payload": payload}
        await do.enqueue(storage, "t", "a", tags=["x", "y"], **given)
        found = await do.record(storage, "a", "t")
        unknown = do.fields(found, "result error claimed_at lease_expires_at ended_at")

        assert (*given.values(), ("x", "y")) == do.fields(found, " ".join((*given, "tags")))
        assert ("t", "queued", 0) == do.fields(found, "task_name status delivery")
        assert {None} == set(unknown)

    async def test_any_text_is_an_instruction_and_any_json_a_payload(self, storage: Any) -> None:
        """Text is bound, never pasted; scalars are JSON, too, and None is none."""
        work: dict[str, Any] = {
            "'; DROP TABLE planton_active; --": None,
            '"': 0,
            "%": False,
            "é\n☃": "",
            "{}": "text",
            ":limit": [],
            " ": {},
            "%(limit)s": 2**53,
            "null": "null",
        }
        for instruction, payload in work.items():
            await do.enqueue(storage, "it's", instruction, payload=payload)
        claimed = await do.claim(storage.queue_task("it's", concurrency=20))

        assert list(work.items()) == do.table(claimed, "instruction payload")

    async def test_many_are_queued_at_once(self, storage: Any) -> None:
        """In their order, each with its own options; how many were not queued already."""
        await do.enqueue(storage, "task", "b", payload="first")
        first = {"instruction": "c", "payload": 3, "priority": 1, "tags": ["x"]}
        count = await storage.enqueue_many("task", ["a", "b", first, "d", "a"])
        more = await storage.enqueue_many("task", (str(number) for number in range(1000)))
        claimed = await do.claim(storage.queue_task("task", concurrency=2000, tags=["x"]))

        assert (3, 1000) == (count, more)
        assert ["c", "b", "a", "d", *map(str, range(1000))] == do.names(claimed)
        assert [3, "first", None] == [each.payload for each in claimed[:3]]
        assert 0 == await storage.enqueue_many("task", [])
