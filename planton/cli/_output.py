"""What is printed: tables for people, plain ones for pipes, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

# So wide that nothing is wrapped where a program may read it.
_PLAIN_WIDTH = 100_000
_STYLES = {"dead": "red", "failed": "red", "lost": "red", "overdue": "red", "paused": "yellow"}


class Output:
    """Prints what a command found out.

    Args:
        is_json: Whether a program reads it.
    """

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.is_terminal = sys.stdout.isatty() and not is_json
        self.console = Console(
            highlight=False,
            markup=False,
            emoji=False,
            width=None if self.is_terminal else _PLAIN_WIDTH,
        )

    def tell(self, text: str, **data: Any) -> None:
        """Print a sentence, or what it says as a JSON object."""
        click.echo(to_json(data) if self.is_json else printable(text))

    def tell_lines(self, text: str, **data: Any) -> None:
        """Print a text of several lines as it is, or as JSON."""
        click.echo(to_json(data) if self.is_json else text)

    def show(self, *parts: RenderableType) -> None:
        """Print tables and texts, one under the other; outside of a terminal without styles."""
        if self.is_terminal:
            self.console.print(Group(*parts))
            return
        with self.console.capture() as capture:
            self.console.print(Group(*parts))
        for line in capture.get().splitlines():
            click.echo(line.rstrip())

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
        """Make a table; numbers stand to the right."""
        box = SIMPLE_HEAD if self.is_terminal else None
        table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for number, column in enumerate(columns):
            is_number = any(isinstance(row[number], int) for row in rows)
            table.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(column, cell) for column, cell in zip(columns, row, strict=True)))
        return table


def _cell(column: str, value: object) -> Text:
    text = "" if value is None else printable(str(value))
    style = _STYLES.get(text) or (_STYLES.get(column, "") if value else "")
    return Text(text, style=style)


def printable(text: str) -> str:
    """Give a text in which what would steer a terminal is escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def to_json(value: Any) -> str:
    """Give attrs objects and times as JSON, on one line."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return attrs.asdict(value, recurse=False)


def ago(moment: datetime | None) -> str | None:
    """Tell how long ago a time was, or how far ahead, roughly."""
    if moment is None:
        return None
    seconds = age(moment)
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def since(moment: datetime | None) -> str | None:
    """Tell for how long something has been so, roughly."""
    return None if moment is None else span(max(age(moment), 0.0))


def age(moment: datetime) -> float:
    """Give the seconds since a time."""
    return (datetime.now(UTC) - moment).total_seconds()


def span(seconds: float) -> str:
    """Tell seconds as people do.

    Examples:
        >>> [span(seconds) for seconds in (0.4, 59, 90, 7200, 86400 * 3)]
        ['0 s', '59 s', '1 min', '2 h', '3 d']
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
