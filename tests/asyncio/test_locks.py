"""`Task(lock=…)` with a lock of asyncio's: an exact cap in an asyncio program."""

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest

from planton import ErrorEvent, InstructionEvent, Planton, ScheduleRequest, Task
from planton.asyncio import callback, running
from planton.testing import EventCollector

var = ContextVar("var", default="unset")


class Rows:
    """What the program has: counted and claimed with a pause in between."""

    def __init__(self, due=6):
        self.new = [str(n) for n in range(due)]
        self.active, self.released, self.log, self.most = set(), [], [], 0

    async def get_active_instructions(self, task_name):
        self.log.append("count")
        found = sorted(self.active)
        await asyncio.sleep(0.01)
        return found

    async def schedule(self, request: ScheduleRequest):
        self.log.append(f"claim with {request.context}, {var.get()}")
        claimed, self.new = self.new[: request.limit], self.new[request.limit :]
        self.active.update(claimed)
        self.most = max(self.most, len(self.active))
        await asyncio.sleep(0.01)
        return claimed

    async def release(self, claims):
        self.released += [claim.instruction for claim in claims]

    async def consume(self, event):
        await asyncio.sleep(0.01)
        self.active.remove(event.instruction)

    def planton(self, lock, **options):
        task = Task(
            name="task",
            schedule=callback(self.schedule),
            get_active_instructions=callback(self.get_active_instructions),
            release=callback(self.release),
            lock=callback(lock),
            **{"delay": 60, **options},
        )
        planton = Planton(tasks=[task])
        planton.on(InstructionEvent, callback(self.consume))
        return planton


async def attempt(planton):
    """Make one attempt in a running Planton; its outcome and the errors."""
    seen = EventCollector(planton)
    async with running(planton) as handle:
        made = await handle.call(planton.attempt, "task")
    return made.outcome, [(event.stage, repr(event.error)) for event in seen.of(ErrorEvent)]


def test_a_lock_is_held_while_a_task_counts_and_claims(run):
    """In one context, which the callbacks share; what it yields is the context of the request."""
    rows = Rows()

    @asynccontextmanager
    async def lock(task_name):
        token = var.set("locked")
        rows.log.append(f"enter {task_name}")
        await asyncio.sleep(0.001)
        yield "connection"
        await asyncio.sleep(0.001)
        rows.log.append(f"leave, {len(rows.active)} active")
        var.reset(token)

    async def main():
        planton = rows.planton(lock)
        return await attempt(planton), planton.status()[0].cap

    assert (("dispatched", []), "locked") == run(main)
    assert ["enter task", "count", "claim with connection, locked", "leave, 1 active"] == rows.log


def test_a_lock_that_another_one_holds_is_no_error(run):
    """It yields False; nothing is counted."""
    rows = Rows()

    @asynccontextmanager
    async def lock(task_name):
        yield False

    async def main():
        return await attempt(rows.planton(lock))

    assert ("locked", []) == run(main)
    assert [] == rows.log


def test_what_is_claimed_under_a_lock_that_is_lost_is_released(run):
    """By the program's own coroutine function; nothing is dispatched."""
    rows = Rows()

    @asynccontextmanager
    async def lock(task_name):
        yield True
        await asyncio.sleep(0)
        raise ConnectionError("lost")

    async def main():
        planton = rows.planton(lock)
        seen = EventCollector(planton)
        return await attempt(planton), seen.of(InstructionEvent)

    assert (("error", [("lock", "ConnectionError('lost')")]), []) == run(main)
    assert ["0"] == rows.released


@pytest.mark.parametrize("fails", ("count", "claim"))
def test_a_lock_is_left_with_the_error_of_what_is_in_it(run, fails):
    """So that a transaction of the program's is rolled back."""
    rows, raised = Rows(), []

    async def fail(*_):
        await asyncio.sleep(0)
        raise ValueError(fails)

    if fails == "count":
        rows.get_active_instructions = fail
    else:
        rows.schedule = fail

    @asynccontextmanager
    async def lock(task_name):
        try:
            yield True
        except ValueError as error:
            raised.append(str(error))
            raise

    async def main():
        return await attempt(rows.planton(lock))

    outcome, errors = run(main)

    assert ("error", [fails]) == (outcome, raised)
    assert [f"ValueError('{fails}')"] == [error for _, error in errors]


def test_a_lock_that_waits_too_long_is_cancelled(run):
    """By the timeout of the task; it is not left behind."""
    rows, cancelled = Rows(), []

    @asynccontextmanager
    async def lock(task_name):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(task_name)
            raise
        yield True

    async def main():
        return await attempt(rows.planton(lock, timeout=0.05))

    outcome, ((stage, error),) = run(main)

    assert ("error", "lock", ["task"]) == (outcome, stage, cancelled)
    assert "CallbackTimeoutError" in error


def test_two_plantons_of_a_program_keep_an_exact_cap_by_a_lock(run):
    """An `asyncio.Lock` will do within one process."""
    rows = Rows(due=12)
    shared = asyncio.Lock()

    @asynccontextmanager
    async def lock(task_name):
        async with shared:
            yield True

    async def main():
        plantons = [rows.planton(lock, delay=0.001, concurrency=3) for _ in range(2)]
        async with running(plantons[0]), running(plantons[1]):
            while rows.new or rows.active:
                await asyncio.sleep(0.01)

    run(main)

    assert 3 == rows.most


def test_a_lock_is_left_when_the_program_ends_in_the_middle(run):
    """What was claimed is handed over first, as ever."""
    rows, left = Rows(), []
    is_in = asyncio.Event()

    @asynccontextmanager
    async def lock(task_name):
        yield True
        left.append(task_name)

    async def slow(request):
        is_in.set()
        await asyncio.sleep(0.05)
        rows.active.add("0")
        return ["0"]

    rows.schedule = slow

    async def main():
        planton = rows.planton(lock, delay=0.001)
        seen = EventCollector(planton)
        async with running(planton):
            async with asyncio.timeout(5):
                await is_in.wait()
        return [event.instruction for event in seen.of(InstructionEvent)]

    assert ["0"] == run(main)
    assert ["task"] == left
