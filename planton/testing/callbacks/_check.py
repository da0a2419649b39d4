"""Which guarantees do callbacks of the user's own give? Play dispatchers, and see."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TypeAlias

from planton._events import InstructionEvent
from planton._task import GetActiveInstructions, Task
from planton.storage._arguments import to_count, to_number
from planton.testing.callbacks._report import CallbackReport
from planton.testing.callbacks._stories import Stories

MakeDispatcher: TypeAlias = Callable[
    [], Task | AbstractContextManager[Task] | AbstractAsyncContextManager[Task]
]
Helper: TypeAlias = Callable[[InstructionEvent], Awaitable[object] | object]


async def check_callbacks(
    dispatcher: MakeDispatcher,
    *,
    insert: Callable[[int], Awaitable[object] | object],
    deliver: Helper | None = None,
    end: Helper | None = None,
    expire: Callable[[], Awaitable[object] | object] | None = None,
    get_active_instructions: GetActiveInstructions | None = None,
    concurrency: int | None = None,
    dispatchers: int = 4,
    patience: float = 0.2,
) -> CallbackReport:
    """Find out which guarantees callbacks give, on a database that is there for nothing else.

    Dispatchers are played step by step: all of them count before any of them claims; one is held
    up at every step within its claim, its transaction open, while another has its turn; all claim
    at the same time; a claim is cancelled at each of its steps; a dispatcher dies after its
    claim. A step of an async callback is when it goes on after it has waited, of a sync one each
    of its lines. A single statement that commits by itself has no step inside: run it in a
    transaction for the check.

    Args:
        dispatcher: Makes the task of one dispatcher of a fleet, with connections of its own: a
            function that returns a `Task`, or a context manager of one that closes what it opens.
        insert: Makes that many new instructions due; they are the only ones that are.
        deliver: What your consumer does at once with an `InstructionEvent`, if it records it.
        end: What your consumer does when the work is done.
        expire: Makes all claims expire that nobody renews, if there is such a thing.
        get_active_instructions: The one for all tasks, as for `Planton`.
        concurrency: Of the task; by default its own, or 1 where that is a function.
        dispatchers: How many compete.
        patience: Seconds that one waits for another before it is taken for blocked by a lock.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or nothing is claimed at all.
        UnexpectedInstructionsError: If nothing is claimed because `schedule` returns what Planton
            refuses, such as None.
    """
    stories = Stories(
        count=to_count("dispatchers", dispatchers, 2),
        patience=to_number("patience", patience),
        make=dispatcher,
        get_active=get_active_instructions,
        concurrency=1,
        insert=insert,
        deliver=deliver,
        end=end,
        expire=expire,
    )
    async with stories.dispatchers(1) as (example,):
        own = 1 if callable(example.task.concurrency) else example.task.concurrency
        given = own if concurrency is None else concurrency
        stories.concurrency = to_count("concurrency", given, 1)
    return await stories.tell(example)
