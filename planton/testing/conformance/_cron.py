"""Promises of cron tasks: each fire time once in the whole fleet, and what is missed by policy."""

from datetime import datetime, timedelta
from typing import Any

from planton.testing.conformance._base import (
    Hooks,
    attempt,
    claim,
    claim_at_once,
    clock,
    names,
    receipts,
    statuses,
)

HOUR = timedelta(hours=1)


async def half_an_hour_on(storage: Any) -> datetime:
    """Return a whole second half an hour from now."""
    return (await clock(storage)).replace(microsecond=0) + timedelta(minutes=30)


async def hourly(storage: Any, **options: Any) -> tuple[Any, datetime]:
    """Return a task that fires hourly, which has looked once, and the first of its times."""
    first = await half_an_hour_on(storage)
    task = storage.cron_task("cron", f"{first.second} {first.minute} * * * *", **options)

    assert [] == await claim(task)
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
    now = (await clock(storage)).replace(microsecond=0)
    tasks = []
    for each, own in zip((storage, other), minutes, strict=True):
        marks = ",".join(str((now + timedelta(minutes=minute)).minute) for minute in own)
        options = {"misfire": "all", "concurrency": 20, "lease": 1e6}
        tasks.append(each.cron_task(name, f"{now.second} {marks} * * * *", **options))

    assert [[]] * begun == [await claim(task) for task in tasks[:begun]]
    return tasks


def times(claims: Any) -> list[datetime]:
    """Return the instructions of claims as the times that they are."""
    return [datetime.fromisoformat(instruction) for instruction in names(claims)]


