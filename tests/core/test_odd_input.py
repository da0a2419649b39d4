"""Whatever a user's function does or returns harms only the work that it was called for."""

import asyncio
import pickle
import sys
from concurrent.futures import CancelledError as FutureCancelledError

import attrs
import pytest
import trio

import planton
from planton import (
    AttemptEvent,
    Batch,
    Claim,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    InvalidTaskError,
    Planton,
    PlantonError,
    Task,
    UnknownTaskError,
    health,
)
from planton.testing import EventCollector, thread_aware


class UnspeakableError(Exception):
    """Its text cannot be made."""

    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error

    __repr__ = __str__


def recursive(self):
    return str(self)


class RecursiveError(Exception):
    __str__ = recursive
    __repr__ = recursive


class OddStr(str):
    """Nothing that it does can be relied on."""

    def __eq__(self, other):
        raise TypeError("eq")

    def __hash__(self):
        raise TypeError("hash")

    def __str__(self):
        raise TypeError("str")

    def __repr__(self):
        raise TypeError("repr")

    def __format__(self, spec):
        raise TypeError("format")


class OddList(list):
    """One that reads from somewhere, and fails."""

    def __len__(self):
        raise OSError("len")

    def __iter__(self):
        raise OSError("iter")

    def __eq__(self, other):
        raise OSError("eq")

    def __repr__(self):
        raise OSError("repr")

    __hash__ = None


def by_type(value):
    """Not even pytest can put all of these into words."""
    return type(value).__name__


def foreign_cancelled():
    return trio.Cancelled._create(source="unknown", reason=None, source_task=None)


class UnsplittableGroup(ExceptionGroup):
    """Its `derive` forgets an argument, so that it cannot be split."""

    def __new__(cls, code, errors):
        return super().__new__(cls, f"code {code}", errors)

    def derive(self, errors):
        return UnsplittableGroup(errors)


def wide_group():
    """To its bottom there are more ways than could be gone in a life."""
    error = ExceptionGroup("group", [ValueError("at the bottom"), KeyError("beside")])
    for _ in range(60):
        error = ExceptionGroup("group", [error, error])
    return error


def deep_group():
    """Deeper than Python recurses."""
    error = ValueError("at the bottom")
    for _ in range(5000):
        error = ExceptionGroup("group", [error, ValueError("beside")])
    return error


class Unnamed(type):
    """Of classes that do not even tell their name."""

    @property
    def __name__(cls):
        raise ValueError("no name")


class UnnamedError(Exception, metaclass=Unnamed):
    """One of these."""


ENDINGS = (
    lambda: SystemExit(2),
    lambda: GeneratorExit(),
    lambda: asyncio.CancelledError(),
    lambda: FutureCancelledError(),
    lambda: BaseException("odd"),
    lambda: BaseExceptionGroup("two", [SystemExit(2), ValueError("no")]),
    foreign_cancelled,
    lambda: StopIteration(),
    lambda: StopAsyncIteration(),
    lambda: RecursionError(),
    lambda: MemoryError(),
    lambda: UnspeakableError(ValueError()),
    lambda: UnspeakableError(SystemExit()),
    lambda: RecursiveError(),
    lambda: UnsplittableGroup(5, [ValueError(1), KeyError(2)]),
    deep_group,
    wide_group,
    lambda: UnnamedError(),
)


async def watched(planton, seconds=5.0):
    """Run beside a bystander; what was seen of each."""
    bystander = Task(name="bystander", schedule=one_by_one(), cap="strict", delay=1.0)
    planton.register(bystander)
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(seconds)
        assert planton.status()
        assert all(planton.explain(name) for name in planton.names())
        health(planton)
    done = [event.instruction for event in seen.of(InstructionEvent, "bystander")]

    assert ["0", "1", "2", "3"] == done[:4]
    return seen


def one_by_one():
    numbers = iter(range(10**6))

    async def schedule(request):
        return [str(next(numbers))]

    return schedule


@pytest.mark.parametrize("make", ENDINGS)
@pytest.mark.parametrize("where", ("schedule", "get_active_instructions", "delay", "limit"))
async def test_whatever_an_async_callback_raises_is_an_error_of_its_attempt(where, make):
    """The run, and all other tasks, go on."""

    async def bad(*arguments):
        await trio.lowlevel.checkpoint()
        raise make()

    async def none(*arguments):
        return []

    callbacks = {"schedule": none, "get_active_instructions": none, "delay": 1.0, where: bad}
    seen = await watched(Planton(tasks=[Task(name="bad", **callbacks)]))
    errors = seen.of(ErrorEvent, "bad")

    assert len(errors) >= 4
    assert {where} == {event.stage for event in errors}
    assert all(isinstance(event.error, Exception) for event in errors)


