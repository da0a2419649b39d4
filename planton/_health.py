"""Whether a Planton makes progress, for the probe of a container."""

from typing import TYPE_CHECKING

import attrs

from planton._status import TaskStatus

if TYPE_CHECKING:
    from planton._planton import Planton

# So many attempts in a row have failed that it is worth a warning.
MANY_ERRORS = 3


@attrs.frozen(kw_only=True)
class Health:
    """What `health` found; as a bool it is `ok`.

    Attributes:
        ok: Whether Planton runs and no task is overdue. What is not ok does not get better by
            itself: start the process again.
        reasons: Why it is not ok, in words; empty if it is.
        warnings: What somebody should look at, though a new start would not mend it: a task whose
            attempts fail again and again, or whose wake-ups are down, so that it is polled.
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


def health(planton: "Planton") -> Health:
    """Tell whether a Planton makes progress, which is more than that its process lives.

    It asks nobody and returns at once, so it may be called for every probe. Called on trio's
    thread, it does not answer while the loop is blocked, which a probe with a time limit takes
    for what it is. From another thread, give it to `trio.from_thread.run_sync`.
    """
    tasks = planton.status()
    reasons = [f"task {task.name!r} is overdue: {_where(task)}" for task in tasks if task.overdue]
    if planton._session is None:
        reasons.insert(0, "Planton does not run")
    warnings = [*filter(None, map(_failures, tasks)), *_polled(tasks)]
    return Health(ok=not reasons, reasons=tuple(reasons), warnings=tuple(warnings))


def _where(task: TaskStatus) -> str:
    if task.state == "attempting":
        return "a callback hangs, or a consumer does not take what was claimed"
    return "the loop was blocked"


def _failures(task: TaskStatus) -> str | None:
    if task.consecutive_errors < MANY_ERRORS:
        return None
    times = f"{task.consecutive_errors} times in a row"
    return f"task {task.name!r} failed {times}, the last time with {task.last_error}"


def _polled(tasks: list[TaskStatus]) -> list[str]:
    """Warn of all of them at once: they mostly share what wakes them."""
    names = [repr(task.name) for task in tasks if task.wake_ups == "polling"]
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    polled = f"wake-ups are down or turned off, and polled are {', '.join(names[:3])}{more}"
    return [f"{polled}: they need services=[storage.serve], and a storage without wake_ups=False"]
