"""Which tasks a dispatcher tells its storage of at a beat."""

import math
from collections.abc import Container, Sequence
from typing import NamedTuple

from planton._status import TaskStatus

# A dispatcher with very many tasks looks at so many at each beat, and writes what has but gone on
# as before only so often.
SLICE, _REFRESH = 1000, 60.0


class State(NamedTuple):
    """Where a task stands at a beat, and how much there was to tell of it so far."""

    status: TaskStatus
    news: int

    @property
    def name(self) -> str:
        """That of the task."""
        return self.status.name

    @property
    def health(self) -> object:
        """What is told first when it is another."""
        status = self.status
        return (
            status.state == "paused",
            status.consecutive_errors == 0,
            status.overdue,
            status.concurrency,
            status.last_error,
            status.wake_ups,
        )

    @property
    def activity(self) -> object:
        """What is told next when it is another: an idle attempt more makes no difference."""
        return self.status.attempt_number == 0, self.status.active, self.news


class Reporter:
    """Chooses what a dispatcher writes about its tasks: what has changed, a little at a time."""

    def __init__(self) -> None:
        self.place = 0
        self._told: dict[str, tuple[State, float]] = {}

    def choose(self, states: Sequence[State], now: float) -> list[State]:
        """Give those worth a report: how they are, what they did, each told longest ago first.

        So busy tasks, of which there is something to tell at every beat, take turns when one beat
        can not hold them all.
        """
        urgent, rest = [], []
        for state in states:
            told, told_at = self._told.get(state.name, (None, 0.0))
            if told is None or told.health != state.health:
                urgent.append(state)
            elif told.activity != state.activity or now - told_at >= _REFRESH:
                rest.append(state)
        urgent.sort(key=self._told_at)
        rest.sort(key=self._told_at)
        return urgent + rest

    def _told_at(self, state: State) -> float:
        return self._told[state.name][1] if state.name in self._told else -math.inf

    def gone(self, names: Container[str]) -> list[str]:
        """Give the tasks that were reported and are registered no more."""
        return [name for name in self._told if name not in names]

    def note(self, told: Sequence[State], gone: Sequence[str], now: float) -> None:
        """Remember what was written."""
        for name in gone:
            del self._told[name]
        for state in told:
            self._told[state.name] = (state, now)

    def turn(self, count: int) -> None:
        """Go on to the next tasks, of `count`."""
        self.place = 0 if self.place + SLICE >= count else self.place + SLICE
