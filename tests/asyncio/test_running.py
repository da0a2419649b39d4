"""`running`: starts, stops, cancellations, ends."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager

import pytest
import trio

from planton import (
    AlreadyRunningError,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    PlantonError,
    Task,
    UnknownTaskError,
)
from planton.asyncio import bridge, callback, running
from planton.asyncio._guest import Guest
from planton.testing import MemoryStorage
from planton_executor import Executor


class Shop:
    """A Planton whose executor calls one coroutine function of asyncio."""

    def __init__(self, work, count=3, grace=5.0, **options):
        self.storage = MemoryStorage()
        self.storage_rows = [str(number) for number in range(count)]
        self.executor = Executor(self.storage, concurrency=5, grace=grace)
        self.begun = []

        async def note(item):
            self.begun.append(item.instruction)
            return await work(item)

        self.executor.handler("task", **options)(callback(note))
        self.jobs = bridge(self.storage)
        self.planton = Planton(
            tasks=[self.storage.queue_task("task", concurrency=5, delay=0.01)],
            services=[self.storage.serve, self.executor.serve],
            grace=grace,
        )
        self.planton.on(InstructionEvent, self.executor.submit)

    async def fill(self):
        """Enqueue, and wait until all is in work."""
        for row in self.storage_rows:
            await self.jobs.enqueue("task", row)
        await until(lambda: len(self.begun) >= len(self.storage_rows))

    async def statuses(self):
        return [found.status for found in await self.jobs.find(task_name="task")]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_planton_dispatches_to_coroutine_functions_of_the_program(run):
    """Callback, listener and handler run on the program's own loop, in its thread."""
    seen = []

    async def main():
        loop = asyncio.get_running_loop()

        @callback
        async def schedule(request):
            await asyncio.sleep(0)
            seen.append(("schedule", asyncio.get_running_loop() is loop))
            return ["1"]

        done = asyncio.Event()

        async def deliver(event):
            await asyncio.sleep(0)
            seen.append((event.instruction, threading.current_thread() is threading.main_thread()))
            done.set()

        planton = Planton(tasks=[Task(name="task", schedule=schedule, cap="strict", delay=0)])
        planton.on(InstructionEvent, callback(deliver))
        async with running(planton) as handle:
            await done.wait()
            assert ["task"] == [status.name for status in handle.status()]

    run(main)

    assert [("schedule", True), ("1", True)] == seen[:2]


def test_what_is_in_work_is_finished_when_the_block_is_left(run):
    """The drain lets handlers of the program end."""
    ended = []

    async def work(work):
        await asyncio.sleep(0.1)
        ended.append(work.instruction)

    async def main():
        shop = Shop(work)
        async with running(shop.planton):
            await shop.fill()

    run(main)

    assert ["0", "1", "2"] == sorted(ended)


# Rule 1: one guest for each thread and loop


def test_two_plantons_share_a_guest_and_the_last_to_leave_ends_it(run):
    """Neither knows of the other."""

    async def main():
        async with running(Planton()):
            guest = Guest.running()
            async with running(Planton()):
                assert guest is Guest.running()
            assert trio.lowlevel.in_trio_run()
        assert not trio.lowlevel.in_trio_run()

    run(main)


def test_trio_run_is_refused_in_the_thread_of_a_guest(run):
    """There is one run of trio in a thread."""

    async def main():
        async with running(Planton()):
            with pytest.raises(RuntimeError, match="from inside"):
                trio.run(trio.sleep, 0)

    run(main)


def test_a_planton_awaited_by_asyncio_code_is_refused(run):
    """`in_trio_run` is true there, but it is no trio task."""

    async def main():
        async with running(Planton()):
            with pytest.raises(RuntimeError, match="asyncio"):
                await Planton().run()

    run(main)


def test_two_threads_have_a_guest_each(run):
    """They do not see each other."""

    async def main():
        async with running(Planton()):
            await asyncio.to_thread(asyncio.run, other())
            assert trio.lowlevel.in_trio_run()

    async def other():
        async with running(Planton()):
            await asyncio.sleep(0)

    run(main)


def test_another_loop_of_the_thread_is_refused(way, new_loop):
    """A loop that is not closed may go on."""
    first, second = new_loop(), new_loop()
    stay = running(Planton())
    first.run_until_complete(stay.__aenter__())

    async def main():
        async with running(Planton()):
            pass

    with pytest.raises(PlantonError, match="another loop of this thread"):
        second.run_until_complete(main())

    first.run_until_complete(stay.__aexit__(None, None, None))
    second.run_until_complete(main())
    first.close()
    second.close()


