"""A Planton in programs that are not on trio; real threads, real loops, real time."""

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import trio

from planton import (
    AlreadyRunningError,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    PlantonError,
    StorageError,
    Task,
    UnknownTaskError,
    health,
)
from planton.hosting import asyncio_callback, start_in_thread
from planton.testing import MemoryStorage


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        threading.Event().wait(0.002)


class Source:
    """A sync `schedule` over a list."""

    def __init__(self, *rows):
        self.rows = list(rows)
        self.threads = set()

    def __call__(self, request):
        self.threads.add(threading.current_thread().name)
        taken, self.rows = self.rows[: request.limit], self.rows[request.limit :]
        return taken


def make(schedule, **options):
    planton = Planton(
        tasks=[Task(name="task", schedule=schedule, cap="strict", delay=0.01, **options)],
        grace=2,
    )
    seen = []
    planton.on(InstructionEvent, lambda event: seen.append(event.instruction))
    return planton, seen


# A plain synchronous program


def test_start_wake_status_terminate():
    """The whole life, from a thread that knows no trio."""
    planton, seen = make(Source("a"), concurrency=2)
    handle = start_in_thread(planton)
    wait_until(lambda: seen == ["a"])
    (status,) = handle.status()
    handle.wake()
    handle.wake("task")

    assert handle.is_running
    assert ("task", "strict") == (status.name, status.cap)
    handle.terminate()

    assert not handle.is_running
    handle.terminate()
    handle.wake()

    assert "stopped" == handle.status()[0].state


def test_it_is_a_context_manager_and_may_be_started_again():
    """One thread after the other."""
    source = Source("a")
    planton, seen = make(source)
    with start_in_thread(planton):
        wait_until(lambda: seen == ["a"])
    source.rows.append("b")
    with start_in_thread(planton):
        wait_until(lambda: seen == ["a", "b"])


def test_an_error_in_a_callback_goes_on_as_an_event():
    """The thread does not die of it."""
    errors = []

    def schedule(request):
        raise OSError("down")

    planton, _ = make(schedule)
    planton.on(ErrorEvent, lambda event: errors.append(str(event.error)))
    with start_in_thread(planton):
        wait_until(lambda: len(errors) >= 2)

    assert {"down"} == set(errors)


def test_an_unknown_name_is_an_error_of_the_caller():
    """Raised where the mistake was made."""
    planton, _ = make(Source())
    with start_in_thread(planton) as handle, pytest.raises(UnknownTaskError):
        handle.wake("tusk")


def test_a_start_that_fails_raises():
    """And leaves no thread behind."""
    planton, _ = make(Source())
    with start_in_thread(planton):
        before = threading.active_count()
        with pytest.raises(AlreadyRunningError):
            start_in_thread(planton)

        assert before == threading.active_count()


class Unreachable:
    """A storage that cannot be opened."""

    is_open = False

    async def __aenter__(self):
        raise StorageError("app.db", "cannot be opened")

    async def __aexit__(self, *exc):
        pass

    async def serve(self, planton, *, task_status):
        task_status.started()


def test_a_storage_that_cannot_be_opened_is_a_start_that_fails():
    """The program hears of it where it starts."""
    planton = Planton(storages=[Unreachable()])
    with pytest.raises(StorageError, match=r"app\.db: cannot be opened"):
        start_in_thread(planton)

    assert not planton.is_running


def test_what_ended_the_thread_is_raised_by_terminate():
    """A KeyboardInterrupt ends everything, whoever raises it."""

    def listen(event):
        raise KeyboardInterrupt("stop everything")

    planton, _ = make(Source("a"))
    planton.on(InstructionEvent, listen)
    handle = start_in_thread(planton)
    handle._thread.join(5)
    with pytest.raises(KeyboardInterrupt, match="stop everything"):
        handle.terminate()
    handle.terminate()


