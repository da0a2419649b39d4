"""Tasks that are due together and share a callback are asked in one call."""

from contextlib import asynccontextmanager

import pytest
import trio

from planton import AlreadyRunningError, AttemptEvent, Batch, ErrorEvent, Planton, Task
from planton.testing import EventCollector, MemoryStorage


class Active:
    def __init__(self):
        self.calls = []
        self.active = {}

    async def __call__(self, name):
        return (await self.many([name]))[0]

    async def many(self, names):
        self.calls.append(list(names))
        return [self.active.get(name, []) for name in names]


class Schedule:
    def __init__(self, answer=None):
        self.calls = []
        self.answer = answer or (lambda request: [])

    async def __call__(self, request):
        self.calls.append(request.task_name)
        return self.answer(request)

    async def many(self, requests):
        self.calls.append([request.task_name for request in requests])
        return [self.answer(request) for request in requests]


def make(schedule, active, *, tasks=3, **options):
    options.setdefault("delay", 1.0)
    planton = Planton(
        get_active_instructions=active,
        tasks=[Task(name=f"t{i}", schedule=schedule, **options) for i in range(tasks)],
    )
    return planton, EventCollector(planton)


async def test_tasks_that_are_due_together_are_asked_in_one_call():
    """One call for the active ones, one for the claims, again and again."""
    schedule, active = Schedule(), Active()
    planton, seen = make(schedule, active)
    async with planton:
        await trio.sleep(2.5)

    assert [["t0", "t1", "t2"]] * 2 == schedule.calls == active.calls
    assert ["nothing"] * 6 == seen.outcomes


async def test_a_task_that_is_due_alone_is_asked_alone():
    """A plain call does."""
    schedule = Schedule()
    planton, _ = make(schedule, Active(), tasks=1)
    async with planton:
        await trio.sleep(1.5)

    assert ["t0"] == schedule.calls


async def test_only_those_with_room_are_asked_to_schedule():
    """Saturated ones drop out, full ones too."""
    schedule, active = Schedule(), Active()
    active.active["t1"] = ["busy"]
    planton, seen = make(schedule, active, tasks=4)
    planton.unregister("t3")
    planton.register(Task(name="t3", schedule=schedule, capacity=lambda: 0))
    async with planton:
        await trio.sleep(1.5)

    assert [["t0", "t2"]] == schedule.calls
    assert {"t0": "nothing", "t1": "saturated", "t2": "nothing", "t3": "full"} == {
        event.task_name: event.outcome for event in seen.of(AttemptEvent)
    }


async def test_every_task_gets_its_own_answer_or_error():
    """An exception in the list is that task's error; the others are not touched."""

    def answer(request):
        return {"t0": ["a"], "t1": OSError("no"), "t2": Batch(["c"], next_in=9)}[request.task_name]

    planton, seen = make(Schedule(answer), Active())
    async with planton:
        await trio.sleep(1.5)

    assert ["a", "c"] == sorted(seen.instructions)
    assert ["no"] == [str(error) for error in seen.errors]


async def test_due_in_holds_for_each_of_many():
    """It cuts the delay of its own task; the others go on as they are."""

    def answer(request):
        return Batch([], due_in=0.25 if request.task_name == "t1" else None)

    schedule = Schedule(answer)
    planton, _ = make(schedule, Active())
    async with planton:
        await trio.sleep(1.6)

    assert [["t0", "t1", "t2"]] == schedule.calls[:1]
    assert ["t1", "t1"] == schedule.calls[1:]


@pytest.mark.parametrize("answer", (None, [[]], 5))
async def test_a_many_that_answers_for_others_is_an_error_for_all(answer):
    """Answers belong to questions."""
    schedule = Schedule()

    async def many(requests):
        return answer

    schedule.many = many
    planton, seen = make(schedule, Active())
    async with planton:
        await trio.sleep(1.5)

    assert ["error"] * 3 == seen.outcomes
    assert all(isinstance(error, TypeError) for error in seen.errors)


