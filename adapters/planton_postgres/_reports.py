"""What consumers report, as the arrays that the functions take."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from planton.storage import Receipt, Report, said_by

Found: TypeAlias = Mapping[Receipt, str]


def parameters_of(reports: Sequence[Report], *, keeps: bool) -> dict[str, Any]:
    """Return the parameters of the statement for reports of one kind."""
    said = said_by(reports)
    parameters: dict[str, Any] = {
        "ids": [row_id for row_id, _ in said],
        "tokens": [token for _, token in said],
        "keeps": keeps,
    }
    for place in range(len(reports[0].values)):
        parameters[f"v{place}"] = [values[place] for values in said.values()]
    return parameters
