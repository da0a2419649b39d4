"""What consumers report, as the arrays that the functions take."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report, said_by

Found: TypeAlias = Mapping[Receipt, str]


def parameters_of(reports: Sequence[Report], *, keeps: bool) -> dict[str, Any]:
    """Return the parameters of the statement for reports of one kind."""
    said = said_by(reports)
    parameters: dict[str, Any] = {
        "ids": _array(row_id for row_id, _ in said),
        "tokens": _array(token for _, token in said),
        "keeps": keeps,
    }
    for place in range(len(reports[0].values)):
        parameters[f"v{place}"] = _array(values[place] for values in said.values())
    return parameters


def _array(members: Iterable[object]) -> str:
    """Return an array as the server reads it; psycopg takes ten times as long for that."""
    return f"{{{','.join(map(_member, members))}}}"


def _member(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return "NULL" if value is None else str(value)
