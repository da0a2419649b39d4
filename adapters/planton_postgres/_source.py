"""The user's own statement: checked when a task is made, run inside the claim."""

import re
from datetime import datetime

import attrs
import psycopg

from planton import InvalidArgumentError, InvalidQueryError
from planton_postgres._database import Connection

_PARAMETER = re.compile(r"%\((\w+)\)[sbt]")
_STRAY = re.compile(r"%(?!%|\(\w+\)[sbt])")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_KNOWN = ("limit", "active", "now")
# Classes of SQLSTATE that tell of the statement, and not of the server or of other transactions.
_OF_THE_STATEMENT = ("0A", "21", "22", "23", "25", "2B", "3F", "42", "44", "P0")


# Locks of a SELECT, which change nothing.
_LOCKING = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE)
_CHANGING = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)


@attrs.frozen
class Source:
    """Where the instructions of a claim task come from.

    Attributes:
        task_name: Task that it belongs to.
        sql: Claims or finds up to `%(limit)s` rows and gives one column, the instruction.
    """

    task_name: str
    sql: str

    @property
    def marks(self) -> bool:
        """Whether it changes rows, so that it will not give them a second time."""
        code = _LOCKING.sub("", _NOT_CODE.sub("", self.sql))
        return _CHANGING.search(code) is not None

    def check(self) -> None:
        """Find out what can be found out without a database.

        Raises:
            InvalidArgumentError: If it is no text.
            InvalidQueryError: If it lacks `%(limit)s`, has parameters that nobody gives, or a
                percent sign that is none.
        """
        if not isinstance(self.sql, str):
            remedy = "give a str: UPDATE … RETURNING id, or SELECT id"
            raise InvalidArgumentError("sql", self.sql, remedy)
        if "limit" not in _PARAMETER.findall(_NOT_CODE.sub("", self.sql)):
            raise self._error("lacks the parameter %(limit)s, so that it could claim too much")
        if strangers := sorted(set(_PARAMETER.findall(self.sql)) - set(_KNOWN)):
            known = ", ".join(f"%({name})s" for name in _KNOWN)
            raise self._error(f"has the parameter %({strangers[0]})s, but is given only {known}")
        if _STRAY.search(self.sql.replace("%%", "")):
            raise self._error("has a % that is no parameter: write %% for a percent sign")

    async def run(
        self, connection: Connection, limit: int, active: list[str], now: datetime
    ) -> list[str]:
        """Run the statement; the instructions that it gives.

        Raises:
            InvalidQueryError: If it cannot be run, or gives more than one column, a NULL, or more
                than the limit.
        """
        try:
            # The type is said because a list that is empty has none for the server.
            sql = self.sql.replace("%(active)s", "%(active)s::text[]")
            parameters = {"limit": limit, "active": active, "now": now}
            cursor = await connection.execute(sql, parameters)
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith(_OF_THE_STATEMENT):
                raise self._error(f"cannot be run ({error})") from error
            raise
        columns = [column.name for column in cursor.description or ()]
        if len(columns) != 1:
            given = ", ".join(columns) or "none (an UPDATE needs RETURNING)"
            raise self._error(f"must give one column, the instruction; it gives {given}")
        return self._checked([value for (value,) in await cursor.fetchall()], limit)

    def _checked(self, values: list[object], limit: int) -> list[str]:
        if None in values:
            raise self._error("gave a NULL: an instruction must name its work")
        if len(values) > limit:
            problem = f"gave {len(values)} instructions, more than its %(limit)s of {limit}"
            raise self._error(problem)
        return [str(value) for value in values]

    def _error(self, problem: str) -> InvalidQueryError:
        return InvalidQueryError(self.task_name, self.sql, problem)