def test_a_function_is_called_on_plantons_thread():
    """Async or not; its result and its errors come back."""
    storage = MemoryStorage()
    planton = Planton(tasks=[storage.queue_task("task", concurrency=1, delay=0.01)])
    with start_in_thread(planton) as handle:
        assert handle.call(storage.enqueue, "task", "a")
        (found,) = handle.call(partial(storage.find, task_name="task"))

        assert "a" == found.instruction
        assert handle.call(health, planton)
        assert "planton" == handle.call(lambda: threading.current_thread().name)
        with pytest.raises(InvalidArgumentError, match="task_name is ''"):
            handle.call(storage.enqueue, "", "a")


def test_no_function_is_called_when_planton_runs_no_more():
    """The error says so."""
    planton, _ = make(Source())
    handle = start_in_thread(planton)
    handle.terminate()
    with pytest.raises(PlantonError, match=r"does not run any more, so .*print.* start_in_thread"):
        handle.call(print)


def test_a_function_that_outlives_planton_is_cancelled():
    """Whoever waits for it is told."""
    planton, _ = make(Source())
    handle = start_in_thread(planton)
    errors, begun = [], threading.Event()

    async def forever():
        begun.set()
        await trio.sleep_forever()

    def call():
        try:
            handle.call(forever)
        except PlantonError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    begun.wait(5)
    handle.terminate()
    thread.join()

    assert "does not run any more" in errors[0]


HOST_THAT_ENDS = """
import threading
from planton import InstructionEvent, Planton, Task
from planton.hosting import start_in_thread

begun = threading.Event()

def schedule(request):
    begun.set()
    threading.Event().wait(0.3)
    return ["claimed while the program ends"]

planton = Planton(tasks=[Task(name="task", schedule=schedule, cap="strict", delay=0)])
planton.on(InstructionEvent, lambda event: print(event.instruction, flush=True))
start_in_thread(planton)
begun.wait(5)
print("the program ends")
"""


def test_a_program_that_ends_first_loses_nothing():
    """What was being claimed is delivered before the interpreter is gone."""
    done = subprocess.run(
        [sys.executable, "-c", HOST_THAT_ENDS], capture_output=True, text=True, timeout=20
    )

    assert "" == done.stderr
    assert "the program ends\nclaimed while the program ends" == "\n".join(
        done.stdout.splitlines()[:2]
    )
    assert 0 == done.returncode


# An asyncio program


def test_callbacks_and_listeners_on_the_programs_own_loop():
    """They run in the loop's thread while the loop goes on with its own work."""
    seen, ticks, threads = [], [], set()

    async def program():
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        async def schedule(request):
            threads.add(threading.current_thread())
            await asyncio.sleep(0.01)
            return ["a"] if not seen else []

        async def deliver(event):
            threads.add(threading.current_thread())
            await asyncio.sleep(0.01)
            seen.append(event.instruction)
            done.set()

        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0.001)

        planton = Planton(
            tasks=[
                Task(
                    name="task",
                    schedule=asyncio_callback(schedule, loop),
                    cap="strict",
                    delay=0.01,
                )
            ]
        )
        planton.on(InstructionEvent, asyncio_callback(deliver, loop))
        ticking = asyncio.create_task(tick())
        handle = await asyncio.to_thread(start_in_thread, planton)
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.to_thread(handle.terminate)
        ticking.cancel()

    asyncio.run(program())

    assert ["a"] == seen
    assert {threading.main_thread()} == threads
    assert len(ticks) > 5


def run_with_loop(schedule, **options):
    """Run a task whose schedule is a coroutine function; its errors, and the seen instructions."""

    async def program():
        loop = asyncio.get_running_loop()
        planton, seen = make(asyncio_callback(schedule, loop), **options)
        errors = []
        planton.on(ErrorEvent, lambda event: errors.append(event.error))
        handle = await asyncio.to_thread(start_in_thread, planton)
        while not errors and not seen:
            await asyncio.sleep(0.002)
        await asyncio.to_thread(handle.terminate)
        return errors, seen

    return asyncio.run(asyncio.wait_for(program(), 10))


