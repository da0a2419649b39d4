"""Promises of cron tasks: each fire time once in the whole fleet, and what is missed by policy."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks

HOUR = timedelta(hours=1)


class Deploy(NamedTuple):
    """An old and a new version of a program: at which minutes from now, and hourly, each fires.

    A step is how many minutes pass, which of the two claims then, and how many times it gets.
    """

    old: tuple[int, ...]
    new: tuple[int, ...]
    steps: list[tuple[int, str, int]]
    begun: int = 2  # how many of the two have looked before


DEPLOYS = {
    "a restart goes on where it was": Deploy((30,), (30,), [(120, "new", 2)]),
    "each has its own": Deploy(
        (30,), (50,), [(0, "new", 0), (60, "old", 1), (0, "new", 1), (0, "old", 0), (0, "new", 0)]
    ),
    "a time of both comes once": Deploy(
        (30,), (30, 50), [(30, "old", 1), (0, "new", 0), (60, "new", 2), (0, "old", 0)]
    ),
    "also for one that was away": Deploy((30, 50), (20, 30, 50), [(60, "new", 3), (0, "old", 0)]),
    "one that was away misses none of its own": Deploy(
        (30, 50), (50,), [(180, "new", 3), (0, "old", 3), (0, "old", 0), (0, "new", 0)]
    ),
    "a new one takes over what it has, too": Deploy(
        (30,), (10, 30), [(60, "new", 1), (0, "old", 0)], begun=1
    ),
    "and nothing else": Deploy((30,), (10,), [(60, "new", 0)], begun=1),
}


async def hourly(storage: Any, **options: Any) -> tuple[Any, datetime]:
    """Return a task that fires hourly from half an hour on, and its first time; it has looked."""
    first = (await do.clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    task = storage.cron_task("cron", f"{first.second} {first.minute} * * * *", **options)

    assert [] == await do.claim(task)
    return task, first


async def versions(storage: Any, other: Any, deploy: Deploy, name: str = "cron") -> list[Any]:
    """Return the tasks of the old version, and of the new one, in another process."""
    now = (await do.clock(storage)).replace(microsecond=0)
    tasks = []
    for each, minutes in ((storage, deploy.old), (other, deploy.new)):
        marks = ",".join(str((now + timedelta(minutes=minute)).minute) for minute in minutes)
        options = {"misfire": "all", "concurrency": 20, "lease": 1e6}
        tasks.append(each.cron_task(name, f"{now.second} {marks} * * * *", **options))

    assert [[]] * deploy.begun == [await do.claim(task) for task in tasks[: deploy.begun]]
    return tasks


def times(claims: Any) -> list[datetime]:
    """Return the instructions of claims as the times that they are."""
    return [datetime.fromisoformat(instruction) for instruction in do.names(claims)]


class CronPromises(Hooks):
    """The next time is kept in the storage."""

    async def test_a_fire_time_is_claimed_when_it_comes(self, storage: Any) -> None:
        """Not before; as an instruction in ISO 8601, in UTC."""
        task, first = await hourly(storage)
        do.assert_due_in(1800, await do.attempt(task))
        await self.advance(storage, 1795)

        assert [] == await do.claim(task)
        await self.advance(storage, 5)
        (claimed,) = await do.claim(task)
        (fired,) = times([claimed])

        # Where times are set back rather than waited for, so is the one that comes.
        assert timedelta(0) == (fired - first) % timedelta(minutes=30)
        assert claimed.instruction.endswith("+00:00")
        await storage.complete(claimed.receipt)
        assert [] == await do.claim(task)

    async def test_each_fire_time_is_claimed_once_in_the_fleet(
        self, storage: Any, other: Any
    ) -> None:
        """However many dispatchers have the task and claim at the same time."""
        tasks = await versions(storage, other, Deploy((30,), (30,), []))
        await self.advance(storage, 10 * 3600)
        seen = do.names(await do.claim_at_once(tasks * 4))
        for task in tasks:  # one that found another claiming comes again
            seen += do.names(await do.claim(task))

        assert 10 == len(seen) == len(set(seen))

    async def test_a_missed_time_that_finds_no_slot_waits_for_it(self, storage: Any) -> None:
        """The oldest go first."""
        task, first = await hourly(storage, misfire="all", concurrency=2)
        await self.advance(storage, 3 * 3600)
        last = first + (await do.clock(storage) - first) // HOUR * HOUR
        claims = await do.claim(task)

        assert [last - 2 * HOUR, last - HOUR] == times(claims)
        assert [] == await do.claim(task)
        await storage.complete(claims[0].receipt)
        assert [last] == times(await do.claim(task))

    async def test_missed_times_are_caught_up_however_old_they_are(self, storage: Any) -> None:
        """With `misfire="all"`; also by more claims than one."""
        task, _ = await hourly(storage, misfire="all", concurrency=100)
        await self.advance(storage, 10 * 24 * 3600)
        found = []
        while claims := await do.claim(task):
            found.append(len(claims))
            await storage.complete(do.receipts(claims))

        assert [100, 100, 40] == found

    async def test_a_changed_expression_counts_at_once(self, storage: Any, other: Any) -> None:
        """It does not wait for the next time of the one before, which may be years away."""
        await do.claim(storage.cron_task("cron", "0 0 29 2 *"))
        task, _ = await hourly(other)
        await self.advance(storage, 3600)

        assert 1 == len(await do.claim(task))

    async def test_two_versions_lose_nothing_and_repeat_nothing(
        self, storage: Any, other: Any
    ) -> None:
        """A time of both is claimed once, in time or late; the times of one only by that one."""
        for case, deploy in DEPLOYS.items():
            old, new = await versions(storage, other, deploy, case)
            seen: list[str] = []
            for step in deploy.steps:
                minutes, which, count = step
                await self.advance(storage, 60 * minutes)
                claims = await do.claim(new if which == "new" else old)
                seen += do.names(claims)

                assert count == len(claims), (case, step)
                await storage.complete(do.receipts(claims))
            assert len(set(seen)) == len(seen), case

    async def test_a_fire_time_is_an_instruction_like_any_other(self, storage: Any) -> None:
        """It has a lease, is delivered again, and can fail and be retried."""
        task, _ = await hourly(storage, lease=30, deliveries=2)
        await self.advance(storage, 3600)
        (first,) = await do.claim(task)
        await self.advance(storage, 31)
        (second,) = await do.claim(task)

        assert (first.instruction, 2) == (second.instruction, second.delivery)
        assert (first.receipt,) == (await storage.complete(first.receipt)).stale
        await storage.fail(second.receipt, "no paper")
        assert [f"{first.instruction} dead"] == await do.statuses(storage, "cron")
        assert 1 == await storage.retry("cron", [first.instruction])
        assert [first.instruction] == do.names(await do.claim(task))

    async def test_a_paused_cron_task_misses_its_times(self, storage: Any) -> None:
        """What becomes of them when it is resumed is for `misfire` to say."""
        task, _ = await hourly(storage, misfire="once")
        await storage.pause("cron")
        await self.advance(storage, 5 * 3600)

        assert [] == await do.claim(task)
        await storage.resume("cron")
        assert 1 == len(await do.claim(task))
