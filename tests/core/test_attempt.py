"""The eight rules of an attempt (DESIGN, section 3)."""

import math
from datetime import timedelta

import pytest
import trio

from planton import (
    AttemptEvent,
    Batch,
    Claim,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    InvalidTaskError,
    Planton,
    ScheduleRequest,
    StorageError,
    Task,
    UndeliveredInstructionsError,
    UnexpectedDelayError,
    UnexpectedInstructionsError,
    UnexpectedLimitError,
)
from planton.testing import EventCollector


class Released:
    """A `release` that remembers."""

    def __init__(self, error: Exception | None = None):
        self.claims = []
        self.calls = 0
        self.error = error

    async def __call__(self, claims):
        self.calls += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.claims.extend(claims)

    @property
    def instructions(self):
        return [claim.instruction for claim in self.claims]


# 1. The delay and what cuts it short


async def test_wake_cuts_the_delay_short(bench):
    """A hint makes the attempt happen now."""
    one = bench(delay=100)
    async with one.planton:
        await trio.sleep(1)
        one.planton.wake("task")
        await trio.sleep(1)

    assert [1.0] == one.schedule.times


async def test_a_wake_during_an_attempt_is_not_lost(bench):
    """The attempt may have looked before the row was there: the next one follows at once."""
    woken = []

    async def slowly(_):
        await trio.sleep(1)
        woken.append(one.planton.wake())
        await trio.sleep(1)
        return []

    one = bench(slowly, ["new"], delay=10)
    await one.run_for(15)

    assert [10.0, 12.0] == one.schedule.times
    assert ["new"] == one.seen.instructions


async def test_a_wake_before_the_run_makes_the_first_attempt_at_once(bench):
    """Hints are not lost before the start either."""
    one = bench(delay=10)
    one.planton.wake()
    await one.run_for(1)

    assert [0.0] == one.schedule.times


@pytest.mark.parametrize(
    ("delay", "expected"),
    (
        (2, [2, 4]),
        (2.5, [2.5]),
        (timedelta(seconds=2), [2, 4]),
        (lambda n: timedelta(seconds=2), [2, 4]),
    ),
)
async def test_a_delay_may_be_a_number_a_timedelta_or_a_function(bench, delay, expected):
    """Seconds come in three forms."""
    one = bench(delay=delay)
    await one.run_for(4.9)

    assert expected == one.schedule.times


async def test_a_delay_may_be_async(bench):
    """All callbacks may."""

    async def delay(attempt_number):
        await trio.sleep(1)
        return 1.0

    one = bench(delay=delay)
    await one.run_for(4.5)

    assert [2.0, 4.0] == one.schedule.times


@pytest.mark.parametrize("delay", (-1, math.nan, math.inf, "1", None, True))
async def test_a_delay_that_cannot_be_slept_is_an_error_and_slept_as_a_second(bench, delay):
    """No error makes a hot loop."""
    one = bench(delay=lambda attempt_number: delay)
    await one.run_for(2.5)

    assert [1.0, 2.0] == one.schedule.times
    assert all(isinstance(error, UnexpectedDelayError) for error in one.seen.errors)
    assert "delay" == one.seen.of(ErrorEvent)[0].stage


async def test_a_delay_that_raises_counts_as_one_more_attempt(bench):
    """Every error in any callback is one more attempt number."""

    def delay(attempt_number):
        raise ZeroDivisionError

    one = bench(delay=delay)
    await one.run_for(1.5)

    assert 1 == one.schedule.requests[0].attempt_number


async def test_next_in_replaces_the_delay_once(bench):
    """A schedule that knows when something is due next says so."""
    one = bench(Batch([], next_in=5), Batch(["foo"], next_in=0.5), delay=1)
    await one.run_for(8)

    assert [1.0, 6.0, 6.5, 7.5] == one.schedule.times


