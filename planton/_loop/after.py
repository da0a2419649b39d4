"""What follows from an attempt: what it changes about its task, and how long the next one waits."""

import inspect
import random
import time
from typing import Any

from planton._errors import UnexpectedDelayError
from planton._events import ErrorEvent
from planton._failures import guarded
from planton._loop.attempt import NOBODY, Attempt
from planton._loop.caller import Caller
from planton._loop.entry import Entry
from planton._loop.log import log_change
from planton._loop.reason import times
from planton._task import to_seconds

FALLBACK_DELAY = 1.0
# An attempt that was asked to come early and dispatched nothing makes the next early one wait,
# twice as long each time: nothing that a callback answers makes a hot loop.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_PAUSE_AFTER_ERROR = 0.001, 0.05, 1.0
# A task that nobody takes is woken when a listener comes.
_UNTAKEN_PAUSE = 1.0
# A lock that is taken is tried again within this time, longer each time that it is still taken.
_LOCKED_FOR = (0.005, 0.05)
_LOCKED_DOUBLINGS = 3


def count(attempt: Attempt) -> None:
    """Note what an attempt says about its task; what changes goes into the log."""
    entry = attempt.entry
    outcome = attempt.outcome
    now = entry.last_attempt_at = time.time()
    if outcome == "dispatched":
        entry.attempt_number = 0
    elif outcome != "locked":
        # A wake-up in vain says nothing of how long to wait: the ends of a burst are many.
        entry.attempt_number += outcome == "error" or not attempt.is_woken
        entry.locked_attempts = 0
    if outcome == "error" or entry.consecutive_errors:
        _count_errors(entry, outcome, now)
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


async def delay_after(caller: Caller, attempt: Attempt) -> float:
    """Return how long to wait after an attempt, and see that no answer makes a hot loop."""
    entry = attempt.entry
    if entry.woken:
        return 0.0
    if attempt.next_in is not None:
        delay = attempt.next_in
    elif attempt.outcome == "locked":
        delay = _locked_delay(entry)
    elif entry.fixed_delay is not None:
        delay = entry.fixed_delay
    else:
        delay = await delay_before(caller, entry)
    is_cut = attempt.due_in is not None and attempt.due_in < delay
    if is_cut:
        delay = attempt.due_in or 0.0
    is_early = is_cut or attempt.next_in is not None or attempt.outcome == "full"
    if attempt.outcome == "dispatched" or not is_early:
        entry.early_attempts = 0
        return delay
    return max(delay, _pause(attempt))


async def delay_before(caller: Caller, entry: Entry) -> float:
    """Return the delay of a task; `FALLBACK_DELAY` if it does not say one."""
    delay = entry.task.delay
    try:
        with guarded:
            value: Any = delay(entry.attempt_number) if callable(delay) else delay
            if inspect.isawaitable(value):
                value = await caller.within_timeout(entry, "delay", value)
        seconds = to_seconds(value)
        if seconds is None:
            raise UnexpectedDelayError(entry.task.name, value)
    except Exception as error:
        entry.count_error(error)
        event = ErrorEvent(task_name=entry.task.name, error=error, stage="delay")
        await caller.listeners.report(event)
        return FALLBACK_DELAY
    return seconds


def _locked_delay(entry: Entry) -> float:
    entry.locked_attempts += 1
    times = 1 << min(entry.locked_attempts - 1, _LOCKED_DOUBLINGS)
    return random.uniform(*_LOCKED_FOR) * times


def _pause(attempt: Attempt) -> float:
    """Return how long an attempt that comes early, or without a delay, has to wait at least."""
    entry = attempt.entry
    if attempt.detail == NOBODY:
        return _UNTAKEN_PAUSE
    longest = _LONGEST_PAUSE_AFTER_ERROR if attempt.outcome == "error" else _LONGEST_PAUSE
    pause = min(_FIRST_PAUSE * (1 << min(entry.early_attempts, 10)), longest)
    entry.early_attempts += 1
    return pause
