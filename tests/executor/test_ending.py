"""Stops, cancellations, losses: nothing that was claimed or done goes missing."""

import functools
import signal
import sqlite3
import threading

import attrs
import pytest
import trio

from planton import (
    AlreadyRunningError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    StorageError,
    UndeliveredInstructionsError,
)
from planton.testing import EventCollector, MemoryStorage
from planton_executor import Executor, LostLeaseError
from planton_sqlite import SQLiteStorage


async def test_what_runs_may_finish_when_the_block_is_left(memory_bench):
    """Within the grace period; its result is stored."""
    one = memory_bench()

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(5)
        return "done"

    (event,) = await one.claim("a")
    async with one.executor:
        await one.executor.submit(event)

    assert ("succeeded", "done") == ((await one.record()).status, (await one.record()).result)
    assert 5 == round(trio.current_time())


async def test_a_cancellation_drains_too(memory_bench):
    """The result that was obtained is stored; then the cancellation goes its way."""
    one = memory_bench()

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(5)
        return "done"

    (event,) = await one.claim("a")
    with trio.move_on_after(1) as scope:
        async with one.executor:
            await one.executor.submit(event)
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert "succeeded" == (await one.record()).status


async def test_what_outlasts_the_grace_period_is_given_back(memory_bench):
    """Async handlers are cancelled; one that ends at the last moment still counts."""
    one = memory_bench(grace=3)
    told = []

    @one.executor.handler("task")
    async def handle(work):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            told.append((work.instruction, work.is_cancelled))
            if work.instruction == "a":
                raise
        return "at the last moment"

    a, b = await one.claim("a", "b")
    async with one.executor:
        await one.executor.submit(a)
        await one.executor.submit(b)

    assert [("a", True), ("b", True)] == sorted(told)
    assert ["queued", "succeeded"] == [(await one.record(name)).status for name in "ab"]
    assert 3 == round(trio.current_time())


async def test_what_has_a_slot_and_has_not_begun_is_given_back_without_grace(memory_bench):
    """As what has begun is: nothing is left to its lease."""
    one = memory_bench(concurrency=100, grace=0)
    names = [f"{number}" for number in range(10)]

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep_forever()

    events = await one.claim(*names)
    async with one.executor:
        for event in events:
            await one.executor.submit(event)

    assert ["queued"] * 10 == [(await one.record(name)).status for name in names]


async def test_the_result_of_a_handler_that_shields_itself_is_stored(memory_bench):
    """However late it is: trio waits for it, so somebody can store it."""
    one = memory_bench(grace=3)

    @one.executor.handler("task")
    async def handle(work):
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
        return "late"

    (event,) = await one.claim("a", lease=30)
    async with one.executor:
        await one.executor.submit(event)

    assert ("succeeded", "late") == ((await one.record()).status, (await one.record()).result)
    assert 60 == round(trio.current_time())


async def test_an_end_that_nobody_can_store_is_left_to_its_lease(memory_bench, caplog):
    """The storage is away: the executor ends all the same, and the log says what is lost."""
    one = memory_bench(grace=3)
    one.executor.handler("task")(print_nothing)
    (event,) = await one.claim("a")
    one.storage.connection.execute("ALTER TABLE planton_active RENAME TO gone")
    async with one.executor:
        await one.executor.submit(event)
    one.storage.connection.execute("ALTER TABLE gone RENAME TO planton_active")

    assert 5 == round(trio.current_time())
    assert "running" == (await one.record()).status
    assert "the ends of 1 instructions could not be stored" in caplog.text
    assert "left to their leases, and will be delivered again: 'a'" in caplog.text


async def test_a_storage_that_is_away_is_told_once_then_summed_up(memory_bench, caplog):
    """And when it is back."""
    caplog.set_level("INFO", "planton.executor")
    one = memory_bench()
    one.executor.handler("task")(print_nothing)
    (event,) = await one.claim("a", lease=600)
    one.storage.connection.execute("ALTER TABLE planton_active RENAME TO gone")
    async with one.executor:
        await one.executor.submit(event)
        await trio.sleep(150)
        assert 0 == one.seen.words.count("idle")
        one.storage.connection.execute("ALTER TABLE gone RENAME TO planton_active")
        await one.seen.until(1)
    lines = [each.message for each in caplog.records if each.name == "planton.executor"]

    assert [StorageError] == [type(error) for error in one.seen.errors]
    assert [True, True, False] == ["cannot be written" in line for line in lines]
    assert "the storage answers, after" in lines[-1]
    assert "succeeded" == (await one.record()).status


