"""How long to wait before the next attempt of a task."""

import inspect
import random
from typing import Any

from planton._errors import UnexpectedDelayError
from planton._events import ErrorEvent
from planton._failures import guarded
from planton._loop.attempt import NOBODY, Attempt
from planton._loop.caller import Caller
from planton._loop.entry import Entry
from planton._loop.listeners import Listeners
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


class Delays:
    """Asks for delays, and sees that none of them makes a hot loop."""

    def __init__(self, caller: Caller, listeners: Listeners) -> None:
        self._caller = caller
        self._listeners = listeners

    async def after(self, attempt: Attempt) -> float:
        entry = attempt.entry
        if attempt.next_in is not None:
            delay = attempt.next_in
        elif attempt.outcome == "locked":
            delay = _locked_delay(entry)
        else:
            delay = await self.before(entry)
        is_cut = attempt.due_in is not None and attempt.due_in < delay
        if is_cut:
            delay = attempt.due_in or 0.0
        is_early = is_cut or attempt.next_in is not None or attempt.outcome == "full"
        if attempt.outcome == "dispatched" or not is_early:
            entry.early_attempts = 0
            return delay
        return max(delay, _pause(attempt))

    async def before(self, entry: Entry) -> float:
        try:
            with guarded:
                delay = await self._called(entry)
            seconds = to_seconds(delay)
            if seconds is None:
                raise UnexpectedDelayError(entry.task.name, delay)
        except Exception as error:
            entry.count_error(error)
            await self._listeners.report(
                ErrorEvent(task_name=entry.task.name, error=error, stage="delay")
            )
            return FALLBACK_DELAY
        return seconds

    async def _called(self, entry: Entry) -> Any:
        delay = entry.task.delay
        if not callable(delay):
            return delay
        value = delay(entry.attempt_number)
        if inspect.isawaitable(value):
            return await self._caller.within_timeout(entry, "delay", lambda: value)
        return value


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
