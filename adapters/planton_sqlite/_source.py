"""The user's own statement: checked when a task is made, run inside the claim."""

import re
import sqlite3
from collections.abc import Callable
from typing import Any, Self

import attrs

from planton import InvalidArgumentError, InvalidQueryError

_PARAMETER = re.compile(r"[:@$]([A-Za-z_]\w*)")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_KNOWN = {"limit": 1, "active": "[]", "now": 0.0}


@attrs.frozen
class Source:
    """Where the instructions of a claim task come from.

    Attributes:
        task_name: Task that it belongs to.
        sql: Claims or finds up to `:limit` rows and gives one column, the instruction.
        is_select: Whether it changes nothing, so that it finds the same rows again.
    """

    task_name: str
    sql: str
    is_select: bool = False

    def checked(self, open_connection: Callable[[], sqlite3.Connection]) -> Self:
        """Find out whether the statement can run, and whether it writes, without running it.

        Raises:
            InvalidArgumentError: If it is no text.
            InvalidQueryError: If it is empty, lacks `:limit`, has parameters that nobody gives,
                does not parse, names tables or columns that there are not, or gives no column
                or several.
        """
        if not isinstance(self.sql, str):
            remedy = "give a str: UPDATE … RETURNING id, or SELECT id"
            raise InvalidArgumentError("sql", self.sql, remedy)
        code = _NOT_CODE.sub("", self.sql)
        if not code.strip():
            raise self._error("is empty: give UPDATE … RETURNING id, or SELECT id")
        names = set(_PARAMETER.findall(code))
        if "limit" not in names:
            raise self._error("lacks the parameter :limit, so that it could claim too much")
        if strangers := sorted(names - set(_KNOWN)):
            known = ", ".join(f":{name}" for name in _KNOWN)
            raise self._error(f"has the parameter :{strangers[0]}, but is given only {known}")
        connection = open_connection()
        try:
            plan = connection.execute(f"EXPLAIN {self.sql}", _KNOWN).fetchall()
        except sqlite3.Error as error:
            raise self._error(f"cannot be run ({error})") from error
        finally:
            connection.close()
        steps = [(opcode, p2) for _, opcode, _, p2, *_ in plan]
        # P2 of a ResultRow is how many columns it has; of a Transaction, whether it writes.
        self._check_columns(max((p2 for opcode, p2 in steps if opcode == "ResultRow"), default=0))
        is_select = not any(opcode == "Transaction" and p2 for opcode, p2 in steps)
        return attrs.evolve(self, is_select=is_select)

    def run(self, connection: sqlite3.Connection, parameters: dict[str, Any]) -> list[str]:
        """Run the statement; the instructions that it gives.

        Raises:
            InvalidQueryError: If it gives more than one column, a NULL, or more than the limit.
        """
        cursor = connection.execute(self.sql, parameters)
        self._check_columns(len(cursor.description or ()))
        values = [value for (value,) in cursor]
        if None in values:
            raise self._error("gave a NULL: an instruction must name its work")
        if len(values) > parameters["limit"]:
            problem = (
                f"gave {len(values)} instructions, more than its :limit of {parameters['limit']}"
            )
            raise self._error(problem)
        return [str(value) for value in values]

    def _check_columns(self, count: int) -> None:
        if count != 1:
            given = count or "none (an UPDATE needs RETURNING)"
            raise self._error(f"must give one column, the instruction; it gives {given}")

    def _error(self, problem: str) -> InvalidQueryError:
        return InvalidQueryError(self.task_name, self.sql, problem)
