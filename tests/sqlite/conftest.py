"""A user's database, with a table of accounts that have not had their e-mail."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from planton_sqlite import SQLiteStorage

CLAIM = """
UPDATE user_account SET email_sent_at = :now
WHERE id IN (SELECT id FROM user_account WHERE email_sent_at IS NULL ORDER BY id LIMIT :limit)
RETURNING id
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE user_account (id INTEGER PRIMARY KEY, email_sent_at REAL)")
        connection.executemany(
            "INSERT INTO user_account (id) VALUES (?)", [(i,) for i in range(1, 8)]
        )
    connection.close()
    return path


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SQLiteStorage]:
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
        yield storage


@pytest.fixture
def claim_sql() -> str:
    return CLAIM


@pytest.fixture
def rows(path: Path):
    """Ask the database, past the storage."""

    def rows(sql: str, *parameters: object) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(path)
        try:
            with connection:
                return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()

    return rows
