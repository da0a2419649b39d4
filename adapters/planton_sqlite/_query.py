"""The user's own statement: checked when a task is made, run inside the claim."""

import re
import sqlite3
from collections.abc import Callable
from typing import Any

import attrs

from planton import InvalidArgumentError, InvalidQueryError
from planton.storage import to_instruction, to_partition
from planton_sqlite._open import is_interrupted, is_of_database

_PARAMETER = re.compile(r"[:@$]([A-Za-z_]\w*)")
_NOT_CODE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_KNOWN = {"limit": 1, "active": "[]", "now": 0.0, "full": "[]"}
# By the text of a statement whether it writes, which depends on nothing else.
_MARKING: dict[str, bool] = {}
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
    """Where the instructions of a claim task come from."""

    task_name: str
    sql: str

    def check(self) -> None:
        """Check what needs no database."""
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
        """Tell whether it writes, so that it will not return the same rows again."""
        if self.sql not in _MARKING:
            self.explain(connection)
        return _MARKING[self.sql]

    def explain(self, connection: sqlite3.Connection) -> None:
        """Check what the database knows, and note whether it writes.

        SQLite itself is asked: a program that writes has a `Transaction` instruction that says so.
        An authorizer makes the connection prepare all of its statements anew: not at each claim.
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
        _MARKING[self.sql] = any(opcode == "Transaction" and p2 for opcode, p2 in steps)

    def run(self, connection: sqlite3.Connection, parameters: dict[str, Any]) -> dict[str, str]:
        """Run the statement; return the instructions, each once, with their partitions."""
        factory, connection.text_factory = connection.text_factory, bytes
        try:
            cursor = connection.execute(self.sql, parameters)
            self._check_columns(len(cursor.description or ()))
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            if is_of_database(error):
                raise
            raise self._failed(connection, error) from error
        finally:
            connection.text_factory = factory
        if len(rows) > parameters["limit"]:
            given = f"gave {len(rows)} instructions"
            raise self._error(f"{given}, more than its :limit of {parameters['limit']}")
        found: dict[str, str] = {}
        for value, *owner in rows:
            found.setdefault(self._to_instruction(value), self._to_partition(*owner))
        return found

    def _failed(self, connection: sqlite3.Connection, error: Exception) -> InvalidQueryError:
        if is_interrupted(error):
            remedy = "give it an index, or a longer timeout and statement_timeout"
            return self._error(f"took too long and was broken off: {remedy}")
        if connection.in_transaction:
            return self._error(f"cannot be run ({error})")
        return self._error(f"undid the whole claim ({error}): leave out OR ROLLBACK")

    def _to_instruction(self, value: object) -> str:
        if value is None:
            raise self._error("gave a NULL: an instruction must name its work")
        return self._checked(value, "instruction", to_instruction)

    def _to_partition(self, value: object = None) -> str:
        return "" if value is None else self._checked(value, "partition", to_partition)

    def _checked(self, value: object, kind: str, check: Callable[[str], str]) -> str:
        try:
            return check(value.decode() if isinstance(value, bytes) else str(value))
        except (UnicodeDecodeError, InvalidArgumentError) as error:
            raise self._error(f"gave {value!r:.60}, which is no {kind}: {error}") from error

    def _check_columns(self, count: int) -> None:
        if count not in (1, 2):
            given = count or "none (an UPDATE needs RETURNING)"
            problem = "must give one column, the instruction, or a second one, its partition"
            raise self._error(f"{problem}; it gives {given}")

    def _error(self, problem: str) -> InvalidQueryError:
        return InvalidQueryError(self.task_name, self.sql, problem)
