"""Promises of what is not due yet: a dispatcher is there when it is, however long its delay."""

from datetime import timedelta
from typing import Any

import trio

from planton._events import InstructionEvent
from planton._planton import Planton
from planton.testing.conformance._base import Hooks, attempt, claim, clock, enqueue


def an_hour(attempt_number: int) -> float:
    """Give a delay that a storage cannot know: it is a function, which nobody but the core asks."""
    return 3600.0 if attempt_number else 0.0


class DuePromises(Hooks):
    """`due_in` of what comes, of what comes back, and of what is lost."""

    async def test_a_dispatcher_is_there_when_something_becomes_due(self, storage: Any) -> None:
        """Queued for later, failed for now, lost with its consumer, or a time of the calendar."""
        options = {"delay": an_hour, "lease": 1}
        queued = [storage.queue_task(name, **options) for name in ("later", "failed", "lost")]
        soon = await clock(storage) + timedelta(seconds=1)
        await enqueue(storage, "later", "a", run_at=soon)
        for task in queued[1:]:
            await enqueue(storage, task.name, "a", retries=1)
        (failed,), (_,) = [await claim(task) for task in queued[1:]]
        await storage.fail(failed.receipt, "broken", retry_in=1)
        tasks = [*queued, storage.cron_task("cron", "* * * * * *", **options)]
        awaited = {task.name for task in tasks}
        async with Planton(tasks=tasks) as planton, planton.events(InstructionEvent) as stream:
            while awaited:
                with trio.move_on_after(60) as scope:
                    awaited.discard((await anext(stream)).task_name)
                assert not scope.cancelled_caught, f"nothing came of {awaited}"

    async def test_the_next_time_is_told_whatever_the_delay(self, storage: Any) -> None:
        """The dispatcher cuts its delay to it; the storage need not know how long that is."""
        later = await clock(storage) + timedelta(seconds=100)
        for number, delay in enumerate((3600, 10, an_hour)):
            task = storage.queue_task(f"task{number}", delay=delay)
            await enqueue(storage, task.name, "a", run_at=later)

            _assert_near(100, await attempt(task))

    async def test_the_time_of_a_retry_is_told(self, storage: Any) -> None:
        """As that of whatever is queued for later."""
        task = storage.queue_task("task", delay=an_hour)
        await enqueue(storage, "task", "a", retries=1)
        (failed,) = await claim(task)
        await storage.fail(failed.receipt, "broken", retry_in=40)

        _assert_near(40, await attempt(task))

    async def test_the_end_of_a_lease_is_told(self, storage: Any) -> None:
        """Of those that are active, and of the very claim that is made; a timeout may be sooner."""
        for name, options in (("task", {}), ("short", {"timeout": 50})):
            task = storage.queue_task(name, delay=an_hour, lease=80, concurrency=2)
            await enqueue(storage, name, "a", **options)

            for _ in range(2):
                _assert_near(options.get("timeout", 80), await attempt(task))

    async def test_nothing_is_told_when_nothing_comes(self, storage: Any) -> None:
        """Nothing is queued, or it is due already."""
        task = storage.queue_task("task", delay=an_hour, concurrency=2)

        assert (await attempt(task)).due_in is None
        await enqueue(storage, "task", "a")
        (only,) = await claim(task)
        await storage.complete(only.receipt)
        assert (await attempt(task)).due_in is None


def _assert_near(seconds: float, batch: Any) -> None:
    assert batch.due_in is not None
    # A time that was stored as a float is not given back to the last digit.
    assert seconds - 10 < batch.due_in <= seconds + 0.001
