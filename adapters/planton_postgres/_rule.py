"""How the instructions of a task are claimed, as its user wrote it down."""

from typing import Any, Literal, TypeAlias

import attrs

from planton import ScheduleRequest
from planton.storage import CronTimes
from planton_postgres._limits import MOST, to_integer, to_seconds
from planton_postgres._source import Source

Kind: TypeAlias = Literal["queue", "sql", "cron"]


def _to_lease(lease: object) -> float:
    return to_seconds("lease", lease, above=0)


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
        delay: Seconds between two attempts, which a rest is no shorter than; None if that varies.
    """

    lease: float = attrs.field(default=60.0, converter=_to_lease)
    deliveries: int | None = None
    retries: int = 0
    key: str = "%"
    tags: tuple[str, ...] = ()
    source: Source | None = None
    times: CronTimes | None = None
    delay: float | None = None

    def __attrs_post_init__(self) -> None:
        to_integer("retries", self.retries)
        if self.deliveries is not None:
            to_integer("deliveries", self.deliveries, 1)

    @property
    def kind(self) -> Kind:
        """Where instructions come from, besides the queue."""
        if self.source is not None:
            return "sql"
        return "queue" if self.times is None else "cron"

    @property
    def cron(self) -> str | None:
        """The key of the time table."""
        return None if self.times is None else self.times.key

    def asked(self, request: ScheduleRequest) -> dict[str, Any]:
        """Give what the statements of a claim are told about it."""
        return {
            "task_name": request.task_name,
            "limit": min(request.limit, MOST),
            "concurrency": min(request.concurrency, MOST),
            "key": self.key,
            "tags": self.tags,
            "lease": self.lease,
            "deliveries": self.deliveries,
            "source": self.kind,
            "cron": self.cron,
            "looks_ahead": self.delay != 0,
        }
