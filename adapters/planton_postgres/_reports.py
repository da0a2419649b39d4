"""What consumers report about claims, by receipt; a receipt of the past changes nothing."""

import re
from collections.abc import Sequence
from typing import Any, LiteralString

import attrs

from planton import InvalidArgumentError
from planton.storage import Acknowledged, to_receipts
from planton_postgres._database import Database
from planton_postgres._gather import Gatherer
from planton_postgres._statements import END

# A UUID as PostgreSQL writes it.
_RECEIPT = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


@attrs.frozen
class Row:
    """One receipt, and what is reported with it.

    Attributes:
        receipt: Names the claim.
        values: In the order of the report's columns.
    """

    receipt: str
    values: tuple[Any, ...]


class Report:
    """One kind of report, written for many receipts in one statement.

    Args:
        database: Where.
        statement: Takes a list of receipts, and one list for each of the columns.
        columns: Names of these lists.
        keep: Whether there is a history; None for a statement that does not ask.
        ends: Whether a claim is no more after it.
    """

    def __init__(
        self,
        database: Database,
        statement: LiteralString,
        *columns: str,
        keep: bool | None = None,
        ends: bool = True,
    ) -> None:
        self._database = database
        self._statement = statement
        self._columns = columns
        self._more = {} if keep is None else {"keep": keep}
        self._ends = ends
        self._gather = Gatherer(self._write)

    async def __call__(
        self, receipts: str | Sequence[str], *values: Any
    ) -> tuple[Acknowledged, set[str]]:
        """Report the same about one receipt or many; the tasks whose claims were changed.

        Raises:
            InvalidArgumentError: If a receipt is none that this storage gives.
        """
        wanted = to_receipts(receipts)
        for receipt in wanted:
            _check(receipt)
        rows = [Row(receipt, values) for receipt in wanted]
        if not rows:
            return Acknowledged((), ()), set()
        found = await self._gather(rows)
        # Two that report on one claim at the same time: the first one did it.
        take = found.pop if self._ends else found.get
        mine = {receipt: name for receipt in wanted if (name := take(receipt, None))}
        return Acknowledged.of(wanted, set(mine)), set(mine.values())

    async def _write(self, rows: Sequence[Row]) -> dict[str, str]:
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(row.receipt, row)
        # In the same order everywhere, so that two transactions rarely wait for each other.
        ordered = [first[receipt] for receipt in sorted(first)]
        parameters: dict[str, Any] = {"receipts": [row.receipt for row in ordered], **self._more}
        for number, column in enumerate(self._columns):
            parameters[column] = [row.values[number] for row in ordered]
        found = await self._database.rows(self._statement, parameters)
        return dict(found)


class Reports:
    """All kinds of reports.

    Args:
        database: Where.
        keep: Whether there is a history.
    """

    def __init__(self, database: Database, *, keep: bool) -> None:
        self.heartbeat = Report(database, END["heartbeat"], ends=False)
        self.complete = Report(database, END["complete"], "results", keep=keep)
        self.fail = Report(
            database,
            END["fail"],
            *("errors", "retry_ins", "retries", "lower_priorities", "granted"),
            keep=keep,
        )
        self.advance = Report(database, END["advance"], "payloads", "retries")
        self.put_off = Report(database, END["put_off"], "payloads", "retries", "run_ins")
        self.release = Report(database, END["release"])
        self.give_back = Report(database, END["give_back"])


def _check(receipt: str) -> None:
    if not _RECEIPT.fullmatch(receipt):
        remedy = "give the receipt of an event, as it was received"
        raise InvalidArgumentError("receipt", receipt, remedy)