def test_a_thread_where_trio_runs_is_refused():
    """An asyncio loop that is itself a guest of trio, as by trio-asyncio."""

    async def main():
        loop = asyncio.new_event_loop()
        asyncio._set_running_loop(loop)
        try:
            with pytest.raises(PlantonError, match="trio runs in this thread already"):
                await running(Planton()).__aenter__()
        finally:
            asyncio._set_running_loop(None)
            loop.close()

    trio.run(main)


async def test_a_program_on_trio_is_told_to_use_the_planton_itself():
    """No asyncio loop runs there."""
    with pytest.raises(PlantonError, match="async with planton"):
        await running(Planton()).__aenter__()


def test_who_enters_while_the_last_one_leaves_gets_a_guest_of_its_own(run):
    """A guest that ends takes nobody any more."""

    async def main():
        first = running(Planton())
        await first.__aenter__()
        old = Guest.running()
        leaving = asyncio.create_task(first.__aexit__(None, None, None))
        while old._users:
            await asyncio.sleep(0)
        async with running(Planton()):
            assert Guest.running() is not old
        await leaving

    run(main)


# Rule 2: signals are the program's


def test_a_signal_handler_of_the_loop_is_called(run):
    """Trio leaves the wake-up descriptor to the loop."""

    async def main():
        got = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, got.set)
        async with running(Planton()):
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(got.wait(), 5)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main)


def test_ctrl_c_of_asyncio_run_drains(kind, run):
    """It cancels the main task; what is in work is finished."""
    ended = []

    async def work(work):
        await asyncio.sleep(0.1)
        ended.append(work.instruction)

    async def main():
        shop = Shop(work)
        async with running(shop.planton):
            await shop.fill()
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run(main)

    assert ["0", "1", "2"] == sorted(ended)


