"""`callback`: what trio calls of an asyncio program."""

import asyncio
import functools
import sys
import threading
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest
import sniffio
import trio
import uvloop

from planton import ErrorEvent, InstructionEvent, InvalidArgumentError, Planton, PlantonError, Task
from planton.asyncio import CallbackCancelledError, _callback, _host, bridge, callback, running
from planton.asyncio._guest import Guest

var = ContextVar("var", default="unset")


class Trio:
    """Calls async functions on trio, from asyncio; the least that there is to bridge."""

    async def call(self, function, *args):
        return await function(*args)

    async def limited(self, seconds, function, *args):
        with trio.move_on_after(seconds):
            return await function(*args)
        return "cancelled"


trio_side = bridge(Trio())


# Rule 4: its context, its library, its task


@pytest.mark.parametrize("factory", (None, "plain", "eager"))
def test_a_callback_runs_in_the_context_of_the_trio_task_that_calls_it(run, factory):
    """What it sets is seen afterwards, as if it had been awaited; also with a task factory."""

    async def work():
        seen = var.get()
        var.set("by asyncio")
        await asyncio.sleep(0)
        return seen, sniffio.current_async_library(), asyncio.current_task() is not None

    async def on_trio():
        var.set("by trio")
        result = await callback(work)()
        return (*result, var.get(), sniffio.current_async_library())

    async def main():
        set_factory(factory)
        return await trio_side.call(on_trio)

    assert ("by trio", "asyncio", True, "by asyncio", "trio") == run(main)


def set_factory(name):
    loop = asyncio.get_running_loop()
    if name == "plain":
        loop.set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
    elif name == "eager":
        if sys.version_info < (3, 12):
            pytest.skip("Python 3.12 brings eager tasks")
        if isinstance(loop, uvloop.Loop) and (3, 13) <= sys.version_info < (3, 13, 3):
            pytest.skip("uvloop cannot use the eager factory of these")
        loop.set_task_factory(asyncio.eager_task_factory)


def test_a_task_factory_that_takes_no_context_is_told(run):
    """The callback fails; nothing hangs."""

    async def work():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
        try:
            with pytest.raises(TypeError, match="context"):
                await trio_side.call(callback(work))
        finally:
            loop.set_task_factory(None)  # nor does the end of uvloop's program go without

    run(main)


def test_a_context_manager_may_reset_what_it_has_set(run):
    """It is entered and left in one context."""

    @asynccontextmanager
    async def lock(name):
        token = var.set(name)
        await asyncio.sleep(0)
        yield f"context of {name}"
        await asyncio.sleep(0)
        var.reset(token)

    async def on_trio():
        async with callback(lock)("task") as context:
            held = var.get()
        return context, held, var.get()

    async def main():
        return await trio_side.call(on_trio)

    assert ("context of task", "task", "unset") == run(main)


def test_errors_of_a_callback_are_raised_in_trio(run):
    """As they are."""

    async def work():
        raise ValueError("of the program")

    async def main():
        with pytest.raises(ValueError, match="of the program"):
            await trio_side.call(callback(work))

    run(main)


# What can be a callback


def test_a_callback_keeps_its_kind(run):
    """Coroutine functions, partials, callable objects, plain functions, ready-made managers."""

    class Callable:
        async def __call__(self, request):
            return "object", request

        async def many(self, requests):
            await asyncio.sleep(0)
            return list(requests)

    async def function(first, second):
        await asyncio.sleep(0)
        return first, second

    def plain(value):
        return value

    def gives_a_coroutine(value):
        return function("lambda", value)

    lock = asyncio.Lock()

    async def on_trio():
        async with callback(lock):
            locked = lock.locked()
        return [
            await callback(functools.partial(function, "partial"))(1),
            await callback(Callable())(1),
            await callback(Callable()).many([1]),
            callback(plain)(1),
            await callback(gives_a_coroutine)(1),
            locked,
            lock.locked(),
        ]

    async def main():
        return await trio_side.call(on_trio)

    expected = [("partial", 1), ("object", 1), [1], 1, ("lambda", 1), True, False]

    assert expected == run(main)


def test_what_cannot_be_called_is_refused():
    """When it is wrapped."""
    with pytest.raises(InvalidArgumentError, match="function is 17"):
        callback(17)


# Rule 12: who calls it


def test_the_program_itself_may_call_it(run):
    """Then it is the function as it was: no other asyncio task, no trio."""

    @callback
    async def work():
        return asyncio.current_task()

    @callback
    @asynccontextmanager
    async def lock():
        yield asyncio.current_task()

    @callback
    def plain():
        return work()

    async def main():
        me = asyncio.current_task()
        async with lock() as inside:
            assert [me] * 3 == [await work(), await plain(), inside]

    run(main)


