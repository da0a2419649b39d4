"""What an executor tells, and whom."""

import logging
import sqlite3
import time

import pytest
import trio

from planton import ErrorEvent, InstructionEvent, InvalidArgumentError, Planton
from planton.testing import MemoryStorage
from planton_executor import (
    Executor,
    FailedEvent,
    GiveUp,
    IdleEvent,
    LeaseAtRiskEvent,
    StartedEvent,
    SucceededEvent,
)


def test_listeners_come_and_go():
    """Types that there are, functions, and for risks plain ones."""
    executor = Executor(MemoryStorage())

    @executor.on(IdleEvent)
    def listener(event):
        pass

    async def slow(event):
        pass

    executor.off(IdleEvent, listener)
    with pytest.raises(InvalidArgumentError, match="does not listen to IdleEvent"):
        executor.off(IdleEvent, listener)
    with pytest.raises(InvalidArgumentError, match="give one of StartedEvent"):
        executor.on(InstructionEvent, listener)
    with pytest.raises(InvalidArgumentError, match="listener is 5"):
        executor.on(IdleEvent, 5)
    with pytest.raises(InvalidArgumentError, match="give a plain function"):
        executor.on(LeaseAtRiskEvent, slow)


async def test_a_listener_that_fails_stops_nobody(memory_bench, caplog):
    """It is logged; async ones are awaited."""
    one = memory_bench()
    told = []

    @one.executor.on(StartedEvent)
    def fail(event):
        raise ValueError("broken listener")

    @one.executor.on(StartedEvent)
    async def listen(event):
        await trio.sleep(1)
        told.append(event.work.instruction)

    @one.executor.handler("task")
    async def handle(work):
        told.append("handled")

    await one.enqueue("a")
    async with one.planton():
        await trio.sleep(5)

    assert ["a", "handled"] == told
    assert "broken listener" in caplog.text


async def test_failures_and_errors_without_a_listener_are_logged(memory_bench, caplog):
    """With the task and the instruction."""
    one = memory_bench()
    one.executor.off(FailedEvent, one.seen.fail)
    one.executor.off(ErrorEvent, one.seen.note_error)

    @one.executor.handler("task", retry_delay=lambda number: -number - 1, retries=1)
    async def handle(work):
        raise ValueError("no such user")

    await one.enqueue("a")
    strange = InstructionEvent(task_name="task", instruction="b", receipt="strange")
    planton = one.planton()
    async with planton:
        await trio.sleep(1)
        await one.executor.submit(strange)
        await trio.sleep(1)
    failed, *_, error = caplog.records

    assert ("task", "a", logging.WARNING) == (failed.task_name, failed.instruction, failed.levelno)
    assert "'a', delivery 1 failed (error): ValueError: no such user; another try" in failed.message
    assert "strange" in error.message
    assert (
        "retry_delay raised InvalidArgumentError: retry_delay is -2" in (await one.record()).error
    )


async def test_a_failure_tells_whether_another_try_was_asked_for(memory_bench):
    """And when; whether it is granted, for there are retries left, is for the storage to say."""
    one = memory_bench()

    @one.executor.handler("task", retry_delay=3, retries=1)
    async def handle(work):
        if work.instruction == "hopeless":
            raise GiveUp("no such user")
        if work.instruction == "lost":
            await one.storage.complete(work.receipt)
        raise ValueError("busy")

    await one.enqueue("hopeless", "lost", "a")
    async with one.planton(concurrency=3):
        await trio.sleep(2)
        first = [(each.work.instruction, each.retry_in) for each in one.seen.failed]
        await trio.sleep(4)
        dead = await one.storage.find(status="dead", task_name="task")

    assert ("hopeless", None) in first
    assert ("lost", None) in first
    assert ("a", 3.0) in first
    assert ("a", 3.0) == (one.seen.failed[-1].work.instruction, one.seen.failed[-1].retry_in)
    assert ["a"] == [each.instruction for each in dead]


async def test_a_listener_that_wakes_the_task_need_not_wait_for_the_slot(memory_bench):
    """The work that it hears of keeps its slot; the next comes as soon as that is free."""
    one = memory_bench(concurrency=1)
    planton = one.planton(concurrency=1, delay=1000)
    seen = []

    @one.executor.handler("task")
    async def handle(work):
        seen.append(trio.current_time())

    @one.executor.on(SucceededEvent)
    async def wake(event):
        planton.wake("task")
        await trio.sleep(5)
        seen.append(one.executor.capacity())

    await one.enqueue("a", "b")
    async with planton:
        planton.wake("task")
        await trio.sleep(60)
    began_at, free, next_at, _ = seen

    assert 0 == free
    assert 5.0 == next_at - began_at


async def test_handlers_for_tasks_that_are_not_there_are_told(memory_bench, caplog):
    """A name that was misspelt is seen at the start."""
    one = memory_bench()
    one.executor.handler("taks")(print)
    async with one.planton():
        await trio.sleep(1)

    assert "handlers for tasks that are not registered: {'taks'}" in caplog.text


def dispatcher(one, lease):
    task = one.storage.queue_task("task", lease=lease, delay=0.02)
    planton = Planton(tasks=[task], services=[one.executor.serve])
    planton.on(InstructionEvent, one.executor.submit)
    return planton


async def test_who_blocks_the_loop_is_told_before_the_lease_is_lost(bench, caplog):
    """From another thread, with the place where it hangs; the claim is renewed right after."""
    one = bench()
    told = []

    @one.executor.on(LeaseAtRiskEvent)
    def fail(event):
        told.append((time.monotonic(), event))
        raise ValueError("broken listener")

    @one.executor.handler("task")
    async def handle(work):
        time.sleep(1.0)  # what no async function should do
        told.append((time.monotonic(), None))

    await one.enqueue("a")
    async with dispatcher(one, 1.6):
        await one.seen.until(1)
    (at, event), (returned_at, _) = told

    assert at < returned_at
    assert event.is_blocked
    assert 0 < event.expires_in <= 0.8
    assert "time.sleep(1.0)" in event.stack
    assert "trio's loop is blocked" in caplog.text
    assert ["succeeded a"] == one.seen.words[1:2]


@pytest.mark.parametrize("kind", ("sqlite",))  # a database that can be locked
async def test_a_storage_that_does_not_answer_is_told(bench, where):
    """Half a lease after the last renewal."""
    one = bench()
    told = []
    one.executor.on(LeaseAtRiskEvent, told.append)
    connection = sqlite3.connect(where, isolation_level=None)

    @one.executor.handler("task")
    async def handle(work):
        connection.execute("BEGIN IMMEDIATE")
        while not told:
            await trio.sleep(0.02)
        connection.execute("ROLLBACK")

    await one.enqueue("a")
    async with dispatcher(one, 2.0):
        await one.seen.until(1)
    connection.close()

    assert [False] == [event.is_blocked for event in told]
    assert ["a"] == [event.work.instruction for event in told]


async def test_errors_of_the_storage_have_their_event(memory_bench):
    """As in Planton."""
    one = memory_bench()
    errors = []
    one.executor.on(ErrorEvent, errors.append)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(100)

    async with one.executor:
        await one.executor.submit(
            InstructionEvent(task_name="task", instruction="b", receipt="strange", lease=30)
        )
        await trio.sleep(11)

    assert "strange" in str(errors[0].error)
