"""Whether a Planton makes progress, for the probe of a container."""

import attrs

from planton._loop.attempt import NOBODY
from planton._loop.reason import times
from planton._loop.standing import where_it_hangs
from planton._planton import Planton
from planton._status import TaskStatus

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
            attempts or instructions fail again and again, that is stuck, that nobody takes, or
            whose wake-ups are down, so that it is polled.
    """

    ok: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok


def health(planton: Planton) -> Health:
    """Return whether a Planton makes progress, which is more than that its process lives.

    It asks nobody and returns at once, so it may be called for every probe. Called on trio's
    thread, it does not answer while the loop is blocked, which a probe with a time limit takes
    for what it is. From another thread, give it to `trio.from_thread.run_sync`.
    """
    tasks = planton.status()
    overdue = [task for task in tasks if task.overdue]
    reasons = [f"task {task.name!r} is overdue: {where_it_hangs(task)}" for task in overdue]
    if not planton.is_running:
        reasons.insert(0, "Planton does not run")
    warnings = [*filter(None, map(_warning, tasks))]
    warnings += _warning_of_all([task.name for task in tasks if not task.consumed], _UNTAKEN)
    polled = [task for task in tasks if task.wake_ups == "polling"]
    warnings += _warning_of_all([task.name for task in polled], _polled(polled))
    return Health(ok=not reasons, reasons=tuple(reasons), warnings=tuple(warnings))


_UNTAKEN = f"nothing is claimed for {{}}: {NOBODY}"


def _warning(task: TaskStatus) -> str | None:
    if task.consecutive_errors >= MANY_ERRORS:
        failed = f"failed {times(task.consecutive_errors)}"
        return f"task {task.name!r} {failed}, the last time with {task.last_error}"
    if task.failing is not None:
        return f"task {task.name!r}: {task.failing}"
    if task.stuck:
        active = f"{task.active} of {task.concurrency} active"
        return f"task {task.name!r} is stuck: {active} for {task.saturated_for:.0f} s"
    return None


def _polled(tasks: list[TaskStatus]) -> str:
    text = "wake-ups are down or turned off, and polled are {}"
    if any(task.consecutive_errors for task in tasks):
        return text  # the database is away: nothing was set up wrongly
    return f"{text}: they need Planton(storages=[storage]), and a storage without wake_ups=False"


def _warning_of_all(names: list[str], text: str) -> list[str]:
    """Warn of all of them at once: they mostly share what is wrong."""
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [text.format(", ".join(map(repr, names[:3])) + more)]