@pytest.mark.parametrize("delay", (10, timedelta(seconds=10), lambda attempt_number: 10))
async def test_due_in_cuts_the_delay_once(bench, delay):
    """However the delay is given: only the core asks a function for it."""
    one = bench(Batch([], due_in=3), Batch([], due_in=20), delay=delay)
    await one.run_for(34)

    assert [10.0, 13.0, 23.0, 33.0] == one.schedule.times


async def test_due_in_cuts_next_in_too(bench):
    """A source that rests its task knows when something becomes due."""
    one = bench(Batch([], next_in=9, due_in=4), Batch([], next_in=4, due_in=9), delay=1)
    await one.run_for(10.5)

    assert [1.0, 5.0, 9.0, 10.0] == one.schedule.times


async def test_due_in_cuts_the_second_after_a_delay_that_failed(bench):
    """It is an error, and slept as a second or less."""
    one = bench(Batch([], due_in=0.5), delay=lambda attempt_number: -1)
    await one.run_for(2.75)

    assert [1.0, 1.5, 2.5] == one.schedule.times
    assert 4 == len(one.seen.errors)


_NO_SECONDS = ({"next_in": -1}, {"next_in": math.nan}, {"due_in": -1}, {"due_in": math.inf})


@pytest.mark.parametrize("field", (*_NO_SECONDS, {"active": -1}))
def test_a_batch_refuses_what_makes_no_sense(field):
    """The error is raised where the mistake is."""
    with pytest.raises(InvalidArgumentError, match=next(iter(field))):
        Batch([], **field)


# 2. Active


@pytest.mark.parametrize("answer", (None, "foo", {"foo"}, [1], 3))
async def test_active_instructions_that_are_no_list_of_strings_are_an_error(bench, answer):
    """`"foo"` is not three active instructions."""

    async def get_active_instructions(name):
        return answer

    one = bench(["never"], get_active_instructions=get_active_instructions)
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedInstructionsError)
    assert [] == one.schedule.requests


async def test_the_tasks_own_callback_takes_precedence(script):
    """A task may be counted elsewhere than the others."""

    async def everywhere(name):
        return ["busy"]

    async def nowhere(name):
        return []

    schedule = script(["foo"])
    planton = Planton(
        get_active_instructions=everywhere,
        tasks=[Task(name="task", schedule=schedule, get_active_instructions=nowhere)],
    )
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1.5)

    assert 1 == len(schedule.requests)


def test_a_task_that_nobody_can_count_is_refused(script):
    """An advisory cap needs to know what is active."""
    with pytest.raises(InvalidTaskError, match="strict"):
        Planton(tasks=[Task(name="task", schedule=script())])


async def test_a_strict_task_counts_for_itself(bench):
    """Neither get_active_instructions nor limit is asked."""

    def never(*_):
        raise AssertionError("asked")

    one = bench(
        Batch(["foo"], active=2),
        Batch([], active=3),
        cap="strict",
        concurrency=3,
        get_active_instructions=never,
        limit=never,
    )
    await one.run_for(3.5)

    assert [3, 3, 3] == [request.limit for request in one.schedule.requests]
    assert [("dispatched", 2), ("saturated", 3), ("nothing", None)] == [
        (event.outcome, event.active) for event in one.seen.of(AttemptEvent)
    ]


# 3. Limit, capacity, concurrency


async def test_a_limit_of_zero_claims_nothing(bench):
    """npm planton calls schedule with a limit of 0."""
    one = bench(["never"], limit=lambda concurrency, active: 0)
    await one.run_for(1.5)

    assert [] == one.schedule.requests
    assert ["full"] == one.seen.outcomes
    assert "limit returned 0" in one.planton.explain("task")[-1]