class CronPromises(Hooks):
    """The next time is kept in the storage."""

    async def test_a_fire_time_is_claimed_when_it_comes(self, storage: Any) -> None:
        """Not before; as an instruction in ISO 8601, in UTC."""
        task, first = await hourly(storage)
        await self.advance(storage, 1795)

        assert [] == await claim(task)
        await self.advance(storage, 5)
        (claimed,) = await claim(task)
        (fired,) = times([claimed])

        # Where times are set back rather than waited for, so is the one that comes.
        assert timedelta(0) == (fired - first) % timedelta(minutes=30)
        assert claimed.instruction.endswith("+00:00")
        await storage.complete(claimed.receipt)
        assert [] == await claim(task)

    async def test_each_fire_time_is_claimed_once_in_the_fleet(
        self, storage: Any, other: Any
    ) -> None:
        """However many dispatchers have the task and claim at the same time."""
        tasks = await versions(storage, other, (30,), (30,))
        await self.advance(storage, 10 * 3600)
        seen = names(await claim_at_once(tasks * 4))
        for task in tasks:  # one that found another claiming comes again
            seen += names(await claim(task))

        assert 10 == len(seen) == len(set(seen))

    async def test_a_dispatcher_sleeps_until_the_next_time(self, storage: Any) -> None:
        """When that is sooner than its delay, which the storage need not know."""
        for delay in (7200, 1, lambda _: 7200):
            task, _ = await hourly(storage, delay=delay)

            assert 1790 < (await attempt(task)).due_in <= 1800

    async def test_missed_times_are_skipped(self, storage: Any) -> None:
        """With `misfire="skip"`; one that is less than a minute late was not missed."""
        task, _ = await hourly(storage, misfire="skip", concurrency=9)
        await self.advance(storage, 3 * 3600)

        assert [] == await claim(task)
        await self.advance(storage, 1800)
        assert 1 == len(await claim(task))

    async def test_the_last_of_missed_times_is_dispatched(self, storage: Any) -> None:
        """With `misfire="once"`, which nobody needs to say."""
        task, first = await hourly(storage, concurrency=9)
        await self.advance(storage, 3 * 3600)
        last = first + (await clock(storage) - first) // HOUR * HOUR

        assert [last] == times(await claim(task))
        assert [] == await claim(task)

    async def test_all_missed_times_are_dispatched(self, storage: Any) -> None:
        """With `misfire="all"`, the oldest first; one that finds no slot waits for it."""
        task, first = await hourly(storage, misfire="all", concurrency=2)
        await self.advance(storage, 3 * 3600)
        last = first + (await clock(storage) - first) // HOUR * HOUR
        claims = await claim(task)

        assert [last - 2 * HOUR, last - HOUR] == times(claims)
        assert [] == await claim(task)
        await storage.complete(claims[0].receipt)
        assert [last] == times(await claim(task))

    async def test_a_restart_goes_on_where_it_was(self, storage: Any, other: Any) -> None:
        """What was missed meanwhile is known: the next time is in the storage."""
        _, after = await versions(storage, other, (30,), (30,))
        await self.advance(storage, 2 * 3600)

        assert 2 == len(await claim(after))

    async def test_a_changed_expression_counts_at_once(self, storage: Any, other: Any) -> None:
        """It does not wait for the next time of the one before, which may be years away."""
        await claim(storage.cron_task("cron", "0 0 29 2 *"))
        task, _ = await hourly(other)
        await self.advance(storage, 3600)

        assert 1 == len(await claim(task))

    async def test_two_versions_side_by_side_lose_nothing(self, storage: Any, other: Any) -> None:
        """Each has its next time, whatever the other does meanwhile."""
        old, new = await versions(storage, other, (30,), (50,))

        assert [] == await claim(old) + await claim(new)
        await self.advance(storage, 3600)
        earlier, later = [await claim(task) for task in (old, new)]

        assert 1 == len(earlier) == len(later)
        assert timedelta(minutes=20) == times(later)[0] - times(earlier)[0]
        assert [] == await claim(old) + await claim(new)

    async def test_a_time_of_two_versions_is_dispatched_once(
        self, storage: Any, other: Any
    ) -> None:
        """By whichever comes first, in time and late; the times of one only by that one."""
        old, new = await versions(storage, other, (30,), (30, 50))
        await self.advance(storage, 1800)
        (shared,) = await claim(old)

        assert [] == await claim(new)
        await self.advance(storage, 3600)
        alone, both = names(await claim(new))
        assert 3 == len({shared.instruction, alone, both})
        assert [] == await claim(old)

    async def test_a_time_that_was_dispatched_is_not_dispatched_again(
        self, storage: Any, other: Any
    ) -> None:
        """After a version that had it, too, was away: however it ended."""
        old, new = await versions(storage, other, (30, 50), (20, 30, 50))
        await self.advance(storage, 3600)
        claimed = await claim(new)

        assert 3 == len(claimed)
        await storage.complete(receipts(claimed))
        assert [] == await claim(old)

    async def test_a_new_version_takes_over_what_the_old_one_left(
        self, storage: Any, other: Any
    ) -> None:
        """A time that had come when the old one was stopped, if it is a time of the new one."""
        old, heir = await versions(storage, other, (30,), (10, 30), begun=1)
        _, stranger = await versions(storage, other, (30,), (10,), name="strange", begun=1)
        await self.advance(storage, 3600)

        assert [] == await claim(stranger)
        assert 1 == len(await claim(heir))
        assert [] == await claim(old)

    async def test_a_version_that_was_away_misses_nothing(self, storage: Any, other: Any) -> None:
        """Its times are missed times, of which none fires twice, whatever the other has done."""
        old, new = await versions(storage, other, (30, 50), (50,))
        await self.advance(storage, 3 * 3600)
        both = await claim(new)
        alone = await claim(old)

        assert (3, 3) == (len(both), len(alone))
        assert not set(names(both)) & set(names(alone))
        assert [] == await claim(old) + await claim(new)

    async def test_a_fire_time_is_an_instruction_like_any_other(self, storage: Any) -> None:
        """It has a lease, is delivered again, and can fail and be retried."""
        task, _ = await hourly(storage, lease=30, deliveries=2)
        await self.advance(storage, 3600)
        (first,) = await claim(task)
        await self.advance(storage, 31)
        (second,) = await claim(task)

        assert (first.instruction, 2) == (second.instruction, second.delivery)
        assert (first.receipt,) == (await storage.complete(first.receipt)).stale
        await storage.fail(second.receipt, "no paper")
        assert [(first.instruction, "dead")] == await statuses(storage, "cron")
        assert 1 == await storage.retry("cron", [first.instruction])
        assert [first.instruction] == names(await claim(task))

    async def test_a_paused_cron_task_misses_its_times(self, storage: Any) -> None:
        """What becomes of them when it is resumed is for `misfire` to say."""
        task, _ = await hourly(storage, misfire="once")
        await storage.pause("cron")
        await self.advance(storage, 5 * 3600)

        assert [] == await claim(task)
        await storage.resume("cron")
        assert 1 == len(await claim(task))

    async def test_times_are_read_in_a_time_zone(self, storage: Any) -> None:
        """The same wall-clock time is another instant elsewhere."""
        first = await half_an_hour_on(storage)
        expression = f"{first.second} {first.minute} {first.hour} * * *"
        kolkata = storage.cron_task("kolkata", expression, timezone="Asia/Kolkata", delay=1e6)
        utc = storage.cron_task("utc", expression, timezone="UTC", delay=1e6)
        here, there = [(await attempt(task)).due_in for task in (utc, kolkata)]

        assert abs((there - here) % 86400 - (86400 - 5.5 * 3600)) < 5
