"""The storage as users see it, over the backend of a database."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Required, TypedDict

from planton._calendar import to_instant
from planton._errors import InvalidArgumentError, PlantonError, StorageError
from planton.storage._arguments import (
    INSTRUCTION_LENGTH,
    Status,
    to_count,
    to_instruction,
    to_json,
    to_name,
    to_number,
    to_partition,
    to_priority,
    to_status,
    to_strings,
)
from planton.storage._backend import Filter, NewInstruction
from planton.storage._callers import Caller, caller_of
from planton.storage._consumers import Consumers
from planton.storage._port import Backend
from planton.storage._records import (
    DispatcherRecord,
    InstructionRecord,
    TaskReport,
    TaskStats,
)
from planton.storage._sources import Sources

_PRUNED_AT_ONCE = 10_000


class QueueOptions(TypedDict, total=False):
    """What `enqueue` takes beside the instruction and a connection."""

    payload: Any
    priority: int
    run_at: datetime | None
    tags: Sequence[str]
    retries: int
    timeout: float | None
    partition: str


class InstructionOptions(QueueOptions, total=False):
    """What `enqueue_many` takes of each instruction."""

    instruction: Required[str]


class Storage(Consumers, Sources):
    """Claims instructions from a database, and takes what consumers report about them.

    Used as an async context manager, or given to `Planton(storages=[storage])`, which opens it. All
    methods are called within its block, on the thread that entered it. A method that changes
    something does so in one transaction and returns after the commit; once it has begun, a
    cancellation does not cut it off, so that nothing is committed unheard. What waits at the same
    time shares a commit. Errors of the database are `StorageError`; times come from the database's
    clock.

    Args:
        backend: The database.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.
        retention: Seconds that what succeeded is kept while `serve` runs; 0 keeps no history at
            all, None keeps everything. What failed or died stays until `prune(status=…)`.
        wake_ups: Whether changes of other processes wake tasks; without it they are found by
            polling. Changes of this process wake them in any case.
        migrate: Whether opening brings the tables up to date.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
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
        partition: str = "",
        connection: Any = None,
    ) -> bool:
        """Queue an instruction; return False, and change nothing, if it is queued already.

        An instruction may be queued while it is active: it is claimed after that claim has ended.

        Args:
            task_name: The task that is to claim it.
            instruction: What it tells consumers.
            payload: Any JSON, for consumers.
            priority: High ones are claimed first.
            run_at: When it is due, an aware datetime; at once if None.
            tags: What a dispatcher must offer to claim it.
            retries: How often it is queued again after it failed.
            timeout: Seconds that one delivery may take, heartbeats or not.
            partition: Whose work it is: a tenant, a host, a customer. A task with a
                `partition_concurrency` lets partitions take turns, and a relay gives it to the
                broker as the key of the message.
            connection: A connection of the caller's to the same database, in whose transaction it
                is queued: nobody sees it before the caller commits, and a rollback takes it back.
                Of psycopg, psycopg2, asyncpg, sqlite3, sqlite_utils, aiosqlite, SQLAlchemy (also a
                session) or Django. Then the storage need not be open, and this may be awaited on
                asyncio as well as on trio: where the connection belongs.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
            StorageError: If the database fails.
        """
        new = _new(
            task_name,
            instruction=instruction,
            payload=payload,
            priority=priority,
            run_at=run_at,
            tags=tags,
            retries=retries,
            timeout=timeout,
            partition=partition,
        )
        return (await self._enqueue([new], connection))[0]

    async def enqueue_many(
        self,
        task_name: str,
        instructions: Iterable[str | InstructionOptions],
        *,
        connection: Any = None,
    ) -> int:
        """Queue many instructions in one transaction; return how many were not queued already.

        Args:
            task_name: The task that is to claim them.
            instructions: Each a str, or a dict of the arguments of `enqueue`. They arrive in this
                order.
            connection: See `enqueue`.

        Raises:
            InvalidArgumentError: If one of them cannot be used; none was queued.
            StorageError: If the database fails.
        """
        is_one = isinstance(instructions, str | bytes | Mapping)
        if is_one or not isinstance(instructions, Iterable):
            raise InvalidArgumentError("instructions", instructions, "give a list of str or dicts")
        new = [_new(task_name, **_to_options(each)) for each in instructions]
        return sum(await self._enqueue(new, connection)) if new else 0

    async def _enqueue(self, new: Sequence[NewInstruction], connection: Any) -> list[bool]:
        if connection is not None:
            return await self._enqueue_within(new, caller_of(connection, self._backend.dialect))
        self._check_open()
        are_new = await self._backend.enqueue(new)
        if any(are_new):
            # Also of what is due later: its task may sleep longer than until then.
            self.wake({each.task_name for each in new})
        return are_new

    async def _enqueue_within(self, new: Sequence[NewInstruction], caller: Caller) -> list[bool]:
        try:
            return await self._backend.enqueue_within(caller, new)
        except PlantonError:
            raise
        except Exception as error:  # of whichever library the connection is
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise StorageError("the transaction of the caller", reason) from error

    # Operations; kept in the database and seen by all

    async def pause(self, task_name: str) -> None:
        """Let no dispatcher claim for a task, until `resume`; what is active goes on."""
        name = to_name(task_name)
        self._check_open()
        await self._backend.pause(name, is_paused=True)

    async def resume(self, task_name: str) -> None:
        """Let dispatchers claim for a task again."""
        name = to_name(task_name)
        self._check_open()
        await self._backend.pause(name, is_paused=False)
        self.wake([name])

    async def set_concurrency(self, task_name: str, concurrency: int | None) -> None:
        """Override the concurrency of the code in all dispatchers; None stops that."""
        name = to_name(task_name)
        count = None if concurrency is None else to_count("concurrency", concurrency, 1)
        self._check_open()
        await self._backend.set_concurrency(name, count)
        self.wake([name])

    async def retry(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Queue ended instructions again; return how many.

        They begin anew, due now, their deliveries counted anew, and leave the history with all
        their failures.

        Args:
            task_name: Their task.
            instructions: Which ones, however they ended; None for all that failed or died and are
                not on their way again.

        Raises:
            InvalidArgumentError: If one that is named is active, queued, or unknown; none is
                retried then.
            StorageError: If the database fails.
        """
        name, named = to_name(task_name), _named(instructions)
        self._check_open()
        count = await self._backend.retry(name, named)
        self.wake([name])
        return count

    async def drop(self, task_name: str, instructions: Sequence[str] | None = None) -> int:
        """Delete queued instructions; return how many.

        What is running goes on. The history does not tell of what was dropped.

        Args:
            task_name: Their task.
            instructions: Which ones, of which those that are not queued are passed over; None for
                all that are queued.

        Raises:
            InvalidArgumentError: If an argument cannot be used.
            StorageError: If the database fails.
        """
        name, named = to_name(task_name), _named(instructions)
        self._check_open()
        return await self._backend.drop(name, named)

    async def find(
        self,
        *,
        status: Status | None = None,
        task_name: str | None = None,
        instruction: str | None = None,
        older_than: float | None = None,
        limit: int = 100,
    ) -> list[InstructionRecord]:
        """Return instructions, the oldest first.

        Args:
            status: Only those in this status.
            task_name: Only those of this task.
            instruction: Only this one, of any task or of that one.
            older_than: Only those that came to be more than these seconds ago.
            limit: How many at most.

        Raises:
            InvalidArgumentError: If an argument cannot be used.
            StorageError: If the database fails.
        """
        wanted = Filter(
            status=None if status is None else to_status(status),
            task_name=None if task_name is None else to_name(task_name),
            instruction=None if instruction is None else to_instruction(instruction),
            older_than=None if older_than is None else to_number("older_than", older_than),
            limit=to_count("limit", limit),
        )
        self._check_open()
        return await self._backend.find(wanted)

    async def stats(self) -> list[TaskStats]:
        """Count the instructions of every task, by name."""
        self._check_open()
        return await self._backend.stats()

    async def prune(
        self, older_than: float = 0.0, *, status: Status | Sequence[Status] | None = None
    ) -> int:
        """Delete from the history; return how many.

        Args:
            older_than: What ended more than these seconds ago.
            status: `"succeeded"`, `"failed"`, `"dead"`, or several; all three if None.

        Raises:
            InvalidArgumentError: If an argument cannot be used.
            StorageError: If the database fails.
        """
        seconds = to_number("older_than", older_than)
        statuses = _to_statuses(status)
        self._check_open()
        pruned, part = 0, _PRUNED_AT_ONCE
        while part == _PRUNED_AT_ONCE:
            part = await self._backend.prune(seconds, statuses, _PRUNED_AT_ONCE)
            pruned += part
        return pruned

    async def wake_on_change(self, table: str, task_name: str) -> bool:
        """Wake a task, in every process, when rows of a table of yours are inserted or updated.

        It makes triggers, once; any number of processes may call it at every start. What the claim
        of the task itself changes does not wake it.

        Args:
            table: Its name.
            task_name: The task, which this process need not have.

        Returns:
            Whether the triggers were made now; False if they are there already.

        Raises:
            InvalidArgumentError: If there is no such table.
            StorageError: If the database fails.
        """
        return await self._wake_on_change(table, task_name, is_wanted=True)

    async def ignore_changes(self, table: str, task_name: str) -> bool:
        """Take back `wake_on_change`; return whether there was something to take back."""
        return await self._wake_on_change(table, task_name, is_wanted=False)

    async def _wake_on_change(self, table: str, task_name: str, *, is_wanted: bool) -> bool:
        if not isinstance(table, str) or not table:
            raise InvalidArgumentError("table", table, "give the name of a table")
        name = to_name(task_name)
        self._check_open()
        return await self._backend.wake_on_change(table, name, is_wanted=is_wanted)

    # The fleet: dispatchers that a storage serves, in any process

    @property
    def registry(self) -> Backend:
        """Where dispatchers are kept; `serve` keeps its own there."""
        return self._backend

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Return the dispatchers that use this storage now, in all processes, the oldest first.

        One that died is among them until another has noticed, for ten minutes at the least.
        """
        self._check_open()
        return await self._backend.dispatchers()

    async def request_stop(self, dispatcher_ids: Sequence[str] | None = None) -> list[str]:
        """Ask dispatchers to terminate, all of them if None; return which were asked.

        Each hears of it in five seconds at the most, terminates within its grace period, and is
        then not among `dispatchers` any more. One that begins later is not asked.
        """
        named = None if dispatcher_ids is None else to_strings("dispatcher_ids", dispatcher_ids)
        self._check_open()
        return await self._backend.request_stop(named)

    async def decisions(self, task_name: str | None = None) -> list[TaskReport]:
        """Return what each dispatcher says of a task, or of all its tasks.

        That is what `Planton.status` and `Planton.explain` tell there: some seconds old, and for
        dispatchers with thousands of tasks minutes.
        """
        name = None if task_name is None else to_name(task_name)
        self._check_open()
        return await self._backend.decisions(name)


def _new(
    task_name: object,
    *,
    instruction: object = None,
    payload: object = None,
    priority: object = 0,
    run_at: object = None,
    tags: object = (),
    retries: object = 0,
    timeout: object = None,
    partition: object = "",
) -> NewInstruction:
    """Check what `enqueue` was given."""
    return NewInstruction(
        task_name=to_name(task_name),
        instruction=to_instruction(instruction),
        payload=to_json("payload", payload),
        priority=to_priority(priority),
        run_at=None if run_at is None else to_instant("run_at", run_at),
        tags=to_strings("tags", tags),
        retries=to_count("retries", retries),
        timeout=None if timeout is None else to_number("timeout", timeout, above=0),
        partition=to_partition(partition),
    )


def _named(instructions: object) -> tuple[str, ...] | None:
    if instructions is None:
        return None
    return to_strings("instructions", instructions, INSTRUCTION_LENGTH)


def _to_options(one: str | InstructionOptions) -> Mapping[str, Any]:
    """Return the arguments that one of many was given."""
    if not isinstance(one, Mapping):
        return {"instruction": one}
    known = InstructionOptions.__annotations__
    for name in one:
        if name not in known:
            remedy = f"give some of {', '.join(known)}"
            raise InvalidArgumentError("instructions", name, remedy)
    return one


def _to_statuses(status: object) -> list[Status]:
    ended: list[Status] = ["succeeded", "failed", "dead"]
    if status is None:
        return ended
    wanted = [
        to_status(each)
        for each in ([status] if isinstance(status, str) else to_strings("status", status))
    ]
    for each in wanted:
        if each not in ended:
            raise InvalidArgumentError("status", each, f"give some of {', '.join(ended)}")
    return wanted
