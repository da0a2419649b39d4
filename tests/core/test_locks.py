"""`Task.lock`: the count and the claim of a user's own two callbacks as one critical section."""

import threading
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from planton import (
    CallbackTimeoutError,
    ErrorEvent,
    InstructionEvent,
    InvalidTaskError,
    Planton,
    Task,
)
from planton.testing import EventCollector, thread_aware


class Table:
    """Rows that several dispatchers share, with a lock, and what happened to that."""

    def __init__(self, *pending):
        self.pending, self.active = list(pending), []
        self.said = []
        self.lock = trio.Lock()

    async def get_active_instructions(self, task_name):
        await trio.sleep(0.01)
        return list(self.active)

    async def schedule(self, request):
        await trio.sleep(0.01)
        taken, self.pending = self.pending[: request.limit], self.pending[request.limit :]
        self.active += taken
        return taken

    @asynccontextmanager
    async def waiting(self, task_name):
        async with self.lock:
            self.said.append(f"{task_name} enters")
            yield "a connection"
        self.said.append(f"{task_name} leaves")

    @asynccontextmanager
    async def trying(self, task_name):
        try:
            self.lock.acquire_nowait()
        except trio.WouldBlock:
            yield False
            return
        try:
            yield True
        finally:
            self.lock.release()


def make(table, lock, *, grace=10.0, **options):
    options = {"schedule": table.schedule, "delay": 1.0, **options}
    task = Task(
        name="task", get_active_instructions=table.get_active_instructions, lock=lock, **options
    )
    planton = Planton(tasks=[task], grace=grace)
    return planton, EventCollector(planton)


@pytest.mark.parametrize("kind", ("waiting", "trying"))
async def test_with_a_lock_the_cap_is_exact_over_several_dispatchers(kind):
    """Without one each counts before the other has claimed."""
    most = {}
    for is_locked in (False, True):
        table = Table(*map(str, range(20)))
        lock = getattr(table, kind) if is_locked else None
        async with trio.open_nursery() as nursery:
            seen = []
            for _ in range(4):
                planton, events = make(table, lock, concurrency=2)
                await nursery.start(planton.run)
                seen.append(events)
            await trio.sleep(3.5)
            nursery.cancel_scope.cancel()
        most[is_locked] = len(table.active)
        assert len(table.active) == sum(len(each.instructions) for each in seen)

    assert {False: 8, True: 2} == most


async def test_it_is_left_before_what_was_claimed_is_handed_over():
    """Consumers may be slow; the next dispatcher counts meanwhile."""
    table = Table("a")
    planton, _ = make(table, table.waiting)

    async def consume(event):
        table.said.append("delivered")

    planton.on(InstructionEvent, consume)
    await planton.attempt("task")

    assert ["task enters", "task leaves", "delivered"] == table.said


async def test_what_it_yields_is_the_context_of_the_request():
    """Such as the connection that holds it."""
    table, contexts = Table(), []

    async def schedule(request):
        contexts.append(request.context)
        return []

    await make(table, table.waiting, schedule=schedule)[0].attempt("task")
    await make(table, None, schedule=schedule)[0].attempt("task")

    assert ["a connection", None] == contexts


async def test_a_lock_that_is_taken_ends_the_attempt_and_it_comes_again_soon():
    """False says that another dispatcher is claiming: nothing is counted, no attempt is lost."""
    table = Table("a")
    planton, seen = make(table, table.trying, delay=100.0)
    await table.lock.acquire()
    async with planton:
        await trio.sleep(0)
        planton.wake()
        await trio.sleep(10)
        outcomes = set(seen.outcomes)
        tries = len(seen.outcomes)

        assert 0 == planton.status()[0].attempt_number
        assert "locked: another dispatcher is claiming" in planton.explain("task")[0]
        table.lock.release()
        await trio.sleep(0.5)

    assert {"locked"} == outcomes
    assert 25 < tries < 200
    assert ["a"] == seen.instructions


def test_status_says_that_the_lock_keeps_the_cap():
    """For as long as it holds."""
    table = Table()

    assert "locked" == make(table, table.waiting)[0].status()[0].cap


