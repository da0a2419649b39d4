"""What users write down: tasks, and what their `schedule` is asked and answers."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, TypeAlias, get_args

import attrs

from planton import delays
from planton._errors import InvalidArgumentError, InvalidTaskError
from planton._functions import problem_of_function

Seconds: TypeAlias = float | timedelta
Delay: TypeAlias = Callable[[int], Seconds | Awaitable[Seconds]]
Limit: TypeAlias = Callable[[int, Sequence[str]], int | Awaitable[int]]
Concurrency: TypeAlias = Callable[[], int | Awaitable[int]]
Capacity: TypeAlias = Callable[[], int | Awaitable[int]]
GetActiveInstructions: TypeAlias = Callable[[str], Sequence[str] | Awaitable[Sequence[str]]]
Cap: TypeAlias = Literal["advisory", "strict"]
Lock: TypeAlias = Callable[[str], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]]
Unclaimed: TypeAlias = Literal["locked", "paused", "limited"]

# Backs off while nothing is due and while attempts fail; a number of seconds replaces it. Without
# jitter, so that idle tasks stay due together and are asked in one call.
DEFAULT_DELAY = delays.exponential(initial=1.0, maximum=60.0, jitter=None)


def is_int(value: object, minimum: int) -> bool:
    """Return whether `value` is a usable whole number of at least `minimum`; a bool is none."""
    return type(value) is int and minimum <= value <= sys.maxsize


def to_seconds(value: object) -> float | None:
    """Return `value` as finite seconds of at least 0, or None when it is no such thing."""
    if type(value) is float and 0.0 <= value <= sys.float_info.max:
        return value
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= sys.float_info.max else None


def exact_text(value: Any) -> Any:
    """Return a str as an exact one: a subclass may compare and format as it likes."""
    return str.__str__(value) if isinstance(value, str) else value


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_optional_seconds(value: object) -> bool:
    return value is None or to_seconds(value) is not None


# The key under which a field of a claim says what it may be in JSON; others are not written.
IN_JSON = "in JSON"


@attrs.frozen(kw_only=True, slots=False)
class Claim:
    """One instruction that was taken so that no other dispatcher gets it.

    A `schedule` callback may return plain strings instead; each stands for
    `Claim(instruction=string)`.

    Attributes:
        instruction: Tells a consumer which one unit of work to do.
        receipt: Opaque name of this claim; a storage checks every later write against it.
        payload: Anything that consumers get with the instruction.
        delivery: How often the instruction has been handed out, this time included; from 1.
        lease: Seconds until the claim expires unless a heartbeat renews it; None if it does not
            expire.
        timeout: Seconds that this delivery may take, heartbeats or not; None for no limit.
        partition: Whose work it is: a tenant, a host, a customer; empty for none.
        claimed_at: When it was claimed, by trio's clock of this process; None if the claim was
            made elsewhere or its maker does not say. It is not compared.

    Raises:
        InvalidArgumentError: If the instruction is no str.
    """

    # Without slots, so that an event takes over all fields of its claim in one call.

    instruction: str = attrs.field(
        converter=exact_text, metadata={IN_JSON: lambda value: isinstance(value, str)}
    )
    receipt: str | None = attrs.field(default=None, metadata={IN_JSON: _is_optional_text})
    payload: Any = attrs.field(default=None, metadata={IN_JSON: lambda _: True})
    delivery: int = attrs.field(default=1, metadata={IN_JSON: lambda value: is_int(value, 1)})
    lease: float | None = attrs.field(default=None, metadata={IN_JSON: _is_optional_seconds})
    timeout: float | None = attrs.field(default=None, metadata={IN_JSON: _is_optional_seconds})
    partition: str = attrs.field(
        default="", metadata={IN_JSON: lambda value: isinstance(value, str)}
    )
    claimed_at: float | None = attrs.field(default=None, eq=False, repr=False)

    @instruction.validator
    def _check(self, _: object, value: object) -> None:
        if not isinstance(value, str):
            raise InvalidArgumentError("instruction", value, "give a str, such as str(row_id)")


def put_defaults_on_class(cls: type[attrs.AttrsInstance]) -> None:
    """Let instances of a class without slots have its defaults without carrying them."""
    for field in attrs.fields(cls):
        if field.default is not attrs.NOTHING:
            setattr(cls, field.name, field.default)


put_defaults_on_class(Claim)


def to_claim(member: str | Claim) -> Claim:
    """Return the claim that a member of an answer stands for."""
    return Claim(instruction=member) if isinstance(member, str) else member


@attrs.frozen(kw_only=True)
class ScheduleRequest:
    """What a `schedule` callback is asked for.

    Attributes:
        task_name: Task that wants instructions.
        active_instructions: Instructions that are active now; empty for a strict task, which
            counts for itself.
        concurrency: Most active instructions of the task.
        limit: How many may be claimed now, at least 1.
        attempt_number: Attempts in a row, before this one, that dispatched nothing.
        context: What the task's `lock` yielded; None without a lock.
    """

    task_name: str
    active_instructions: tuple[str, ...]
    concurrency: int
    limit: int
    attempt_number: int
    context: Any = None


@attrs.frozen
class Batch:
    """What a `schedule` callback may return instead of a list, to say more.

    Attributes:
        claims: What was claimed, at most `request.limit`.
        next_in: Seconds until it is worth attempting again; replaces the delay once.
        due_in: Seconds until something may become due, such as a time in the future or the end of
            a lease. The delay, or `next_in`, is cut to it once, and never made longer.
        active: How many were active before this claim, as a strict `schedule` counted them.
        concurrency: The concurrency in force, where the source overrides that of the task; what
            `status` and `explain` say.
        outcome: Why nothing was claimed, if it is not that nothing is due or the task is
            saturated: `"locked"` (another dispatcher is claiming), `"paused"` (in the source), or
            `"limited"` (by a rate, a hold or another limit).

    Raises:
        InvalidArgumentError: If a field cannot be used; names it.
    """

    claims: Sequence[str | Claim]
    next_in: float | None = attrs.field(default=None, kw_only=True)
    due_in: float | None = attrs.field(default=None, kw_only=True)
    active: int | None = attrs.field(default=None, kw_only=True)
    concurrency: int | None = attrs.field(default=None, kw_only=True)
    outcome: Unclaimed | None = attrs.field(default=None, kw_only=True)

    @outcome.validator
    def _check(self, _: object, __: object) -> None:
        # In one call: ten thousand are made every second by ten thousand idle tasks.
        for name, value in (("next_in", self.next_in), ("due_in", self.due_in)):
            if value is not None and to_seconds(value) is None:
                raise InvalidArgumentError(name, value, "give finite seconds of at least 0")
        for name, count, minimum in (
            ("active", self.active, 0),
            ("concurrency", self.concurrency, 1),
        ):
            if count is not None and not is_int(count, minimum):
                raise InvalidArgumentError(name, count, f"give an int of at least {minimum}")
        if self.outcome is not None and self.outcome not in get_args(Unclaimed):
            remedy = f"give {_one_of(get_args(Unclaimed))}"
            raise InvalidArgumentError("outcome", self.outcome, remedy)


ScheduleResult: TypeAlias = Sequence[str | Claim] | Batch
Schedule: TypeAlias = Callable[[ScheduleRequest], ScheduleResult | Awaitable[ScheduleResult]]
Release: TypeAlias = Callable[[Sequence[Claim]], Awaitable[None] | None]


def _one_of(choices: tuple[str, ...]) -> str:
    return " or ".join(f'"{choice}"' for choice in choices)


def _rule(is_usable: Callable[[Any], object], remedy: str, *, or_function: bool = False) -> Any:
    def check(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if or_function and callable(value):
            problem = problem_of_function(value)
        else:
            problem = None if is_usable(value) else remedy
        if problem is not None:
            raise InvalidTaskError(field.name, value, problem)

    return check


_check_name = _rule(lambda value: isinstance(value, str) and value, "give a non-empty str")
_check_lock = _rule(
    lambda value: value is None or not problem_of_function(value),
    "give a function of the task's name that returns a context manager, such as one of contextlib",
)
_check_concurrency = _rule(
    lambda value: is_int(value, 1),
    "give an int of at least 1, or a function that returns one",
    or_function=True,
)
_check_delay = _rule(
    lambda value: to_seconds(value) is not None,
    "give finite seconds of at least 0, a timedelta, or a function of the attempt number",
    or_function=True,
)
_check_timeout = _rule(
    lambda value: value is None or to_seconds(value), "give finite seconds above 0, or None"
)
_check_cap = _rule(lambda value: value in get_args(Cap), f"give {_one_of(get_args(Cap))}")
_check_callable = _rule(lambda _: False, "give a function, sync or async", or_function=True)
_check_optional = _rule(
    lambda value: value is None, "give a function, sync or async", or_function=True
)


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """A named definition of recurring work.

    Callbacks may be sync or async. Async ones run on trio. A sync `schedule`,
    `get_active_instructions` or `release` may block and runs in a worker thread; a sync
    `delay`, `limit`, `concurrency` or `capacity` only computes and is called directly.

    A `schedule` or `get_active_instructions` object may also have an async method `many`: a
    sequence of requests (or task names) in, a sequence of results or exceptions in the same
    order out. Tasks that are due together and share it are asked in one call; each of the two
    callbacks is grouped by itself.

    A `schedule` object may also have an attribute (or property) `wake_ups`, `"live"` or
    `"polling"`, which `status()` reads and shows.

    Attributes:
        name: Non-empty, unique within a Planton.
        schedule: Claims up to `request.limit` instructions and returns them, as a list or tuple
            of `str` or `Claim`, or as a `Batch`. It may be cancelled only when it exceeds
            `timeout` or when Planton stops and the grace period is over; commit and return
            without a checkpoint in between (or shield it), so that nothing committed is lost.
        concurrency: Most active instructions; an int of at least 1, or a function that returns
            one, read at every attempt.
        delay: Seconds (or a timedelta) slept before every attempt, the first included, or a
            function of the attempt number. By default it backs off, from a second to a minute,
            while nothing is due and while attempts fail. See `planton.delays`.
        limit: How many may be claimed, from `(concurrency, active_instructions)`; by default
            what is left of the concurrency.
        get_active_instructions: Overrides the Planton-wide callback for this task.
        capacity: How many more the consumers at hand can take now. The limit never exceeds it.
        release: Takes back claims that could not be delivered.
        timeout: Seconds that one call of a callback may take. An async callback is cancelled
            then. A sync one cannot be: its thread goes on, the task calls it no second time
            meanwhile, and what it claims in the end is still delivered.
        cap: `"strict"` says that `schedule` itself counts what is active and keeps the cap, in
            one transaction; `get_active_instructions` and `limit` are not used then.
            `"advisory"` counts first and claims later, so that dispatchers in several
            processes can exceed the concurrency together.
        lock: A function of the task's name that returns a context manager, async or sync,
            entered around the count and the claim: only one dispatcher is in it at a time, so
            that the cap of the two callbacks is exact. What it yields is `request.context`; if
            it yields False, another dispatcher has it, and the attempt comes again soon. A sync
            one is entered and left in worker threads.

    Raises:
        InvalidTaskError: If a field cannot be used; names the field and the value.
    """

    name: str = attrs.field(validator=_check_name)
    schedule: Schedule = attrs.field(validator=_check_callable)
    concurrency: int | Concurrency = attrs.field(default=1, validator=_check_concurrency)
    delay: Seconds | Delay = attrs.field(default=DEFAULT_DELAY, validator=_check_delay)
    limit: Limit | None = attrs.field(default=None, validator=_check_optional)
    get_active_instructions: GetActiveInstructions | None = attrs.field(
        default=None, validator=_check_optional
    )
    capacity: Capacity | None = attrs.field(default=None, validator=_check_optional)
    release: Release | None = attrs.field(default=None, validator=_check_optional)
    timeout: float | None = attrs.field(default=None, validator=_check_timeout)
    cap: Cap = attrs.field(default="advisory", validator=_check_cap)
    lock: Lock | None = attrs.field(default=None, validator=_check_lock)
