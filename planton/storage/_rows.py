"""Rows of a database, as records."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import attrs

T = TypeVar("T", bound=attrs.AttrsInstance)
Rows: TypeAlias = list[tuple[Any, ...]]
_FIRST, _LAST = -62135596800.0, 253402300799.0  # the seconds that a datetime holds


def read_row(kind: type[T], row: Sequence[Any]) -> T:
    """Return a row as a record, its columns as the fields; what is strange in it hides no other."""
    names = [field.name for field in attrs.fields(kind)]
    return kind(**{name: _read(name, each) for name, each in zip(names, row, strict=True)})


def _read(name: str, value: Any) -> Any:
    if name.endswith("_at"):
        return None if value is None else to_datetime(value)
    if name in ("payload", "result"):
        return _from_json(value)
    if name == "tags":
        return tuple(map(str, _from_json(value) or ()))
    return bool(value) if name == "paused" else value


def to_datetime(seconds: float) -> datetime:
    """Return a time; the first or the last one for what is beyond, as infinity is."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


def _from_json(text: str | None) -> Any:
    """Return a value, or the text itself where Python's reader gives up: others can be read."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text