def test_an_error_of_the_coroutine_is_an_error_event():
    """With its own type."""

    async def schedule(request):
        raise KeyError("x")

    errors, _ = run_with_loop(schedule)

    assert isinstance(errors[0], KeyError)


def test_something_that_is_no_coroutine_is_an_error_event():
    """A sync function given by mistake."""
    errors, _ = run_with_loop(lambda request: ["a"])

    assert isinstance(errors[0], TypeError)


def test_a_timeout_cancels_the_coroutine():
    """On the loop that it runs on."""
    cancelled = []

    async def schedule(request):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    errors, _ = run_with_loop(schedule, timeout=0.05)

    assert isinstance(errors[0], TimeoutError)
    assert cancelled


def test_what_the_coroutine_commits_in_spite_of_the_timeout_is_delivered():
    """It is heard."""

    async def schedule(request):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return ["committed"]

    _, seen = run_with_loop(schedule, timeout=0.05)

    assert "committed" == seen[0]


@pytest.mark.parametrize("when", ("before", "meanwhile"))
def test_a_loop_that_ends_first_is_an_error_event(when):
    """The host may end before its Planton does."""
    errors = []
    begun = threading.Event()

    async def schedule(request):
        begun.set()
        await asyncio.sleep(100)

    async def program():
        loop = asyncio.get_running_loop()
        planton, _ = make(asyncio_callback(schedule, loop))
        planton.on(ErrorEvent, lambda event: errors.append(str(event.error)))
        if when == "before":
            return planton, None
        handle = await asyncio.to_thread(start_in_thread, planton)
        await asyncio.to_thread(begun.wait, 5)
        return planton, handle

    planton, handle = asyncio.run(program())
    with handle or start_in_thread(planton):
        wait_until(lambda: errors)

    assert "loop" in errors[0]


def test_a_coroutine_that_will_not_end_does_not_keep_the_program():
    """Its loop is blocked: the callback gives up a second after its timeout."""
    release = threading.Event()

    async def schedule(request):
        await asyncio.to_thread(lambda: None)
        release.wait(10)  # blocks the loop itself

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    planton, _ = make(asyncio_callback(schedule, loop), timeout=0.05)
    errors = []
    planton.on(ErrorEvent, lambda event: errors.append(event.error))
    with start_in_thread(planton):
        wait_until(lambda: errors)
    release.set()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

    assert isinstance(errors[0], TimeoutError)


def test_a_loop_that_is_closed_under_the_coroutine_is_a_timeout():
    """Nothing is left to be cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    begun = threading.Event()

    async def schedule(request):
        begun.set()
        await asyncio.Event().wait()

    planton, _ = make(asyncio_callback(schedule, loop), timeout=0.1)
    errors = []
    planton.on(ErrorEvent, lambda event: errors.append(event.error))
    with start_in_thread(planton):
        begun.wait(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        (task,) = asyncio.all_tasks(loop)
        task._log_destroy_pending = False  # it is lost on purpose
        loop.close()
        wait_until(lambda: errors)

    assert isinstance(errors[0], TimeoutError)


def test_a_handle_in_a_listener_says_that_it_would_block():
    """Called on Planton's own thread it would wait for itself."""
    storage, errors = MemoryStorage(), []
    storage.add("task", "a")
    planton = Planton(tasks=[storage.queue_task("task", delay=0)], storages=[storage])

    def listen(_):
        try:
            handle.status()
        except PlantonError as error:
            errors.append(str(error))
        done.set()

    planton.on(InstructionEvent, listen)
    done = threading.Event()
    with start_in_thread(planton) as handle:
        planton_woke = handle.wake()
        done.wait(10)

    assert ["this would block trio: call the methods of the Planton instead"] == errors
    assert planton_woke is None
