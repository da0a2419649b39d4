"""What people write on a command line: durations, times, JSON; and what is none."""

import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

import click

# The largest integer that every database takes.
LARGEST = 2**31 - 1
whole = partial(click.IntRange, max=LARGEST)
_UNITS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[wdhms])+|\d+(?:\.\d+)?", re.ASCII)
_PART = re.compile(r"([\d.]+)([wdhms]?)", re.ASCII)
# Dates that databases know do not reach further back.
_LONGEST = 36500 * 86400.0


def duration(value: str) -> float:
    """Return the seconds of `90`, `45s`, `30m`, `12h`, `7d`, `2w` or `1h30m`.

    Examples:
        >>> duration("1h30m"), duration("0.5")
        (5400.0, 0.5)
    """
    if not _DURATION.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no duration: write 90s, 30m, 12h, 7d or 1h30m")
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in _PART.findall(value))
    if seconds > _LONGEST:
        raise click.BadParameter(f"{value!r} is too long: write at most 36500d")
    return seconds


def moment(value: str) -> datetime:
    """Return a time in ISO 8601, which has a zone, in UTC."""
    try:
        found = datetime.fromisoformat(value)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        problem = "is no time: write it like 2030-12-31T18:00:00+01:00"
    else:
        problem = "has no zone: add Z, or an offset like +02:00"
    raise click.BadParameter(f"{value!r} {problem}")


def json_value(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        # Not what it is: it may hold a password.
        raise click.BadParameter(f"that is not JSON: {error}") from error


def _no_json(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def text(value: str) -> str:
    """Return a text that is not empty and that a database can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{value!r} is not UTF-8") from error
    if not value:
        raise click.BadParameter("it is empty: give a name")
    return value


def concurrency(value: str) -> int | None:
    """Return a number of at least 1; None, for that of the code, for `default`."""
    return None if value == "default" else whole(1)(value)