async def print_nothing(work):
    """Does nothing."""


async def test_what_waits_for_a_slot_is_given_back_at_the_end(memory_bench):
    """And its dispatcher is told."""
    one = memory_bench(concurrency=1)
    errors = []

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(5)

    a, b = await one.claim("a", "b")

    async def submit(event):
        try:
            await one.executor.submit(event)
        except UndeliveredInstructionsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        async with one.executor:
            await one.executor.submit(a)
            nursery.start_soon(submit, b)
            await trio.sleep(1)

            assert 0 == one.executor.capacity()

    (error,) = errors
    assert error.released
    assert "before there was a slot" in str(error)
    assert ["succeeded", "queued"] == [(await one.record(name)).status for name in "ab"]


async def test_a_cancelled_submit_leaves_the_instruction_to_its_caller(memory_bench):
    """As long as it waits for a slot."""
    one = memory_bench(concurrency=1)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(5)

    a, b = await one.claim("a", "b")
    async with one.executor:
        await one.executor.submit(a)
        with trio.move_on_after(1) as scope:
            await one.executor.submit(b)

        assert scope.cancelled_caught
        assert "running" == (await one.record("b")).status
        await trio.sleep(5)
        assert 1 == one.executor.capacity()


async def test_planton_and_executor_stop_together(memory_bench):
    """First the claims are handed over, then what runs is finished."""
    one = memory_bench(concurrency=2)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(3)

    await one.enqueue("a", "b", "c")
    planton = one.planton()
    async with planton:
        await trio.sleep(1)

    assert ["succeeded", "succeeded", "queued"] == [
        (await one.record(name)).status for name in "abc"
    ]


@pytest.mark.parametrize("kind", ("sqlite",))
async def test_results_are_stored_before_the_storage_is_closed(where):
    """Of what still runs when Planton is told to stop."""
    storage = SQLiteStorage(where)
    executor = Executor(storage)
    begun = trio.Event()

    @executor.handler("task")
    async def handle(work):
        begun.set()
        await trio.sleep(0.3)
        return "done"

    task = storage.queue_task("task", delay=0.02)
    async with Planton(storages=[storage], consumers=[executor], tasks=[task]):
        await storage.enqueue("task", "a")
        await begun.wait()

    async with storage:
        (found,) = await storage.find()
        assert ("succeeded", "done") == (found.status, found.result)


def test_a_second_ctrl_c_does_not_wait_for_handlers():
    """Async ones are cancelled and what they did is given back, though grace is not over."""
    storage = MemoryStorage()
    executor = Executor(storage, grace=1000)
    task = storage.queue_task("task", delay=0.01)
    planton = Planton(tasks=[task], services=[executor.serve])
    planton.on(InstructionEvent, executor.submit)

    @executor.handler("task")
    @trio.lowlevel.enable_ki_protection
    async def handle(work):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(1000)

    async def main():
        await storage.enqueue("task", "a")
        await planton.run()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)

    assert ["queued"] == [found.status for found in trio.run(storage.find)]


@pytest.mark.parametrize("kind", ("memory",))
async def test_threads_are_left_after_a_second_ctrl_c(bench, caplog):
    """Nothing can end them; their leases run out."""
    one = bench(grace=1000)
    begun, let_go = trio.Event(), threading.Event()

    @one.executor.handler("task")
    def handle(work):
        trio.from_thread.run_sync(begun.set)
        let_go.wait(30)

    await one.enqueue("a")
    planton = one.planton()
    async with trio.open_nursery() as nursery:
        await nursery.start(planton.run)
        await begun.wait()
        planton.request_stop()
        await trio.testing.wait_all_tasks_blocked(0.05)
        planton.abort()

    assert not let_go.is_set()
    assert "running" == (await one.record()).status
    assert "goes on: its lease is left" in caplog.text
    let_go.set()


async def test_an_executor_of_a_planton_that_does_not_run_has_nobody_to_break_it_off(memory_bench):
    """Whoever calls `serve` ends it."""
    one = memory_bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(one.executor.serve, Planton())
        await trio.sleep(1)
        nursery.cancel_scope.cancel()

    assert 1 == trio.current_time()


async def test_an_executor_that_does_not_run_says_so(memory_bench):
    """Its instructions are given back by their dispatcher."""
    one = memory_bench()
    await one.enqueue("a")
    planton = Planton(tasks=[one.storage.queue_task("task", delay=1)])
    planton.on(InstructionEvent, one.executor.submit)
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)
    (error,) = seen.errors

    assert "the executor does not run" in str(error)
    assert "queued" == (await one.record()).status


