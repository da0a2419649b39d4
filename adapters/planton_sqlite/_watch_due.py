"""What a commit may have made claimable: read on the watch's own connection."""

import json
import sqlite3
from collections.abc import Mapping

import attrs

from planton_sqlite import _claim
from planton_sqlite._claim import ClaimRule
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
        rules: Of the tasks, by name; others may add to it meanwhile.
    """

    def __init__(self, rules: Mapping[str, ClaimRule]) -> None:
        self._rules = rules
        self._times: dict[str, float] = {}
        self._changes: dict[str, int] | None = None

    def find(self, connection: sqlite3.Connection) -> Due:
        """Give those for whom an attempt may be worth it."""
        rules = dict(self._rules)
        busy = dict(connection.execute(WATCH["busy"], {"names": json.dumps(list(rules))}))
        due = Due(self._changed(busy), {})
        # One whose last claim has ended has nothing any more, but a slot.
        busy.update((name, 0) for name, rule in rules.items() if rule.memory.is_saturated)
        for name in busy:
            next_at, now = _claim.next_at(connection, name, rules[name])
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
