"""How the instructions of a task are claimed, as its user wrote it down."""

import math
from typing import Any, Literal, TypeAlias

import attrs

from planton import InvalidArgumentError, ScheduleRequest
from planton.abc import TimeTable
from planton_postgres._source import Source

Kind: TypeAlias = Literal["queue", "sql", "cron"]
_MOST = 2**31 - 1


def check_int(argument: str, value: object, minimum: int, maximum: int = _MOST) -> None:
    """Refuse what is no whole number in these bounds.

    Raises:
        InvalidArgumentError: If it is none.
    """
    if type(value) is not int or not minimum <= value <= maximum:
        remedy = f"give an int from {minimum} to {maximum}"
        raise InvalidArgumentError(argument, value, remedy)


def check_seconds(argument: str, value: object, *, above_zero: bool = False) -> None:
    """Refuse what is no finite number of seconds of at least 0.

    Raises:
        InvalidArgumentError: If it is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value < 1e9) or math.isnan(value) or (above_zero and value == 0):  # type: ignore[operator, arg-type]  # it is a number then
        remedy = "give seconds above 0" if above_zero else "give seconds of at least 0"
        raise InvalidArgumentError(argument, value, remedy)


@attrs.frozen(kw_only=True)
class ClaimRule:
    """How the instructions of a task are claimed.

    Attributes:
        lease: Seconds that a claim lasts without a heartbeat.
        deliveries: How often one is handed out at the most; None for no limit.
        retries: What a claim from the user's tables begins with.
        key: Pattern of LIKE for what is claimed from the queue.
        tags: What is offered to instructions that ask for tags.
        source: The user's statement.
        times: When a cron task fires.
        delay: Seconds between two attempts; None if that varies.
    """

    lease: float = 60.0
    deliveries: int | None = None
    retries: int = 0
    key: str = "%"
    tags: tuple[str, ...] = ()
    source: Source | None = None
    times: TimeTable | None = None
    delay: float | None = None

    def __attrs_post_init__(self) -> None:
        check_seconds("lease", self.lease, above_zero=True)
        check_int("retries", self.retries, 0)
        if self.deliveries is not None:
            check_int("deliveries", self.deliveries, 1)

    @property
    def kind(self) -> Kind:
        """Where instructions come from, besides the queue."""
        if self.source is not None:
            return "sql"
        return "queue" if self.times is None else "cron"

    def asked(self, request: ScheduleRequest) -> dict[str, Any]:
        """Give what the statements of a claim are told about it."""
        return {
            "task_name": request.task_name,
            "limit": min(request.limit, _MOST),
            "concurrency": min(request.concurrency, _MOST),
            "key": self.key,
            "tags": self.tags,
            "lease": self.lease,
            "deliveries": self.deliveries,
            "source": self.kind,
            "delay": self.delay,
        }
