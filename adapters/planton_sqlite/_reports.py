"""What consumers report about claims, by receipt; a receipt of the past changes nothing.

Reports of one kind are written by as few statements as one: what they say is one JSON array.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report, by_kind, found_by, load_statements, said_by

REPORTS = load_statements(__package__, "reports.sql")
_ENDING = {
    "complete": ("complete",),
    "fail": ("requeue_failed", "end_failed"),
    "release": ("release",),
    "give_back": ("release",),
    "postpone": ("postpone",),
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
        text = json.dumps(said)
        changed = self._execute("find", text).fetchall()
        if not changed:
            return []
        if len(changed) < len(said):
            receipts = {row[:2] for row in changed}
            text = json.dumps([row for row in said if row[:2] in receipts])
        if kind == "take_over":
            taken = {row_id for (row_id,) in self._execute("take_over", text)}
            return [row for row in changed if row[0] in taken]
        self._parameters["is_undelivered"] = kind == "give_back"
        for statement in _ENDING.get(kind, (kind,)):
            self._execute(statement, text)
        if kind == "complete" and self._execute("has_failed", text).fetchone() == (1,):
            self._execute("supersede", text)
        if kind in _ENDING:
            self._execute("drop", text)
        return changed

    def _execute(self, statement: str, rows: str) -> sqlite3.Cursor:
        return self._connection.execute(REPORTS[statement], {**self._parameters, "rows": rows})