async def test_a_many_that_raises_is_an_error_for_all():
    """And the loop goes on."""
    active = Active()

    async def many(names):
        raise OSError("down")

    active.many = many
    planton, seen = make(Schedule(), active)
    async with planton:
        await trio.sleep(2.5)

    assert ["error"] * 6 == seen.outcomes


async def test_a_many_that_hangs_holds_up_nobody_else():
    """Its tasks time out and back off."""
    schedule = Schedule()

    async def many(requests):
        await trio.sleep_forever()

    schedule.many = many
    planton, seen = make(schedule, Active(), timeout=3.0)
    other = Task(name="other", schedule=Schedule(), get_active_instructions=Active(), delay=1.0)
    planton.register(other)
    async with planton:
        await trio.sleep(4.5)

    assert 4 == len(seen.of(AttemptEvent, "other"))
    assert ["error"] == [event.outcome for event in seen.of(AttemptEvent, "t1")]


async def test_a_stop_while_many_runs_delivers_what_it_claims():
    """Drained like any other claim."""
    schedule = Schedule(lambda request: [request.task_name])
    many = schedule.many

    async def slowly(requests):
        await trio.sleep(5)
        return await many(requests)

    schedule.many = slowly
    planton, seen = make(schedule, Active())
    async with planton:
        await trio.sleep(2)

    assert ["t0", "t1", "t2"] == sorted(seen.instructions)


async def test_a_many_that_is_cut_off_is_reported_for_each_task():
    """Past grace nobody knows what it claimed."""
    schedule = Schedule()

    async def many(requests):
        await trio.sleep_forever()

    schedule.many = many
    planton, seen = make(schedule, Active())
    async with planton:
        await trio.sleep(2)

    assert ["t0", "t1", "t2"] == [error.task_name for error in seen.errors]


async def test_an_async_delay_and_async_listeners_work_with_many():
    """Whatever has to be waited for is waited for one by one."""

    async def delay(attempt_number):
        return 1.0

    async def listen(event):
        await trio.sleep(0)

    planton, seen = make(Schedule(), Active(), delay=delay)
    planton.on(AttemptEvent, listen)
    async with planton:
        await trio.sleep(2.5)

    assert ["nothing"] * 6 == seen.outcomes


async def test_a_listener_of_attempts_that_waits_in_disguise_holds_up_no_claims():
    """A sync function that returns an awaitable cannot be told beforehand."""
    schedule = Schedule(lambda request: ["a"] if request.task_name == "t2" else [])
    planton, seen = make(schedule, Active(), cap="strict")
    planton.on(AttemptEvent, lambda event: trio.sleep(1000))
    async with planton:
        await trio.sleep(1.5)

        assert ["a"] == seen.instructions


async def test_a_listener_in_disguise_that_attempts_its_own_task_is_an_error():
    """It would wait for itself."""
    planton, seen = make(Schedule(), Active())
    planton.on(AttemptEvent, lambda event: planton.attempt(event.task_name))
    async with planton:
        await trio.sleep(1.5)

    assert [AlreadyRunningError] * 3 == [type(error) for error in seen.errors]


async def test_a_hanging_listener_of_errors_holds_up_only_the_task_it_is_told_of():
    """Also when the error is that of a listener of attempts."""
    planton, seen = make(Schedule(), Active())

    def listen(event):
        if event.task_name == "t0":
            raise ValueError

    async def hang(event):
        await trio.sleep_forever()

    planton.on(AttemptEvent, listen)
    planton.on(ErrorEvent, hang)
    async with planton:
        await trio.sleep(3.5)

    assert 1 == len(seen.of(AttemptEvent, "t0"))
    assert 3 == len(seen.of(AttemptEvent, "t1")) == len(seen.of(AttemptEvent, "t2"))


