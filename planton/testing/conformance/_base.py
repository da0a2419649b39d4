"""The steps that tests of the suite are made of, and the hooks of a storage's own tests."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import pytest
import trio

from planton._task import Batch, Claim, ScheduleRequest, Task
from planton.storage import InstructionRecord

# What `enqueue` takes; all else is an option of the task. Tags belong to both.
ENQUEUED = ("payload", "priority", "run_at", "retries", "timeout", "partition")


class Hooks:
    """What a subclass of the suite gives, besides the fixtures `storage` and `other`.

    `storage` is an open, migrated and empty storage; `other` is a second one on the same data, as
    another process would open it (a storage of one process gives the same object again).

    All hooks but `advance` are capabilities: what needs one that is not given is not promised, and
    its tests are skipped.

    Attributes:
        claim_sql: Claims rows of the user's table, such as `UPDATE … RETURNING id`.
        select_sql: Finds the rows of that table without a change, the lowest id first.
        partition_claim_sql: As `claim_sql`, with a second column, the partition: `id / 10`.
        partition_select_sql: As `select_sql`, with the same second column.
    """

    claim_sql = ""
    select_sql = ""
    partition_claim_sql = ""
    partition_select_sql = ""

    async def advance(self, storage: Any, seconds: float) -> None:
        """Let time pass for all that is stored.

        A storage in virtual time sleeps; a database sets the times that it has stored back by as
        much: of what is queued, active and ended, and the next fire time of cron tasks.
        """
        raise NotImplementedError

    def transaction(self, storage: Any) -> AbstractAsyncContextManager[Any]:
        """Return a connection in a transaction of the user's.

        It is committed at the end of the block, rolled back when the block raises.
        """
        _not_promised("transaction", storage)

    def locked(self, storage: Any, task_name: str) -> AbstractAsyncContextManager[Any]:
        """Hold, for as long as the block lasts, a transaction that is in the way of a claim."""
        _not_promised("locked", storage, task_name)

    async def add_rows(self, storage: Any, *ids: int) -> None:
        """Put rows into the user's table; those that are there are to be claimed again."""
        _not_promised("add_rows", storage, ids)

    async def remove_rows(self, storage: Any, *ids: int) -> None:
        """Delete rows of the user's table."""
        _not_promised("remove_rows", storage, ids)

    async def insert(
        self, storage: Any, task_name: str, instruction: str, payload: str | None = None
    ) -> None:
        """Queue an instruction by plain SQL.

        It names only these two columns, and that of the payload if there is one: a JSON text,
        perhaps one that Python cannot read. A table may refuse that; then nothing is queued, and
        what cannot be there is not promised.
        """
        _not_promised("insert", storage, task_name, instruction, payload)


def _not_promised(hook: str, *_: object) -> NoReturn:
    pytest.skip(f"the storage does not promise this: its tests give no `{hook}`")


async def claim(task: Task, limit: int | None = None) -> list[Claim]:
    """Claim as a dispatcher would."""
    return [each for each in (await attempt(task, limit)).claims if isinstance(each, Claim)]


async def attempt(task: Task, limit: int | None = None) -> Any:
    """Claim as a dispatcher would, and return all of the answer: a `Batch`."""
    schedule: Any = task.schedule
    batch = await schedule(request(task, limit))
    assert isinstance(batch, Batch), "a storage says what was active"
    return batch


def request(task: Task, limit: int | None = None) -> ScheduleRequest:
    """Ask for as much as the concurrency of a task allows, or for `limit`."""
    assert isinstance(task.concurrency, int)
    return ScheduleRequest(
        task_name=task.name,
        active_instructions=(),
        concurrency=task.concurrency,
        limit=limit or task.concurrency,
        attempt_number=0,
    )


