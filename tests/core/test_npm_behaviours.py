"""The behaviours that the npm package's own 23 tests check, in virtual time.

Where Planton differs on purpose, the test says so.
"""

import pytest
import trio

from planton import (
    DuplicateTaskNameError,
    InstructionEvent,
    InvalidTaskError,
    Planton,
    Task,
    UnexpectedInstructionsError,
    UnexpectedLimitError,
)
from planton.testing import EventCollector


async def none_active(task_name: str) -> list[str]:
    return []


async def test_attempts_are_made_at_an_interval(bench):
    """The delay is slept before every attempt, the first included."""
    one = bench(delay=0.1)
    await one.run_for(0.55)

    assert pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) == one.schedule.times


@pytest.mark.parametrize("concurrency", (0, -1, 1.5, True, "2", None))
def test_a_concurrency_below_one_is_refused(concurrency, script):
    """Concurrency is a whole number of at least 1, and the error names field and value."""
    with pytest.raises(InvalidTaskError, match="concurrency") as caught:
        Task(name="task", schedule=script(), concurrency=concurrency)

    assert ("concurrency", concurrency) == (caught.value.field, caught.value.value)


def test_two_tasks_of_one_name_are_refused(script):
    """Names are unique within a Planton."""
    tasks = [Task(name="same", schedule=script()) for _ in range(2)]
    with pytest.raises(DuplicateTaskNameError) as caught:
        Planton(tasks=tasks, get_active_instructions=none_active)

    assert "same" == caught.value.task_name


async def test_no_attempts_after_terminate(bench):
    """Terminated is terminated."""
    one = bench(delay=0.1)
    await one.run_for(0.35)
    await trio.sleep(1)

    assert 3 == len(one.schedule.times)


async def test_terminate_cuts_the_delay_short(bench):
    """Nobody waits for a long delay in order to stop."""
    one = bench(delay=1000)
    await one.run_for(1)

    assert 1 == trio.current_time()


async def test_every_instruction_is_an_event_in_order(bench):
    """One event for each instruction, in the order in which they were claimed."""
    one = bench(["foo", "bar", "baz"], concurrency=3)
    await one.run_for(1.5)

    assert ["foo", "bar", "baz"] == one.seen.instructions
    assert {"task"} == {event.task_name for event in one.seen.of(InstructionEvent)}


async def test_schedule_is_not_called_while_saturated(bench):
    """As many active as the concurrency allows: nothing is claimed."""
    one = bench(["never"])
    one.active = ["foo"]
    await one.run_for(3.5)

    assert [] == one.schedule.requests
    assert ["saturated"] * 3 == one.seen.outcomes


async def test_saturated_attempts_count_for_the_back_off(bench):
    """Unlike npm planton, which polls a saturated task at the delay of attempt 0 for ever."""
    one = bench(delay=lambda attempt_number: 2.0**attempt_number)
    one.active = ["foo"]
    await one.run_for(1 + 2 + 4 + 8 + 0.5)

    assert [0, 1, 2, 3] == [event.attempt_number for event in one.seen.events]


async def test_the_limit_is_what_is_left_of_the_concurrency(bench):
    """Two of five active leave room for three."""
    one = bench(concurrency=5)
    one.active = ["a", "b"]
    await one.run_for(1.5)

    assert 3 == one.schedule.requests[0].limit


async def test_schedule_is_told_what_is_active(bench):
    """The request carries the active instructions."""
    one = bench(concurrency=5)
    one.active = ["a", "b"]
    await one.run_for(1.5)

    assert ("a", "b") == one.schedule.requests[0].active_instructions


async def test_delay_is_told_the_attempts_since_something_was_dispatched(bench):
    """Attempts that dispatched nothing are counted; one that dispatched starts over."""
    asked = []

    def delay(attempt_number: int) -> float:
        asked.append(attempt_number)
        return 1.0

    one = bench([], [], ["foo"], [], delay=delay)
    await one.run_for(4.5)

    assert [0, 1, 2, 0, 1] == asked


async def test_terminate_waits_for_a_schedule_that_runs(bench):
    """What it claims in the meantime is delivered."""

    async def slowly(_):
        await trio.sleep(2)
        return ["late"]

    one = bench(slowly)
    await one.run_for(1.5)

    assert 3 == trio.current_time()
    assert ["late"] == one.seen.instructions