async def test_a_block_may_be_entered_again_but_not_twice(memory_bench):
    """One at a time."""
    one = memory_bench()
    async with one.executor:
        with pytest.raises(AlreadyRunningError, match="this executor runs already"):
            async with one.executor:
                pass
    async with one.executor:
        pass
    with pytest.raises(ZeroDivisionError):
        async with one.executor:
            raise ZeroDivisionError


async def test_one_that_runs_already_may_be_a_service_of_several(memory_bench):
    """A free slot then wakes the tasks of all of them that were turned away."""
    one = memory_bench(concurrency=1)

    @one.executor.handler("task")
    @one.executor.handler("other")
    async def handle(work):
        await trio.sleep(3)

    plantons = []
    for name in ("task", "other"):
        task = one.storage.queue_task(name, delay=100, capacity=one.executor.capacity)
        planton = Planton(tasks=[task], services=[one.executor.serve])
        planton.on(InstructionEvent, one.executor.submit)
        plantons.append(planton)
    await one.enqueue("a")
    await one.enqueue("b", name="other")
    async with one.executor, plantons[0], plantons[1]:
        plantons[0].wake()
        await trio.sleep(1)
        plantons[1].wake()
        await trio.sleep(3)

        assert ["started a", "succeeded a", "idle", "started b"] == one.seen.words


async def test_a_lost_lease_ends_the_handler(bench):
    """It is told, and what it did is not stored."""
    one = bench()
    told = []

    @one.executor.handler("task")
    async def handle(work):
        try:
            await trio.sleep_forever()
        finally:
            told.append(work.is_cancelled)

    (event,) = await one.claim("a", lease=0.6)
    async with one.executor:
        await one.executor.submit(event)
        await one.storage.complete(event.receipt, "by somebody else")
        await one.seen.until(1)
    (failed,) = one.seen.failed

    assert ("lost", [True]) == (failed.reason, told)
    assert isinstance(failed.error, LostLeaseError)
    assert "by somebody else" == (await one.record()).result


async def test_a_late_result_is_refused_and_told(bench):
    """Before any heartbeat could tell."""
    one = bench()

    @one.executor.handler("task")
    async def handle(work):
        await one.storage.complete(work.receipt, "first")
        return "second"

    (event,) = await one.claim("a")
    async with one.executor:
        await one.executor.submit(event)
        await one.seen.until(1)

    assert ["lost"] == [event.reason for event in one.seen.failed]
    assert "first" == (await one.record()).result


async def test_what_is_lost_while_it_waits_is_not_begun(memory_bench):
    """Somebody else does it."""
    one = memory_bench(concurrency=1)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(60)

    a, b = await one.claim("a", "b", lease=30)
    async with trio.open_nursery() as nursery, one.executor:
        await one.executor.submit(a)
        nursery.start_soon(one.executor.submit, b)
        await one.storage.release(b.receipt)
        await trio.sleep(100)

    assert ["started a", "failed b", "succeeded a", "idle"] == one.seen.words


async def test_an_event_must_have_a_receipt(memory_bench):
    """Or nothing could be reported."""
    one = memory_bench()
    async with one.executor:
        with pytest.raises(InvalidArgumentError, match=r"event\.receipt is None"):
            await one.executor.submit(InstructionEvent(task_name="task", instruction="a"))


async def test_a_receipt_of_another_storage_spoils_no_other_report(memory_bench):
    """It is told as an error, and the others are stored."""
    one = memory_bench()
    errors = []
    one.executor.on(ErrorEvent, errors.append)

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(1)

    events = await one.claim("a", "b")
    strange = InstructionEvent(task_name="task", instruction="c", receipt="strange")
    async with one.executor:
        for event in (events[0], strange, events[1]):
            await one.executor.submit(event)

    assert ["succeeded", "succeeded"] == [(await one.record(name)).status for name in "ab"]
    (error,) = errors
    assert "strange" in str(error.error)


async def test_a_young_receipt_of_another_storage_spoils_no_heartbeat_and_no_end(memory_bench):
    """Though all of them are renewed in one call, and end alike."""
    one = memory_bench()

    @one.executor.handler("task")
    async def handle(work):
        await trio.sleep(100)

    a, b = await one.claim("a", "b", lease=30)
    strange = attrs.evolve(a, receipt="strange")
    async with one.executor:
        for event in (a, strange, b):
            await one.executor.submit(event)
        await trio.sleep(100.5)
        await one.claim(lease=30)  # would find them if their leases were over

    assert [("succeeded", 1)] * 2 == [
        ((await one.record(name)).status, (await one.record(name)).delivery) for name in "ab"
    ]
    assert ["strange" in str(error) for error in one.seen.errors] == [True]


