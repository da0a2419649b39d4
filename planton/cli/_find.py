"""What `planton find` shows of instructions."""

from collections.abc import Sequence

from rich.table import Table

from planton.cli._output import Output, ago, to_json
from planton.storage import InstructionRecord

_COLUMNS = ("task", "instruction", "status", "delivery", "retries", "created", "due")
_IF_ANY = ("claimed by", "payload", "result", "error")
# On a terminal; elsewhere nothing is cut off.
_LONGEST = 60


def found_table(output: Output, found: Sequence[InstructionRecord]) -> Table:
    """Give a table of instructions; what none of them has takes no column."""
    longest = _LONGEST if output.is_terminal else None
    details = [[_short(each, longest) for each in _details(record)] for record in found]
    shown = [place for place in range(len(_IF_ANY)) if any(each[place] for each in details)]
    rows = [
        (*_row(record), *(each[place] for place in shown))
        for record, each in zip(found, details, strict=True)
    ]
    return output.table((*_COLUMNS, *(_IF_ANY[place] for place in shown)), rows)


def _row(found: InstructionRecord) -> tuple[object, ...]:
    return (
        found.task_name,
        found.instruction,
        found.status,
        found.delivery,
        found.retries,
        ago(found.created_at),
        ago(found.run_at),
    )


def _details(found: InstructionRecord) -> tuple[str | None, ...]:
    payload, result = (
        None if value is None else to_json(value) for value in (found.payload, found.result)
    )
    return found.claimed_by, payload, result, found.error


def _short(text: str | None, longest: int | None) -> str | None:
    if text is None or longest is None or len(text) <= longest:
        return text
    return text[: longest - 1] + "…"
