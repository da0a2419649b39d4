"""What claims have passed in the queue, so that they need not read it again.

While somebody's snapshot is held open, the server keeps the rows that were claimed, and a claim
that begins at the front reads past all of them. A dispatcher that notices begins where it was.
What appears further in front meanwhile, as a late commit does, is found when it looks at all again:
the sooner, the cheaper that is, and after a second at the latest.
"""

from collections.abc import Callable
from typing import TypeAlias

import attrs

# By priority: when the last one that was claimed was due, and its id.
Passed: TypeAlias = dict[str, list[object]]

# Rows read in vain that are worth a thought.
_MANY = 1000
# As many take about a tenth of a second to read: looking at all takes a tenth of the time.
_A_SECOND = 100_000


@attrs.frozen
class Trail:
    """What one claim came past.

    Attributes:
        last: What it claimed last at each priority, if it was asked to tell.
        has_more: Whether it took all that it could have, and may have left some.
        walked: How many rows the whole statement read in vain.
    """

    last: Passed
    has_more: bool
    walked: int


@attrs.define
class _Queue:
    passed: Passed
    seconds: float
    until: float


@attrs.define
class Memory:
    """What was passed in the queues of the tasks of one dispatcher.

    Args:
        clock: Gives the time in seconds.
    """

    _clock: Callable[[], float]
    _queues: dict[str, _Queue] = attrs.field(factory=dict, init=False)

    def passed(self, task_name: str) -> Passed | None:
        """Give what to leave out: None if nothing is in the way, {} to look at all and tell."""
        queue = self._queues.get(task_name)
        if queue is None:
            return None
        return queue.passed if self._clock() < queue.until else {}

    def look_in(self, task_name: str) -> float:
        """Give the seconds until all is looked at again, where something is left out."""
        return max(0.0, self._queues[task_name].until - self._clock())

    def seen_all(self, task_name: str) -> None:
        """Note that there was nothing to claim in all of the queue."""
        if (queue := self._queues.get(task_name)) is not None:
            queue.until = self._clock() + queue.seconds

    def note(self, task_name: str, used: Passed | None, trail: Trail) -> None:
        """Note what a claim came past that left out what was `used`."""
        if used:
            queue = self._queues[task_name]
            queue.passed = queue.passed | trail.last
        elif trail.walked < _MANY:
            self._queues.pop(task_name, None)
        else:
            seconds = min(1.0, trail.walked / _A_SECOND)
            passed = self._kept(task_name, trail) | trail.last
            self._queues[task_name] = _Queue(passed, seconds, self._clock() + seconds)

    def _kept(self, task_name: str, trail: Trail) -> Passed:
        """Give what is still right of what was passed before all was looked at.

        All of it if that claim has left nothing; otherwise that of the priorities that it has left
        behind, of which nothing was left.
        """
        queue = self._queues.get(task_name)
        before = {} if queue is None else queue.passed
        if not trail.has_more:
            return before
        lowest = min(map(int, trail.last), default=None)
        return {
            priority: last
            for priority, last in before.items()
            if lowest is not None and int(priority) > lowest
        }
