"""A plain script: e-mails are rows of a table, and two processes send no more than two at a time.

To install: pip install 'planton[executor,sqlite]'
To run: python add.py ann@example.org bob@example.org; python mails.py & python mails.py
"""

import os
import sqlite3
import time

import trio

from planton import Planton
from planton.hosting import terminate_on_signals
from planton_executor import Executor, Work
from planton_sqlite import SQLiteStorage

SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that an e-mail takes
CLAIM = """
    UPDATE mail SET claimed_at = :now
    WHERE id IN (SELECT id FROM mail WHERE claimed_at IS NULL ORDER BY id LIMIT :limit)
    RETURNING id
"""

storage = SQLiteStorage("mails.db")
executor = Executor(storage, concurrency=10)  # of this process
task = storage.claim_task("mail", sql=CLAIM, concurrency=2, retries=3)  # of all processes
planton = Planton(
    tasks=[task], storages=[storage], consumers=[executor], services=[terminate_on_signals]
)


@executor.handler("mail", retry_delay=60)
def send(work: Work) -> None:
    began_at = time.time()
    time.sleep(SECONDS)  # send the e-mail here
    connection = sqlite3.connect("mails.db", timeout=10)
    with connection:
        connection.execute(
            "UPDATE mail SET sent = sent + 1, began_at = ?, sent_at = ?, sent_by = ? WHERE id = ?",
            [began_at, time.time(), os.getpid(), work.instruction],
        )
    connection.close()


if __name__ == "__main__":
    trio.run(planton.run)