async def test_more_tasks_than_fit_in_one_turn():
    """They are asked about in turns of a thousand, and stay together."""
    schedule, active = Schedule(), Active()
    planton, _ = make(schedule, active, tasks=2500)
    async with planton:
        await trio.sleep(3.5)

    assert [1000, 1000, 500] * 3 == [len(call) for call in schedule.calls]


async def test_strict_tasks_of_a_storage_are_claimed_together():
    """The in-memory storage has many."""
    storage = MemoryStorage()
    planton = Planton(tasks=[storage.queue_task(f"t{i}", concurrency=2) for i in range(3)])
    seen = EventCollector(planton)
    storage.add("t0", "a", "b", "c")
    storage.add("t2", "d")
    async with planton:
        await trio.sleep(1.5)

    assert ["a", "b", "d"] == sorted(seen.instructions)


# Each of the two callbacks is grouped by itself


async def plain(name):
    await trio.lowlevel.checkpoint()
    return []


async def test_schedule_is_grouped_where_what_is_active_is_a_plain_function():
    """As the design says."""
    schedule = Schedule()
    planton, seen = make(schedule, plain)
    async with planton:
        await trio.sleep(2.5)

    assert [["t0", "t1", "t2"]] * 2 == schedule.calls
    assert ["nothing"] * 6 == seen.outcomes


async def test_what_is_active_is_grouped_where_schedule_is_a_plain_function():
    """The other way round."""
    active = Active()

    async def schedule(request):
        return []

    planton, seen = make(schedule, active)
    async with planton:
        await trio.sleep(2.5)

    assert [["t0", "t1", "t2"]] * 2 == active.calls
    assert ["nothing"] * 6 == seen.outcomes


async def test_schedule_is_grouped_after_a_limit_that_is_async():
    """Whatever is asked in between."""

    async def limit(concurrency, active):
        await trio.lowlevel.checkpoint()
        return 1

    schedule = Schedule()
    planton, _ = make(schedule, Active(), limit=limit)
    async with planton:
        await trio.sleep(1.5)

    assert [["t0", "t1", "t2"]] == schedule.calls


async def test_a_plain_function_that_is_slow_for_one_task_holds_up_no_other():
    """Those that answer in time go on together, the others by themselves."""

    async def slow_for_one(name):
        await trio.sleep(0.005 if name == "t0" else 0.2 if name == "t3" else 0)
        return ["busy"] if name == "t4" else []

    schedule = Schedule()
    planton, seen = make(schedule, slow_for_one, tasks=5)
    async with planton:
        await trio.sleep(1.1)

        assert [["t0", "t1", "t2"]] == schedule.calls
        await trio.sleep(0.2)

        assert "t3" == schedule.calls[1]
    assert "saturated" == seen.of(AttemptEvent, "t4")[0].outcome


async def test_a_plain_function_that_fails_for_one_task_fails_it_alone():
    """Its error is reported as any."""

    async def failing_for_one(name):
        if name == "t1":
            raise OSError("no")
        return []

    schedule = Schedule()
    planton, seen = make(schedule, failing_for_one)
    async with planton:
        await trio.sleep(1.5)

    assert [["t0", "t2"]] == schedule.calls
    assert [("t1", "get_active_instructions")] == [
        (event.task_name, event.stage) for event in seen.of(ErrorEvent)
    ]


async def test_a_task_alone_with_a_plain_function_is_asked_alone():
    """There is nothing to group."""
    schedule = Schedule()
    planton, _ = make(schedule, plain, tasks=1)
    async with planton:
        await trio.sleep(1.5)

    assert ["t0"] == schedule.calls


async def test_a_task_with_a_lock_is_asked_alone():
    """It claims within its own."""

    @asynccontextmanager
    async def lock(name):
        yield

    schedule = Schedule()
    planton, _ = make(schedule, Active(), lock=lock)
    async with planton:
        await trio.sleep(1.5)

    assert ["t0", "t1", "t2"] == sorted(schedule.calls)