@pytest.mark.parametrize("cap", ("advisory", "strict"))
async def test_the_limit_never_exceeds_the_capacity(bench, cap):
    """Never claim what cannot be handed over."""
    capacities = iter([2, 0, 9])
    one = bench(concurrency=5, capacity=lambda: next(capacities), cap=cap)
    await one.run_for(3.5)

    assert [2, 5] == [request.limit for request in one.schedule.requests]
    assert ["nothing", "full", "nothing"] == one.seen.outcomes


@pytest.mark.parametrize("capacity", (-1, 1.0, True, None))
async def test_a_capacity_that_is_no_whole_number_is_an_error(bench, capacity):
    """It names the callback."""
    one = bench(["never"], capacity=lambda: capacity)
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedLimitError)
    assert ("capacity", capacity) == (one.seen.errors[0].callback, one.seen.errors[0].limit)


async def test_a_custom_limit_is_told_concurrency_and_active(bench):
    """It computes from what is known."""
    asked = []

    async def limit(concurrency, active):
        asked.append((concurrency, active))
        return 4

    one = bench(concurrency=3, limit=limit)
    one.active = ["a"]
    await one.run_for(1.5)

    assert [(3, ("a",))] == asked
    assert 4 == one.schedule.requests[0].limit


async def test_concurrency_is_read_at_every_attempt(bench):
    """It can be changed while running."""
    values = iter([1, 5, 0])

    async def concurrency():
        return next(values)

    one = bench(concurrency=concurrency)
    await one.run_for(3.5)

    assert [1, 5] == [request.limit for request in one.schedule.requests]
    assert "concurrency" == one.seen.errors[0].callback
    assert "concurrency" == one.seen.of(ErrorEvent)[0].stage


# 4. and 5. What schedule returns


async def test_a_duplicate_is_an_error_and_nothing_is_lost(bench):
    """What is well-formed was claimed, so it is given back."""
    released = Released()
    one = bench(["foo", "bar", "foo"], concurrency=5, release=released)
    await one.run_for(1.5)

    assert isinstance(one.seen.errors[0], UnexpectedInstructionsError)
    assert ["foo", "bar"] == released.instructions
    assert [] == one.seen.instructions


async def test_well_formed_members_of_a_malformed_answer_are_delivered_without_release(bench):
    """They are kept and handed out by the next attempt."""
    one = bench(["foo", 5], {"bar"}, concurrency=5)
    await one.run_for(4.5)

    assert ["foo", "bar"] == one.seen.instructions
    assert ["error", "dispatched", "error", "dispatched"] == one.seen.outcomes


async def test_more_than_the_limit_is_released(bench):
    """The first are delivered, the rest is given back with its receipts."""
    released = Released()
    claims = [Claim(instruction=name, receipt=f"r-{name}") for name in "abcd"]
    one = bench(claims, concurrency=2, release=released)
    await one.run_for(1.5)

    assert ["a", "b"] == one.seen.instructions
    assert claims[2:] == released.claims
    assert 2 == one.seen.errors[0].limit


async def test_without_release_the_rest_is_delivered_as_slots_free_up(bench):
    """The cap is kept, schedule is not called meanwhile, nothing is dropped."""
    one = bench(["a", "b", "c", "d", "e"], concurrency=2)
    async with one.planton:
        await trio.sleep(1.5)

        assert ["a", "b"] == one.seen.instructions
        one.active = ["a", "b", "c", "d", "e"]  # the user's table counts what it claimed
        await trio.sleep(1)

        assert ["a", "b"] == one.seen.instructions
        one.active = ["b", "c", "d", "e"]
        await trio.sleep(1)

        assert ["a", "b", "c"] == one.seen.instructions
        one.active = ["d", "e"]
        await trio.sleep(1)

        assert ["a", "b", "c", "d", "e"] == one.seen.instructions
        assert 1 == len(one.schedule.requests)
        one.active = []
        await trio.sleep(1)

    assert 2 == len(one.schedule.requests)


