"""What a storage promises, written to those who write one.

A storage of your own needs two callbacks and may have a third (see `planton.Task`). What is here
is the contract of the storages that Planton brings, which `planton.testing.StorageConformance`
states as tests.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, Self, TypeAlias, cast, get_args, runtime_checkable

import attrs
import trio

from planton._errors import InvalidArgumentError
from planton._planton import Planton
from planton._task import Claim, Task
from planton.storage._arguments import (
    AdvanceReport,
    FailureReport,
    NewInstruction,
    to_claimant,
    to_count,
    to_json,
    to_lease,
    to_name,
    to_number,
    to_strings,
)
from planton.storage._cron import CronTimes, FireTimes, KeptTime, Misfire
from planton.storage._fleet import (
    FORGOTTEN_AFTER,
    Answer,
    DispatcherRecord,
    Registration,
    Registry,
    TaskReport,
    keep_registered,
)

__all__ = [
    "FORGOTTEN_AFTER",
    "Acknowledged",
    "ActiveSource",
    "AdvanceReport",
    "Answer",
    "CronTimes",
    "DispatcherRecord",
    "FailureReport",
    "FireTimes",
    "InstructionRecord",
    "KeptTime",
    "Misfire",
    "NewInstruction",
    "Registration",
    "Registry",
    "Status",
    "Storage",
    "TaskReport",
    "TaskStats",
    "keep_registered",
    "receipts_of",
    "to_claimant",
    "to_count",
    "to_json",
    "to_lease",
    "to_name",
    "to_number",
    "to_receipts",
    "to_status",
    "to_strings",
]

Status: TypeAlias = Literal["queued", "running", "succeeded", "failed", "dead"]


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
    def of(cls, receipts: Sequence[str], applied: set[str]) -> Self:
        """Sort `receipts`, in their order, by whether they are among `applied`."""
        return cls(
            tuple(receipt for receipt in receipts if receipt in applied),
            tuple(receipt for receipt in receipts if receipt not in applied),
        )


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
        failed: Ended by `fail` although retries were left, and not pruned yet.
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


@runtime_checkable
class ActiveSource(Protocol):
    """Tells what is active, for one task or for many in one call."""

    async def __call__(self, task_name: str) -> list[str]:
        """Give the active instructions of one task; claims that are not committed are not seen."""

    async def many(self, task_names: Sequence[str]) -> list[list[str]]:
        """Give the active instructions of each task, in the order asked for."""


@runtime_checkable
class Storage(Protocol):
    """Claims instructions, and is told by consumers what became of them.

    It is an async context manager; the methods below are called inside its block. All are async
    but for `schema` and the ones that make tasks. A method that changes something does so in one
    transaction, returns after the commit, and once it has begun is not cut off by a
    cancellation: what is committed is heard of. Times that are stored or compared come from the
    storage's own clock. Methods of consumers take one receipt or many, and compare them in the
    transaction in which they change anything. Errors of the database are `StorageError`.
    """

    @property
    def get_active_instructions(self) -> ActiveSource:
        """The callback for `Planton(get_active_instructions=…)`."""

    async def migrate(self) -> int:
        """Bring the tables up to date; how many migrations were applied.

        Safe when many processes start at once. Tables that are newer than the code are a
        `StorageError` that says so.
        """

    def schema(self) -> str:
        """Give the SQL that `migrate` runs on an empty database; empty if there are no tables.

        Whoever applies it by hand need not migrate. The storage need not be open.
        """

    # Sources: each makes a strict task whose schedule has `many`, and `wake_ups`, which is "live"
    # while `serve` would wake it for a change of another process, else "polling", or None where
    # there are no such changes. All of them, in one transaction
    # that serialises per task: nothing if paused; claims whose lease expired change hands (they
    # hold their slots already), or end as dead if their deliveries are used up, or go back to the
    # queue if this dispatcher does not offer their tags or has another key; room is what is
    # left of min(limit, concurrency or its override - active); due rows of the queue; then the
    # source's own. One instruction of a task is never active twice.
    #
    # A source of the user's own (`claim_task`) that finds rows without changing them, a plain
    # SELECT, finds them again: it leaves out those that are active, those that are queued, and
    # those that rest in the history as failed or dead, until `retry` or `prune` takes them from
    # there, or they succeed. Not those that succeeded: a row that comes round is due again. What
    # is left out does not count against the limit, so that the rows behind are reached.
    #
    # A storage makes any number of tasks of one name: one was unregistered, or another Planton has
    # it. Each is claimed for by what it was made with.
    #
    # The `release` of a task takes back what could not be delivered. It counts how often in a row
    # that happened to an instruction: the first time it is claimable at once, then after 1, 2, 4,
    # … 60 seconds, so that one that no listener takes does not starve the others. Whatever a
    # consumer reports that ends a claim (complete, fail, release) begins the count anew; an
    # expired lease does not.

    def queue_task(
        self,
        name: str,
        *,
        key: str = "%",
        tags: Sequence[str] = (),
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a task that claims what `enqueue` put into the queue.

        By priority (high first), then time, then arrival; only instructions LIKE `key`; only
        those all of whose tags are among `tags`. `deliveries` is the most times that one is
        handed out; None for no limit.
        """

    def cron_task(
        self,
        name: str,
        expression: str,
        *,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        lease: float | timedelta = 60.0,
        deliveries: int | None = None,
        **options: Any,
    ) -> Task:
        """Make a task whose instructions are fire times, each claimed once in the whole fleet.

        The instruction is the time in ISO 8601, in UTC. The next time is kept in the storage; a
        time that was missed by more than a minute is, with `misfire`, skipped, or the last of
        them dispatched once, or all of them. `fold` and `gap` are as for `delays.cron`.

        A next time is kept for each time table that a task has, which `CronTimes.fires` reckons
        with: while processes of one task have different expressions, zones or policies, as in a
        rolling deploy, the times of all of them are dispatched, one that they share once, and
        none is lost because another began. A new one begins with the first time after now, or
        with one that has come and that another has left undispatched, if it is its own, too.
        The times of one that nobody has any more are not dispatched. A time that is active,
        queued or in the history is not dispatched again.
        """

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wake the tasks of a Planton while it runs: `Planton(services=[storage.serve])`.

        And keep it registered, by `keep_registered`, for `dispatchers`, `request_stop` and
        `decisions`.
        """

    # Producers

    async def enqueue(
        self,
        task_name: str,
        instruction: str,
        *,
        payload: Any = None,
        priority: int = 0,
        run_at: datetime | None = None,
        tags: Sequence[str] = (),
        retries: int = 0,
        timeout: float | None = None,
        connection: Any = None,
    ) -> bool:
        """Queue an instruction; False, and nothing changed, if it is queued already.

        With a `connection` it is part of the caller's own transaction. An instruction may be
        queued while it is active; it is then claimed after that claim has ended.
        """

    # Consumers

    async def heartbeat(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Renew leases, each for its own seconds from now, but never beyond its `timeout`."""

    async def complete(self, receipts: str | Sequence[str], result: Any = None) -> Acknowledged:
        """End claims as succeeded; frees their slots and wakes their tasks."""

    async def fail(
        self,
        receipts: str | Sequence[str],
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        retry: bool = True,
        lower_priority: bool = False,
        retries: int = 0,
    ) -> Acknowledged:
        """Report that the work failed.

        With retries left it is queued again, `retry_in` seconds from now (at once if None), with
        one retry less, and a priority one lower if `lower_priority`. With none left it ends as
        dead; with `retry=False` it ends as failed. Frees the slot and wakes the task. Of an
        exception the name and the message are kept.

        `retries` is what the consumer grants: an instruction that fails for the first time (or
        for the first time since `retry`) and has none of its own is given so many.
        """

    async def advance(
        self,
        receipts: str | Sequence[str],
        payload: Any = None,
        *,
        retries: int = 0,
        run_in: float | None = None,
    ) -> Acknowledged:
        """Store how far the work has come: it begins anew with another payload.

        Its retries are `retries` from now on; its deliveries, its time-out and its error begin
        anew. Without `run_in` the consumer keeps the claim, with its receipt and a new lease, and
        goes on at once. With it the claim is queued again, due so many seconds from now; that
        frees the slot. Whoever gets it next, also after a crash, gets the new payload.
        """

    async def release(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Give claims back unfinished, at once claimable again; frees slots, wakes tasks.

        For consumers; what could not even be delivered comes back through `Task.release`.
        """

    # Operations; kept in the storage and seen by all

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task."""

    async def resume(self, task_name: str) -> None:
        """Let them claim again."""

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code in all dispatchers; None to stop doing so."""

    async def retry(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Queue ended instructions again, all failed and dead ones if none is named; how many.

        They begin anew, at once and with no delivery, and leave the history, with all failures
        of before. Where one ended several times the last end counts. One that is back already is
        no failed one any more. One that is active, queued, or unknown is an
        `InvalidArgumentError`, and none is retried.
        """

    async def find(
        self,
        *,
        status: Status | None = None,
        task_name: str | None = None,
        instruction: str | None = None,
        older_than: float | None = None,
        limit: int = 100,
    ) -> list[InstructionRecord]:
        """Give instructions, the oldest first; `older_than` is seconds since they came to be."""

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""

    async def prune(self, older_than: float = 0.0) -> int:
        """Delete from the history what ended more than `older_than` seconds ago; how many."""

    # The fleet: dispatchers that run `serve`, in any process

    @property
    def registry(self) -> Registry:
        """Where dispatchers are kept, for `keep_registered`."""

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Give the dispatchers that serve this storage now, the oldest first.

        One that died is among them until another has noticed, for ten minutes at the least.
        """

    async def request_stop(self, dispatcher_ids: Sequence[str] | None = None) -> list[str]:
        """Ask dispatchers to terminate, all of them if none is named; which were asked.

        Each hears of it at its next beat, in five seconds at the most, and terminates within its
        grace period; then it is not among `dispatchers` any more. One that begins later is not
        asked. Names that are not known are left out.
        """

    async def decisions(self, task_name: str | None = None) -> list[TaskReport]:
        """Give what each dispatcher says of a task, or of all its tasks.

        That is what `Planton.status` and `Planton.explain` tell there: some seconds old, and for
        dispatchers with thousands of tasks minutes.
        """


def to_receipts(receipts: str | Sequence[str]) -> tuple[str, ...]:
    """Give one receipt or many as a tuple.

    Raises:
        InvalidArgumentError: If one of them is no str.
    """
    many = receipts if isinstance(receipts, Sequence | set | frozenset) else (receipts,)
    wanted = (receipts,) if isinstance(receipts, str) else tuple(many)
    for receipt in wanted:
        if not isinstance(receipt, str):
            remedy = "give the receipt of an event, as it was received"
            raise InvalidArgumentError("receipt", receipt, remedy)
    return wanted


def to_status(status: object) -> Status:
    """Give a status.

    Raises:
        InvalidArgumentError: If it is none.
    """
    for known in get_args(Status):
        if status == known:
            return cast(Status, known)
    remedy = f"give one of {', '.join(get_args(Status))}"
    raise InvalidArgumentError("status", status, remedy)


def receipts_of(claims: Sequence[Claim]) -> tuple[str, ...]:
    """Give the receipts of claims that have one."""
    return tuple(claim.receipt for claim in claims if claim.receipt is not None)