def end(loop, stay):
    """End a program after a KeyboardInterrupt, as asyncio.run does."""

    async def leave():
        await stay.__aexit__(None, None, None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop.run_until_complete(leave())
    loop.close()


def test_ctrl_c_on_a_bare_loop_is_raised_in_the_programs_code(way, new_loop):
    """As without Planton, and Python's handler is back in the end."""
    loop = new_loop()

    async def main():
        await stay.__aenter__()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(10)

    stay = running(Planton())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    end(loop, stay)

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not trio.lowlevel.in_trio_run()


def test_ctrl_c_within_a_tick_is_raised_after_it(way, new_loop):
    """Trio would not survive it."""
    loop = new_loop()
    seen = []

    def tick():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass
        seen.append("the tick ended")

    async def main():
        await stay.__aenter__()
        await stay.call(tick)
        await asyncio.sleep(10)

    stay = running(Planton())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert trio.lowlevel.in_trio_run()
    end(loop, stay)

    assert ["the tick ended"] == seen
    assert not trio.lowlevel.in_trio_run()


# Rule 3: errors leave as they are; a cancelled block drains, a second cancellation aborts


def test_an_error_at_the_start_is_raised_there(run):
    """It runs already."""

    async def main():
        planton = Planton()
        async with running(planton):
            with pytest.raises(AlreadyRunningError):
                async with running(planton):
                    pass
        with pytest.raises(ValueError, match="no such place"):
            async with bridge(Broken()):
                pass

    run(main)


class Broken:
    async def __aenter__(self):
        async with trio.open_nursery():
            raise ValueError("no such place")

    async def __aexit__(self, *exc):
        pass


def test_an_exception_of_the_block_leaves_as_it_is(run):
    """Not wrapped in a group."""

    async def main():
        async with running(Planton()):
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        run(main)


def test_a_cancelled_block_drains(run):
    """All that was claimed is finished."""

    async def work(work):
        await asyncio.sleep(0.2)

    async def main():
        shop = Shop(work)

        async def program():
            async with running(shop.planton):
                await shop.fill()
                await asyncio.sleep(10)

        task = asyncio.create_task(program())
        await until(lambda: len(shop.begun) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await shop.statuses()

    assert ["succeeded"] * 3 == run(main)


def test_a_second_cancellation_aborts_and_waits_for_the_end_of_that(run):
    """The handler is cancelled, its instruction given back."""
    seen = []

    async def work(work):
        try:
            await asyncio.sleep(30)
        finally:
            seen.append("cancelled")

    async def main():
        shop = Shop(work, count=1, grace=20)

        async def program():
            async with running(shop.planton):
                await shop.fill()
                await asyncio.sleep(30)

        task = asyncio.create_task(program())
        await until(lambda: shop.begun)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 5
        assert not trio.lowlevel.in_trio_run()
        return [found.status for found in await shop.jobs.find(task_name="task")]

    assert ["queued"] == run(main)
    assert ["cancelled"] == seen


@pytest.mark.parametrize("is_shielded", (False, True))
def test_a_start_that_is_cancelled_is_ended(run, is_shielded):
    """A service that hangs; one that goes on all the same is aborted by a second cancellation."""
    seen = []

    async def hang(planton, *, task_status):
        try:
            with trio.CancelScope(shield=is_shielded):
                await planton.wait_until_aborted()
        finally:
            seen.append("ended")

    async def main():
        planton = Planton(services=[hang])

        async def program():
            async with running(planton):
                seen.append("began")

        task = asyncio.create_task(program())
        await asyncio.sleep(0.05)
        task.cancel()
        if is_shielded:
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)

    assert ["ended"] == seen


def test_what_ends_a_planton_is_logged_and_raised_when_the_block_is_left(run, caplog):
    """Something that no listener should raise."""

    async def main():
        planton = Planton(
            tasks=[Task(name="task", schedule=one, cap="strict", delay=0.01)],
        )

        @planton.on(InstructionEvent)
        def deliver(event):
            raise KeyboardInterrupt

        async with running(planton) as handle:
            await until(lambda: caplog.records)
            handle.status()

    with pytest.raises(KeyboardInterrupt):
        run(main)

    assert ["CRITICAL"] == [record.levelname for record in caplog.records]


async def one(request):
    return ["1"]


def test_an_exception_of_the_block_goes_before_one_of_the_planton(run, caplog):
    """The program's own is the one that it looks for; the other is in the log."""

    async def main():
        async with running(Planton(services=[fail])) as handle:
            await until(lambda: caplog.records)
            assert handle.planton
            raise ValueError("of the block")

    async def fail(planton, *, task_status):
        task_status.started()
        await trio.sleep(0.01)
        raise SystemExit(7)

    with pytest.raises(ValueError, match="of the block"):
        run(main)


def test_terminate_ends_the_planton_within_the_block(run):
    """More than once, by more than one; the block goes on."""

    async def main():
        async with running(Planton()) as handle:
            await asyncio.gather(handle.terminate(), handle.terminate())
            await handle.terminate()
            assert trio.lowlevel.in_trio_run()

    run(main)


def test_terminate_called_by_a_callback_returns_at_once(run):
    """The drain waits for the callback, so it cannot wait for the drain."""
    took = []

    async def main():
        async def deliver(event):
            began = time.monotonic()
            await handle.terminate()
            took.append(time.monotonic() - began)

        planton = Planton(tasks=[Task(name="task", schedule=one, cap="strict", delay=0.01)])
        planton.on(InstructionEvent, callback(deliver))
        async with running(planton) as handle:
            await until(lambda: took)
            await handle.terminate()

    run(main)

    assert took[0] < 1


def test_a_handle_cannot_be_entered_twice(run):
    """One block, one handle."""

    async def main():
        block = running(Planton())
        async with block:
            with pytest.raises(AlreadyRunningError):
                await block.__aenter__()

    run(main)


def test_what_is_no_planton_is_refused():
    """With its name and the remedy."""
    with pytest.raises(InvalidArgumentError, match="planton is 'app'"):
        running("app")


# Rule 6: what the program cancels has not failed


def test_an_instruction_whose_callback_the_program_cancels_is_given_back(run):
    """No try is spent, and it is delivered again."""
    seen = []

    async def work(work):
        seen.append(asyncio.current_task())
        if len(seen) == 1:
            await asyncio.sleep(30)

    async def main():
        shop = Shop(work, count=1)
        async with running(shop.planton):
            await shop.fill()
            await until(lambda: seen)
            seen[0].cancel()
            await until(lambda: len(seen) == 2)
        return await shop.statuses()

    assert ["succeeded"] == run(main)


def test_a_program_that_cancels_all_its_tasks_at_its_end_loses_nothing(run):
    """As asyncio.run does when the main function has returned."""

    async def work(work):
        await asyncio.sleep(30)

    shop = Shop(work, count=2)

    async def main():
        lifespan = asyncio.create_task(program())
        await until(lambda: len(shop.begun) == 2)
        assert not lifespan.done()

    async def program():
        async with running(shop.planton):
            await shop.fill()
            await asyncio.sleep(30)

    async def look():
        return await shop.statuses()

    run(main)

    assert ["queued"] * 2 == run(look)


# Rule 8: a program that ends without having left the block


def test_a_block_that_is_never_left_is_ended_by_the_end_of_asyncio_run(run):
    """Its own hook for asynchronous generators does so."""
    ended = []

    async def work(work):
        await asyncio.sleep(0.1)
        ended.append(work.instruction)

    async def main():
        shop = Shop(work, count=1)
        kept.append(running(shop.planton))
        await kept[0].__aenter__()
        await shop.fill()

    kept = []
    run(main)

    assert not trio.lowlevel.in_trio_run()


def test_a_block_within_a_generator_that_is_never_left_is_ended_too(run, caplog):
    """The loop closes both at the same time."""
    seen = []

    @asynccontextmanager
    async def lifespan():
        async with running(Planton()):
            yield
        seen.append("left")

    async def main():
        kept.append(lifespan())
        await kept[0].__aenter__()

    kept = []
    run(main)

    assert ([], []) == (seen, caplog.records)
    assert not trio.lowlevel.in_trio_run()


def test_a_loop_closed_under_a_planton_is_ended_by_the_next_one(way, new_loop, caplog):
    """What is in work is given back, and the thread can run trio again."""

    async def work(work):
        await asyncio.sleep(30)

    shop = Shop(work, count=2)
    block = running(shop.planton)
    loop = new_loop()

    async def begin():
        await block.__aenter__()
        await shop.fill()

    async def again():
        hooks = sys.get_asyncgen_hooks()
        async with running(Planton()):
            pass
        assert hooks == sys.get_asyncgen_hooks()
        return await shop.statuses()

    loop.run_until_complete(begin())
    pending = asyncio.all_tasks(loop)
    loop.close()
    second = new_loop()
    found = second.run_until_complete(again())
    second.run_until_complete(second.shutdown_asyncgens())
    second.close()
    for task in pending:
        task._log_destroy_pending = False

    assert ["queued"] * 2 == found
    assert "closed while a Planton ran on it" in caplog.text
    assert not trio.lowlevel.in_trio_run()


# Rule 10: forks


def test_a_child_that_was_forked_while_it_ran_is_refused(run):
    """It believes that trio runs; the parent goes on."""

    async def main():
        async with running(Planton()):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.write(writer, _in_a_child())
                os._exit(0)
            os.waitpid(child, 0)
            told = os.read(reader, 1000).decode()
            os.close(reader)
            os.close(writer)
            return told

    assert "forked" in run(main)


def test_the_process_is_compared_with_the_one_that_began(run):
    """The child of a fork has all objects of its parent."""

    async def main():
        async with running(Planton()):
            guest = Guest.running()
            guest._pid = -1
            try:
                with pytest.raises(PlantonError, match="start Planton after the fork"):
                    await running(Planton()).__aenter__()
            finally:
                guest._pid = os.getpid()

    run(main)


def _in_a_child():
    async def main():
        async with running(Planton()):
            pass

    asyncio._set_running_loop(None)
    try:
        asyncio.new_event_loop().run_until_complete(main())
    except BaseException as error:
        return f"{type(error).__name__}: {error}".encode()
    return b"nothing"


# Rule 13, and the handle


def test_pools_may_be_closed_after_the_block(run):
    """No callback runs any more then."""
    order = []

    async def work(work):
        await asyncio.sleep(0.05)
        order.append("work")

    async def main():
        shop = Shop(work, count=1)
        async with running(shop.planton):
            await shop.fill()
        order.append("pool closed")

    run(main)

    assert ["work", "pool closed"] == order


def test_wake_makes_an_attempt_happen_now(run):
    """By name or all of them; an unknown name is refused."""
    requests = []

    async def schedule(request):
        requests.append(request)
        return []

    async def main():
        planton = Planton(tasks=[Task(name="task", schedule=schedule, cap="strict", delay=100)])
        planton.on(InstructionEvent, lambda event: None)
        async with running(planton) as handle:
            handle.wake("task")
            await until(lambda: len(requests) == 1)
            handle.wake()
            await until(lambda: len(requests) == 2)
            with pytest.raises(UnknownTaskError):
                handle.wake("other")

    run(main)


def test_call_awaits_an_async_function_of_trio(run):
    """And calls a plain one within trio."""

    async def add(first, second):
        await trio.sleep(0)
        return first + second

    async def main():
        async with running(Planton()) as handle:
            assert 3 == await handle.call(add, 1, 2)
            assert await handle.call(trio.lowlevel.in_trio_task)
            with pytest.raises(TypeError):
                await handle.call(add, 1, "2")

    run(main)


def test_debug_mode_of_asyncio_finds_nothing(way, caplog):
    """Neither calls from a wrong thread nor slow ones."""

    async def work(work):
        await asyncio.sleep(0)

    async def main():
        shop = Shop(work)
        async with running(shop.planton):
            await shop.fill()
            await until(lambda: len(shop.storage.instructions("task", "ended")) == 3)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main(), debug=True)

    assert [] == [record for record in caplog.records if "took" not in record.message]
