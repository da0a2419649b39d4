"""What consumers report: gathered by kind into the arrays that the functions take."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report

Found: TypeAlias = Mapping[Receipt, str]


def parameters_of(reports: Sequence[Report], *, keeps: bool) -> dict[str, Any]:
    """Return the parameters of the statement for reports of one kind.

    Sorted by receipt, so that rows are locked in one order everywhere; of two reports about one
    claim the first counts.
    """
    rows: dict[Receipt, tuple[Any, ...]] = {}
    for report in reports:
        for receipt in report.receipts:
            rows.setdefault(receipt, report.values)
    receipts = sorted(rows)
    parameters: dict[str, Any] = {
        "ids": [row_id for row_id, _ in receipts],
        "tokens": [token for _, token in receipts],
        "keeps": keeps,
    }
    for place in range(len(reports[0].values)):
        parameters[f"v{place}"] = [rows[receipt][place] for receipt in receipts]
    return parameters


def found_by(
    reports: Sequence[Report], rows: Sequence[tuple[int, int, str]]
) -> list[dict[Receipt, str]]:
    """Return which claims each report of a kind has changed, with their tasks."""
    changed = {(row_id, token): name for row_id, token, name in rows}
    answers = []
    for report in reports:
        answer = {each: changed[each] for each in report.receipts if each in changed}
        if report.kind not in ("heartbeat", "advance"):
            for receipt in answer:
                del changed[receipt]  # of two that end one claim the first did
        answers.append(answer)
    return answers


def by_kind(reports: Sequence[Report]) -> list[list[Report]]:
    """Return reports by kind, in the order in which the kinds first come."""
    kinds: dict[str, list[Report]] = {}
    for report in reports:
        kinds.setdefault(report.kind, []).append(report)
    return list(kinds.values())
