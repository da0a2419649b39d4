"""Reports of one kind are applied together; pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from planton.storage._backend import Receipt, Report


def by_kind(reports: Sequence[Report]) -> list[list[Report]]:
    """Return reports by kind, in the order in which the kinds first come."""
    kinds: dict[str, list[Report]] = {}
    for report in reports:
        kinds.setdefault(report.kind, []).append(report)
    return list(kinds.values())


def said_by(reports: Sequence[Report]) -> dict[Receipt, tuple[Any, ...]]:
    """Return what reports of one kind say of each claim: of two about one claim the first counts.

    Sorted by receipt, so that rows are locked in one order everywhere.
    """
    said = {each: report.values for report in reversed(reports) for each in report.receipts}
    return {receipt: said[receipt] for receipt in sorted(said)}


def found_by(
    reports: Sequence[Report], rows: Iterable[tuple[int, int, str]]
) -> list[dict[Receipt, str]]:
    """Return which claims each report of a kind has changed, with their tasks.

    Args:
        reports: Of one kind.
        rows: The id, the token and the task of each claim that was changed.
    """
    changed = {(row_id, token): name for row_id, token, name in rows}
    # Of two that end one claim the first did.
    take = changed.get if reports[0].kind in ("heartbeat", "advance") else changed.pop
    return [
        {each: name for each in report.receipts if (name := take(each, None)) is not None}
        for report in reports
    ]
