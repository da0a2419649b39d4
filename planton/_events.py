"""What Planton tells its listeners."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeAlias

import attrs

from planton._errors import InvalidArgumentError
from planton._task import Claim, is_int, slot_setters, to_claim, to_seconds

Stage: TypeAlias = Literal[
    "delay",
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
Outcome: TypeAlias = Literal["dispatched", "nothing", "saturated", "full", "error", "stopping"]


@attrs.frozen(kw_only=True)
class Event:
    """What Planton tells its listeners is one of these."""


@attrs.frozen(kw_only=True)
class InstructionEvent(Event):
    """An instruction was claimed and is handed to consumers.

    Attributes:
        task_name: Task that claimed it.
        instruction: Tells the consumer which one unit of work to do.
        receipt: Name of the claim, for reporting its end to the storage; None when the storage
            gives none.
        payload: Whatever came with the instruction.
        delivery: Counts from 1; above 1 the instruction was handed out before and its lease
            expired.
        lease: Seconds until the claim expires unless a heartbeat renews it; None if it does not
            expire, or if nobody says so.
        timeout: Seconds that this delivery may take, heartbeats or not; None for no limit.
    """

    task_name: str
    instruction: str
    receipt: str | None = None
    payload: Any = None
    delivery: int = 1
    lease: float | None = None
    timeout: float | None = None

    def to_json(self) -> str:
        """Give the event as one JSON object, for a broker.

        Raises:
            InvalidArgumentError: If the payload is not JSON.
        """
        try:
            return json.dumps(attrs.asdict(self, recurse=False), allow_nan=False)
        except (TypeError, ValueError) as error:
            remedy = f"give a payload of dict, list, str, number, bool and None ({error})"
            raise InvalidArgumentError("payload", self.payload, remedy) from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Make an event again from what `to_json` gave; unknown members are ignored.

        Raises:
            InvalidArgumentError: If the text is not JSON or a member is missing or of another
                type; names it.
        """
        try:
            members = json.loads(text)
        except ValueError as error:
            raise InvalidArgumentError("text", text, f"give JSON ({error})") from error
        if not isinstance(members, dict):
            raise InvalidArgumentError("text", text, "give a JSON object")
        names = [name for name in _CHECKS if name in members or name in _REQUIRED]
        return cls(**{name: _member(members, name) for name in names})


(
    _set_task_name,
    _set_instruction,
    _set_receipt,
    _set_payload,
    _set_delivery,
    _set_lease,
    _set_timeout,
) = slot_setters(InstructionEvent)


def make_instruction_event(task_name: str, member: str | Claim) -> InstructionEvent:
    """Make the event for a claim, or for the instruction that stands for one."""
    event: InstructionEvent = object.__new__(InstructionEvent)
    _set_task_name(event, task_name)
    if type(member) is str:
        _set_instruction(event, member)
        _set_receipt(event, None)
        _set_payload(event, None)
        _set_delivery(event, 1)
        _set_lease(event, None)
        _set_timeout(event, None)
        return event
    claim = to_claim(member)
    _set_instruction(event, claim.instruction)
    _set_receipt(event, claim.receipt)
    _set_payload(event, claim.payload)
    _set_delivery(event, claim.delivery)
    _set_lease(event, claim.lease)
    _set_timeout(event, claim.timeout)
    return event


_REQUIRED = ("task_name", "instruction")
_CHECKS: dict[str, Callable[[object], bool]] = {
    "task_name": lambda value: isinstance(value, str),
    "instruction": lambda value: isinstance(value, str),
    "receipt": lambda value: value is None or isinstance(value, str),
    "payload": lambda _: True,
    "delivery": lambda value: is_int(value, 1),
    "lease": lambda value: value is None or to_seconds(value) is not None,
    "timeout": lambda value: value is None or to_seconds(value) is not None,
}


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
            `"full"` (limit or capacity 0), `"error"`, or `"stopping"` (gave up to let Planton
            stop).
        active: How many were active before; None when the attempt did not get to know.
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