async def test_a_strict_task_delivers_what_it_kept_within_its_capacity(bench):
    """It cannot be counted, but consumers are not given more than they can take."""
    one = bench(
        ["a", "b", "c"],
        cap="strict",
        concurrency=5,
        capacity=lambda: 1,
        get_active_instructions=None,
    )
    await one.run_for(3.5)

    assert ["a", "b", "c"] == one.seen.instructions
    assert 1 == len(one.schedule.requests)


async def test_what_release_refuses_is_kept(bench):
    """A release that fails loses nothing either."""
    released = Released(OSError("down"))
    one = bench(["a", "b"], release=released)
    await one.run_for(2.5)

    assert ["a", "b"] == one.seen.instructions
    assert "release" == one.seen.of(ErrorEvent)[1].stage


# 6. Delivery


async def test_events_carry_what_the_claim_carried(bench):
    """Receipt, payload and delivery go to the consumer."""
    one = bench([Claim(instruction="a", receipt="r", payload={"x": 1}, delivery=3)])
    await one.run_for(1.5)
    expected = InstructionEvent(
        task_name="task", instruction="a", receipt="r", payload={"x": 1}, delivery=3
    )

    assert [expected] == one.seen.of(InstructionEvent)


async def test_a_payload_is_not_put_into_words_on_its_way(bench):
    """Its text may be long, and is needed for an error only."""

    said = []

    class Payload:
        def __repr__(self):
            said.append(self)
            return "long"

    one = bench([Claim(instruction="a", payload=Payload())])
    await one.run_for(1.5)

    assert ["a"] == one.seen.instructions
    assert [] == said


async def test_a_slow_consumer_holds_back_only_its_own_task(script):
    """It claims no more than it can hand over."""
    slow, quick = script(["a"], ["b"], ["c"]), script(*[[str(number)] for number in range(20)])

    async def none_active(name):
        return []

    planton = Planton(
        get_active_instructions=none_active,
        tasks=[Task(name="slow", schedule=slow), Task(name="quick", schedule=quick)],
    )

    @planton.on(InstructionEvent)
    async def consume(event):
        if event.task_name == "slow":
            await trio.sleep(5)

    async with planton:
        await trio.sleep(10.5)

    assert [1.0, 7.0] == slow.times
    assert 10 == len(quick.times)


async def test_a_listener_that_raises_keeps_nothing_from_the_others(bench):
    """The others still get the event, the rest is delivered, the instruction is released."""
    released = Released()
    one = bench(["a", "b"], concurrency=2, release=released)
    error = RuntimeError("no a")

    def listen(event):
        if event.instruction == "a":
            raise error

    one.planton.on(InstructionEvent, listen)
    await one.run_for(1.5)

    assert ["a", "b"] == one.seen.instructions
    assert ["a"] == released.instructions
    assert ("deliver", error) == (one.seen.of(ErrorEvent)[0].stage, one.seen.errors[0])
    assert ["dispatched"] == one.seen.outcomes


async def test_a_listener_that_raises_without_release_leaves_an_error(bench):
    """It had the instruction; the next attempt goes on with what is due."""
    one = bench(["a"], ["b"])

    def listen(event):
        raise RuntimeError(event.instruction)

    one.planton.on(InstructionEvent, listen)
    await one.run_for(2.5)

    assert ["a", "b"] == one.seen.instructions == [str(error) for error in one.seen.errors]


async def test_listeners_that_all_fail_do_not_make_a_hot_loop(bench):
    """Nothing was handed over, so the back-off goes on."""
    one = bench(["a"], ["a"], release=Released(), delay=lambda number: 2.0**number)

    def listen(event):
        raise RuntimeError

    one.planton.on(InstructionEvent, listen)
    await one.run_for(3.5)

    assert [1.0, 3.0] == one.schedule.times
    assert ["error", "error"] == one.seen.outcomes


