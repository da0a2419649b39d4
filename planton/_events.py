"""What Planton tells its listeners."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import attrs

from planton._errors import InvalidArgumentError
from planton._task import IN_JSON, Claim, put_defaults_on_class

Stage: TypeAlias = Literal[
    "delay",
    "lock",
    "concurrency",
    "capacity",
    "limit",
    "get_active_instructions",
    "schedule",
    "deliver",
    "release",
    "service",
    "terminate",
]
Outcome: TypeAlias = Literal[
    "dispatched",
    "nothing",
    "saturated",
    "full",
    "locked",
    "paused",
    "limited",
    "error",
    "stopping",
]

_set = object.__setattr__


@attrs.frozen(kw_only=True, slots=False)
class Event:
    """What Planton tells its listeners is one of these."""


@attrs.frozen(kw_only=True, slots=False)
class InstructionEvent(Claim, Event):
    """An instruction was claimed and is handed to consumers: the claim, with its task's name.

    Attributes:
        task_name: Task that claimed it.
        is_foreign: Whether it was made by `from_json`: another process claimed it, and a
            consumer takes the claim over before it begins. It is not compared.
    """

    task_name: str = attrs.field(metadata={IN_JSON: lambda value: isinstance(value, str)})
    is_foreign: bool = attrs.field(default=False, eq=False, repr=False)
    if TYPE_CHECKING:
        # Only claims of callbacks of the user's own may have none: nobody need check for it.
        receipt: str | Any = None

    @classmethod
    def of(cls, task_name: str, member: str | Claim) -> "InstructionEvent":
        """Return the event for a claim, or for the instruction that stands for one."""
        # The constructor of a frozen class would take longer than all the rest of a delivery.
        event: InstructionEvent = object.__new__(InstructionEvent)
        if isinstance(member, str):
            _set(event, "instruction", member)
        else:
            event.__dict__.update(member.__dict__)
        _set(event, "task_name", task_name)
        return event

    def to_json(self) -> str:
        """Return the event as one JSON object, for a broker.

        Raises:
            InvalidArgumentError: If the payload is not JSON, or too deep for it.
        """
        members = {name: getattr(self, name) for name in _CHECKS}
        try:
            return json.dumps(members, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            remedy = "give a payload of dict, list, str, number, bool and None, less deep"
            raise InvalidArgumentError("payload", self.payload, f"{remedy} ({error})") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Make an event again from what `to_json` returned; unknown members are ignored.

        Raises:
            InvalidArgumentError: If the text is not JSON, or too deep, or a member is missing or
                of another type; names it.
        """
        try:
            members = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError("text", text, f"give JSON, less deep ({error})") from error
        if not isinstance(members, dict):
            raise InvalidArgumentError("text", text, "give a JSON object")
        names = [name for name in _CHECKS if name in members or name in _REQUIRED]
        return cls(**{name: _member(members, name) for name in names}, is_foreign=True)


put_defaults_on_class(InstructionEvent)
_REQUIRED = ("task_name", "instruction")
_CLAIM_FIELDS = tuple(field.name for field in attrs.fields(Claim))
_CHECKS: dict[str, Callable[[object], bool]] = {
    field.name: field.metadata[IN_JSON]
    for field in (attrs.fields(InstructionEvent).task_name, *attrs.fields(Claim))
    if IN_JSON in field.metadata
}


def claim_of(event: InstructionEvent) -> Claim:
    """Return the claim that an event was made for."""
    return Claim(**{name: getattr(event, name) for name in _CLAIM_FIELDS})


def _member(members: Mapping[str, Any], name: str) -> Any:
    value = members.get(name)
    if not _CHECKS[name](value):
        raise InvalidArgumentError(name, value, "give what InstructionEvent.to_json wrote")
    return value


@attrs.frozen(kw_only=True)
class ErrorEvent(Event):
    """Something failed; the task goes on with its next attempt.

    Attributes:
        task_name: Task that it happened to; None for a service.
        error: What was raised, or found wrong.
        stage: Callback or step in which it happened.
        service: Name of the service, if it was one.
    """

    task_name: str | None
    error: Exception
    stage: Stage
    service: str | None = None


@attrs.frozen(kw_only=True)
class AttemptEvent(Event):
    """One pass of a task ended: active, limit, schedule, deliver.

    Attributes:
        task_name: Task that made the attempt.
        attempt_number: Attempts in a row, before this one, that dispatched nothing.
        outcome: `"dispatched"`, `"nothing"` (was due), `"saturated"` (concurrency reached),
            `"full"` (limit or capacity 0, or nobody takes instructions of the task), `"locked"`
            (another dispatcher is claiming), `"paused"` (in the source), `"limited"` (by a rate,
            a hold or another limit of the source), `"error"`, or `"stopping"` (gave up to let
            Planton stop).
        active: How many were active before; None if the attempt did not count them.
        limit: How many it was allowed to claim; None when it did not get that far.
        claimed: How many instructions it handed to consumers.
        duration: Seconds from its start until the last consumer had taken its instruction.
    """

    task_name: str
    attempt_number: int
    outcome: Outcome
    active: int | None
    limit: int | None
    claimed: int
    duration: float


EVENT_TYPES: tuple[type[Event], ...] = (InstructionEvent, ErrorEvent, AttemptEvent)
