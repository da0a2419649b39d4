"""Which tasks a dispatcher reports to its storage at a beat."""

import math
from collections.abc import Container, Sequence

from planton._status import TaskStatus

# Inspects at most SLICE tasks per beat; rewrites an unchanged report every _REFRESH seconds.
SLICE, _REFRESH = 1000, 60.0


def _health(status: TaskStatus) -> object:
    """What is reported first when it changes."""
    return (
        status.state == "paused",
        status.consecutive_errors == 0,
        status.overdue,
        status.concurrency,
        status.last_error,
        status.wake_ups,
    )


def _activity(status: TaskStatus) -> object:
    """What is reported next when it changes: an idle attempt more makes no difference."""
    return status.attempt_number == 0, status.active, status.decisions


class Reporter:
    """Chooses what a dispatcher writes about its tasks: what has changed, a little at a time."""

    def __init__(self) -> None:
        self.place = 0
        self._reported: dict[str, tuple[TaskStatus, float]] = {}

    def choose(self, statuses: Sequence[TaskStatus], now: float) -> list[TaskStatus]:
        """Return those worth a report: changed health first, each reported longest ago first.

        So busy tasks, which change at every beat, take turns when one beat cannot hold them all.
        """
        urgent, rest = [], []
        for status in statuses:
            before, reported_at = self._reported.get(status.name, (None, 0.0))
            if before is None or _health(before) != _health(status):
                urgent.append(status)
            elif _activity(before) != _activity(status) or now - reported_at >= _REFRESH:
                rest.append(status)
        urgent.sort(key=self._reported_at)
        rest.sort(key=self._reported_at)
        return urgent + rest

    def _reported_at(self, status: TaskStatus) -> float:
        name = status.name
        return self._reported[name][1] if name in self._reported else -math.inf

    def gone(self, names: Container[str]) -> list[str]:
        """Return the tasks that were reported and are registered no more."""
        return [name for name in self._reported if name not in names]

    def note(self, reported: Sequence[TaskStatus], gone: Sequence[str], now: float) -> None:
        """Remember what was written."""
        for name in gone:
            del self._reported[name]
        for status in reported:
            self._reported[status.name] = (status, now)

    def turn(self, count: int) -> None:
        """Go on to the next tasks, of `count`."""
        self.place = 0 if self.place + SLICE >= count else self.place + SLICE
