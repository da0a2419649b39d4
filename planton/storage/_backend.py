"""The port that a database fills, written to those who write one.

A backend is asked by `Storage`, which has checked every argument, knows the tasks and gathers what
waits at the same time: a backend needs no argument checks, no defaults and no wake-ups within the
process.

Rules for all methods: what a method changes is one transaction; the method returns after the
commit, and once it has begun a cancellation does not cut it off: what is committed is heard of.
Times that are stored or compared come from the database's clock. What fails is a `StorageError`,
raised from the driver's own error.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import attrs
import trio

from planton.storage._arguments import Status
from planton.storage._callers import Caller
from planton.storage._cron import CronTimes
from planton.storage._records import DispatcherRecord, InstructionRecord, TaskReport, TaskStats

# Names one claim: the id of the row, and a random number that is new with each claim.
Receipt: TypeAlias = tuple[int, int]
Kind: TypeAlias = Literal[
    "heartbeat", "complete", "fail", "advance", "postpone", "release", "give_back", "take_over"
]
Answer: TypeAlias = Literal["go on", "stop", "unknown"]


@attrs.define(eq=False)
class Report:
    """What a consumer says about some claims. A receipt that names no claim changes nothing.

    Attributes:
        kind: What is said; `values` are, in this order:
            `heartbeat`: none. Renew the lease by its own seconds, never beyond the timeout.
            `complete`: the result (JSON text or None). End as succeeded; earlier failures of the
            instruction do not count any more.
            `fail`: the error, seconds until the next try, whether to retry, whether to lower the
            priority by one, retries granted. With retries left back to pending with one less;
            else end, as dead if it was to be retried, as failed if not. An instruction without an
            error yet and with no retries has the granted ones.
            `advance`: the payload, retries. Keep the claim; deliveries, give-backs and the error
            begin anew, and the lease is renewed.
            `postpone`: the payload, retries, seconds. As `advance`, but back to pending, due later.
            `release`: none. Back to pending, due now.
            `give_back`: none. Likewise, by the dispatcher: from the second time in a row on it is
            due after 1, 2, 4, … 60 seconds. Any other report begins that count anew, an expired
            lease does not.
            `take_over`: the lease in seconds or None for the one it has, the new token. Only while
            the lease lasts.
        receipts: Which claims.
        values: What is said of each of them.
    """

    kind: Kind
    receipts: Sequence[Receipt]
    values: tuple[Any, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class Rule:
    """How the instructions of a task are claimed; fixed when the task is made.

    Attributes:
        task_name: The task.
        claimed_by: Who claims.
        lease: Seconds that a claim lasts without a heartbeat.
        deliveries: How often a lease may expire; at the last one the instruction ends as dead.
        retries: What an instruction of `statement` begins with.
        key: Only queued instructions LIKE this; case counts, a backslash escapes.
        tags: Only queued instructions all of whose tags are among these.
        statement: The user's own SQL, if the task has some.
        partition_concurrency: How many of one partition may be active at most, whoever claimed
            them; None if partitions are not looked at.
        cron: The times of a cron task.
        keeps: Whether what ends goes to the history.
    """

    task_name: str
    claimed_by: str
    lease: float
    deliveries: int | None = None
    retries: int = 0
    key: str = "%"
    tags: tuple[str, ...] = ()
    statement: str | None = None
    partition_concurrency: int | None = None
    cron: CronTimes | None = None
    keeps: bool = True


@attrs.frozen(eq=False)
class ClaimRequest:
    """What a claim is asked for.

    Attributes:
        rule: Of the task.
        concurrency: That of the code.
        limit: How many at most.
        is_expected: Whether there is reason to believe that something is found. If not, the
            backend looks first, without a lock and without writing.
    """

    rule: Rule
    concurrency: int
    limit: int
    is_expected: bool = False


class ClaimedRow(NamedTuple):
    """One claim, as it is stored.

    Attributes:
        receipt: Names it.
        instruction: What was claimed.
        payload: JSON text, perhaps of somebody who wrote SQL: it may be anything.
        delivery: How often it has been handed out.
        timeout: Seconds that this delivery may take.
        partition: Whose work it is; empty for none.
    """

    receipt: Receipt
    instruction: str
    payload: str | None
    delivery: int
    timeout: float | None
    partition: str


@attrs.define(kw_only=True, eq=False)
class Claimed:
    """What became of a claim.

    Attributes:
        rows: What was claimed: first what was rescued, then what was due by priority (high
            first), time and arrival, then what the source of the task gave, in its order.
        active: How many were active before; None if it did not get to count.
        concurrency: The concurrency in force: that of the code, or what overrides it.
        outcome: Why nothing was claimed, if another dispatcher is claiming, the task is paused, or
            what is due is of partitions that are full.
        due_in: Seconds until an attempt may find something: the first lease ends; unless the cap
            is reached, something queued becomes due or a time fires; 0 when the limit, not the cap,
            ended the claim, or when a statement gave rows beyond the room of their partition. None
            if nothing is to come: the end of a claim makes room in its partition, and wakes.
        error: What was wrong with the user's statement. It claimed nothing; `rows` are kept.
    """

    rows: Sequence[ClaimedRow] = ()
    active: int | None = None
    concurrency: int
    outcome: Literal["locked", "paused", "limited"] | None = None
    due_in: float | None = None
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class NewInstruction:
    """An instruction to queue; the payload is JSON text, `run_at` is in UTC or None for now."""

    task_name: str
    instruction: str
    payload: str | None = None
    priority: int = 0
    run_at: datetime | None = None
    tags: tuple[str, ...] = ()
    retries: int = 0
    timeout: float | None = None
    partition: str = ""


@attrs.frozen(kw_only=True)
class Filter:
    """What to find; None does not filter. `older_than` is seconds since it came to be."""

    status: Status | None
    task_name: str | None
    instruction: str | None
    older_than: float | None
    limit: int


@attrs.frozen(kw_only=True)
class Registration:
    """A dispatcher as it registers: a new id, its host, its process, planton's version."""

    id: str
    host: str
    pid: int
    version: str


