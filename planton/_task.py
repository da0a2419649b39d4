"""What users write down: tasks, and what their `schedule` is asked and answers."""

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import attrs

from planton._errors import InvalidArgumentError, InvalidTaskError

Seconds: TypeAlias = float | timedelta
Delay: TypeAlias = Callable[[int], Seconds | Awaitable[Seconds]]
Limit: TypeAlias = Callable[[int, Sequence[str]], int | Awaitable[int]]
Concurrency: TypeAlias = Callable[[], int | Awaitable[int]]
Capacity: TypeAlias = Callable[[], int | Awaitable[int]]
GetActiveInstructions: TypeAlias = Callable[[str], Sequence[str] | Awaitable[Sequence[str]]]
Cap: TypeAlias = Literal["advisory", "strict"]


def is_int(value: object, minimum: int) -> bool:
    """Tell whether `value` is a whole number of at least `minimum`; a bool is none."""
    return type(value) is int and value >= minimum


def to_seconds(value: object) -> float | None:
    """Give `value` as finite seconds of at least 0, or None when it is no such thing."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= sys.float_info.max else None


def slot_setters(cls: type[attrs.AttrsInstance]) -> Iterator[Callable[[object, object], None]]:
    """Give what sets the slots of a frozen class, field by field, past its constructor.

    The constructor of a frozen class takes a microsecond, which is as long as all the rest of
    handing out an instruction. Where values are known to be right this takes a third of that.
    """
    for field in attrs.fields(cls):
        yield getattr(cls, field.name).__set__


@attrs.frozen(kw_only=True)
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
    """

    instruction: str = attrs.field()
    receipt: str | None = None
    payload: Any = None
    delivery: int = 1
    lease: float | None = None
    timeout: float | None = None

    @instruction.validator
    def _check(self, _: object, value: object) -> None:
        if not isinstance(value, str):
            raise InvalidArgumentError("instruction", value, "give a str, such as str(row_id)")


def to_claim(member: str | Claim) -> Claim:
    """Give the claim that a member of an answer stands for."""
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
    """

    task_name: str
    active_instructions: tuple[str, ...]
    concurrency: int
    limit: int
    attempt_number: int


_REQUEST_SLOTS = tuple(slot_setters(ScheduleRequest))


def make_request(*values: object) -> ScheduleRequest:
    """Make a request from its values in their order, in a third of the time."""
    request: ScheduleRequest = object.__new__(ScheduleRequest)
    for set_slot, value in zip(_REQUEST_SLOTS, values, strict=True):
        set_slot(request, value)
    return request


@attrs.frozen
class Batch:
    """What a `schedule` callback may return instead of a list, to say more.

    Attributes:
        claims: What was claimed, at most `request.limit`.
        next_in: Seconds until it is worth attempting again; replaces the delay once.
        due_in: Seconds until something may become due, such as a time in the future or the end of
            a lease. The delay, or `next_in`, is cut to it once, and never made longer.
        active: How many were active before this claim, as a strict `schedule` counted them.

    Raises:
        InvalidArgumentError: If `next_in`, `due_in` or `active` is not a number of at least 0.
    """

    claims: Sequence[str | Claim]
    next_in: float | None = attrs.field(default=None, kw_only=True)
    due_in: float | None = attrs.field(default=None, kw_only=True)
    active: int | None = attrs.field(default=None, kw_only=True)

    @next_in.validator
    @due_in.validator
    def _check_seconds(self, field: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None and to_seconds(value) is None:
            raise InvalidArgumentError(field.name, value, "give finite seconds of at least 0")

    @active.validator
    def _check_active(self, _: object, value: object) -> None:
        if value is not None and not is_int(value, 0):
            raise InvalidArgumentError("active", value, "give an int of at least 0")


ScheduleResult: TypeAlias = Sequence[str | Claim] | Batch
Schedule: TypeAlias = Callable[[ScheduleRequest], ScheduleResult | Awaitable[ScheduleResult]]
Release: TypeAlias = Callable[[Sequence[Claim]], Awaitable[None] | None]


def _check_name(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidTaskError(field.name, value, "give a non-empty str")


def _check_callable(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not callable(value):
        raise InvalidTaskError(field.name, value, "give a function, sync or async")


def _check_concurrency(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not callable(value) and not is_int(value, 1):
        remedy = "give an int of at least 1, or a function that returns one"
        raise InvalidTaskError(field.name, value, remedy)


def _check_delay(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if not callable(value) and to_seconds(value) is None:
        remedy = (
            "give finite seconds of at least 0, a timedelta, or a function of the attempt number"
        )
        raise InvalidTaskError(field.name, value, remedy)


def _check_timeout(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and not to_seconds(value):
        raise InvalidTaskError(field.name, value, "give finite seconds above 0, or None")


def _check_cap(_: object, field: "attrs.Attribute[Any]", value: object) -> None:
    if value not in ("advisory", "strict"):
        raise InvalidTaskError(field.name, value, 'give "advisory" or "strict"')


_optional_callable = attrs.validators.optional(_check_callable)


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """A named definition of recurring work.

    Callbacks may be sync or async. Async ones run on trio. A sync `schedule`,
    `get_active_instructions` or `release` may block and runs in a worker thread; a sync
    `delay`, `limit`, `concurrency` or `capacity` only computes and is called directly.

    A `schedule` or `get_active_instructions` object may also have an async method `many`: a
    sequence of requests (or task names) in, a sequence of results or exceptions in the same
    order out. Tasks that are due together and share it are asked in one call.

    A `schedule` object may also have an attribute (or property) `wake_ups`, `"live"` or
    `"polling"`, which `status()` reads and shows.

    Attributes:
        name: Non-empty, unique within a Planton.
        schedule: Claims up to `request.limit` instructions and returns them, as a list or tuple
            of `str` or `Claim`, or as a `Batch`. It may be cancelled only when it exceeds
            `timeout` or when Planton stops and the grace period is over; commit and return
            without a checkpoint in between (or shield it), so that nothing committed is lost.
        concurrency: Most active instructions; an int of at least 1, or a function that gives
            one, read at every attempt.
        delay: Seconds (or a timedelta) slept before every attempt, the first included, or a
            function of the attempt number. See `planton.delays`.
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

    Raises:
        InvalidTaskError: If a field cannot be used; names the field and the value.
    """

    name: str = attrs.field(validator=_check_name)
    schedule: Schedule = attrs.field(validator=_check_callable)
    concurrency: int | Concurrency = attrs.field(default=1, validator=_check_concurrency)
    delay: Seconds | Delay = attrs.field(default=1.0, validator=_check_delay)
    limit: Limit | None = attrs.field(default=None, validator=_optional_callable)
    get_active_instructions: GetActiveInstructions | None = attrs.field(
        default=None, validator=_optional_callable
    )
    capacity: Capacity | None = attrs.field(default=None, validator=_optional_callable)
    release: Release | None = attrs.field(default=None, validator=_optional_callable)
    timeout: float | None = attrs.field(default=None, validator=_check_timeout)
    cap: Cap = attrs.field(default="advisory", validator=_check_cap)
