"""The user's own statement: checked when a task is made, described before its first claim."""

import re
from typing import Any

import attrs
import psycopg

from planton import InvalidQueryError
from planton_postgres._driver import TrioConnection

_PARAMETER = re.compile(r"%(?:(%)|\((\w+)\)[sbt])")
_STRAY = re.compile(r"%(?!%|\(\w+\)[sbt])")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
# What planton_run binds: integer, text[], timestamptz, text[].
_PLACES = {"limit": "$1", "active": "$2::text[]", "now": "$3", "full": "$4::text[]"}
_TYPES = (23, 1009, 1184, 1009)
# Classes of SQLSTATE that tell of the statement, and not of the server or of other transactions.
_OF_THE_STATEMENT = ("0A", "21", "22", "23", "25", "2B", "2D", "34", "3F", "42", "44", "P0", "PL")


@attrs.frozen
class Query:
    """Where the instructions of a claim task come from.

    Attributes:
        task_name: Task that it belongs to.
        sql: Claims or finds up to `%(limit)s` rows; returns their instructions, also partitions.
    """

    task_name: str
    sql: str

    def check(self) -> None:
        """Check what needs no database.

        Raises:
            InvalidQueryError: If it lacks `%(limit)s`, has parameters that nobody gives, or a
                percent sign that is none.
        """
        names = [name for _, name in _PARAMETER.findall(_NOT_CODE.sub("", self.sql)) if name]
        if "limit" not in names:
            raise self._error("lacks the parameter %(limit)s, so that it could claim too much")
        everywhere = {name for _, name in _PARAMETER.findall(self.sql) if name}
        if strangers := sorted(everywhere - set(_PLACES)):
            known = ", ".join(f"%({name})s" for name in _PLACES)
            raise self._error(f"has the parameter %({strangers[0]})s, but is given only {known}")
        if _STRAY.search(self.sql.replace("%%", "")):
            raise self._error("has a % that is no parameter: write %% for a percent sign")
        if "\0" in self.sql:
            raise self._error("has a NUL character: leave it out")
        if self.sql != self.sql.encode(errors="replace").decode():
            raise self._error("has half of a surrogate pair: leave it out")

    @property
    def statement(self) -> str:
        """The statement with `$1`, `$2`, `$3` for its parameters, as planton_claim takes it."""
        text = self.sql.strip().rstrip(";")
        return _PARAMETER.sub(lambda match: "%" if match[1] else _PLACES[match[2]], text)

    async def describe(self, connection: "TrioConnection[Any]") -> None:
        """Have the server parse it, and look at its columns; nothing is run.

        Raises:
            InvalidQueryError: If it is not valid, or returns no column or more than two.
        """
        try:
            columns = await connection.describe(self.statement, _TYPES)
        except psycopg.Error as error:
            if not is_of_the_statement(error.sqlstate):
                raise
            raise self._error(f"cannot be run ({_flat(str(error))})") from error
        if len(columns) not in (1, 2):
            given = ", ".join(columns) or "none (an UPDATE needs RETURNING)"
            problem = "must give one column, the instruction, or a second one, its partition"
            raise self._error(f"{problem}; it gives {given}")

    def problem(self, problem: dict[str, Any]) -> Exception:
        """Return the error for what went wrong while it ran."""
        state, message = problem["sqlstate"], problem["message"]
        if state == "PLBAD":
            return self._error(message)
        details = [problem[name] for name in ("detail", "hint") if problem[name]]
        text = "; ".join([message, *details])
        if is_of_the_statement(state):
            return self._error(f"cannot be run ({text}; SQLSTATE {state})")
        return psycopg.errors.lookup(state)(text) if _is_known(state) else psycopg.Error(text)

    def _error(self, problem: str) -> InvalidQueryError:
        return InvalidQueryError(self.task_name, self.sql, problem)


def is_of_the_statement(state: str | None) -> bool:
    """Tell whether an error tells of a statement, not of the server or of other transactions."""
    return (state or "").startswith(_OF_THE_STATEMENT)


def _is_known(state: str) -> bool:
    try:
        psycopg.errors.lookup(state)
    except KeyError:
        return False
    return True


def _flat(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())
