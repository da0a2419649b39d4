"""The port that a database fills, written to those who write one.

A backend is asked by `Storage`, which has checked every argument, knows the tasks and gathers what
waits at the same time: a backend needs no argument checks, no defaults and no wake-ups within the
process.

Rules for all methods: what a method changes is one transaction; the method returns after the
commit, and once it has begun a cancellation does not cut it off: what is committed is heard of.
Times that are stored or compared come from the database's clock. What fails is a `StorageError`,
raised from the driver's own error.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from planton._errors import InvalidArgumentError
from planton.storage._arguments import Status
from planton.storage._backend import (
    Answer,
    Claimed,
    ClaimRequest,
    Filter,
    NewInstruction,
    Receipt,
    Registration,
    Report,
    Watcher,
)
from planton.storage._callers import Caller
from planton.storage._records import (
    FORGOTTEN_AFTER,
    DispatcherRecord,
    InstructionRecord,
    TaskReport,
    TaskStats,
)
from planton.storage._rows import Rows, read_row, to_datetime

Found: TypeAlias = Mapping[Receipt, str]


class Backend(ABC):
    """A database.

    What is not abstract is written once for all SQL databases, by `rows`; another kind of database
    overrides it.

    Attributes:
        database: Names it in errors, without a password.
        identity: Storages of one process with equal identities have the same tables.
        dialect: What libraries call this kind of database: "sqlite", "postgresql".
    """

    database: str
    identity: Hashable
    dialect: str

    @abstractmethod
    async def open(self) -> None:
        """Connect, or raise `StorageError` that says what to do."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and disconnect; shielded, returns soon."""

    @abstractmethod
    def hurry(self, while_: Callable[[], bool]) -> None:
        """Give up what takes longer than a moment, from now on and for as long as `while_()`.

        The run is over soon, and nobody waits any longer: a database that hangs must not keep it.
        What is given up may have been committed all the same: its receipts are stale then, and its
        claims come back when their leases end. `while_` may be called from any thread.
        """

    @abstractmethod
    async def migrate(self) -> int:
        """Bring the tables up to date; return how many migrations were applied.

        Safe when many processes do so at once. Refuses tables that are newer than this code.
        """

    @abstractmethod
    def schema(self) -> str:
        """Return the SQL that `migrate` runs on an empty database."""

    @abstractmethod
    def check_statement(self, task_name: str, sql: str) -> None:
        """Raise `InvalidQueryError` for what can be known to be wrong with a user's statement.

        The parameters `limit`, `active`, `now` and `full` (the partitions that have no room) may
        be used, `limit` must be; a second column is the partition. What only the database can say
        comes with the first claim, before anything is changed.
        """

    @abstractmethod
    async def exchange(
        self, reports: Sequence[Report], requests: Sequence[ClaimRequest]
    ) -> tuple[list[Found | Exception], list[Claimed | Exception]]:
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

    @abstractmethod
    async def enqueue(self, new: Sequence[NewInstruction]) -> list[bool]:
        """Queue instructions in their order; False for each that is queued already."""

    @abstractmethod
    async def enqueue_within(self, caller: Caller, new: Sequence[NewInstruction]) -> list[bool]:
        """Queue them as part of the caller's transaction, by a connection of this dialect.

        Raises:
            InvalidArgumentError: If it is one to another database.
        """

    @abstractmethod
    async def wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        """Let changes of a user's table wake a task, or stop that; whether it was otherwise."""

    @abstractmethod
    async def watch(
        self, watcher: Watcher, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Notice what other processes change, until cancelled.

        `started()` once nothing is missed any more. Raises `StorageError` when it cannot go on;
        it is then called again, after a pause. Spurious calls of `changed` do no harm.
        """

    # From here on: once for all, by statements

    @abstractmethod
    async def rows(self, statement: str, **parameters: Any) -> Rows:
        """Run the database's own statements of a name in one transaction; the rows of the last.

        They have the same names, parameters and columns in each dialect: where a method returns
        records, their fields in their order. Times are seconds since 1970, JSON is text. A
        parameter that is a list is a list of texts, and passed in the dialect's own way.
        """

    async def active(self, task_names: Sequence[str]) -> list[list[str]]:
        """Return the active instructions of each task."""
        found: dict[str, list[str]] = {name: [] for name in task_names}
        for name, instruction in await self.rows("active", task_names=list(found)):
            found[name].append(instruction)
        return [found[name] for name in task_names]

    async def pause(self, task_name: str, *, is_paused: bool) -> None:
        """Let no dispatcher claim for a task, or let them again."""
        await self.rows("pause" if is_paused else "resume", task_name=task_name)

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code; None stops that."""
        await self.rows("set_concurrency", task_name=task_name, concurrency=concurrency)

    async def retry(self, task_name: str, instructions: Sequence[str] | None) -> int:
        """Queue ended instructions again; return how many.

        Those named, by their last end; or all that failed or died and are not on their way again.
        They begin anew, due now, and leave the history with all their failures. One that is
        named and active, queued or unknown is an `InvalidArgumentError`; none is retried then.
        """
        while names := await self._to_retry(task_name, instructions):
            # All of them or none: one may be on its way by now, or may have been retried.
            ((count,),) = await self.rows("retry", task_name=task_name, instructions=names)
            if count:
                return len(names)
        return 0

    async def _to_retry(self, task_name: str, named: Sequence[str] | None) -> list[str]:
        if named is None:
            ended = await self._names("failed_ends", task_name=task_name)
            living = await self._names("living", task_name=task_name, instructions=ended)
            return sorted(set(ended).difference(living))
        wanted = list(dict.fromkeys(named))
        ended = await self._names("ends", task_name=task_name, instructions=wanted)
        living = await self._names("living", task_name=task_name, instructions=wanted)
        _check_ended(wanted, set(ended), set(living))
        return wanted

    async def drop(self, task_name: str, instructions: Sequence[str] | None) -> int:
        """Delete those that are queued, of those named or of all of the task; return how many."""
        return await self._count("drop", task_name=task_name, instructions=_listed(instructions))

    async def find(self, wanted: Filter) -> list[InstructionRecord]:
        """Return instructions, the oldest first. A row that cannot be read hides no other."""
        found = await self.rows("find", **attrs.asdict(wanted))
        return [read_row(InstructionRecord, row) for row in found]

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        return [read_row(TaskStats, row) for row in await self.rows("stats")]

    async def prune(self, older_than: float, statuses: Collection[Status], limit: int) -> int:
        """Delete up to `limit` of what ended that long ago with one of the statuses; how many."""
        return await self._count(
            "prune", older_than=older_than, statuses=list(statuses), limit=limit
        )

    # The dispatchers of the fleet

    async def register(self, registration: Registration) -> None:
        """Enter a dispatcher that nobody has asked to stop."""
        await self.rows("register", **attrs.asdict(registration))

    async def beat(
        self, dispatcher_id: str, tasks: int, reports: Mapping[str, str], gone: Collection[str]
    ) -> Answer:
        """Note that a dispatcher lives.

        Writes `reports`, a JSON text by task name, and forgets those of the tasks that are `gone`
        and all of other dispatchers that were not seen for `FORGOTTEN_AFTER` seconds. "stop" once
        it was asked to. "unknown", and nothing written, if it is not registered any more.
        """
        found = await self.rows(
            "beat",
            id=dispatcher_id,
            tasks=tasks,
            reports=json.dumps(dict(reports)),
            gone=list(gone),
            silent=FORGOTTEN_AFTER,
        )
        if not found:
            return "unknown"
        return "stop" if found[0][0] else "go on"

    async def deregister(self, dispatcher_id: str) -> None:
        """Forget a dispatcher and its reports."""
        await self.rows("deregister", id=dispatcher_id)

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Return the dispatchers, the oldest first."""
        return [read_row(DispatcherRecord, row) for row in await self.rows("dispatchers")]

    async def request_stop(self, dispatcher_ids: Sequence[str] | None) -> list[str]:
        """Ask dispatchers to stop, all if None; return which of them there are."""
        return await self._names("request_stop", ids=_listed(dispatcher_ids))

    async def decisions(self, task_name: str | None) -> list[TaskReport]:
        """Return the reports about a task, or about all, by task and dispatcher."""
        found = await self.rows("decisions", task_name=task_name)
        return [TaskReport.of(who, name, to_datetime(at), text) for who, name, at, text in found]

    async def _names(self, statement: str, **parameters: Any) -> list[str]:
        return [name for (name,) in await self.rows(statement, **parameters)]

    async def _count(self, statement: str, **parameters: Any) -> int:
        ((count,),) = await self.rows(statement, **parameters)
        return int(count)


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _check_ended(wanted: Sequence[str], ended: Collection[str], living: Collection[str]) -> None:
    if problems := [name for name in wanted if name in living]:
        remedy = "it is queued or active: wait until it has ended"
        raise InvalidArgumentError("instructions", problems[0], remedy)
    if problems := [name for name in wanted if name not in ended]:
        remedy = "the history has no such instruction of this task"
        raise InvalidArgumentError("instructions", problems[0], remedy)