@pytest.mark.parametrize("make", ENDINGS)
@pytest.mark.parametrize("where", ("schedule", "concurrency", "capacity"))
async def test_whatever_a_sync_callback_raises_is_an_error_of_its_attempt(
    where, make, autojump_clock
):
    """Also in a worker thread."""

    def bad(*arguments):
        raise make()

    async def none(*arguments):
        return []

    callbacks = {"schedule": none, where: bad}
    task = Task(name="bad", cap="strict", delay=1.0, **callbacks)
    with thread_aware(autojump_clock):
        seen = await watched(Planton(tasks=[task]))

    assert ["error"] * 4 == [event.outcome for event in seen.of(AttemptEvent, "bad")][:4]


@pytest.mark.parametrize("make", ENDINGS)
@pytest.mark.parametrize("is_async", (True, False))
@pytest.mark.parametrize("event_type", (InstructionEvent, AttemptEvent, ErrorEvent))
async def test_whatever_a_listener_raises_fails_that_call(event_type, is_async, make):
    """The others still get the event."""

    def listen(event):
        if event.task_name == "bad":
            raise make()

    async def listen_later(event):
        await trio.lowlevel.checkpoint()
        listen(event)

    async def schedule(request):
        if event_type is ErrorEvent:
            raise OSError("down")
        return ["a"]

    planton = Planton(tasks=[Task(name="bad", schedule=schedule, cap="strict", delay=1.0)])
    planton.on(event_type, listen_later if is_async else listen)
    seen = await watched(planton)

    assert len(seen.of(event_type, "bad")) >= 3


@pytest.mark.parametrize("make", ENDINGS)
async def test_whatever_a_service_raises_starts_it_again(make):
    """It is reported."""
    starts = []

    async def service(planton, *, task_status):
        starts.append(trio.current_time())
        task_status.started()
        await trio.sleep(1)
        raise make()

    seen = await watched(Planton(services=[service]))

    assert len(starts) >= 2
    assert {"service"} == {event.stage for event in seen.of(ErrorEvent)}


@pytest.mark.parametrize("make", ENDINGS)
async def test_whatever_release_raises_is_reported(make):
    """What it should have taken back is kept."""

    async def release(claims):
        raise make()

    async def schedule(request):
        return ["a", "b"]

    task = Task(name="bad", schedule=schedule, release=release, cap="strict", delay=1.0)
    seen = await watched(Planton(tasks=[task]))

    assert {"schedule", "release", "terminate"} >= {event.stage for event in seen.of(ErrorEvent)}


