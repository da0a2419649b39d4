"""What is printed: tables or blocks for people, plain tables for pipes, JSON for programs."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import attrs
import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from planton.cli._shown import escaped, printable, wrapped
from planton.storage import InstructionRecord

Row: TypeAlias = Mapping[str, object]  # cells by the names of their columns
# So wide that nothing is wrapped where a program may read it.
_PLAIN_WIDTH = 100_000
# Lines of a block are at least so long, however narrow the terminal.
_NARROWEST = 20
# On a terminal; elsewhere nothing is cut off.
_LONGEST = 200
_STYLES = {"dead": "red", "failed": "red", "lost": "red", "overdue": "red", "paused": "yellow"}


class Output:
    """Prints what a command found out."""

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.is_read = True  # until the reader of a pipe has gone, as `head` does
        self.is_terminal = sys.stdout.isatty() and not is_json
        self.console = Console(
            highlight=False,
            markup=False,
            emoji=False,
            width=None if self.is_terminal else _PLAIN_WIDTH,
        )

    def tell(self, *parts: RenderableType, **data: Any) -> None:
        """Print sentences and tables for people, or `data` as a JSON object."""
        if self.is_json:
            self.echo(to_json(data))
            return
        with self.console.capture() as capture:
            for part in parts:
                if isinstance(part, str):
                    part = wrapped(printable(part), self.console.width)
                # A word that is longer than the terminal is left for it to wrap, and can be copied.
                self.console.print(part, soft_wrap=True)
        self.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))

    def echo(self, text: str) -> None:
        try:
            click.echo(text)
        except BrokenPipeError:
            self.is_read = False
            # Also what is written when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def table(self, found: Iterable[Row]) -> RenderableType:
        """Return a table, or a block a row where the terminal is too narrow for it.

        A column with nothing in it is left out. Without rows it is an empty text.
        """
        if not (rows := list(found)):
            return ""
        columns = [name for name in rows[0] if any(_is_filled(row[name]) for row in rows)]
        table = self._table(columns, rows)
        options = self.console.options.update(width=_PLAIN_WIDTH)
        is_fitting = Measurement.get(self.console, options, table).maximum <= self.console.width
        return table if is_fitting else self._blocks(columns, rows)

    def _table(self, columns: Sequence[str], rows: Sequence[Row]) -> Table:
        """Numbers stand to the right."""
        box = SIMPLE_HEAD if self.is_terminal else None
        table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            is_number = any(isinstance(row[column], int) for row in rows)
            table.add_column(column, justify="right" if is_number else "left")
        for row in rows:
            table.add_row(*(_cell(column, row[column]) for column in columns))
        return table

    def _blocks(self, columns: Sequence[str], rows: Sequence[Row]) -> Text:
        margin = 2 + max(map(len, columns))
        width = max(self.console.width - margin, _NARROWEST)
        return Text("\n\n").join(
            Text("\n").join(
                _field(f"{column:{margin}}", _cell(column, row[column]), width)
                for column in columns
                if _is_filled(row[column])
            )
            for row in rows
        )


def _is_filled(cell: object) -> bool:
    return cell is not None and cell != ""


def _cell(column: str, value: object) -> Text:
    text = "" if value is None else printable(str(value))
    style = _STYLES.get(text) or (_STYLES.get(column, "") if value else "")
    return Text(text, style=style)


def _field(label: str, cell: Text, width: int) -> Text:
    lines = wrapped(cell.plain, width).replace("\n", "\n" + " " * len(label))
    return Text.assemble(label, (lines, cell.style))


def to_json(value: Any) -> str:
    """Return attrs objects and times as JSON, on one line that steers no terminal."""
    return escaped(json.dumps(value, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return attrs.asdict(value, recurse=False)


def ago(moment: datetime | None) -> str | None:
    """Return how long ago a time was, or how far ahead it is, roughly."""
    if moment is None:
        return None
    seconds = age(moment)
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def since(moment: datetime | None) -> str | None:
    """Return for how long something has been so, roughly."""
    return None if moment is None else span(max(age(moment), 0.0))


def age(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def span(seconds: float) -> str:
    """Return seconds as people write them.

    Examples:
        >>> [span(seconds) for seconds in (0.4, 59, 90, 7200, 86400 * 3)]
        ['0 s', '59 s', '1 min', '2 h', '3 d']
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def found_row(output: Output, found: InstructionRecord) -> Row:
    payload, result = (
        None if value is None else to_json(value) for value in (found.payload, found.result)
    )
    longest = _LONGEST if output.is_terminal else None
    return {
        "task": found.task_name,
        "instruction": found.instruction,
        "status": found.status,
        "delivery": found.delivery,
        "retries": found.retries,
        "tags": ", ".join(found.tags),
        "partition": found.partition,
        "created": ago(found.created_at),
        "due": ago(found.run_at),
        "claimed": ago(found.claimed_at),
        "claimed by": found.claimed_by,
        "lease ends": ago(found.lease_expires_at),
        "payload": _short(payload, longest),
        "result": _short(result, longest),
        "error": _short(found.error, longest),
    }


def _short(text: str | None, longest: int | None) -> str | None:
    if text is None or longest is None or len(text) <= longest:
        return text
    return f"{text[: longest - 1]}…"
