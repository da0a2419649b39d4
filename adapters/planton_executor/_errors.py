"""What handlers raise to say more, and what the executor reports."""

from collections.abc import Iterable

from planton import PlantonError, UndeliveredInstructionsError
from planton.storage import to_number


class GiveUp(Exception):  # noqa: N818  what a handler does, not what went wrong
    """Raised by a handler: the work failed, and another try would not help.

    The instruction ends as failed, whatever retries are left.
    """


class TryAgain(PlantonError):  # noqa: N818  what a handler does, not what went wrong
    """Raised by a handler: the work failed, and is to be tried again after some seconds.

    It spends a retry, as any failure does; only the time is another than the handler's.

    Args:
        reason: Kept with the instruction.
        after: Seconds until the next try.
    """

    def __init__(self, reason: str, *, after: float) -> None:
        super().__init__(reason)
        self.after = to_number("after", after)


class NoHandlerError(UndeliveredInstructionsError):
    """An instruction came for a task that has no handler; it was not executed.

    Attributes:
        task_name: The task.
        instructions: What was claimed.
        released: Whether it was given back to the storage; else the caller does so.
        known: Tasks that have a handler.
    """

    def __init__(
        self, task_name: str, instruction: str, known: Iterable[str], *, released: bool
    ) -> None:
        self.known = tuple(known)
        names = ", ".join(map(repr, sorted(self.known)[:10])) or "none"
        problem = (
            f"the executor has no handler for this task, but for {names}: decorate a function with "
            f"@executor.handler({task_name!r}), or give the task "
            f"capacity=lambda: executor.capacity({task_name!r}) or 0"
        )
        super().__init__(task_name, [instruction], problem, released=released)


class LostLeaseError(PlantonError):
    """A claim was lost while it was worked on; what the handler did was not stored.

    Its lease expired before it was renewed, its time was up, or somebody ended it. Another
    consumer may have it by now.

    Attributes:
        task_name: The task.
        instruction: What was claimed.
    """

    def __init__(self, task_name: str, instruction: str) -> None:
        self.task_name = task_name
        self.instruction = instruction
        super().__init__(
            f"the claim of {instruction!r} of task {task_name!r} was lost: its lease expired and "
            "it was given to another consumer, or it was ended (by somebody, or by a report before "
            "whose answer was lost); nothing was stored now"
        )


class StateError(PlantonError):
    """Work in steps cannot go on: its state fits no step, or a step did not say what comes next.

    It rests with this error; once the code is right, `storage.retry` lets it go on from there.

    Attributes:
        task_name: The task.
    """

    def __init__(self, task_name: str, problem: str) -> None:
        self.task_name = task_name
        super().__init__(f"task {task_name!r}: {problem}")
