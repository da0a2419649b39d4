"""Sync callbacks run in worker threads; virtual time waits for them."""

import threading

import pytest
import trio

import planton._loop.caller
from planton import AttemptEvent, Batch, CallbackTimeoutError, ErrorEvent, Planton, Task
from planton.testing import EventCollector, thread_aware


async def test_a_sync_schedule_never_blocks_the_loop(bench, autojump_clock):
    """It runs in another thread, and so do the others that may block."""
    threads = {}

    def get_active_instructions(name):
        threads["active"] = threading.current_thread()
        return []

    def schedule(request):
        threads["schedule"] = threading.current_thread()
        return ["a", "b"]

    def release(claims):
        threads["release"] = threading.current_thread()

    one = bench(schedule=schedule, get_active_instructions=get_active_instructions, release=release)
    with thread_aware(autojump_clock):
        await one.run_for(1.5)

    assert ["a"] == one.seen.instructions
    assert {"active", "schedule", "release"} == set(threads)
    assert threading.main_thread() not in threads.values()


async def test_a_sync_function_that_returns_an_awaitable_is_awaited(bench, autojump_clock):
    """A lambda around an async function is a common thing."""

    async def claim(request):
        return ["a"]

    one = bench(schedule=lambda request: claim(request))
    with thread_aware(autojump_clock):
        await one.run_for(1.5)

    assert ["a"] == one.seen.instructions


async def test_an_error_in_a_thread_is_an_error_event(bench, autojump_clock):
    """Like any other."""

    def schedule(request):
        raise OSError("down")

    one = bench(schedule=schedule)
    with thread_aware(autojump_clock):
        await one.run_for(1.5)

    assert ["down"] == [str(error) for error in one.seen.errors]


async def test_an_async_callback_that_takes_too_long_is_cancelled(bench):
    """And the next attempt follows."""
    one = bench(lambda _: trio.sleep_forever(), ["a"], timeout=2.0)
    await one.run_for(4.5)

    assert isinstance(one.seen.errors[0], CallbackTimeoutError)
    assert isinstance(one.seen.errors[0], TimeoutError)
    assert ["a"] == one.seen.instructions


async def test_an_async_callback_that_returns_in_spite_of_its_timeout_is_heard(bench):
    """It committed, so what it claimed is delivered."""

    async def stubborn(_):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        return ["committed"]

    one = bench(stubborn, timeout=2.0)
    await one.run_for(5)

    assert ["committed"] == one.seen.instructions


@pytest.mark.parametrize("callback", ("delay", "limit", "capacity", "concurrency"))
async def test_the_timeout_is_for_every_callback(bench, callback):
    """Whichever hangs, the task backs off and goes on."""

    async def hang(*_):
        await trio.sleep_forever()

    one = bench(timeout=2.0, **{callback: hang})
    await one.run_for(20)

    assert len(one.seen.errors) > 3
    assert {callback} == {event.stage for event in one.seen.of(ErrorEvent)}


class Gate:
    """A sync schedule that blocks until it is let through."""

    def __init__(self, answer):
        self.answer = answer
        self.event = threading.Event()
        self.calls = 0

    def __call__(self, request):
        self.calls += 1
        self.event.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def wait_for(condition):
    """Wait, in real time, for what a thread does."""
    with trio.fail_after(5):
        while not condition():
            await trio.to_thread.run_sync(threading.Event().wait, 0.002)


def real_time(function):
    """Threads that outlive their timeout need a clock that runs."""
    return pytest.mark.trio("real")(function)


@real_time
@pytest.mark.parametrize("answer", (["late"], Batch(["late"])), ids=("list", "batch"))
async def test_what_a_sync_schedule_claims_after_its_timeout_is_delivered(bench, answer):
    """Its thread cannot be stopped, so it is not called again meanwhile, and it is heard."""
    gate = Gate(answer)
    one = bench(schedule=gate, timeout=0.01, delay=0.01)
    async with one.planton:
        await wait_for(lambda: len(one.seen.errors) >= 3)

        assert 1 == gate.calls
        gate.event.set()
        await wait_for(lambda: one.seen.instructions)
        errors = list(one.seen.errors)

    assert all(isinstance(error, CallbackTimeoutError) for error in errors)
    assert "late" == one.seen.instructions[0]


@real_time
async def test_an_answer_that_comes_late_and_wrong_is_reported(bench):
    """Its well-formed members are delivered all the same."""
    gate = Gate(["late", 5])
    one = bench(schedule=gate, timeout=0.01, delay=0.01)
    async with one.planton:
        await wait_for(lambda: one.seen.errors)
        gate.event.set()
        await wait_for(lambda: one.seen.instructions)

    assert "late" == one.seen.instructions[0]


@real_time
async def test_an_awaitable_that_comes_late_is_awaited(bench):
    """The thread part was slow; the rest is not forgotten."""

    async def claim():
        return ["late"]

    gate = Gate(None)
    one = bench(schedule=lambda request: gate(request) or claim(), timeout=0.01, delay=0.01)
    async with one.planton:
        await wait_for(lambda: one.seen.errors)
        gate.event.set()
        await wait_for(lambda: one.seen.instructions)


@real_time
async def test_a_late_get_active_is_forgotten_when_it_returns():
    """Its answer is out of date."""
    gate = Gate([])
    planton = Planton(
        get_active_instructions=gate,
        tasks=[Task(name="task", schedule=gate, timeout=0.05, delay=0.01)],
    )
    seen = EventCollector(planton)
    async with planton:
        await wait_for(lambda: len(seen.errors) >= 2)
        gate.event.set()
        await wait_for(lambda: "nothing" in seen.outcomes)


@real_time
async def test_a_thread_that_outlives_the_run_is_reported(bench):
    """It cannot be waited for any longer."""
    gate = Gate(["lost"])
    one = bench(schedule=gate, timeout=0.01, delay=0.01, grace=0.05)
    async with one.planton:
        await wait_for(lambda: one.seen.errors)
    gate.event.set()

    assert "terminate" == one.seen.of(ErrorEvent)[-1].stage


@real_time
async def test_threads_that_hang_do_not_use_up_those_of_the_others(monkeypatch, bench):
    """After a while a call no longer counts against the number of threads."""
    monkeypatch.setattr(planton._loop.caller, "SLOW_CALL", 0.01)
    monkeypatch.setattr(planton._loop.caller, "THREADS", 2)
    gate = Gate([])
    one = bench(schedule=lambda request: ["a"], delay=0.01)
    for number in range(8):
        one.planton.register(Task(name=str(number), schedule=gate, delay=0, cap="strict"))
    async with one.planton:
        await wait_for(lambda: gate.calls == 8 and len(one.seen.of(AttemptEvent, "task")) > 3)
        gate.event.set()


@real_time
async def test_an_attempt_by_hand_does_not_wait_for_a_thread_beyond_grace(bench):
    """It is reported, and the next attempt calls again."""
    gate = Gate(["lost"])
    one = bench(schedule=gate, timeout=0.2, grace=0.05)
    await one.planton.attempt("task")
    gate.event.set()
    await one.planton.attempt("task")

    assert ["schedule", "terminate"] == [event.stage for event in one.seen.of(ErrorEvent)]
    assert 2 == gate.calls
