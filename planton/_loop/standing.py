"""Where a task stands: its status, and the one line that says it first."""

import math
from datetime import UTC, datetime

import trio

from planton._loop.attempt import NOBODY
from planton._loop.consumers import Takers
from planton._loop.entry import Entry
from planton._loop.reason import in_words, times
from planton._status import State, TaskStatus, WakeUps, wall_time

# An attempt that has not ended this many seconds after it was due makes its task overdue.
OVERDUE_AFTER = 10.0
# A task that is saturated for longer than this, and than its lease, may be stuck.
STUCK_AFTER = 600.0


def status_of(entry: Entry, takers: Takers, *, is_running: bool) -> TaskStatus:
    state = _state(entry, is_running)
    override = entry.concurrency_in_force
    since = entry.saturated_since if is_running else None
    saturated_for = None if since is None else trio.current_time() - since
    at = entry.last_attempt_at
    is_planned = state == "waiting" and entry.due != math.inf
    return TaskStatus(
        name=entry.task.name,
        state=state,
        attempt_number=entry.attempt_number,
        last_attempt_at=None if at is None else datetime.fromtimestamp(at, UTC),
        next_attempt_at=wall_time(entry.due) if is_planned else None,
        active=entry.active,
        concurrency=entry.concurrency if override is None else override,
        cap=entry.task.cap if entry.task.lock is None else "locked",
        last_error=entry.last_error,
        consecutive_errors=entry.consecutive_errors,
        overdue=state in ("waiting", "attempting")
        and trio.current_time() > entry.due + OVERDUE_AFTER,
        wake_ups=_wake_ups(entry),
        consumed=takers.is_taken(entry.task.name),
        failing=takers.failing(entry.task.name),
        saturated_for=saturated_for,
        stuck=saturated_for is not None and saturated_for > max(entry.lease or 0.0, STUCK_AFTER),
        decisions=entry.decisions.count,
    )


def verdict(entry: Entry, status: TaskStatus) -> str:
    """Return in one line why a task dispatches, or does not."""
    words = _verdict(entry, status)
    if status.state == "waiting" and entry.due != math.inf:
        words += f"; next attempt {in_words(max(entry.due - trio.current_time(), 0.0))}"
    return words


def _verdict(entry: Entry, status: TaskStatus) -> str:
    if status.state == "paused":
        return "paused in this process"
    if not status.consumed:
        return f"nothing is claimed: {NOBODY}"
    if status.overdue:
        return "overdue: " + where_it_hangs(status)
    if status.consecutive_errors:
        return f"failed {times(status.consecutive_errors)}: {status.last_error}"
    if status.stuck:
        reason = f"stuck: saturated for {status.saturated_for:.0f} s"
        return f"{reason}, {status.active} of {status.concurrency} active"
    if entry.last_reason is None:
        return "no attempt yet" if status.state != "stopped" else "not running"
    return entry.last_reason.verdict()


def where_it_hangs(status: TaskStatus) -> str:
    """Return what an overdue task waits for."""
    if status.state == "attempting":
        return "a callback hangs, or a consumer does not take what was claimed"
    return "the loop was blocked"


def _state(entry: Entry, is_running: bool) -> State:
    if entry.is_attempting:
        return "attempting"
    if not is_running:
        return "stopped"
    return "paused" if entry.paused else "waiting"


def _wake_ups(entry: Entry) -> WakeUps | None:
    try:
        found = getattr(entry.task.schedule, "wake_ups", None)
    except Exception:  # a property of the user's
        return None
    return found if found in ("live", "polling") else None