async def test_an_error_of_schedule_is_an_event(bench):
    """It names the task, the error and where it happened."""
    error = ValueError("no")
    one = bench(error)
    await one.run_for(1.5)

    assert [error] == one.seen.errors
    assert ("task", "schedule") == (one.seen.events[0].task_name, one.seen.events[0].stage)


async def test_more_than_the_limit_is_an_error_and_the_limit_is_kept(bench):
    """Unlike npm planton, which drops them all, the first of them are delivered."""
    one = bench(["foo", "bar"])
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedInstructionsError)
    assert ["foo"] == one.seen.instructions


@pytest.mark.parametrize("limit", (-1, 1.5, 1.0, True, "1", None))
async def test_a_limit_that_is_no_whole_number_is_an_error(bench, limit):
    """Nothing is claimed with a limit that makes no sense."""
    one = bench(["never"], limit=lambda concurrency, active: limit)
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedLimitError)
    assert limit == one.seen.errors[0].limit
    assert [] == one.schedule.requests


@pytest.mark.parametrize("answer", (None, "foo", {"foo": 1}, {"foo"}, 5, iter(["foo"])))
async def test_an_answer_that_is_no_list_is_an_error(bench, answer):
    """A bare string or a dict would be iterated into nonsense."""
    one = bench(answer)
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedInstructionsError)
    assert [] == one.seen.instructions


@pytest.mark.parametrize("member", (1, None, b"foo", ["foo"]))
async def test_a_member_that_is_no_string_is_an_error(bench, member):
    """Instructions are strings; a number from a database has to be made one."""
    one = bench([member])
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedInstructionsError)
    assert [] == one.seen.instructions


async def test_a_task_in_a_hurry_does_not_block_the_others(script):
    """A task without a delay leaves the others their turns (npm planton starves them)."""
    hurried, calm = script(), script()
    planton = Planton(
        get_active_instructions=none_active,
        tasks=[
            Task(name="hurried", schedule=hurried, delay=0),
            Task(name="calm", schedule=calm, delay=0.0),
        ],
    )
    planton.on(InstructionEvent, print)
    async with planton:
        for _ in range(1000):
            await trio.lowlevel.checkpoint()

    assert 0 == trio.current_time()
    assert len(calm.times) > 100


async def test_attempts_are_evenly_distributed(script):
    """Tasks with equal delays are attempted equally often."""
    scripts = {f"task{number}": script() for number in range(5)}
    planton = Planton(
        get_active_instructions=none_active,
        tasks=[Task(name=name, schedule=it, delay=0) for name, it in scripts.items()],
    )
    planton.on(InstructionEvent, print)
    async with planton:
        for _ in range(2000):
            await trio.lowlevel.checkpoint()
    counts = [len(it.times) for it in scripts.values()]

    assert max(counts) - min(counts) <= 2


async def test_attempts_go_on_while_saturated(bench):
    """A slot that frees up is found by polling."""
    one = bench(["bar"])
    one.active = ["foo"]
    async with one.planton:
        await trio.sleep(2.5)
        one.active = []
        await trio.sleep(1)

    assert ["bar"] == one.seen.instructions


@pytest.mark.parametrize("answer", (None, [1], ["a", "b", "c"], ValueError("no")))
async def test_attempts_go_on_after_an_answer_that_is_wrong(bench, answer):
    """Not a list, not strings, more than the limit, an exception: the next attempt follows."""
    one = bench(answer, release=none_active)
    await one.run_for(3.5)

    assert 3 == len(one.schedule.requests)


async def test_the_loop_survives_get_active_instructions_raising():
    """npm planton exits, or goes on with a dead loop and never terminates."""
    calls = []

    async def get_active_instructions(task_name: str) -> list[str]:
        calls.append(task_name)
        raise OSError("down")

    planton = Planton(
        get_active_instructions=get_active_instructions,
        tasks=[Task(name="task", schedule=none_active, delay=1)],
    )
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(3.5)

    assert 3 == len(calls) == len(seen.errors)
    assert ["error"] * 3 == seen.outcomes
