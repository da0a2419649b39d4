"""What `planton find` shows of instructions."""

from collections.abc import Sequence

from rich.console import RenderableType

from planton.cli._output import Output, ago, to_json
from planton.storage import InstructionRecord

_COLUMNS = (
    *("task", "instruction", "status", "delivery", "retries", "tags", "created", "due"),
    *("claimed", "claimed by", "lease ends", "payload", "result", "error"),
)
# On a terminal; elsewhere nothing is cut off.
_LONGEST = 200


def found_table(output: Output, found: Sequence[InstructionRecord]) -> RenderableType:
    """Return a table of instructions."""
    longest = _LONGEST if output.is_terminal else None
    return output.table(_COLUMNS, [_row(each, longest) for each in found])


def _row(found: InstructionRecord, longest: int | None) -> tuple[object, ...]:
    payload, result = (
        None if value is None else to_json(value) for value in (found.payload, found.result)
    )
    return (
        found.task_name,
        found.instruction,
        found.status,
        found.delivery,
        found.retries,
        ", ".join(found.tags),
        ago(found.created_at),
        ago(found.run_at),
        ago(found.claimed_at),
        found.claimed_by,
        ago(found.lease_expires_at),
        *(_short(each, longest) for each in (payload, result, found.error)),
    )


def _short(text: str | None, longest: int | None) -> str | None:
    if text is None or longest is None or len(text) <= longest:
        return text
    return f"{text[: longest - 1]}…"
