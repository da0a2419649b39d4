"""The public API as type checkers see it; checked by mypy and pyright, never run."""

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_type

import trio

from planton import (
    AttemptEvent,
    Batch,
    Claim,
    ErrorEvent,
    InstructionEvent,
    Planton,
    ScheduleRequest,
    Task,
    TaskStatus,
    delays,
)
from planton.hosting import ThreadHandle, asyncio_callback, start_in_thread
from planton.testing import EventCollector, MemoryStorage
from planton_sqlite import SQLiteStorage


async def get_active_instructions(task_name: str) -> list[str]:
    return [task_name]


def get_active_instructions_sync(task_name: str) -> Sequence[str]:
    return (task_name,)


async def schedule(request: ScheduleRequest) -> list[str]:
    assert_type(request.limit, int)
    assert_type(request.active_instructions, tuple[str, ...])
    return []


def schedule_sync(request: ScheduleRequest) -> Batch:
    return Batch([Claim(instruction=request.task_name), "plain"], next_in=1.0, active=2)


async def release(claims: Sequence[Claim]) -> None:
    assert_type(claims[0].receipt, str | None)


async def service(
    planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    planton.wake()
    task_status.started()


tasks = [
    Task(name="a", schedule=schedule),
    Task(name="b", schedule=schedule_sync, concurrency=lambda: 5, delay=timedelta(seconds=1)),
    Task(name="c", schedule=schedule, delay=delays.exponential(initial=0.1, maximum=60)),
    Task(name="d", schedule=schedule, delay=delays.cron("*/5 * * * *", timezone="Europe/Lisbon")),
    Task(
        name="e",
        schedule=schedule,
        limit=lambda concurrency, active: concurrency - len(active),
        capacity=lambda: 3,
        release=release,
        timeout=5.0,
        cap="strict",
        get_active_instructions=get_active_instructions_sync,
    ),
]
planton = Planton(
    get_active_instructions=get_active_instructions, tasks=tasks, services=[service], grace=5
)


@planton.on(InstructionEvent)
async def deliver(event: InstructionEvent) -> None:
    assert_type(event.instruction, str)


def listen(event: ErrorEvent) -> None:
    assert_type(event.error, Exception)


planton.on(ErrorEvent, listen)
planton.off(ErrorEvent, listen)


async def main() -> None:
    async with planton as running:
        assert_type(running, Planton)
    async with planton.events(InstructionEvent) as stream:
        async for event in stream:
            assert_type(event, InstructionEvent)
    assert_type(await planton.attempt("a"), AttemptEvent)
    assert_type(planton.status(), list[TaskStatus])
    assert_type(planton.explain("a"), list[str])
    async with trio.open_nursery() as nursery:
        await nursery.start(planton.run)
    async with SQLiteStorage("app.db") as storage:
        assert_type(storage, SQLiteStorage)
        assert_type(storage.claim_task("x", sql="…", concurrency=2, lease=5.0), Task)
        Planton(get_active_instructions=storage.get_active_instructions, services=[storage.serve])
    collector = EventCollector(planton)
    assert_type(await collector.wait_for(AttemptEvent), list[AttemptEvent])
    assert_type(MemoryStorage().claim_task("x"), Task)


with start_in_thread(planton) as handle:
    assert_type(handle, ThreadHandle)
    assert_type(handle.status(), list[TaskStatus])


def make(loop: "object") -> None:
    import asyncio

    assert isinstance(loop, asyncio.AbstractEventLoop)
    planton.on(InstructionEvent, asyncio_callback(deliver, loop))
