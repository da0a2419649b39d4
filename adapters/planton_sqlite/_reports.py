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
    "give_back": ("release",),
    "postpone": ("postpone",),
}

# The task names of claims that were changed.
Found: TypeAlias = Mapping[Receipt, str]
Row: TypeAlias = tuple[Any, ...]


class Reports:
    """Applies reports within the caller's transaction; `keeps` says whether there is a history."""

    def __init__(
        self, connection: sqlite3.Connection, clock: Callable[[], float], *, keeps: bool
    ) -> None:
        self._connection = connection
        self._parameters = {"now": clock(), "keeps": keeps}

    def apply(self, reports: Sequence[Report]) -> list[Found]:
        """Apply reports, kind by kind in the order of their first; what each has changed."""
        kinds: dict[str, list[Report]] = {}
        for report in reports:
            kinds.setdefault(report.kind, []).append(report)
        found: dict[Report, Found] = {}
        for kind, alike in kinds.items():
            found.update(zip(alike, self._apply(kind, alike), strict=True))
        return [found[report] for report in reports]

    def _apply(self, kind: str, reports: Sequence[Report]) -> list[Found]:
        rows: dict[Receipt, Row] = {}
        for report in reports:
            for receipt in report.receipts:
                if receipt not in rows:
                    rows[receipt] = (*receipt, *report.values)
        changed = self._change(kind, list(rows.values()))
        # Of two that end one claim the first did.
        take = changed.get if kind in ("heartbeat", "advance") else changed.pop
        answers: list[Found] = []
        for report in reports:
            answer = {}
            for receipt in report.receipts:
                if (name := take(receipt, None)) is not None:
                    answer[receipt] = name
            answers.append(answer)
        return answers

    def _change(self, kind: str, rows: Sequence[Row]) -> dict[Receipt, str]:
        """Apply what is said of some claims; the task names of those that there are."""
        text = json.dumps(rows)
        names = {(row_id, token): name for row_id, token, name in self._execute("find", text)}
        if not names:
            return {}
        if len(names) < len(rows):
            text = json.dumps([row for row in rows if row[:2] in names])
        if kind == "take_over":
            taken = {row_id for (row_id,) in self._execute("take_over", text)}
            return {receipt: name for receipt, name in names.items() if receipt[0] in taken}
        self._parameters["is_undelivered"] = kind == "give_back"
        for statement in _ENDING.get(kind, (kind,)):
            self._execute(statement, text)
        if kind == "complete" and self._execute("has_failed", text).fetchone() == (1,):
            self._execute("supersede", text)
        if kind in _ENDING:
            self._execute("drop", text)
        return names

    def _execute(self, statement: str, rows: str) -> sqlite3.Cursor:
        return self._connection.execute(REPORTS[statement], {**self._parameters, "rows": rows})
