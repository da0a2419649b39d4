"""What consumers report about claims, by receipt; a receipt of the past changes nothing.

Reports of one kind are written by as few statements as one: what they say is one JSON array.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report, by_kind, found_by, load_statements, said_by

REPORTS = load_statements(__package__, "reports.sql")
# Of the statements of a kind one returns the claims that there were.
_STATEMENTS: dict[str, tuple[str, ...]] = {
    "heartbeat": ("heartbeat",),
    "complete": ("complete", "supersede", "drop"),
    "fail": ("requeue_failed", "end_failed", "drop"),
    "advance": ("advance",),
    "postpone": ("postpone", "drop"),
    "release": ("release", "drop"),
    "give_back": ("release", "drop"),
    "take_over": ("living", "take_over"),
}

# The task names of claims that were changed.
Found: TypeAlias = Mapping[Receipt, str]
Changed: TypeAlias = tuple[int, int, str]


class Reports:
    """Applies reports within the caller's transaction; `keeps` says whether there is a history."""

    def __init__(
        self, connection: sqlite3.Connection, clock: Callable[[], float], *, keeps: bool
    ) -> None:
        self._connection = connection
        self._parameters = {"now": clock(), "keeps": keeps}

    def apply(self, reports: Sequence[Report]) -> list[Found]:
        """Apply reports, kind by kind in the order of their first; what each has changed."""
        found: dict[Report, Found] = {}
        for alike in by_kind(reports):
            said = [(*receipt, *values) for receipt, values in said_by(alike).items()]
            changed = self._change(alike[0].kind, said)
            found.update(zip(alike, found_by(alike, changed), strict=True))
        return [found[report] for report in reports]

    def _change(self, kind: str, said: Sequence[tuple[Any, ...]]) -> list[Changed]:
        """Apply what is said of some claims; those that there are, with their tasks."""
        given = {
            **self._parameters,
            "rows": json.dumps(said),
            "is_undelivered": kind == "give_back",
        }
        changed: list[Changed] = []
        for statement in _STATEMENTS[kind]:
            if statement != "supersede" or self._has_failed():
                changed += self._connection.execute(REPORTS[statement], given)
        return changed

    def _has_failed(self) -> bool:
        """Return whether anything has: mostly not, and then nothing is superseded."""
        return bool(self._connection.execute(REPORTS["has_failed"]).fetchone()[0])