@pytest.mark.parametrize("kind", ("memory",))
async def test_a_sync_handler_that_goes_on_keeps_its_claim(bench, caplog):
    """Its thread may yet do the work: the lease has to run out before another gets it."""
    one = bench(grace=0.1)
    let_go = threading.Event()

    @one.executor.handler("task")
    def handle(work):
        while not work.is_cancelled and not let_go.wait(0.01):
            pass
        let_go.wait(10)

    (event,) = await one.claim("a")
    async with one.executor:
        await one.executor.submit(event)
    let_go.set()

    assert "running" == (await one.record()).status
    assert "the thread of 'a', task 'task', goes on: its lease is left" in caplog.text


@pytest.fixture
def database(where):
    def execute(statement):
        connection = sqlite3.connect(where)
        with connection:
            connection.execute(statement)
        connection.close()

    return execute


@pytest.mark.parametrize("kind", ("sqlite",))  # a database that can be spoiled
async def test_an_end_is_stored_when_the_storage_can_be_written_again(bench, database):
    """Each failure is told; the result waits, and is renewed meanwhile if it can."""
    one = bench()
    errors = []
    handled = trio.Event()

    @one.executor.on(ErrorEvent)
    async def mend(event):
        errors.append(event.error)
        database("ALTER TABLE gone RENAME TO planton_active")

    @one.executor.handler("task")
    async def handle(work):
        database("ALTER TABLE planton_active RENAME TO gone")
        handled.set()
        return "kept"

    (event,) = await one.claim("a")
    async with one.executor:
        await one.executor.submit(event)
        await one.seen.until(1)

    assert [StorageError] == [type(error) for error in errors]
    assert "kept" == (await one.record()).result


@pytest.mark.parametrize("kind", ("sqlite",))
async def test_heartbeats_go_on_after_an_error_of_the_storage(bench, database):
    """It is told, and tried again soon."""
    one = bench()
    errors = []

    @one.executor.on(ErrorEvent)
    def mend(event):
        errors.append(event.error)
        database("ALTER TABLE gone RENAME TO planton_active")

    @one.executor.handler("task")
    async def handle(work):
        database("ALTER TABLE planton_active RENAME TO gone")
        await trio.sleep(0.6)

    (event,) = await one.claim("a", lease=0.9)
    before = (await one.record()).lease_expires_at
    async with one.executor:
        await one.executor.submit(event)
        await trio.sleep(0.55)

        assert before < (await one.record()).lease_expires_at

    assert [StorageError] == [type(error) for error in errors]
    assert "succeeded" == (await one.record()).status


def test_arguments_are_looked_at():
    """With the name of the argument."""
    storage = MemoryStorage()
    executor = Executor(storage)
    executor.handler("taken")(print)
    for arguments, word in (
        ({"concurrency": 0}, "concurrency is 0"),
        ({"grace": -1}, "grace is -1"),
        ({"storage": 5}, "storage is 5"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            Executor(**{"storage": storage, **arguments})
    for arguments, word in (
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"retry_delay": "1"}, "retry_delay is '1'"),
        ({"task_name": ""}, "task_name is ''"),
        ({"task_name": "taken"}, "a handler already"),
    ):
        with pytest.raises(InvalidArgumentError, match=word):
            executor.handler(**{"task_name": "task", **arguments})


def _no_argument():
    """It does nothing with the work."""


def _generator(work):
    yield work


async def _async_generator(work):
    yield work


class _CallableGenerator:
    def __call__(self, work):
        yield work


@pytest.mark.parametrize(
    ("function", "problem"),
    (
        (5, "handler is 5: give a function, sync"),
        (_no_argument, "it must take 1 argument"),
        (lambda work, other: None, "it must take 1 argument"),
        (_generator, "it has a `yield`"),
        (functools.partial(_generator), "it has a `yield`"),
        (_async_generator, "it has a `yield`"),
        (_CallableGenerator(), "it has a `yield`"),
    ),
)
def test_a_function_that_cannot_be_a_handler_is_refused(function, problem):
    """When it is given, not when there is work."""
    executor = Executor(MemoryStorage())
    with pytest.raises(InvalidArgumentError, match=problem):
        executor.handler("task")(function)


def test_a_function_of_which_nothing_is_known_may_be_a_handler():
    """Some that are written in C do not say what they take."""
    executor = Executor(MemoryStorage())
    for known in (print, dict, min, lambda *works: None):
        executor.handler(repr(known))(known)
