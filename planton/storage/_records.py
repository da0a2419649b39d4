"""What a storage answers: acknowledgements, instructions, counts, dispatchers."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import attrs

from planton._status import TaskStatus
from planton.storage._arguments import Status, storable

# A dispatcher that was not seen for so many seconds counts as lost; after more its row is deleted.
LOST_AFTER, FORGOTTEN_AFTER = 30.0, 600.0
# What a dispatcher stores of its decisions about a task.
_TEXT, _DECISIONS = 500, 10


@attrs.frozen
class Acknowledged:
    """What became of a report by receipt.

    Attributes:
        applied: Receipts whose claims were changed.
        stale: Receipts that name no claim any more: it was ended, given back, or given to
            another consumer after its lease expired. Nothing was changed for these.
    """

    applied: tuple[str, ...]
    stale: tuple[str, ...]

    @classmethod
    def of(cls, receipts: Sequence[str], applied: Collection[str]) -> Self:
        """Sort `receipts`, in their order, by whether they are among `applied`."""
        return cls(
            tuple(receipt for receipt in receipts if receipt in applied),
            tuple(receipt for receipt in receipts if receipt not in applied),
        )


@attrs.frozen
class TakenOver:
    """What became of `take_over`.

    Attributes:
        receipts: The new receipt of each old one; only the new one names the claim from now on.
        stale: Receipts that named no claim any more: somebody else took it over, it was ended, or
            its lease expired.
    """

    receipts: dict[str, str]
    stale: tuple[str, ...]


@attrs.frozen(kw_only=True)
class InstructionRecord:
    """An instruction as a storage knows it. Times are aware, in UTC, by the storage's clock.

    Attributes:
        task_name: Its task.
        instruction: What it tells consumers.
        status: Where it is in its life.
        payload: What consumers get with it.
        priority: High ones are claimed first.
        tags: What a dispatcher must offer to claim it.
        retries: How many are left.
        timeout: Seconds that one delivery may take, heartbeats or not; None for no limit.
        partition: Whose work it is; empty for none.
        delivery: How often it has been handed out.
        result: What `complete` was given.
        error: What the last `fail` was given, or why it is dead.
        created_at: When it was enqueued, or claimed from a table of the user's.
        run_at: When it is due; None when it is not queued.
        claimed_at: When it was claimed last; None when it is queued.
        claimed_by: The name of the storage that claimed it last, its host and process if it has
            none of its own; None when it is queued.
        lease_expires_at: End of the claim; None when it is not running.
        ended_at: When it ended; None before.
    """

    task_name: str
    instruction: str
    status: Status
    payload: Any
    priority: int
    tags: tuple[str, ...]
    retries: int
    timeout: float | None
    partition: str
    delivery: int
    result: Any
    error: str | None
    created_at: datetime
    run_at: datetime | None
    claimed_at: datetime | None
    claimed_by: str | None
    lease_expires_at: datetime | None
    ended_at: datetime | None


@attrs.frozen(kw_only=True)
class TaskStats:
    """How many instructions of a task there are, by status.

    Attributes:
        task_name: The task.
        queued: Waiting in the storage's own tables; rows of the user's own are not counted.
        running: Claimed and not ended.
        succeeded: Ended by `complete`, and not pruned yet.
        failed: Ended by `fail(retry=False)`, and not pruned yet.
        dead: Ended because retries or deliveries were used up, and not pruned yet.
        oldest_due_at: When the oldest queued instruction that is due became due; None if none is.
        paused: Whether it is paused in the storage.
        concurrency: What overrides the concurrency of the code; None if nothing does.
    """

    task_name: str
    queued: int
    running: int
    succeeded: int
    failed: int
    dead: int
    oldest_due_at: datetime | None
    paused: bool
    concurrency: int | None


@attrs.frozen(kw_only=True)
class DispatcherRecord:
    """A dispatcher as a storage knows it. Times are by the storage's clock.

    Attributes:
        id: Its name.
        host: Its machine or container.
        pid: Its process there.
        version: Of planton.
        started_at: When it registered.
        seen_at: When it was heard of last.
        silent_for: Seconds since then.
        stop_requested_at: When it was asked to stop; None if it was not.
        tasks: How many it has.
    """

    id: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    silent_for: float
    stop_requested_at: datetime | None
    tasks: int

    @property
    def state(self) -> Literal["running", "stopping", "lost"]:
        """Whether it runs, was asked to stop, or has not been heard of for half a minute."""
        if self.silent_for > LOST_AFTER:
            return "lost"
        return "running" if self.stop_requested_at is None else "stopping"


@attrs.frozen(kw_only=True)
class TaskReport:
    """What a dispatcher said about a task.

    Attributes:
        dispatcher_id: Which dispatcher.
        reported_at: When, by the storage's clock.
        status: Where the task stands there; its times are by the storage's clock, too.
        decisions: Where it stood, then its last decisions in words, the newest last.
        tags: The tags that the dispatcher offers there: what asks for others it does not claim.
            None if it did not say.
    """

    dispatcher_id: str
    reported_at: datetime
    status: TaskStatus
    decisions: tuple[str, ...]
    tags: tuple[str, ...] | None = None

    @staticmethod
    def to_text(
        status: TaskStatus, decisions: Sequence[str], tags: Sequence[str] | None = None
    ) -> str:
        """Return a report as JSON, its times as seconds from now: clocks may differ."""
        now = datetime.now(UTC)
        last, following = status.last_attempt_at, status.next_attempt_at
        values = attrs.asdict(status)
        for name in ("name", "last_attempt_at", "next_attempt_at"):
            del values[name]
        values["last_attempt_ago"] = None if last is None else (now - last).total_seconds()
        values["next_attempt_in"] = following and (following - now).total_seconds()
        for name in ("last_error", "failing"):
            if values[name] is not None:
                values[name] = storable(values[name], _TEXT)
        # The first says where the task stands now.
        kept = [*decisions[:1], *decisions[1:][1 - _DECISIONS :]]
        values["decisions"] = [storable(each, _TEXT) for each in kept]
        values["tags"] = tags
        return json.dumps(values)

    @classmethod
    def of(cls, dispatcher_id: str, task_name: str, reported_at: datetime, text: str) -> Self:
        """Read what `to_text` wrote, perhaps of a dispatcher of another version."""
        values: dict[str, Any] = json.loads(text)
        tags = values.get("tags")
        return cls(
            dispatcher_id=dispatcher_id,
            reported_at=reported_at,
            decisions=tuple(values.pop("decisions")),
            tags=None if tags is None else tuple(tags),
            status=_status_of(task_name, reported_at, values),
        )


def _status_of(name: str, reported_at: datetime, values: Mapping[str, Any]) -> TaskStatus:
    last, next_in = values["last_attempt_ago"], values["next_attempt_in"]
    # A dispatcher of a later version may say more.
    known = {field.name for field in attrs.fields(TaskStatus)}
    return TaskStatus(
        name=name,
        last_attempt_at=None if last is None else reported_at - timedelta(seconds=last),
        next_attempt_at=None if next_in is None else reported_at + timedelta(seconds=next_in),
        **{field: value for field, value in values.items() if field in known},
    )
