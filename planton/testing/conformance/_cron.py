"""Promises of cron tasks: each fire time once in the whole fleet, and what is missed by policy."""

from datetime import datetime, timedelta
from typing import Any

from planton._task import Task
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


async def hourly(storage: Any) -> tuple[datetime, str]:
    """Give a whole second half an hour from now, and the expression that fires hourly from it."""
    first = (await clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    return first, f"{first.second} {first.minute} * * * *"


async def versions(
    storage: Any, other: Any, *minutes: tuple[int, ...], name: str = "cron"
) -> tuple[Task, Task]:
    """Give the task of an old and of a new version of a program, in two processes.

    Args:
        storage: Of the old one.
        other: Of the new one.
        minutes: From now until the first times of each; all of them come again hourly.
        name: Of the task.
    """
    now = (await clock(storage)).replace(microsecond=0)

    def task_of(each: Any, minutes: tuple[int, ...]) -> Task:
        marks = ",".join(str((now + timedelta(minutes=each)).minute) for each in minutes)
        expression = f"{now.second} {marks} * * * *"
        options = {"misfire": "all", "concurrency": 9, "lease": 1e6}
        made: Task = each.cron_task(name, expression, **options)
        return made

    return task_of(storage, minutes[0]), task_of(other, minutes[1])


async def last_before_now(storage: Any, first: datetime) -> datetime:
    """Give the last time before now that is some hours before or after `first`."""
    return first + (await clock(storage) - first) // HOUR * HOUR


def times(claims: Any) -> list[datetime]:
    """Give the instructions of claims as the times that they are."""
    return [datetime.fromisoformat(instruction) for instruction in names(claims)]


class CronPromises(Hooks):
    """The next time is kept in the storage."""

    async def test_a_fire_time_is_claimed_when_it_comes(self, storage: Any) -> None:
        """Not before; as an instruction in ISO 8601, in UTC."""
        first, expression = await hourly(storage)
        task = storage.cron_task("cron", expression)

        assert [] == await claim(task)
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
        _, expression = await hourly(storage)
        tasks = [
            each.cron_task("cron", expression, misfire="all", concurrency=20)
            for each in (storage, other)
        ]
        for task in tasks:
            await claim(task)
        await self.advance(storage, 10 * 3600)
        seen = names(await claim_at_once(tasks * 4))
        for task in tasks:  # one that found another claiming comes again
            seen += names(await claim(task))

        assert 10 == len(seen) == len(set(seen))

    async def test_a_dispatcher_sleeps_until_the_next_time(self, storage: Any) -> None:
        """When that is sooner than its delay, which the storage need not know."""
        _, expression = await hourly(storage)
        for number, delay in enumerate((7200, 1, lambda _: 7200)):
            task = storage.cron_task(f"task{number}", expression, delay=delay)
            due_in = (await attempt(task)).due_in

            assert due_in is not None
            assert 1790 < due_in <= 1800

    async def test_missed_times_are_skipped(self, storage: Any) -> None:
        """With `misfire="skip"`; one that is less than a minute late was not missed."""
        _, expression = await hourly(storage)
        task = storage.cron_task("cron", expression, misfire="skip", concurrency=9)
        await claim(task)
        await self.advance(storage, 3 * 3600)

        assert [] == await claim(task)
        await self.advance(storage, 1800)
        assert 1 == len(await claim(task))

    async def test_the_last_of_missed_times_is_dispatched(self, storage: Any) -> None:
        """With `misfire="once"`, which nobody needs to say."""
        first, expression = await hourly(storage)
        task = storage.cron_task("cron", expression, concurrency=9)
        await claim(task)
        await self.advance(storage, 3 * 3600)

        assert [await last_before_now(storage, first)] == times(await claim(task))
        assert [] == await claim(task)

    async def test_all_missed_times_are_dispatched(self, storage: Any) -> None:
        """With `misfire="all"`, the oldest first; one that finds no slot waits for it."""
        first, expression = await hourly(storage)
        task = storage.cron_task("cron", expression, misfire="all", concurrency=2)
        await claim(task)
        await self.advance(storage, 3 * 3600)
        last = await last_before_now(storage, first)
        claims = await claim(task)

        assert [last - 2 * HOUR, last - HOUR] == times(claims)
        assert [] == await claim(task)
        await storage.complete(claims[0].receipt)
        assert [last] == times(await claim(task))

    async def test_a_restart_goes_on_where_it_was(self, storage: Any, other: Any) -> None:
        """What was missed meanwhile is known: the next time is in the storage."""
        _, expression = await hourly(storage)
        await claim(storage.cron_task("cron", expression, misfire="all", concurrency=9))
        await self.advance(storage, 2 * 3600)
        task = other.cron_task("cron", expression, misfire="all", concurrency=9)

        assert 2 == len(await claim(task))

    async def test_a_changed_expression_counts_at_once(self, storage: Any, other: Any) -> None:
        """It does not wait for the next time of the one before, which may be years away."""
        _, expression = await hourly(storage)
        await claim(storage.cron_task("cron", "0 0 29 2 *"))
        task = other.cron_task("cron", expression)
        await claim(task)
        await self.advance(storage, 3600)

        assert 1 == len(await claim(task))

    async def test_two_versions_side_by_side_lose_nothing(self, storage: Any, other: Any) -> None:
        """Each has its next time, whatever the other does meanwhile."""
        old, new = await versions(storage, other, (30,), (50,))
        for task in (old, new, old, new):
            assert [] == await claim(task)
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
        await claim(old)
        await claim(new)
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
        await claim(old)
        await claim(new)
        await self.advance(storage, 3600)
        claimed = await claim(new)

        assert 3 == len(claimed)
        await storage.complete(receipts(claimed))
        assert [] == await claim(old)

    async def test_a_new_version_takes_over_what_the_old_one_left(
        self, storage: Any, other: Any
    ) -> None:
        """A time that had come when the old one was stopped, if it is a time of the new one."""
        old, heir = await versions(storage, other, (30,), (10, 30))
        gone, stranger = await versions(storage, other, (30,), (10,), name="strange")
        await claim(old)
        await claim(gone)
        await self.advance(storage, 3600)

        assert [] == await claim(stranger)
        assert 1 == len(await claim(heir))
        assert [] == await claim(old)

    async def test_a_version_that_was_away_goes_on_where_it_was(
        self, storage: Any, other: Any
    ) -> None:
        """Its times are missed times, of which none fires twice, whatever the other has done."""
        old, new = await versions(storage, other, (30, 50), (50,))
        await claim(old)
        await claim(new)
        await self.advance(storage, 3 * 3600)
        both = await claim(new)
        alone = await claim(old)

        assert (3, 3) == (len(both), len(alone))
        assert not set(names(both)) & set(names(alone))
        assert [] == await claim(old) + await claim(new)

    async def test_a_fire_time_is_an_instruction_like_any_other(self, storage: Any) -> None:
        """It has a lease, is delivered again, and can fail and be retried."""
        _, expression = await hourly(storage)
        task = storage.cron_task("cron", expression, lease=30, deliveries=2)
        await claim(task)
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
        _, expression = await hourly(storage)
        task = storage.cron_task("cron", expression, misfire="once")
        await claim(task)
        await storage.pause("cron")
        await self.advance(storage, 5 * 3600)

        assert [] == await claim(task)
        await storage.resume("cron")
        assert 1 == len(await claim(task))

    async def test_times_are_read_in_a_time_zone(self, storage: Any) -> None:
        """The same wall-clock time is another instant elsewhere."""
        first = (await clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
        expression = f"{first.second} {first.minute} {first.hour} * * *"
        kolkata = storage.cron_task("kolkata", expression, timezone="Asia/Kolkata", delay=1e6)
        utc = storage.cron_task("utc", expression, timezone="UTC", delay=1e6)
        here, there = [(await attempt(task)).due_in for task in (utc, kolkata)]

        assert here is not None
        assert there is not None
        assert abs((there - here) % 86400 - (86400 - 5.5 * 3600)) < 5
