# ruff: noqa: SIM300 - expected == actual, as in all tests
"""Promises of cron tasks: each fire time once in the whole fleet, and what is missed by policy."""

from datetime import datetime, timedelta
from typing import Any

from planton.testing._conformance_base import (
    Hooks,
    attempt,
    claim,
    claim_at_once,
    clock,
    names,
    statuses,
)

HOUR = timedelta(hours=1)


async def hourly(storage: Any) -> tuple[datetime, str]:
    """Give a whole second half an hour from now, and the expression that fires hourly from it."""
    first = (await clock(storage)).replace(microsecond=0) + timedelta(minutes=30)
    return first, f"{first.second} {first.minute} * * * *"


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
        """When that is sooner than its delay."""
        _, expression = await hourly(storage)
        slow = storage.cron_task("slow", expression, delay=7200)
        fast = storage.cron_task("fast", expression, delay=1)
        next_in = (await attempt(slow)).next_in

        assert next_in is not None
        assert 1790 < next_in <= 1800
        assert (await attempt(fast)).next_in is None

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
        here, there = [(await attempt(task)).next_in for task in (utc, kolkata)]

        assert here is not None
        assert there is not None
        assert abs((there - here) % 86400 - (86400 - 5.5 * 3600)) < 5
