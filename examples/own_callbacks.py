"""Callbacks of one's own on a SQLite table: no adapter, no async, nothing but sqlite3.

Accounts that were soft-deleted 14 days ago are deleted for good, two at a time. `schedule` and
`get_active_instructions` are plain functions that block, so Planton calls them in worker threads.
The cap is counted first and claimed later: with several processes use a strict storage instead.

To install: pip install planton
To run: python examples/own_callbacks.py

Prints:
    deleting account 1
    deleting account 2
    deleting account 4
    left: 3
    cap: advisory
"""

import sqlite3
import tempfile
from pathlib import Path

import trio

from planton import InstructionEvent, Planton, ScheduleRequest, Task, delays

DATABASE = Path(tempfile.mkdtemp()) / "app.db"


def connect() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, isolation_level=None, timeout=10)


def set_up() -> None:
    connection = connect()
    connection.executescript("""
        PRAGMA journal_mode = WAL;
        CREATE TABLE account (id INTEGER PRIMARY KEY, deleted_at TEXT, deleting_at TEXT);
        INSERT INTO account (deleted_at) VALUES
            (datetime('now', '-20 days')), (datetime('now', '-15 days')),
            (datetime('now', '-1 days')), (datetime('now', '-30 days'));
    """)
    connection.close()


def get_active_instructions(task_name: str) -> list[str]:
    connection = connect()
    rows = connection.execute("SELECT id FROM account WHERE deleting_at IS NOT NULL").fetchall()
    connection.close()
    return [str(account_id) for (account_id,) in rows]


def schedule(request: ScheduleRequest) -> list[str]:
    connection = connect()
    rows = connection.execute(
        """
        UPDATE account SET deleting_at = datetime('now')
        WHERE id IN (
            SELECT id FROM account
            WHERE deleting_at IS NULL AND deleted_at < datetime('now', '-14 days')
            ORDER BY id LIMIT ?
        )
        RETURNING id
        """,
        [request.limit],
    ).fetchall()
    connection.close()
    return [str(account_id) for (account_id,) in rows]


def delete(account_id: str) -> int:
    connection = connect()
    connection.execute("DELETE FROM account WHERE id = ?", [account_id])
    (left,) = connection.execute(
        "SELECT count(*) FROM account WHERE deleted_at < datetime('now', '-14 days')"
    ).fetchone()
    connection.close()
    return int(left)


planton = Planton(
    get_active_instructions=get_active_instructions,
    tasks=[
        Task(
            name="delete_account",
            schedule=schedule,
            concurrency=2,
            delay=delays.exponential(initial=0.01, maximum=60),
            timeout=30,
        )
    ],
)


@planton.on(InstructionEvent)
async def consume(event: InstructionEvent) -> None:
    print(f"deleting account {event.instruction}")
    if await trio.to_thread.run_sync(delete, event.instruction) == 0:
        await planton.terminate()


if __name__ == "__main__":
    set_up()
    trio.run(planton.run)
    connection = connect()
    print("left:", *(account_id for (account_id,) in connection.execute("SELECT id FROM account")))
    connection.close()
    print("cap:", planton.status()[0].cap)
