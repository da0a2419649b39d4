"""The user's side of `planton demo` on PostgreSQL: a table of accounts."""

from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg

from planton_postgres._storage import PostgresStorage

_CREATE = """
CREATE TABLE IF NOT EXISTS user_account (
    id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL,
    claimed_at timestamptz, sent_at timestamptz
);
CREATE INDEX IF NOT EXISTS user_account_unclaimed ON user_account (id) WHERE claimed_at IS NULL;
"""
_FILL = """
INSERT INTO user_account (id, name, email)
SELECT n, 'User ' || n, 'user' || n || '@example.com'
FROM generate_series((SELECT count(*) FROM user_account) + 1, %(count)s::bigint) AS n
"""
_FIND = "SELECT name, email FROM user_account WHERE id = %(id)s"
_NOTE_SENT = "UPDATE user_account SET sent_at = now() WHERE id = %(id)s"
_PROGRESS = """
SELECT count(*), count(*) - count(claimed_at) + (
    SELECT count(*) FROM planton_instruction
    WHERE task_name = %(task_name)s AND status IN ('queued', 'running')
)
FROM user_account
"""


class Accounts:
    """User accounts that have not had their welcome e-mail; methods block.

    Args:
        storage: The storage that claims from the same database.
    """

    claim_sql = """
    UPDATE user_account SET claimed_at = %(now)s
    WHERE id = ANY (ARRAY(
        SELECT id FROM user_account WHERE claimed_at IS NULL
        ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
    """

    def __init__(self, storage: PostgresStorage) -> None:
        self._conninfo = storage.conninfo

    def prepare(self, count: int) -> None:
        """Make the table, and as many accounts as are missing, in one transaction."""
        with psycopg.connect(self._conninfo) as connection:
            connection.execute(_CREATE)
            connection.execute(_FILL, {"count": count})

    def find(self, account_id: str) -> tuple[str, str]:
        """Return the name and the address of an account."""
        name, email = self._row(_FIND, {"id": int(account_id)})
        return str(name), str(email)

    def note_sent(self, account_id: str) -> None:
        """Write down that the e-mail of an account was sent."""
        with psycopg.connect(self._conninfo) as connection:
            connection.execute(_NOTE_SENT, {"id": int(account_id)})

    def progress(self, task_name: str) -> tuple[int, int]:
        """Return the number of accounts, and of those whose e-mail is not done."""
        total, remaining = self._row(_PROGRESS, {"task_name": task_name})
        return int(total), int(remaining)

    def _row(self, statement: LiteralString, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        with psycopg.connect(self._conninfo) as connection:
            row = connection.execute(statement, parameters).fetchone()
        if row is None:
            raise LookupError(f"no account {parameters}")
        return row