async def test_in_a_plain_trio_program_it_has_no_loop():
    """It says how to get one."""

    async def work():
        pass

    with pytest.raises(PlantonError, match=r"planton\.asyncio\.running"):
        await callback(work)()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_async_generators_are_closed_by_the_library_they_began_in(run):
    """Both have their hooks in the thread."""
    closed = []

    async def numbers(sleep):
        try:
            yield 1
            yield 2
        finally:
            try:
                await sleep(0)
            except trio.Cancelled:
                pass
            closed.append((sleep.__module__.split(".")[0], sniffio.current_async_library()))

    async def begin(sleep):
        generator = numbers(sleep)
        await anext(generator)
        kept.append(generator)

    kept = []

    async def main():
        async with running(Planton()) as handle:
            await begin(asyncio.sleep)
            await handle.call(begin, trio.sleep)
            kept.clear()
            await asyncio.sleep(0.01)

    run(main)

    assert [("asyncio", "asyncio"), ("trio", "trio")] == sorted(closed)


# Rule 5: trio's cancellation


def test_a_cancellation_is_one_cancel_and_waits_for_the_end(run):
    """The coroutine may clean up, for which it awaits."""
    seen = []

    async def work():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            seen.append(asyncio.current_task().cancelling())
            raise

    async def main():
        return await trio_side.limited(0.05, callback(work))

    assert "cancelled" == run(main)
    assert [1] == seen


def test_a_value_returned_in_spite_of_a_cancellation_counts(run):
    """It may stand for a commit."""

    async def work():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "committed"

    async def main():
        return await trio_side.limited(0.05, callback(work))

    assert "committed" == run(main)


def test_an_error_that_a_cancellation_brings_about_is_raised(run):
    """Trio does so too."""

    async def work():
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError("cannot be rolled back")

    async def main():
        with pytest.raises(ValueError, match="cannot be rolled back"):
            await trio_side.limited(0.05, callback(work))

    run(main)


def test_a_coroutine_that_goes_on_is_given_up_and_logged_with_its_place(run, caplog):
    """After a second; it goes on without anybody who waits."""
    done = threading.Event()

    async def stubborn():
        while not done.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass

    async def main():
        began = time.monotonic()
        result = await trio_side.limited(0.05, callback(stubborn))
        took = time.monotonic() - began
        done.set()
        await asyncio.sleep(0.1)
        return result, took

    result, took = run(main)

    assert "cancelled" == result
    assert 1 < took < 3
    assert "stubborn" in caplog.text
    assert "test_callback.py:" in caplog.text
    assert "_body" not in caplog.text


def test_a_schedule_that_is_given_up_is_reported_as_unknown(run):
    """It may have claimed something."""
    errors = []
    done = threading.Event()

    async def stubborn(request):
        while not done.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass
        return ["1"]

    async def main():
        task = Task(name="task", schedule=callback(stubborn), cap="strict", delay=0)
        planton = Planton(tasks=[task], grace=0.1)
        planton.on(ErrorEvent, errors.append)
        planton.on(InstructionEvent, lambda event: None)
        async with running(planton):
            await asyncio.sleep(0.05)
        done.set()
        await asyncio.sleep(0.1)

    run(main)

    assert ["terminate"] == [event.stage for event in errors]
    assert "not known" in str(errors[0].error)


def test_what_is_shielded_outlives_the_callback(run):
    """`asyncio.shield` is the program's own decision."""
    seen = []

    async def commit():
        await asyncio.sleep(0.2)
        seen.append("committed")

    async def work():
        await asyncio.shield(commit())

    async def main():
        result = await trio_side.limited(0.05, callback(work))
        before = list(seen)
        await asyncio.sleep(0.3)
        return result, before

    assert ("cancelled", []) == run(main)
    assert ["committed"] == seen


def test_a_cancellation_before_the_coroutine_begins_leaves_it_unbegun(run, monkeypatch):
    """With a task factory it begins a turn later."""
    monkeypatch.setattr(_host, "BUDGET", 10)  # all within one turn of the loop
    seen = []

    async def work():
        seen.append("began")

    async def on_trio():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(callback(work))
                while not Guest.running().hops:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        return scope.cancelled_caught

    async def main():
        set_factory("plain")
        return await trio_side.call(on_trio)

    assert run(main)
    assert [] == seen


def test_a_callback_of_a_cancelled_trio_task_does_not_begin(run):
    """As every checkpoint of trio."""
    seen = []

    async def work():
        seen.append("began")

    async def main():
        return await trio_side.limited(0, callback(work))

    assert "cancelled" == run(main)
    assert [] == seen