async def test_an_instruction_without_listener_is_released_and_reported(script):
    """Nobody would ever know of it otherwise."""
    released = Released()

    def claim(request):
        planton.off(InstructionEvent, print)
        return ["a"]

    planton = Planton(
        tasks=[Task(name="task", schedule=script(claim), cap="strict", release=released)]
    )
    planton.on(InstructionEvent, print)
    seen = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)

    assert ["a"] == released.instructions
    assert isinstance(seen.errors[0], UndeliveredInstructionsError)
    assert (("a",), True) == (seen.errors[0].instructions, seen.errors[0].released)


async def test_an_instruction_without_listener_and_release_waits_for_one(script):
    """It is kept until somebody listens."""

    def claim(request):
        planton.off(InstructionEvent, print)
        return ["a"]

    planton = Planton(tasks=[Task(name="task", schedule=script(claim), cap="strict")])
    planton.on(InstructionEvent, print)
    errors = EventCollector(planton, ErrorEvent)
    async with planton:
        await trio.sleep(1.5)
        late = EventCollector(planton, InstructionEvent)
        await trio.sleep(1)

    assert ["a"] == late.instructions
    assert 1 == len(errors.errors)


# 7. Errors


async def test_wake_ups_in_vain_do_not_make_the_delay_longer(bench):
    """The ends of a burst wake a task many times; work that comes then must not wait for long."""
    one = bench(delay=lambda attempt_number: 10 * 2**attempt_number)
    async with one.planton:
        await trio.sleep(11)
        for _ in range(20):
            one.planton.wake("task")
            await trio.sleep(0.1)
        (status,) = one.planton.status()

    assert 1 == status.attempt_number


async def test_every_error_is_one_more_attempt_number(bench):
    """So that the delay backs off."""
    one = bench(OSError(), OSError(), ["a"])
    await one.run_for(4.5)

    assert [0, 1, 2, 0] == [request.attempt_number for request in one.schedule.requests]


async def test_a_group_of_one_exception_is_looked_into(bench):
    """A callback may use a nursery of its own."""

    async def group(_):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, "no number")

    one = bench(group)
    await one.run_for(2.5)

    assert isinstance(one.seen.errors[0], TypeError)
    assert 2 == len(one.schedule.requests)


async def test_errors_nobody_listens_to_are_logged(script, caplog):
    """At ERROR, with the task and the stage as fields."""
    planton = Planton(tasks=[Task(name="task", schedule=script(OSError("down")), cap="strict")])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1.5)
    (record,) = caplog.records

    assert ("planton", "ERROR") == (record.name, record.levelname)
    assert ("task", "schedule") == (record.task_name, record.stage)
    assert "down" in record.getMessage()
    assert record.exc_info, "what nobody expected is looked for"


@pytest.mark.parametrize(("level", "has_traceback"), (("INFO", False), ("DEBUG", True)))
async def test_an_error_that_says_what_to_do_is_one_line(script, caplog, level, has_traceback):
    """Its traceback is for those who ask for it."""
    caplog.set_level(level, "planton")
    error = StorageError("app.db", "call `await storage.migrate()` first")
    planton = Planton(tasks=[Task(name="task", schedule=script(error), cap="strict")])
    planton.on(InstructionEvent, print)
    async with planton:
        await trio.sleep(1.5)
    (record,) = caplog.records

    assert "migrate()" in record.getMessage()
    assert has_traceback == bool(record.exc_info)


async def test_a_listener_of_errors_that_raises_is_logged_and_does_not_recurse(bench, caplog):
    """Both errors are in the log."""

    def listen(event):
        raise ValueError("listener")

    one = bench(OSError("down"))
    one.planton.on(ErrorEvent, listen)
    await one.run_for(1.5)

    assert ["schedule", "deliver"] == [record.stage for record in caplog.records]


async def test_a_listener_of_attempts_that_raises_is_reported(bench):
    """The loop goes on."""

    async def listen(event):
        raise ValueError("listener")

    one = bench()
    one.planton.on(AttemptEvent, listen)
    await one.run_for(2.5)

    assert ["deliver", "deliver"] == [event.stage for event in one.seen.of(ErrorEvent)]


