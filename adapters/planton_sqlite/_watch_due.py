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
        self._changes: dict[str, int] = {}
        self._is_first = True

    def find(self, connection: sqlite3.Connection) -> Due:
        """Give those for whom an attempt may be worth it."""
        rules = dict(self._rules)
        changed = self._changed(connection, rules)
        due = Due([], {})
        for name in self._busy(connection, rules):
            next_at, now = _claim.next_at(connection, name, rules[name])
            if next_at is not None and next_at <= now:
                due.now.append(name)
            elif next_at is not None and self._times.get(name) != next_at:
                due.later[name] = next_at - now
                self._times[name] = next_at
        due.now.extend(changed.difference(due.now))
        return due

    def _busy(self, connection: sqlite3.Connection, rules: Mapping[str, ClaimRule]) -> list[str]:
        """Give those for whom there is anything, or was; an idle task costs next to nothing."""
        rows = connection.execute(WATCH["busy"], {"names": json.dumps(list(rules))})
        busy = {name for (name,) in rows}
        busy.update(name for name, rule in rules.items() if rule.memory.is_saturated)
        return [name for name in rules if name in busy]

    def _changed(self, connection: sqlite3.Connection, rules: Mapping[str, ClaimRule]) -> set[str]:
        """Give those whose tables, as told of by `wake_on_change`, have changed."""
        before, self._changes = self._changes, dict(connection.execute(WATCH["changes"]))
        was_first, self._is_first = self._is_first, False
        if was_first:
            return set()
        return {n for n, count in self._changes.items() if n in rules and before.get(n) != count}