def test_a_lock_is_given_back_although_its_trio_task_is_cancelled(run):
    """Leaving is shielded, for as long as it should take."""
    lock = asyncio.Lock()

    async def hold():
        async with callback(lock):
            await trio.sleep_forever()

    async def main():
        result = await trio_side.limited(0.05, hold)
        return result, lock.locked()

    assert ("cancelled", False) == run(main)


def test_a_lock_that_cannot_be_given_back_holds_up_nobody_for_ever(run, monkeypatch):
    """What is behind it goes on."""
    monkeypatch.setattr(_callback, "RELEASE", 0.05)

    @asynccontextmanager
    async def lock():
        yield
        await asyncio.sleep(30)

    async def hold():
        async with callback(lock)():
            pass
        return "went on"

    async def main():
        return await trio_side.call(hold)

    assert "went on" == run(main)


# Rule 6: the program's cancellation


def test_a_callback_that_the_program_cancels_is_no_failure(run):
    """The error says so, to whoever counts failures."""

    async def work():
        asyncio.current_task().cancel()
        await asyncio.sleep(30)

    async def main():
        with pytest.raises(CallbackCancelledError, match="cancelled by the program") as caught:
            await trio_side.call(callback(work))
        return caught.value.is_failure

    assert not run(main)


def test_a_callback_cancelled_before_its_first_step_is_no_failure(run, monkeypatch):
    """Its coroutine was never begun."""
    monkeypatch.setattr(_host, "BUDGET", 10)  # all within one turn of the loop

    async def work():
        pass

    async def on_trio():
        before = asyncio.all_tasks(loop)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            while not (new := asyncio.all_tasks(loop) - before):
                await trio.lowlevel.checkpoint()
            new.pop().cancel()

    async def cancelled():
        with pytest.raises(CallbackCancelledError):
            await callback(work)()

    async def main():
        nonlocal loop
        loop = asyncio.get_running_loop()
        await trio_side.call(on_trio)

    loop = None
    run(main)


def test_a_coroutine_that_raises_cancelled_error_by_itself_has_failed(run):
    """It awaited something that was cancelled; tried again for ever it would never end."""

    async def work():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def main():
        with pytest.raises(PlantonError, match="although it was not cancelled") as caught:
            await trio_side.call(callback(work))
        return caught.value.is_failure

    assert run(main)


def test_a_function_that_cancels_itself_makes_no_hot_loop(run):
    """What is given back is claimed again at once."""

    async def work():
        asyncio.current_task().cancel()
        await asyncio.sleep(30)

    async def main():
        began = time.monotonic()
        with pytest.raises(CallbackCancelledError):
            await trio_side.call(callback(work))
        return time.monotonic() - began

    assert run(main) > 0.1


async def cancel_yourself():
    asyncio.current_task().cancel()
    await asyncio.sleep(30)


async def note_failures(failures):
    try:
        await callback(cancel_yourself)()
    except CallbackCancelledError as error:
        failures.append(error.is_failure)


def test_a_function_that_is_cancelled_again_and_again_fails_at_last(run):
    """Its instruction would be given back and claimed again for ever."""
    failures = []

    async def on_trio():
        for _ in range(5):
            await note_failures(failures)

    async def main():
        await trio_side.call(on_trio)

    run(main)

    assert [False, False, False, True, True] == failures


def test_many_that_are_cancelled_at_the_end_of_a_program_are_no_failures(run):
    """All of them are given back."""
    failures = []

    async def on_trio():
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(note_failures, failures)

    async def main():
        await trio_side.call(on_trio)

    run(main)

    assert [False] * 10 == failures


def test_a_system_exit_of_a_coroutine_is_its_own_failure(run):
    """As on trio; asyncio would end the program, and again at each new start."""

    async def work():
        sys.exit("the file is missing")

    async def main():
        with pytest.raises(PlantonError, match="the file is missing was raised") as caught:
            await trio_side.call(callback(work))
        return caught.value.is_failure

    assert run(main)


def test_a_keyboard_interrupt_in_a_coroutine_is_the_programs(way, new_loop):
    """The loop raises it; the callback has not failed."""
    seen = []

    async def work():
        raise KeyboardInterrupt

    async def on_trio():
        with pytest.raises(CallbackCancelledError, match="KeyboardInterrupt"):
            await callback(work)()
        seen.append("not failed")

    async def main():
        await trio_side.call(on_trio)
        seen.append("ended")
        await asyncio.sleep(30)

    loop = new_loop()
    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    loop.run_until_complete(asyncio.sleep(0.4))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()

    assert ["not failed", "ended"] == seen
    assert not trio.lowlevel.in_trio_run()
