"""The user's side of `planton demo` on SQLite: a table of accounts."""

import sqlite3
from contextlib import closing
from threading import Lock

import sqlite_utils

from planton_sqlite._storage import SQLiteStorage


class Accounts:
    """User accounts that have not had their welcome e-mail; methods block.

    Args:
        storage: The storage that claims from the same database.
    """

    claim_sql = """
    UPDATE user_account SET claimed_at = datetime(:now, 'unixepoch')
    WHERE id IN (
        SELECT id FROM user_account WHERE claimed_at IS NULL ORDER BY id LIMIT :limit
    )
    RETURNING id
    """

    def __init__(self, storage: SQLiteStorage) -> None:
        self._path = storage.path
        # One at a time: many that wait for the file would wait for long, one of them too long.
        self._turn = Lock()

    def prepare(self, count: int) -> None:
        database = sqlite_utils.Database(self._path)
        try:
            with database.conn:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS user_account ("
                    "id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, "
                    "claimed_at TEXT, sent_at TEXT)"
                )
                database.execute(
                    "CREATE INDEX IF NOT EXISTS user_account_unclaimed ON user_account (id) "
                    "WHERE claimed_at IS NULL"
                )
                first = database.table("user_account").count + 1
                database.conn.executemany(
                    "INSERT INTO user_account (id, name, email) VALUES (?, ?, ?)",
                    [(n, f"User {n}", f"user{n}@example.com") for n in range(first, count + 1)],
                )
        finally:
            database.close()

    def find(self, account_id: str) -> tuple[str, str]:
        database = sqlite_utils.Database(self._path)
        try:
            row = database.table("user_account").get(int(account_id))
        finally:
            database.close()
        return str(row["name"]), str(row["email"])

    def note_sent(self, account_id: str) -> None:
        sent = "UPDATE user_account SET sent_at = datetime() WHERE id = ?"
        with self._turn, closing(sqlite3.connect(self._path, timeout=60)) as database, database:
            database.execute(sent, [int(account_id)])

    def progress(self, task_name: str) -> tuple[int, int]:
        """Return the number of accounts, and of those whose e-mail is not done."""
        database = sqlite_utils.Database(self._path)
        try:
            total, unclaimed, claimed = database.execute(
                "SELECT count(*), count(*) - count(claimed_at), (SELECT count(*) FROM "
                "planton_instruction WHERE task_name = ? AND status IN ('queued', 'running')) "
                "FROM user_account",
                [task_name],
            ).fetchone()
        finally:
            database.close()
        return int(total), int(unclaimed) + int(claimed)
