"""What is done outside of requests, by `planton run tasks:planton`, or in the web workers.

To install: pip install 'planton[executor,sqlite,cli]' flask gunicorn
To run: python tasks.py
  gunicorn app:app --bind localhost:8000 --workers 2
  planton run tasks:planton
Or, without a process of its own:
  gunicorn app:app --bind localhost:8000 --workers 2 --preload --config in_workers.py
Then: curl -X POST 'localhost:8000/accounts?email=ann@example.org'; curl localhost:8000/accounts/1
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from planton import Planton
from planton.hosting import call_blocking
from planton_executor import Executor, Work
from planton_sqlite import SQLiteStorage

SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that an e-mail takes
TABLE = """
    CREATE TABLE IF NOT EXISTS account (
        id INTEGER PRIMARY KEY, email TEXT NOT NULL, welcomed INTEGER NOT NULL DEFAULT 0
    )
"""

storage = SQLiteStorage("app.db")
executor = Executor(storage, concurrency=10)
task = storage.queue_task("welcome", concurrency=5)
planton = Planton(tasks=[task], storages=[storage], consumers=[executor])


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect("app.db", timeout=10)) as connection, connection:
        yield connection


@executor.handler("welcome", retries=3, retry_delay=60)
def welcome(work: Work) -> None:
    time.sleep(SECONDS)  # send the e-mail here
    with transaction() as connection:
        update = "UPDATE account SET welcomed = welcomed + 1 WHERE id = ?"
        connection.execute(update, [work.instruction])


if __name__ == "__main__":
    call_blocking(storage.migrate)
    with transaction() as connection:
        connection.execute(TABLE)
