"""One name, one attempt at a time, whoever asks; and nothing that makes a hot loop."""

import pytest
import trio

from planton import (
    Batch,
    ErrorEvent,
    InstructionEvent,
    Planton,
    Task,
    UndeliveredInstructionsError,
    UnknownTaskError,
)
from planton.testing import EventCollector


class Slow:
    """A source whose claims take a second; notes the most that were made at a time."""

    def __init__(self):
        self.running = self.most = self.calls = 0

    async def __call__(self, request):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(1)
        self.running -= 1
        return []


def make(schedule, **options):
    options = {"cap": "strict", "delay": 0.5, **options}
    return Task(name="task", schedule=schedule, **options)


def planton_of(*tasks, **options):
    planton = Planton(tasks=tasks, **options)
    planton.on(InstructionEvent, lambda event: None)
    return planton


@pytest.mark.parametrize("is_running", (True, False))
async def test_a_name_that_is_registered_again_attempts_after_the_one_in_hand(is_running):
    """The old task may still claim."""
    slow = Slow()
    planton = planton_of(make(slow, delay=0.5 if is_running else 1000.0))
    async with trio.open_nursery() as nursery:
        if is_running:
            await nursery.start(planton.run)
        else:
            nursery.start_soon(planton.attempt, "task")
        await trio.sleep(0.7)
        planton.unregister("task")
        planton.register(make(slow))
        await planton.attempt("task")
        await planton.terminate()

    assert (1, 2) == (slow.most, slow.calls)


async def test_attempts_by_hand_wait_for_each_other():
    """In the order in which they were asked for."""
    slow, ended = Slow(), []
    planton = planton_of(make(slow, delay=1000.0))

    async def attempt(number):
        await planton.attempt("task")
        ended.append(number)

    async with planton, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(attempt, number)
            await trio.sleep(0.1)

    assert [0, 1, 2, 3] == ended
    assert (1, 4) == (slow.most, slow.calls)


async def test_an_attempt_by_hand_whose_task_is_unregistered_meanwhile_finds_no_task():
    """Or the one that has its name by then."""
    slow, other = Slow(), Slow()
    planton = planton_of(make(slow, delay=0.0))
    async with planton:
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_unknown, planton)
            await trio.sleep(0.1)
            planton.unregister("task")
        planton.register(make(slow, delay=0.0))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(planton.attempt, "task")
            await trio.sleep(0.1)
            planton.unregister("task")
            planton.register(make(other, delay=1000.0))

    assert 1 == other.calls
    assert 1 == slow.most


async def expect_unknown(planton):
    with pytest.raises(UnknownTaskError):
        await planton.attempt("task")


