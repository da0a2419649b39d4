"""What a storage asks of its backend, and what that answers."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import attrs

from planton.storage._arguments import Status
from planton.storage._cron import CronTimes

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


class Watcher(Protocol):
    """Whom `Backend.watch` tells; called on trio's thread."""

    def is_live(self, *, is_live: bool) -> None:
        """Changes of other processes are noticed from now on, or not any more."""

    def changed(self, task_names: Collection[str] | None) -> None:
        """There may be something for these tasks; None for all."""

    def requests(self) -> list[ClaimRequest]:
        """Return what the tasks of this process would ask for now; safe from any thread."""
