"""What a commit may have made claimable: read on the watch's own connection."""

import json
import sqlite3
from collections.abc import Mapping, Sequence

import attrs

from planton_sqlite import _claim
from planton_sqlite._claim import ClaimRule
from planton_sqlite._rules import Rules
from planton_sqlite._statements import load

WATCH = load("watch.sql")


@attrs.frozen
class Due:
    """Whom to wake.

    Attributes:
        now: Tasks that may claim something now.
        later: Seconds until others may, where that has changed.
    """

    now: list[str]
    later: dict[str, float]


class Finder:
    """Reads whose turn it is, and remembers what it read.

    Args:
        rules: Of the tasks; others may add to them meanwhile.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._times: dict[str, float] = {}
        self._changes: dict[str, int] | None = None

    def find(self, connection: sqlite3.Connection) -> Due:
        """Give those for whom an attempt may be worth it."""
        rules = self._rules.by_name()
        busy = dict(connection.execute(WATCH["busy"], {"names": json.dumps(list(rules))}))
        due = Due(self._changed(busy), {})
        # One whose last claim has ended has nothing any more, but a slot.
        busy.update((name, 0) for name in rules if _is_saturated(rules[name]))
        for name in busy:
            next_at, now = _next_at(connection, name, rules[name])
            if next_at is not None and next_at <= now:
                due.now.append(name)
            elif next_at is not None and self._times.get(name) != next_at:
                due.later[name] = next_at - now
                self._times[name] = next_at
        return due

    def _changed(self, changes: Mapping[str, int]) -> list[str]:
        """Give those whose tables, as told of by `wake_on_change`, have changed."""
        before, self._changes = self._changes, dict(changes)
        if before is None:
            return []
        return [name for name, count in changes.items() if count > before.get(name, 0)]


def _is_saturated(rules: Sequence[ClaimRule]) -> bool:
    return any(rule.memory.is_saturated for rule in rules)


def _next_at(
    connection: sqlite3.Connection, task_name: str, rules: Sequence[ClaimRule]
) -> tuple[float | None, float]:
    """Tell when one of the tasks of a name may find something, and what time it is now."""
    looked = [_claim.next_at(connection, task_name, rule) for rule in rules]
    times = [next_at for next_at, _ in looked if next_at is not None]
    return min(times, default=None), max(now for _, now in looked)
