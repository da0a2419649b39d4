"""Promises of cron tasks: each fire time once in the whole fleet, and what is missed by policy."""

from datetime import datetime, timedelta
from typing import Any

from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks

HOUR = timedelta(hours=1)


async def hourly(storage: Any, name: str = "cron", **options: Any) -> tuple[Any, datetime]:
    """Return a task that fires hourly, which has looked once, and the first of its times."""
    # Half an hour from now.
    first = (await do.clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    task = storage.cron_task(name, f"{first.second} {first.minute} * * * *", **options)

    assert [] == await do.claim(task)
    return task, first


async def versions(
    storage: Any, other: Any, *minutes: tuple[int, ...], name: str = "cron", begun: int = 2
) -> list[Any]:
    """Return the tasks of an old and of a new version of a program.

    Args:
        storage: Of the old one.
        other: Of the new one, in another process.
        minutes: From now until the first times of each; all of them come again hourly.
        name: Of the task.
        begun: How many of them have looked once.
    """
    now = (await do.clock(storage)).replace(microsecond=0)
    tasks = []
    for each, own in zip((storage, other), minutes, strict=True):
        marks = ",".join(str((now + timedelta(minutes=minute)).minute) for minute in own)
        options = {"misfire": "all", "concurrency": 20, "lease": 1e6}
        tasks.append(each.cron_task(name, f"{now.second} {marks} * * * *", **options))

    assert [[]] * begun == [await do.claim(task) for task in tasks[:begun]]
    return tasks


def times(claims: Any) -> list[datetime]:
    """Return the instructions of claims as the times that they are."""
    return [datetime.fromisoformat(instruction) for instruction in do.names(claims)]


class CronPromises(Hooks):
    """The next time is kept in the storage."""

    async def test_a_fire_time_is_claimed_when_it_comes(self, storage: Any) -> None:
        """Not before; as an instruction in ISO 8601, in UTC."""
        task, first = await hourly(storage)
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
        tasks = await versions(storage, other, (30,), (30,))
        await self.advance(storage, 10 * 3600)
        seen = do.names(await do.claim_at_once(tasks * 4))
        for task in tasks:  # one that found another claiming comes again
            seen += do.names(await do.claim(task))

        assert 10 == len(seen) == len(set(seen))

    async def test_a_dispatcher_sleeps_until_the_next_time(self, storage: Any) -> None:
        """When that is sooner than its delay, which the storage need not know."""
        for delay in (7200, 1, lambda _: 7200):
            task, _ = await hourly(storage, delay=delay)

            assert 1790 < (await do.attempt(task)).due_in <= 1800

    async def test_missed_times_are_dispatched_by_policy(self, storage: Any) -> None:
        """None, the last, or all, the oldest first; one that finds no slot waits for it."""
        for policy, count in (("skip", 0), ("once", 1), ("all", 3)):
            task, first = await hourly(storage, policy, misfire=policy, concurrency=2)
            await self.advance(storage, 3 * 3600)
            last = first + (await do.clock(storage) - first) // HOUR * HOUR
            missed = [last - HOUR * hours for hours in reversed(range(count))]
            claims = await do.claim(task)

            assert missed[:2] == times(claims), policy
            assert [] == await do.claim(task), policy
            await storage.complete(do.receipts(claims))
            assert missed[2:] == times(await do.claim(task)), policy

    async def test_a_time_that_is_a_little_late_was_not_missed(self, storage: Any) -> None:
        """With `misfire="skip"`, and for a minute."""
        task, _ = await hourly(storage, misfire="skip")
        await self.advance(storage, 1830)

        assert 1 == len(await do.claim(task))

    async def test_a_restart_goes_on_where_it_was(self, storage: Any, other: Any) -> None:
        """What was missed meanwhile is known: the next time is in the storage."""
        _, after = await versions(storage, other, (30,), (30,))
        await self.advance(storage, 2 * 3600)

        assert 2 == len(await do.claim(after))

    async def test_a_changed_expression_counts_at_once(self, storage: Any, other: Any) -> None:
        """It does not wait for the next time of the one before, which may be years away."""
        await do.claim(storage.cron_task("cron", "0 0 29 2 *"))
        task, _ = await hourly(other)
        await self.advance(storage, 3600)

        assert 1 == len(await do.claim(task))

    async def test_two_versions_side_by_side_lose_nothing(self, storage: Any, other: Any) -> None:
        """Each has its next time, whatever the other does meanwhile."""
        old, new = await versions(storage, other, (30,), (50,))

        assert [] == await do.claim(old) + await do.claim(new)
        await self.advance(storage, 3600)
        earlier, later = [await do.claim(task) for task in (old, new)]

        assert 1 == len(earlier) == len(later)
        assert timedelta(minutes=20) == times(later)[0] - times(earlier)[0]
        assert [] == await do.claim(old) + await do.claim(new)

    async def test_a_time_of_two_versions_is_dispatched_once(
        self, storage: Any, other: Any
    ) -> None:
        """By whichever comes first, in time and late; the times of one only by that one."""
        old, new = await versions(storage, other, (30,), (30, 50))
        await self.advance(storage, 1800)
        (shared,) = await do.claim(old)

        assert [] == await do.claim(new)
        await self.advance(storage, 3600)
        alone, both = do.names(await do.claim(new))
        assert 3 == len({shared.instruction, alone, both})
        assert [] == await do.claim(old)

    async def test_a_time_that_was_dispatched_is_not_dispatched_again(
        self, storage: Any, other: Any
    ) -> None:
        """After a version that had it, too, was away: however it ended."""
        old, new = await versions(storage, other, (30, 50), (20, 30, 50))
        await self.advance(storage, 3600)
        claimed = await do.claim(new)

        assert 3 == len(claimed)
        await storage.complete(do.receipts(claimed))
        assert [] == await do.claim(old)

    async def test_a_new_version_takes_over_what_the_old_one_left(
        self, storage: Any, other: Any
    ) -> None:
        """A time that had come when the old one was stopped, if it is a time of the new one."""
        old, heir = await versions(storage, other, (30,), (10, 30), begun=1)
        _, stranger = await versions(storage, other, (30,), (10,), name="strange", begun=1)
        await self.advance(storage, 3600)

        assert [] == await do.claim(stranger)
        assert 1 == len(await do.claim(heir))
        assert [] == await do.claim(old)

    async def test_a_version_that_was_away_misses_nothing(self, storage: Any, other: Any) -> None:
        """Its times are missed times, of which none fires twice, whatever the other has done."""
        old, new = await versions(storage, other, (30, 50), (50,))
        await self.advance(storage, 3 * 3600)
        both = await do.claim(new)
        alone = await do.claim(old)

        assert (3, 3) == (len(both), len(alone))
        assert not set(do.names(both)) & set(do.names(alone))
        assert [] == await do.claim(old) + await do.claim(new)

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
