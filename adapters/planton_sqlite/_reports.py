"""What consumers report about claims, by receipt; a receipt of the past changes nothing.

Reports of one kind are written by as few statements as one: what they say is one JSON array.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report, load_statements

REPORTS = load_statements(__package__, "reports.sql")
_ENDING = {
    "complete": ("complete",),
    "fail": ("requeue_failed", "end_failed"),
    "release": ("release",),
    "give_back": ("give_back",),
    "postpone": ("postpone",),
}

# The task names of claims that were changed.
Found: TypeAlias = Mapping[Receipt, str]
Row: TypeAlias = tuple[Any, ...]


class Reports:
    """Applies reports within the caller's transaction.

    Args:
        connection: In a transaction.
        clock: Returns the time by the database's clock.
        keeps: Whether there is a history.
    """

    def __init__(
        self, connection: sqlite3.Connection, clock: Callable[[], float], *, keeps: bool
    ) -> None:
        self._connection = connection
        self._parameters = {"now": clock(), "keeps": keeps}

    def apply(self, reports: Sequence[Report]) -> list[Found]:
        """Apply reports, kind by kind in the order of their first; what each has changed."""
        kinds = dict.fromkeys(report.kind for report in reports)
        found: dict[Report, Found] = {}
        for kind in kinds:
            alike = [report for report in reports if report.kind == kind]
            found.update(zip(alike, self._apply(kind, alike), strict=True))
        return [found[report] for report in reports]

    def _apply(self, kind: str, reports: Sequence[Report]) -> list[Found]:
        rows: dict[Receipt, Row] = {}
        for report in reports:
            for receipt in report.receipts:
                rows.setdefault(receipt, (*receipt, *report.values))
        changed = self._change(kind, list(rows.values()))
        # Of two that end one claim the first did.
        take = changed.get if kind in ("heartbeat", "advance") else changed.pop
        answers: list[Found] = []
        for report in reports:
            names = ((receipt, take(receipt, None)) for receipt in report.receipts)
            answers.append({receipt: name for receipt, name in names if name is not None})
        return answers

    def _change(self, kind: str, rows: Sequence[Row]) -> dict[Receipt, str]:
        found = self._execute("find", rows).fetchall()
        current = [rows[place] for place, _, _ in found]
        names = {(row[0], row[1]): name for row, (_, _, name) in zip(current, found, strict=True)}
        if not current:
            return {}
        if kind == "take_over":
            taken = {row_id for (row_id,) in self._execute("take_over", current)}
            return {receipt: name for receipt, name in names.items() if receipt[0] in taken}
        for statement in _ENDING.get(kind, (kind,)):
            self._execute(statement, current)
        if kind == "complete" and self._execute("has_failed", ()).fetchone() == (1,):
            self._execute("supersede", current)
        if kind in _ENDING:
            self._execute("drop", current)
        return names

    def _execute(self, statement: str, rows: Sequence[Row]) -> sqlite3.Cursor:
        parameters = {**self._parameters, "rows": json.dumps(rows)}
        return self._connection.execute(REPORTS[statement], parameters)