async def test_a_lock_that_cannot_be_entered_is_an_error():
    """Nothing is counted or claimed without it."""
    table = Table("a")

    @asynccontextmanager
    async def broken(task_name):
        raise OSError("no connection")
        yield

    planton, seen = make(table, broken)
    async with planton:
        await trio.sleep(2.5)

    assert ["error", "error"] == seen.outcomes
    assert {("lock", "no connection")} == {
        (event.stage, str(event.error)) for event in seen.of(ErrorEvent)
    }
    assert ["a"] == table.pending


@pytest.mark.parametrize("lock", (lambda name: None, lambda name: 1 / 0))
async def test_what_is_no_context_manager_is_an_error(lock):
    """Of the attempt, not of the run."""
    planton, seen = make(Table("a"), lock)

    assert "error" == (await planton.attempt("task")).outcome
    assert ["lock"] == [event.stage for event in seen.of(ErrorEvent)]


async def test_an_error_within_it_is_raised_in_its_block():
    """So that a transaction is rolled back."""
    raised = []

    @asynccontextmanager
    async def transaction(task_name):
        try:
            yield
        except OSError as error:
            raised.append(str(error))
            raise
        else:
            raised.append("commit")

    async def schedule(request):
        raise OSError("deadlock")

    planton, seen = make(Table(), transaction, schedule=schedule)
    attempt = await planton.attempt("task")

    assert ["deadlock"] == raised
    assert ("error", ["deadlock"]) == (attempt.outcome, [str(error) for error in seen.errors])


@pytest.mark.parametrize("has_release", (True, False))
async def test_what_was_claimed_in_a_lock_that_was_lost_is_not_delivered(has_release):
    """The cap may be broken: it is released, or kept until the next attempt has counted it."""
    table, released = Table("a", "b"), []
    is_lost = True

    @asynccontextmanager
    async def lock(task_name):
        nonlocal is_lost
        yield
        if is_lost:
            is_lost = False
            raise ConnectionError("the server closed the connection")

    async def release(claims):
        released.extend(claim.instruction for claim in claims)
        for claim in claims:
            table.active.remove(claim.instruction)

    options = {"release": release} if has_release else {}
    planton, seen = make(table, lock, **options)
    async with planton:
        await trio.sleep(1.5)
        assert [] == seen.instructions
        assert ["lock"] == [event.stage for event in seen.of(ErrorEvent)]
        await trio.sleep(1)

    assert (["a"] if has_release else []) == released
    assert (["b"] if has_release else ["a"]) == seen.instructions


async def test_what_was_rolled_back_when_the_lock_was_lost_is_not_delivered_later():
    """It is not active in the next count, so it was never claimed."""
    table = Table("a", "b")
    is_lost = True

    @asynccontextmanager
    async def transaction(task_name):
        nonlocal is_lost
        yield
        if is_lost:
            is_lost = False
            table.active.remove("a")
            raise ConnectionError("the server closed the connection")

    planton, seen = make(table, transaction)
    async with planton:
        await trio.sleep(2.5)

    assert ["b"] == seen.instructions


async def test_entering_takes_no_longer_than_the_timeout():
    """Another dispatcher that hangs holds up this one for no longer."""
    table = Table("a")
    await table.lock.acquire()
    planton, seen = make(table, table.waiting, timeout=3.0)
    attempt = await planton.attempt("task")

    assert 3 == trio.current_time()
    assert ("error", CallbackTimeoutError) == (attempt.outcome, type(seen.errors[0]))
    assert "lock of task 'task' did not return within 3 s" == str(seen.errors[0])


async def test_it_is_left_when_the_run_is_cut_off():
    """Past the grace period everything is cancelled; a lock that stays would stop the fleet."""
    table = Table("a")

    async def hang(request):
        await trio.sleep_forever()

    planton, seen = make(table, table.waiting, schedule=hang)
    with trio.move_on_after(2):
        await planton.run()
    table.said.append(trio.current_time())

    assert not table.lock.locked()
    assert ["task enters", 12.0] == table.said
    assert ["terminate"] == [event.stage for event in seen.of(ErrorEvent)]