async def test_an_attempt_by_hand_across_a_stop_is_made_when_all_has_ended():
    """Running or not."""
    slow = Slow()
    planton = planton_of(make(slow, delay=0.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(planton.run)
        await trio.sleep(0.5)
        nursery.start_soon(planton.attempt, "task")
        await trio.sleep(0.1)
        await planton.terminate()

        assert 1 == trio.current_time()
    assert 2 == trio.current_time()
    assert (1, 2) == (slow.most, slow.calls)


async def test_an_attempt_by_hand_is_made_of_a_paused_task():
    """For tests and tools."""
    slow = Slow()
    planton = planton_of(make(slow))
    planton.pause("task")
    async with planton:
        await trio.sleep(1)

        assert "nothing" == (await planton.attempt("task")).outcome
        await trio.sleep(5)
    assert 1 == slow.calls


@pytest.mark.parametrize("delay", (100.0, lambda number: 100.0))
@pytest.mark.parametrize("when", ("start", "register"))
async def test_a_wake_right_after_a_start_or_a_register_is_not_lost(when, delay):
    """Whatever order trio runs its tasks in."""
    times = []

    async def schedule(request):
        times.append(trio.current_time())
        return []

    for _ in range(20):
        planton = planton_of(*([make(schedule, delay=delay)] if when == "start" else []))
        began = trio.current_time()
        async with planton:
            if when == "register":
                await trio.sleep(1)
                planton.register(make(schedule, delay=delay))
            planton.wake("task")
            await trio.sleep(5)

        assert [began + (when == "register")] == times
        times.clear()


@pytest.mark.parametrize(
    ("answer", "most"),
    (
        (Batch([], next_in=0), 250),
        (Batch([], due_in=0), 250),
        (Batch(5, due_in=0), 25),
        (Batch([], outcome="limited", next_in=0), 250),
        (Batch([], outcome="locked", next_in=0), 250),
        (Batch(["a"], due_in=0), 25),
    ),
)
async def test_no_answer_makes_a_hot_loop(answer, most):
    """One that asks for the next at once, and dispatches nothing, waits longer each time."""
    calls = []

    async def schedule(request):
        calls.append(trio.current_time())
        return answer

    planton = planton_of(make(schedule, delay=60.0))
    EventCollector(planton, ErrorEvent)
    if answer.claims == ["a"]:
        planton.on(InstructionEvent, lambda event: 1 / 0)
    async with planton:
        planton.wake()
        await trio.sleep(10)

    assert 10 < len(calls) < most


async def test_a_time_that_comes_is_met_after_many_that_did_not(bench):
    """The waits for those that come early are short, and end with the first that dispatches."""
    answers = [Batch([], due_in=0.0)] * 5 + [Batch([], due_in=0.3), ["a"], Batch([], due_in=0.0)]
    one = bench(*answers, cap="strict", delay=60.0)
    async with one.planton:
        one.planton.wake()
        await trio.sleep(2)
        times = one.schedule.times

        assert 0.3 == round(times[6] - times[5], 6)


async def test_full_is_no_hot_loop_without_a_delay(bench):
    """A consumer that is busy wakes the task when it is not."""
    one = bench(["a"], capacity=lambda: 0, cap="strict", delay=0)
    await one.run_for(10)

    assert 100 < len(one.seen.outcomes) < 250


@pytest.mark.parametrize("is_running", (True, False))
async def test_what_an_unregistered_task_kept_is_delivered(is_running):
    """By this run as slots free up, or by the next."""
    active = []

    async def get_active_instructions(name):
        return list(active)

    async def schedule(request):
        active.extend("abc")
        return ["a", "b", "c"]

    task = make(
        schedule,
        cap="advisory",
        get_active_instructions=get_active_instructions,
        limit=lambda concurrency, active: concurrency - len(active),
    )
    planton = Planton(tasks=[task])
    seen = EventCollector(planton)
    planton.on(InstructionEvent, lambda event: active.remove(event.instruction))
    if is_running:
        async with planton:
            await trio.sleep(0.7)
            planton.unregister("task")
            await trio.sleep(5)
    else:
        await planton.attempt("task")
        planton.unregister("task")
        async with planton:
            await trio.sleep(5)

    assert ["a", "b", "c"] == seen.instructions
    assert not any(isinstance(error, UndeliveredInstructionsError) for error in seen.errors)


async def test_what_is_kept_fills_no_slot_of_the_limit():
    """A limit that counts what it is given would stay at nothing for ever."""
    active = []

    async def get_active_instructions(name):
        return list(active)

    async def schedule(request):
        active.extend("ab")
        return ["a", "b"]

    task = make(
        schedule,
        cap="advisory",
        get_active_instructions=get_active_instructions,
        limit=lambda concurrency, active: concurrency - len(active),
    )
    planton = Planton(tasks=[task])
    seen = EventCollector(planton)
    planton.on(InstructionEvent, lambda event: active.remove(event.instruction))
    async with planton:
        await trio.sleep(1.2)

    assert ["a", "b"] == seen.instructions


async def test_a_name_may_be_registered_again_while_the_old_task_still_holds_claims():
    """Both deliver, one after the other."""
    active = []

    async def get_active_instructions(name):
        return list(active)

    async def old(request):
        return ["a", "b", "c"]

    async def new(request):
        return [] if seen.instructions.count("d") else ["d"]

    options = {"cap": "advisory", "get_active_instructions": get_active_instructions}
    planton = Planton(tasks=[make(old, **options)])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(0.7)
        planton.unregister("task")
        planton.register(make(new, **options))
        await trio.sleep(5)

    assert ["a", "b", "c", "d"] == sorted(seen.instructions)