async def test_a_keyboard_interrupt_of_a_callback_ends_the_run(bench):
    """As Ctrl-C does."""
    one = bench(lambda request: raise_(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        await one.planton.run()


def raise_(error):
    raise error


async def test_our_own_cancellation_is_no_failure(bench):
    """Also in a group with an error of the callback's."""

    async def schedule(request):
        try:
            await trio.sleep_forever()
        finally:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 1)
                raise ValueError("on the way out")

    one = bench(schedule=schedule, grace=1)
    await one.run_for(2)

    assert ["terminate"] == [event.stage for event in one.seen.of(ErrorEvent)]


async def test_an_error_without_a_text_is_told_by_its_type(bench, caplog):
    """And one whose text cannot be made, and one with many in it."""
    group = ExceptionGroup("two", [ConnectionError("smtp refused"), KeyError("x")])
    for error, words in (
        (TimeoutError(), "TimeoutError"),
        (
            UnspeakableError(ValueError()),
            "UnspeakableError: <UnspeakableError whose text fails with ValueError>",
        ),
        (RecursiveError(), "RecursiveError: <RecursiveError whose text fails with RecursionError>"),
        (group, "ExceptionGroup: ConnectionError: smtp refused; KeyError: 'x'"),
        (ExceptionGroup("one", [OSError("disk full")]), "OSError: disk full"),
        (SystemExit(2), "PlantonError: SystemExit: 2 was raised, and failed nothing but this"),
        (ValueError("\x1b[31mred\u202e"), "ValueError: \\x1b[31mred\\u202e"),
    ):

        async def schedule(request, error=error):
            raise error

        caplog.clear()
        task = Task(name="task", schedule=schedule, cap="strict", delay=1.0)
        planton = Planton(tasks=[task])
        planton.on(InstructionEvent, print)
        async with planton:
            await trio.sleep(1.5)
        (record,) = (each for each in caplog.records if each.levelname == "ERROR")

        assert planton.status()[0].last_error.startswith(words)
        assert f"schedule of task 'task' failed: {words}" in record.getMessage()
        assert f"error: schedule: {words}" in planton.explain("task")[1]


@pytest.mark.parametrize(
    "answer",
    (
        OddList(["a"]),
        [OddStr("a"), 5],
        Batch(OddList(["a"])),
        UnspeakableError(ValueError()).__class__,
        10**5000,
        {"a": OddStr("b")},
        [[...]],
    ),
    ids=by_type,
)
async def test_an_answer_whose_own_code_fails_is_an_error(answer):
    """Measuring it, or putting it into words, is no business of the others."""

    async def schedule(request):
        return answer

    seen = await watched(
        Planton(tasks=[Task(name="bad", schedule=schedule, cap="strict", delay=1.0)])
    )

    assert "error" == seen.of(AttemptEvent, "bad")[0].outcome
    assert {"schedule"} == {event.stage for event in seen.of(ErrorEvent, "bad")}


async def test_a_str_of_another_kind_is_the_text_that_it_is(bench):
    """From there on it is an exact one."""
    one = bench([OddStr("a"), Claim(instruction=OddStr("b"))], concurrency=2)
    await one.run_for(1.5)

    assert ["a", "b"] == one.seen.instructions
    assert str is type(one.seen.instructions[0])


async def test_two_of_another_kind_that_are_equal_are_found(bench):
    """Though they cannot be compared."""
    one = bench([OddStr("a"), OddStr("a")], concurrency=2)
    await one.run_for(1.5)

    assert "more than once" in str(one.seen.errors[0])


@pytest.mark.parametrize("value", (10**5000, 2**63, True, 1.0, OddStr("1")), ids=by_type)
async def test_a_number_that_is_too_large_for_any_database_is_an_error(value):
    """Also to put it into words."""

    async def none(*arguments):
        return []

    task = Task(
        name="bad",
        schedule=none,
        get_active_instructions=none,
        limit=lambda concurrency, active: value,
        delay=1.0,
    )
    seen = await watched(Planton(tasks=[task]))

    assert {"limit"} == {event.stage for event in seen.of(ErrorEvent, "bad")}
    with pytest.raises(InvalidTaskError):
        Task(name="bad", schedule=none, concurrency=value)


@pytest.mark.parametrize("many", (lambda: [SystemExit(2)] * 2, lambda: OddList(), lambda: None))
async def test_what_many_returns_is_an_error_of_its_tasks_alone(many):
    """An exception in it may be of any kind."""

    class Schedule:
        async def __call__(self, request):
            return []

        async def many(self, requests):
            return many()

    schedule = Schedule()
    tasks = [Task(name=name, schedule=schedule, cap="strict", delay=1.0) for name in "ab"]
    seen = await watched(Planton(tasks=tasks))

    assert ["error"] * 4 == [event.outcome for event in seen.of(AttemptEvent, "a")][:4]


# Never


@pytest.mark.parametrize("never", (sys.maxsize, 1e300, lambda number: float(2**62)))
async def test_a_delay_may_mean_that_only_a_wake_up_counts(never):
    """All that speaks of it works."""
    schedule = one_by_one()
    planton = Planton(tasks=[Task(name="task", schedule=schedule, cap="strict", delay=never)])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(100_000)
        (status,) = planton.status()

        assert ("waiting", None, False) == (status.state, status.next_attempt_at, status.overdue)
        assert planton.explain("task")[0].endswith("next attempt when it is woken")
        assert health(planton)
        planton.wake()
        await trio.sleep(1)

        assert planton.explain("task")[1].startswith("dispatched 1 of at most 1, next when it is")
    assert ["0"] == seen.instructions


async def test_a_status_survives_what_the_source_says_of_its_wake_ups(bench):
    """It is a property of the user's."""

    class Schedule:
        @property
        def wake_ups(self):
            raise OSError("no")

        async def __call__(self, request):
            return []

    one = bench(schedule=Schedule())

    assert one.planton.status()[0].wake_ups is None


# Refused where it is given


async def generator(*arguments):
    yield "a"


def sync_generator(*arguments):
    yield "a"


class Generating:
    async def __call__(self, *arguments):
        yield "a"


@pytest.mark.parametrize("function", (generator, sync_generator, Generating()))
def test_a_function_with_a_yield_is_refused(function):
    """Calling it would run nothing of it."""
    names = ("schedule", "delay", "concurrency", "limit", "capacity", "release")
    for name in (*names, "get_active_instructions"):
        with pytest.raises(InvalidTaskError, match="yield") as caught:
            Task(**{"name": "task", "schedule": print, "cap": "strict", name: function})
        assert name == caught.value.field
    with pytest.raises(InvalidArgumentError, match="yield"):
        Planton().on(InstructionEvent, function)
    with pytest.raises(InvalidArgumentError, match="get_active_instructions"):
        Planton(get_active_instructions=function)
    with pytest.raises(InvalidArgumentError, match="services"):
        Planton(services=[function])


def test_a_listener_of_another_event_is_refused():
    """As far as its signature says."""

    def on_error(event: ErrorEvent) -> None: ...

    def on_any(event: planton._events.Event) -> None: ...

    def on_nothing() -> None: ...

    def on_two(event, other) -> None: ...

    class Listener:
        def listen(self, event: AttemptEvent) -> None: ...

    one = Planton()
    one.on(InstructionEvent, on_any)
    one.on(ErrorEvent, on_error)
    one.on(AttemptEvent, Listener().listen)
    one.on(InstructionEvent, print)
    one.on(InstructionEvent, dict)
    for listener, problem in (
        (on_error, "it takes ErrorEvent, and would get InstructionEvent"),
        (Listener().listen, "it takes AttemptEvent, and would get InstructionEvent"),
        (on_nothing, "it must take 1 argument"),
        (on_two, "it must take 1 argument"),
    ):
        with pytest.raises(InvalidArgumentError, match=problem):
            one.on(InstructionEvent, listener)


def test_a_listener_whose_hints_are_for_a_type_checker_only_is_taken():
    """Names that do not exist at run time."""

    def listen(event: "Missing") -> None: ...  # noqa: F821

    Planton().on(InstructionEvent, listen)


def test_on_without_a_type_is_refused():
    """It says what is missing."""
    with pytest.raises(InvalidArgumentError, match="and the listener after it"):
        Planton().on(lambda event: None)
    with pytest.raises(InvalidArgumentError, match="give one of InstructionEvent"):
        Planton().on(int)


# Carried


@attrs.define
class Unpicklable:
    def __reduce__(self):
        raise TypeError("no")


@pytest.mark.parametrize(
    "error",
    (
        planton.StorageError("db", "x"),
        planton.InvalidQueryError("t", "sql", "x"),
        UnknownTaskError("t", []),
        planton.InvalidTaskError("delay", lambda: None, "x"),
        InvalidArgumentError("tasks", Unpicklable(), "x"),
        planton.DuplicateTaskNameError("t"),
        planton.AlreadyRunningError(),
        planton.UnexpectedLimitError("t", "limit", -1),
        planton.UnexpectedDelayError("t", -1),
        planton.UnexpectedInstructionsError("t", ["a"], 1, "x"),
        planton.CallbackTimeoutError("t", "schedule", 1.0),
        planton.UndeliveredInstructionsError("t", ["a"], "x", released=False),
        PlantonError("x"),
    ),
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_pickling(error):
    """Processes and queues carry them about."""
    copy = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error)) == (type(copy), str(copy))
    assert vars(error).keys() == vars(copy).keys()
    assert vars(copy).get("task_name") == vars(error).get("task_name")


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_payload_that_is_too_deep_is_an_error_of_ours():
    """Not a RecursionError; also in words."""
    event = InstructionEvent(task_name="t", instruction="1", payload=deep(100_000))
    with pytest.raises(InvalidArgumentError, match=r"payload is .* less deep"):
        event.to_json()
    text = (
        '{"task_name": "t", "instruction": "1", "payload": ' + "[" * 100_000 + "]" * 100_000 + "}"
    )
    with pytest.raises(InvalidArgumentError, match=r"text is .* less deep"):
        InstructionEvent.from_json(text)
    with pytest.raises(InvalidArgumentError, match="text is"):
        InstructionEvent.from_json(None)
    with pytest.raises(InvalidArgumentError, match="text is"):
        InstructionEvent.from_json('{"payload": ' + "9" * 5000 + "}")


def test_an_event_is_a_claim_that_knows_where_it_comes_from():
    """Every field of a claim is one of its event; what belongs to a process is not sent."""
    claim = Claim(instruction="1", receipt="r", payload={"a": 1}, lease=5.0, claimed_at=7.0)
    event = InstructionEvent.of("task", claim)
    back = InstructionEvent.from_json(event.to_json())

    assert isinstance(event, Claim)
    assert (event, 7.0, False) == (back, event.claimed_at, event.is_foreign)
    assert (None, True) == (back.claimed_at, back.is_foreign)
    assert pickle.loads(pickle.dumps(event)) == event == attrs.evolve(event)
    assert InstructionEvent(task_name="t", instruction="1") == InstructionEvent.of("t", "1")
    assert "claimed_at" not in event.to_json()


def test_a_ctrl_c_within_the_text_of_a_value_is_not_swallowed():
    """It is no failure of the value's own code."""

    class Slow:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InvalidArgumentError("argument", Slow(), "give another one")
