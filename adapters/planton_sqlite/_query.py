"""The user's own statement: checked when a task is made, run inside the claim."""

import re
import sqlite3
from typing import Any

import attrs

from planton import InvalidQueryError

_PARAMETER = re.compile(r"[:@$]([A-Za-z_]\w*)")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_KNOWN = {"limit": 1, "active": "[]", "now": 0.0}
# What a statement within the claim may not do: the transaction is the claim's.
_FORBIDDEN = {
    sqlite3.SQLITE_TRANSACTION: "end or begin a transaction",
    sqlite3.SQLITE_SAVEPOINT: "use savepoints",
    sqlite3.SQLITE_ATTACH: "attach a database",
    sqlite3.SQLITE_DETACH: "detach a database",
    sqlite3.SQLITE_PRAGMA: "use a pragma",
}


@attrs.frozen
class Query:
    """Where the instructions of a claim task come from.

    Attributes:
        task_name: Task that it belongs to.
        sql: Claims or finds up to `:limit` rows and returns one column, the instruction.
    """

    task_name: str
    sql: str

    def check(self) -> None:
        """Check what needs no database.

        Raises:
            InvalidQueryError: If it is empty, lacks `:limit`, or has other parameters.
        """
        code = _NOT_CODE.sub("", self.sql)
        if not code.strip():
            raise self._error("is empty: give UPDATE … RETURNING id, or SELECT id")
        names = set(_PARAMETER.findall(code))
        if "limit" not in names:
            raise self._error("lacks the parameter :limit, so that it could claim too much")
        if strangers := sorted(names - set(_KNOWN)):
            known = ", ".join(f":{name}" for name in _KNOWN)
            raise self._error(f"has the parameter :{strangers[0]}, but is given only {known}")

    def is_marking(self, connection: sqlite3.Connection) -> bool:
        """Tell whether it writes, so that it will not return the same rows again.

        SQLite itself is asked: a program that writes has a `Transaction` instruction that says so.

        Raises:
            InvalidQueryError: If it does not parse, names what there is not, does what it may not,
                or returns no column or several.
        """
        refused: list[str] = []

        def authorize(action: int, *_: str | None) -> int:
            if action in _FORBIDDEN:
                refused.append(_FORBIDDEN[action])
                return sqlite3.SQLITE_DENY
            return sqlite3.SQLITE_OK

        connection.set_authorizer(authorize)
        try:
            plan = connection.execute(f"EXPLAIN {self.sql}", _KNOWN).fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            problem = f"may not {refused[0]}" if refused else f"cannot be run ({error})"
            raise self._error(problem) from error
        finally:
            connection.set_authorizer(None)
        steps = [(opcode, p2) for _, opcode, _, p2, *_ in plan]
        self._check_columns(max((p2 for opcode, p2 in steps if opcode == "ResultRow"), default=0))
        return any(opcode == "Transaction" and p2 for opcode, p2 in steps)

    def run(self, connection: sqlite3.Connection, parameters: dict[str, Any]) -> list[str]:
        """Run the statement; return the instructions, each once.

        Raises:
            InvalidQueryError: If it fails, ends the transaction, or returns more than one column,
                a NULL, an empty text, or more than the limit.
        """
        try:
            cursor = connection.execute(self.sql, parameters)
            self._check_columns(len(cursor.description or ()))
            values = [value for (value,) in cursor]
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
                raise  # the database's fault, not the statement's
            raise self._error(f"cannot be run ({error})") from error
        except (sqlite3.IntegrityError, sqlite3.DataError) as error:
            raise self._error(f"cannot be run ({error})") from error
        if not connection.in_transaction:
            raise self._error("ended the transaction of the claim: leave out OR ROLLBACK")
        return self._checked(values, parameters["limit"])

    def _checked(self, values: list[Any], limit: int) -> list[str]:
        if None in values or "" in values:
            what = "a NULL" if None in values else "an empty text"
            raise self._error(f"gave {what}: an instruction must name its work")
        if len(values) > limit:
            problem = f"gave {len(values)} instructions, more than its :limit of {limit}"
            raise self._error(problem)
        return list(dict.fromkeys(map(_to_text, values)))

    def _check_columns(self, count: int) -> None:
        if count != 1:
            given = count or "none (an UPDATE needs RETURNING)"
            raise self._error(f"must give one column, the instruction; it gives {given}")

    def _error(self, problem: str) -> InvalidQueryError:
        return InvalidQueryError(self.task_name, self.sql, problem)


def _to_text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