async def at_once(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Make calls at the same time, and return their answers, in the order in which they come."""
    answers: list[Any] = []

    async def make(call: Callable[[], Awaitable[Any]]) -> None:
        answers.append(await call())

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(make, call)
    return answers


async def claim_at_once(tasks: Sequence[Task]) -> list[Claim]:
    """Let dispatchers claim two each at the same time."""
    answers = await at_once(*(partial(claim, task, 2) for task in tasks))
    return [each for claims in answers for each in claims]


async def heard(calls: Iterable[Callable[[], Awaitable[Any]]]) -> dict[int, Any]:
    """Make calls, each cancelled a little later than the one before; the answers, by number."""
    answers = {}
    for number, call in enumerate(calls):
        with trio.move_on_after(number * 0.00005):
            answers[number] = await call()
    return answers


def names(claims: Iterable[Any]) -> list[str]:
    """Return the instructions of claims or records."""
    return [each.instruction for each in claims]


def receipts(claims: Sequence[Claim]) -> list[str]:
    """Return the receipts of claims; each has one."""
    return [str(each.receipt) for each in claims]


async def enqueue(storage: Any, task_name: str, *instructions: str, **options: Any) -> None:
    """Queue instructions, in their order."""
    for instruction in instructions:
        assert await storage.enqueue(task_name, instruction, **options)


async def queue_up(
    storage: Any, *instructions: str, task_name: str = "task", **options: Any
) -> Any:
    """Queue instructions, and make the task that claims them."""
    given = {name: options.pop(name) for name in ENQUEUED if name in options}
    if "tags" in options:
        given["tags"] = options["tags"]
    await enqueue(storage, task_name, *instructions, **given)
    return storage.queue_task(task_name, **options)


async def claim_first(storage: Any, *instructions: str, **options: Any) -> tuple[Any, Claim]:
    """Queue instructions, or `a`; return the task that claims them, and the first claim."""
    task = await queue_up(storage, *instructions or "a", **options)
    (claimed,) = await claim(task, 1)
    return task, claimed


async def end_next(task: Task, report: Callable[..., Any], *values: Any, **options: Any) -> Claim:
    """Claim the next instruction, and report something about it; the claim."""
    (claimed,) = await claim(task, 1)
    assert (claimed.receipt,) == (await report(claimed.receipt, *values, **options)).applied
    return claimed


def fields(record: object, names: str) -> tuple[Any, ...]:
    """Return some attributes of a record or claim, named in one text."""
    return tuple(getattr(record, name) for name in names.split())


def table(records: Iterable[object], names: str) -> list[tuple[Any, ...]]:
    """Return some attributes of each record or claim."""
    return [fields(each, names) for each in records]


def assert_due_in(seconds: float, batch: Any) -> None:
    """Expect that a batch tells when something is due."""
    assert batch.due_in is not None
    # A time that was stored as a float is not given back to the last digit.
    assert seconds - 10 < batch.due_in <= seconds + 0.001


def failing(storage: Any) -> Any:
    """Return `fail` as a function of receipts."""
    return lambda receipts: storage.fail(receipts, "broken")


def reports(storage: Any) -> dict[str, Any]:
    """Return the reports, each as a function of receipts."""
    return {
        "heartbeat": storage.heartbeat,
        "complete": storage.complete,
        "fail": failing(storage),
        "release": storage.release,
        "advance": lambda receipts: storage.advance(receipts, "next"),
        "advance later": lambda receipts: storage.advance(receipts, "next", run_in=0),
    }


async def record(storage: Any, instruction: str, task_name: str = "task") -> Any:
    """Return the `InstructionRecord` of an instruction that the storage has once."""
    found: list[InstructionRecord] = await storage.find(task_name=task_name)
    (only,) = [each for each in found if each.instruction == instruction]
    return only


async def statuses(storage: Any, task_name: str = "task") -> list[str]:
    """Return the instructions of a task, each with its status in one text, sorted."""
    found: list[InstructionRecord] = await storage.find(task_name=task_name, limit=1000)
    return sorted(f"{each.instruction} {each.status}" for each in found)


async def clock(storage: Any) -> datetime:
    """Return the time by the storage's own clock; leaves an instruction of the task `clock`."""
    tick = f"tick {len(await storage.find(task_name='clock'))}"
    await storage.enqueue("clock", tick)
    now: datetime = (await record(storage, tick, "clock")).created_at
    return now
