"""The public API as type checkers see it; checked by mypy and pyright, never run."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, assert_type

import attrs
import trio

from planton import (
    AttemptEvent,
    Batch,
    Claim,
    ErrorEvent,
    Health,
    InstructionEvent,
    Planton,
    ScheduleRequest,
    Task,
    TaskStatus,
    delays,
    health,
)
from planton.asyncio import Handle, bridge, callback, running
from planton.hosting import ThreadHandle, asyncio_callback, start_in_thread
from planton.testing import EventCollector, MemoryStorage
from planton_executor import (
    Executor,
    FailedEvent,
    Next,
    Step,
    StepContext,
    Steps,
    SucceededEvent,
    Work,
    done,
    then,
)
from planton_postgres import PostgresStorage
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
    return Batch([Claim(instruction=request.task_name), "plain"], next_in=1.0, due_in=0.5, active=2)


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
    receipt: str = event.receipt  # need not be checked for None
    assert receipt


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
    assert_type(MemoryStorage().queue_task("x"), Task)


@attrs.frozen
class Hello(Step):
    name: str
    retry_limit = 5
    retry_delay = delays.exponential(1, 60)

    async def step(self, context: StepContext) -> Next:
        assert_type(context.tries, int)
        return then(Hello(self.name)) if context.work.is_cancelled else done({"name": self.name})


async def execute(storage: PostgresStorage) -> None:
    executor = Executor(storage, concurrency=3)
    Executor(MemoryStorage())

    @executor.handler("sync", timeout=1.0, retries=2, retry_delay=delays.constant(1))
    def handle(work: Work) -> int:
        return work.delivery

    @executor.handler("async", retry_delay=0.5)
    async def handle_async(work: Work) -> dict[str, Any]:
        return {"payload": work.payload}

    @executor.on(FailedEvent)
    def failed(event: FailedEvent) -> None:
        assert_type(event.error, Exception)

    async def succeeded(event: SucceededEvent) -> None:
        assert_type(event.duration, float)

    executor.on(SucceededEvent, succeeded)
    executor.off(FailedEvent, failed)
    assert_type(handle(Work.of(InstructionEvent(task_name="a", instruction="b"), "r")), int)
    assert_type(await handle_async(Work.of(InstructionEvent.from_json("{}"), "r")), dict[str, Any])
    steps = Steps(executor, "Greeter", [Hello])
    assert_type(await steps.enqueue("a", Hello("Ann"), priority=1), bool)
    planton = Planton(
        tasks=[storage.queue_task("a", capacity=executor.capacity)],
        services=[storage.serve, executor.serve],
    )
    planton.on(InstructionEvent, executor.submit)
    async with executor as running:
        assert_type(running, Executor)


with start_in_thread(planton) as handle:
    assert_type(handle.call(MemoryStorage().enqueue, "a", "b"), bool)
    assert_type(handle.call(health, planton), Health)
    assert_type(handle, ThreadHandle)
    assert_type(handle.status(), list[TaskStatus])


@callback
async def handle_in_asyncio(work: Work) -> int:
    return work.delivery


@callback
@asynccontextmanager
async def lock(task_name: str) -> AsyncGenerator[int, None]:
    yield len(task_name)


async def in_asyncio() -> None:
    storage = MemoryStorage()
    assert_type(bridge(storage), MemoryStorage)
    async with bridge(storage) as jobs, running(planton) as guest:
        assert_type(await jobs.enqueue("a", "b"), bool)
        assert_type(guest, Handle)
        assert_type(guest.status(), list[TaskStatus])
        assert_type(await guest.call(storage.enqueue, "a", "b"), bool)
        assert_type(await guest.call(health, planton), Health)
        assert_type(await handle_in_asyncio(Work.of(InstructionEvent.from_json("{}"), "r")), int)
        async with lock("a") as context:
            assert_type(context, int)
        await guest.terminate()


def make(loop: "object") -> None:
    import asyncio

    assert isinstance(loop, asyncio.AbstractEventLoop)
    planton.on(InstructionEvent, asyncio_callback(deliver, loop))
