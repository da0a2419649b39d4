"""Everything that Planton raises or reports: one base, few leaves, data as attributes."""

import pickle
from collections.abc import Sequence
from typing import Any

from planton._text import short_repr


class PlantonError(Exception):
    """Base of every error that Planton raises or reports; all of them can be pickled.

    Attributes:
        is_failure: Whether work that raises it has failed. If not, it was broken off: an executor
            gives the instruction back, and no try is spent.
    """

    is_failure: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = {name: _picklable(value) for name, value in vars(self).items()}
        return _restore, (type(self), self.args, attributes)


def _restore(
    cls: type[PlantonError], args: tuple[object, ...], attributes: dict[str, object]
) -> PlantonError:
    """Make an error again without its constructor, which would make the text anew."""
    error = cls.__new__(cls)
    error.args = args
    vars(error).update(attributes)
    return error


def _picklable(value: object) -> object:
    """Return `value`, or its text if it cannot be pickled, such as a function of the user's."""
    try:
        pickle.dumps(value)
    except Exception:
        return short_repr(value)
    return value


class InvalidTaskError(PlantonError, ValueError):
    """A field of a `Task` cannot be used.

    Attributes:
        field: Name of the field.
        value: What it was given.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        super().__init__(f"Task.{field} is {short_repr(value)}: {remedy}")


class InvalidArgumentError(PlantonError, ValueError):
    """An argument of a public function cannot be used.

    Attributes:
        argument: Name of the argument.
        value: What it was given.
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        self.argument = argument
        self.value = value
        super().__init__(f"{argument} is {short_repr(value)}: {remedy}")


class DuplicateTaskNameError(PlantonError, ValueError):
    """Two tasks of one Planton have the same name.

    Attributes:
        task_name: The name they share.
    """

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(
            f"a task named {task_name!r} is registered already: give each task its own name, "
            "or unregister the other one first"
        )


class UnknownTaskError(PlantonError, LookupError):
    """No task of that name is registered.

    Attributes:
        task_name: The name that was asked for.
        known: Names that are registered.
    """

    def __init__(self, task_name: str, known: Sequence[str]) -> None:
        self.task_name = task_name
        self.known = tuple(known)
        names = ", ".join(sorted(self.known)[:10]) or "none"
        super().__init__(f"no task is named {short_repr(task_name)}: registered are {names}")


class AlreadyRunningError(PlantonError, RuntimeError):
    """`run` was called while the same Planton runs, or `attempt` from within that attempt."""

    def __init__(
        self, problem: str = "this Planton runs already: terminate it first, or make a second one"
    ) -> None:
        super().__init__(problem)


class UnexpectedLimitError(PlantonError):
    """`limit`, `capacity` or `concurrency` returned something that is no usable int.

    Attributes:
        task_name: Task whose callback it was.
        callback: `"limit"`, `"capacity"` or `"concurrency"`.
        limit: What it returned.
    """

    def __init__(self, task_name: str, callback: str, limit: object, minimum: int = 0) -> None:
        self.task_name = task_name
        self.callback = callback
        self.limit = limit
        super().__init__(
            f"{callback} of task {task_name!r} returned {short_repr(limit)}: "
            f"it must return an int of at least {minimum}"
        )


class UnexpectedDelayError(PlantonError):
    """`delay` returned something that cannot be slept; one second was slept instead.

    Attributes:
        task_name: Task whose callback it was.
        delay: What it returned.
    """

    def __init__(self, task_name: str, delay: object) -> None:
        self.task_name = task_name
        self.delay = delay
        super().__init__(
            f"delay of task {task_name!r} returned {short_repr(delay)}: it must return seconds, "
            "a finite number of at least 0; sleeping 1 second instead"
        )


class UnexpectedInstructionsError(PlantonError):
    """`schedule` or `get_active_instructions` returned something that is no list of instructions.

    Attributes:
        task_name: Task whose callback it was.
        instructions: What it returned.
        limit: How many it was allowed to return; None for `get_active_instructions`.
    """

    def __init__(
        self, task_name: str, instructions: object, limit: int | None, problem: str
    ) -> None:
        self.task_name = task_name
        self.instructions = instructions
        self.limit = limit
        super().__init__(f"task {task_name!r}: {problem}")


class CallbackTimeoutError(PlantonError, TimeoutError):
    """A callback took longer than the task's `timeout`.

    Attributes:
        task_name: Task whose callback it was; None for a service.
        callback: Name of the callback, such as `"schedule"`, or of the service.
        timeout: Seconds it was given; None when it was cut off because the run is over.
    """

    def __init__(
        self, task_name: str | None, callback: str, timeout: float | None, remedy: str = ""
    ) -> None:
        self.task_name = task_name
        self.callback = callback
        self.timeout = timeout
        owner = "" if task_name is None else f" of task {task_name!r}"
        time = "" if timeout is None else f" within {timeout:g} s"
        super().__init__(f"{callback}{owner} did not return{time}{remedy}")


class UndeliveredInstructionsError(PlantonError):
    """Instructions were claimed and could not be handed to a consumer.

    Attributes:
        task_name: Task that claimed them.
        instructions: Those that no consumer got.
        released: Whether they were released to the storage.
    """

    def __init__(
        self, task_name: str, instructions: Sequence[str], problem: str, *, released: bool
    ) -> None:
        self.task_name = task_name
        self.instructions = tuple(instructions)
        self.released = released
        super().__init__(
            f"task {task_name!r}: {len(self.instructions)} claimed but not delivered "
            f"({', '.join(map(short_repr, self.instructions[:5]))}"
            f"{', …' if len(self.instructions) > 5 else ''}): {problem}"
        )


class StorageError(PlantonError):
    """A database cannot be opened, reached, read or written, or has another schema.

    Attributes:
        database: Which one, without its password.
    """

    def __init__(self, database: str, problem: str) -> None:
        self.database = database
        super().__init__(f"{database}: {problem}")


class InvalidQueryError(PlantonError, ValueError):
    """SQL given to a storage cannot be used.

    Attributes:
        task_name: Task it was given for.
        sql: The statement.
    """

    def __init__(self, task_name: str, sql: str, problem: str) -> None:
        self.task_name = task_name
        self.sql = sql
        super().__init__(f"sql of task {task_name!r} {problem}\n{sql}")