# 8. Cancellation


@pytest.mark.parametrize("how", ("cancel", "terminate"))
async def test_what_a_running_schedule_claims_is_delivered_when_stopped(bench, how):
    """A commit that is followed by a cancellation loses nothing."""

    async def slowly(_):
        await trio.sleep(5)
        return ["late"]

    one = bench(slowly)
    async with trio.open_nursery() as nursery:
        await nursery.start(one.planton.run)
        await trio.sleep(2)
        if how == "cancel":
            nursery.cancel_scope.cancel()
        else:
            await one.planton.terminate()

    assert 6 == trio.current_time()
    assert ["late"] == one.seen.instructions


async def test_a_schedule_that_outlives_the_grace_period_is_cut_off_and_reported(bench):
    """Past grace it is cancelled; that it claimed nobody knows what is said."""
    one = bench(lambda _: trio.sleep(1000), grace=3)
    await one.run_for(2)
    (event,) = one.seen.of(ErrorEvent)

    assert 5 == trio.current_time()
    assert ("terminate", "schedule") == (event.stage, event.error.callback)


async def test_what_a_slow_consumer_does_not_take_in_time_is_released(bench):
    """The last part of the grace period is for giving back."""
    released = Released()
    one = bench(["a", "b", "c"], concurrency=3, release=released)

    @one.planton.on(InstructionEvent)
    async def consume(event):
        await trio.sleep(6)

    await one.run_for(2)

    assert 11 == trio.current_time()
    assert ["b", "c"] == released.instructions
    assert ("b", "c") == one.seen.errors[0].instructions


async def test_what_nobody_takes_or_takes_back_is_reported(bench):
    """Without release consumers have all of the grace period; the rest is named."""
    one = bench(["a", "b", "c"], concurrency=3, grace=10)

    @one.planton.on(InstructionEvent)
    async def consume(event):
        await trio.sleep(9)

    await one.run_for(2)
    (event,) = one.seen.of(ErrorEvent)

    assert 12 == trio.current_time()
    assert ("terminate", ("b", "c"), False) == (
        event.stage,
        event.error.instructions,
        event.error.released,
    )


async def test_a_stop_during_get_active_claims_nothing_more(bench):
    """No new claims first."""

    async def get_active_instructions(name):
        await trio.sleep(3)
        return []

    one = bench(["never"], get_active_instructions=get_active_instructions)
    await one.run_for(2)

    assert [] == one.schedule.requests
    assert ["stopping"] == one.seen.outcomes
    assert "stopping" in one.planton.explain("task")[-1]


# Values


def test_a_request_is_what_the_design_says(script):
    """The fields are public."""
    request = ScheduleRequest(
        task_name="t", active_instructions=("a",), concurrency=2, limit=1, attempt_number=0
    )

    assert "t" == request.task_name


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("name", ""),
        ("name", 5),
        ("schedule", None),
        ("delay", -1),
        ("delay", math.nan),
        ("delay", True),
        ("delay", 10**400),
        ("delay", timedelta(seconds=-1)),
        ("limit", 5),
        ("capacity", 5),
        ("release", "x"),
        ("get_active_instructions", []),
        ("timeout", 0),
        ("timeout", "1"),
        ("cap", "exact"),
    ),
)
def test_an_invalid_field_is_refused_when_the_task_is_made(field, value, script):
    """The error names the field and the value."""
    fields = {"name": "task", "schedule": script(), field: value}
    with pytest.raises(InvalidTaskError) as caught:
        Task(**fields)

    assert (field, str(value)) == (caught.value.field, str(caught.value.value))
    assert field in str(caught.value)


def test_a_claim_is_made_of_a_string():
    """The mistake is shown where it is made."""
    with pytest.raises(InvalidArgumentError, match="str"):
        Claim(instruction=5)