class Registry(Protocol):
    """Where the dispatchers of a fleet are kept."""

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher that nobody has asked to stop."""

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Collection[str]
    ) -> Answer:
        """Note that a dispatcher lives, in one statement or transaction.

        Writes `reports`, a JSON text by task name, and forgets those of the tasks that are `gone`
        and all of other dispatchers that were not seen for `FORGOTTEN_AFTER` seconds. "stop" once
        it was asked to. "unknown", and nothing written, if it is not registered any more.
        """

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher and its reports."""

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Return the dispatchers, the oldest first."""

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        """Ask dispatchers to stop, all if None; return which of them there are."""

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        """Return the reports about a task, or about all, by task and dispatcher."""


class Watcher(Protocol):
    """Whom `Backend.watch` tells; called on trio's thread."""

    def is_live(self, *, is_live: bool) -> None:
        """Changes of other processes are noticed from now on, or not any more."""

    def changed(self, task_names: Collection[str] | None) -> None:
        """There may be something for these tasks; None for all."""

    def requests(self) -> list[ClaimRequest]:
        """Return what the tasks of this process would ask for now; safe from any thread."""


class Backend(Registry, Protocol):
    """A database. `database` names it in errors, without a password."""

    database: str
    # Storages of one process with equal identities have the same tables.
    identity: Hashable

    async def open(self) -> None:
        """Connect, or raise `StorageError` that says what to do."""

    async def close(self) -> None:
        """Finish what was begun and disconnect; shielded, returns soon."""

    def hurry(self, while_: Callable[[], bool]) -> None:
        """Give up what takes longer than a moment, from now on and for as long as `while_()`.

        The run is over soon, and nobody waits any longer: a database that hangs must not keep it.
        What is given up may have been committed all the same: its receipts are stale then, and its
        claims come back when their leases end. `while_` may be called from any thread.
        """

    async def migrate(self) -> int:
        """Bring the tables up to date; return how many migrations were applied.

        Safe when many processes do so at once. Refuses tables that are newer than this code.
        """

    def schema(self) -> str:
        """Return the SQL that `migrate` runs on an empty database."""

    def check_statement(self, task_name: str, sql: str) -> None:
        """Raise `InvalidQueryError` for what can be known to be wrong with a user's statement.

        The parameters `limit`, `active`, `now` and `full` (the partitions that have no room) may
        be used, `limit` must be; a second column is the partition. What only the
        database can say comes with the first claim, before anything is changed.
        """

    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Mapping[Receipt, str] | Exception], list[Claimed | Exception]]:
        """Apply reports, in their order, then claim; in one commit.

        A report or claim that fails is answered by its exception and undoes only itself. A
        request with a statement comes alone, so that only its own task waits for it.

        Each claim runs the seven steps of docs/adapters.md: lock, count, rescue, room, take, ask,
        record. It never waits for another transaction, but for the user's own statement. An
        instruction is never active twice; what is queued while it is active stays queued.

        Returns:
            For each report the task names of the claims that it changed, by their receipts. If
            two reports of a batch end one claim, the first did.
            For each request what was claimed.
        """

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        """Return the active instructions of each task."""

    @property
    def dialect(self) -> str:
        """What libraries call this kind of database: "sqlite", "postgresql"."""

    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        """Queue instructions in their order; False for each that is queued already."""

    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        """Queue them as part of the caller's transaction, by a connection of this dialect.

        Raises:
            InvalidArgumentError: If it is one to another database.
        """

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        """Let no dispatcher claim for a task, or let them again."""

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code; None stops that."""

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        """Queue ended instructions again; return how many.

        Those named, by their last end; or all that failed or died and are not on their way again.
        They begin anew, due now, and leave the history with all their failures. One that is
        named and active, queued or unknown is an `InvalidArgumentError`; none is retried then.
        """

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        """Delete those that are queued, of those named or of all of the task; return how many."""

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        """Return instructions, the oldest first. A row that cannot be read hides no other."""

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        """Delete up to `limit` of what ended that long ago with one of the statuses; how many."""

    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        """Let changes of a user's table wake a task, or stop that; whether it was otherwise."""

    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Notice what other processes change, until cancelled.

        `started()` once nothing is missed any more. Raises `StorageError` when it cannot go on;
        it is then called again, after a pause. Spurious calls of `changed` do no harm.
        """