async def test_a_many_that_attempts_one_of_its_own_tasks_is_an_error():
    """It would wait for itself."""
    schedule = Schedule()

    async def many(requests):
        await planton.attempt("t0")

    schedule.many = many
    planton, seen = make(schedule, Active())
    async with planton:
        await trio.sleep(1.5)

    assert 3 == len(seen.errors)
    assert all(isinstance(error, AlreadyRunningError) for error in seen.errors)


async def test_a_claim_of_many_that_is_cut_off_is_reported_for_each():
    """What it claimed is not known."""
    schedule = Schedule()

    async def many(requests):
        await trio.sleep_forever()

    schedule.many = many
    planton = Planton(
        get_active_instructions=plain,
        tasks=[Task(name=f"t{i}", schedule=schedule, delay=1.0) for i in range(3)],
        grace=1,
    )
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)

    assert ["t0", "t1", "t2"] == sorted(event.task_name for event in seen.of(ErrorEvent))
    assert {"terminate"} == {event.stage for event in seen.of(ErrorEvent)}


async def test_a_claim_of_many_that_outlives_the_grace_period_is_heard_of_by_each():
    """As that of a storage, which hears of its commit; also those that only wait for the call."""
    schedule = Schedule()

    async def many(requests):
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        return [[request.task_name] for request in requests]

    async def alone(name):
        return []

    schedule.many = many
    planton = Planton(
        get_active_instructions=alone,
        tasks=[Task(name=f"t{i}", schedule=schedule, delay=1.0) for i in range(3)],
        grace=1,
    )
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(1.5)

    assert ["t0", "t1", "t2"] == sorted(seen.instructions)
    assert [] == seen.of(ErrorEvent)


async def test_a_task_gets_its_own_error_where_what_is_active_is_a_plain_function():
    """The others that asked with it get their answers."""

    def answer(request):
        return OSError("no") if request.task_name == "t1" else [request.task_name]

    schedule = Schedule(answer)
    planton, seen = make(schedule, plain)
    async with planton:
        await trio.sleep(1.5)

    assert [["t0", "t1", "t2"]] == schedule.calls
    assert ["t0", "t2"] == sorted(seen.instructions)
    assert ["no"] == [str(error) for error in seen.errors]


# Consumers


class Consumer:
    """Takes the instructions of all tasks while it has slots; says so, or fails to."""

    def __init__(self, slots):
        self.slots = slots
        self.taken = []

    def capacity(self, task_name):
        if isinstance(self.slots, Exception):
            raise self.slots
        return self.slots - len(self.taken)

    async def submit(self, event):
        self.taken.append(event.instruction)


def make_with_consumer(schedule, consumer):
    tasks = [Task(name=f"t{i}", schedule=schedule, cap="strict", delay=1.0) for i in range(3)]
    planton = Planton(consumers=[consumer], tasks=tasks)
    return planton, EventCollector(planton)


async def test_tasks_that_share_a_consumer_are_asked_together_as_far_as_it_has_slots():
    """The others are asked when slots turn out not to be needed."""
    schedule = Schedule(lambda request: ["a"] if request.task_name == "t0" else [])
    consumer = Consumer(2)
    planton, seen = make_with_consumer(schedule, consumer)
    async with planton:
        await trio.sleep(1.5)

    assert [["t0", "t1"], "t2"] == schedule.calls
    assert ["a"] == consumer.taken
    assert ["dispatched", "nothing", "nothing"] == sorted(seen.outcomes)


async def test_a_consumer_that_does_not_say_what_it_can_take_is_an_error_of_each_task():
    """None of them is asked."""
    schedule = Schedule()
    planton, seen = make_with_consumer(schedule, Consumer(OSError("no")))
    async with planton:
        await trio.sleep(1.5)

    assert [] == schedule.calls
    assert ["capacity"] * 3 == [event.stage for event in seen.of(ErrorEvent)]