async def test_a_lock_that_fails_or_hangs_when_it_is_cut_off_ends_no_more_than_itself():
    """It has a second."""

    @asynccontextmanager
    async def stubborn(task_name):
        try:
            yield
        finally:
            with trio.CancelScope(shield=task_name == "never"):
                await trio.sleep(100)

    @asynccontextmanager
    async def failing(task_name):
        try:
            yield
        finally:
            raise OSError("no connection")

    async def hang(request):
        await trio.sleep_forever()

    for lock, end in ((stubborn, 13.0), (failing, 12.0)):
        began = trio.current_time()
        planton, _ = make(Table("a"), lock, schedule=hang)
        with trio.move_on_after(2):
            await planton.run()

        assert end == trio.current_time() - began


# Sync ones


class SyncTable(Table):
    """The same with functions that block."""

    def __init__(self, *pending):
        super().__init__(*pending)
        self.mutex = threading.Lock()
        self.threads = []

    @contextmanager
    def blocking(self, task_name):
        self.threads.append(threading.current_thread())
        with self.mutex:
            self.said.append("enters")
            yield "a connection"
        self.said.append("leaves")


async def test_a_sync_lock_is_entered_and_left_in_worker_threads(autojump_clock):
    """It may block."""
    table = SyncTable("a")
    with thread_aware(autojump_clock):
        planton, seen = make(table, table.blocking)
        await planton.attempt("task")

    assert ["enters", "leaves"] == table.said
    assert ["a"] == seen.instructions
    assert threading.main_thread() not in table.threads


@pytest.mark.trio("real")
async def test_a_sync_lock_that_comes_after_the_timeout_is_left_again():
    """Nobody waits for it any more, and nothing enters it twice."""
    table = SyncTable("a")
    planton, seen = make(table, table.blocking, timeout=0.05, delay=0.01)
    with table.mutex:
        async with planton:
            with trio.fail_after(10):
                await seen.wait_for(ErrorEvent, 3)
            assert 1 == len(table.threads)
            table.mutex.release()
            with trio.fail_after(10):
                while "leaves" not in table.said:
                    await trio.sleep(0.005)
                while not seen.instructions:
                    await trio.sleep(0.005)
        table.mutex.acquire()

    assert {"lock"} == {event.stage for event in seen.of(ErrorEvent)}
    assert "leaves" == table.said[-1]


@pytest.mark.trio("real")
async def test_a_sync_schedule_that_outlives_its_timeout_keeps_the_lock_until_it_ends():
    """It may still claim."""
    table = SyncTable("a")
    begun, go_on = threading.Event(), threading.Event()

    def schedule(request):
        begun.set()
        go_on.wait(10)
        table.said.append("claims")
        table.active.append("a")
        return ["a"]

    planton, seen = make(table, table.blocking, timeout=0.05, schedule=schedule, delay=1000.0)
    async with planton:
        planton.wake()
        with trio.fail_after(10):
            await seen.wait_for(ErrorEvent)
        assert ["enters"] == table.said
        go_on.set()
        with trio.fail_after(10):
            while len(seen.instructions) < 1:
                await trio.sleep(0.005)

    assert ["enters", "claims", "leaves", "enters", "leaves"] == table.said[:5]


@pytest.mark.trio("real")
async def test_a_sync_lock_that_comes_when_the_run_is_over_is_left_again():
    """Its thread cannot be stopped, but must not keep the fleet from claiming."""
    table = SyncTable("a")
    planton, _ = make(table, table.blocking, grace=0.05)
    with table.mutex:
        with trio.move_on_after(0.1):
            await planton.attempt("task")
    with trio.fail_after(10):
        while "leaves" not in table.said:
            await trio.sleep(0.005)

    assert ["enters", "leaves"] == table.said
    assert not table.mutex.locked()


@pytest.mark.trio("real")
async def test_a_sync_lock_is_left_when_the_run_is_cut_off():
    """From a thread of its own: those of the run are cancelled."""
    table = SyncTable("a")

    async def hang(request):
        await trio.sleep_forever()

    planton, _ = make(table, table.blocking, schedule=hang, grace=0.05)
    with trio.move_on_after(0.1):
        await planton.attempt("task")

    assert ["enters"] == table.said
    assert not table.mutex.locked()


@pytest.mark.parametrize("lock", (5, "lock", Table.waiting.__wrapped__))
def test_what_cannot_be_a_lock_is_refused(lock):
    """A generator function without its decorator, too."""
    with pytest.raises(InvalidTaskError, match="lock") as caught:
        Task(name="task", schedule=print, cap="strict", lock=lock)

    assert "returns a context manager" in str(caught.value)
