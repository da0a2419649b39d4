"""What an attempt changes about its task, what of that goes into the log, and in words."""

import time

from planton._loop.attempt import Attempt
from planton._loop.entry import Entry
from planton._loop.log import log_change
from planton._loop.reason import Reason, times
from planton._text import describe, on_one_line


def count(attempt: Attempt) -> None:
    entry = attempt.entry
    outcome = attempt.outcome
    entry.last_attempt_at = time.time()
    if outcome == "dispatched":
        entry.attempt_number = 0
    elif outcome != "locked":
        entry.attempt_number += 1
        entry.locked_attempts = 0
    if outcome == "error" or entry.consecutive_errors:
        _count_errors(entry, outcome, entry.last_attempt_at)
    if attempt.errors:
        entry.note_error(attempt.errors[-1][1])
    if attempt.active is not None:
        entry.active = attempt.active + attempt.handed_over
    if outcome != "saturated":
        entry.saturated_since = None
    elif entry.saturated_since is None:
        entry.saturated_since = attempt.started_at
    if attempt.concurrency != entry.concurrency or entry.is_overridden or outcome == "paused":
        _note_source(entry, attempt)


def _count_errors(entry: Entry, outcome: str, now: float) -> None:
    if outcome == "error":
        entry.consecutive_errors += 1
        if entry.consecutive_errors == 1:
            entry.failing_since = now
    elif outcome not in ("locked", "stopping"):
        seconds = now - entry.failing_since
        message = "works again, after it failed %s in %.0f s"
        log_change(entry.task.name, message, times(entry.consecutive_errors), seconds)
        entry.consecutive_errors = 0


def _note_source(entry: Entry, attempt: Attempt) -> None:
    """Note what the source overrides: its own concurrency, and a pause."""
    if attempt.stage != "schedule" or attempt.outcome in ("error", "locked", "stopping"):
        return
    is_paused = attempt.outcome == "paused"
    if is_paused != entry.is_source_paused:
        entry.is_source_paused = is_paused
        log_change(entry.task.name, f"is {'paused' if is_paused else 'resumed'} in the source")
    override = attempt.concurrency if attempt.concurrency != entry.concurrency else None
    if override != entry.concurrency_in_force and not is_paused:
        entry.concurrency_in_force = override
        by = "the task" if override is None else "the source"
        log_change(entry.task.name, "has concurrency %s in force, by %s", attempt.concurrency, by)


def reason(attempt: Attempt, delay: float | None) -> Reason:
    detail = attempt.detail
    if attempt.outcome == "error":
        stage, error = attempt.errors[0]
        detail = f"{stage}: {on_one_line(describe(error))}"
    elif attempt.outcome == "stopping":
        detail = "nothing more is claimed"
    counts = (attempt.handed_over, attempt.limit, attempt.active, attempt.concurrency)
    number, is_cut = attempt.entry.attempt_number, delay is not None and delay == attempt.due_in
    return Reason._make((attempt.outcome, *counts, number, detail, delay, is_cut))
