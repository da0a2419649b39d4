"""What `planton demo` runs: accounts of a table are claimed, and each is sent an e-mail."""

import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from email.message import EmailMessage

import attrs
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from planton import AttemptEvent, Planton, delays
from planton_executor import Executor, Work
from planton_sqlite._storage import SQLiteStorage

TASK = "send_user_email"
CONCURRENCY = 20
LEASE = 10  # short, so that what a killed demo had claimed is sent soon
INTERRUPTED = 130
# Makes the table, and as many accounts as are missing.
PREPARE = """
CREATE TABLE IF NOT EXISTS user_account (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, claimed_at TEXT, sent_at TEXT
);
CREATE INDEX IF NOT EXISTS user_account_unclaimed ON user_account (id) WHERE claimed_at IS NULL;
WITH RECURSIVE number (n) AS (
    SELECT count(*) + 1 FROM user_account UNION ALL SELECT n + 1 FROM number WHERE n < {count}
)
INSERT INTO user_account (id, name, email)
SELECT n, 'User ' || n, 'user' || n || '@example.com' FROM number WHERE n <= {count};
"""
CLAIM = """
UPDATE user_account SET claimed_at = datetime(:now, 'unixepoch')
WHERE id IN (SELECT id FROM user_account WHERE claimed_at IS NULL ORDER BY id LIMIT :limit)
RETURNING id
"""
COUNT = "SELECT count(*), count(sent_at), count(claimed_at) - count(sent_at) FROM user_account"


@attrs.define
class Mailer:
    """Writes each e-mail as a file, once, and counts."""

    db: sqlite3.Connection
    outbox: trio.Path
    remaining: int
    advance: Callable[[], object]
    sent: int = 0
    active: int = 0
    most_active: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, work: Work) -> None:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        # Written, noted, and only then reported. Killed in between it is delivered again, and finds
        # the file: nothing is lost, and nothing is sent twice.
        file = self.outbox / f"account-{work.instruction}.eml"
        if not await file.exists():
            unfinished = file.with_suffix(".unfinished")
            await unfinished.write_bytes(self._message(work.instruction))
            await unfinished.replace(file)
            self.sent += 1
        sent = "UPDATE user_account SET sent_at = datetime() WHERE id = ? AND sent_at IS NULL"
        self.remaining -= self.db.execute(sent, [work.instruction]).rowcount
        self.active -= 1
        self.advance()
        if not self.remaining:
            self.done.set()

    def _message(self, account_id: str) -> bytes:
        found = self.db.execute("SELECT name, email FROM user_account WHERE id = ?", [account_id])
        ((name, address),) = found
        message = EmailMessage()
        message["From"] = "Planton <welcome@example.com>"
        message["To"] = f"{name} <{address}>"
        message["Subject"] = f"Welcome, {name}"
        message.set_content(f"Dear {name},\n\nwelcome aboard.\n")
        return bytes(message)

    async def stop(self, planton: Planton, *, task_status: "trio.TaskStatus[None]") -> None:
        """A service that ends the run once every account has its e-mail."""
        task_status.started()
        if self.remaining:
            await self.done.wait()
        planton.request_stop()


@asynccontextmanager
async def demo(storage: SQLiteStorage, count: int) -> AsyncIterator[Planton]:
    """Yield a Planton that sends an e-mail to each of `count` accounts; then sum up."""
    outbox = _outbox(storage.path)
    began, attempts = time.monotonic(), list[AttemptEvent]()
    async with storage:
        await storage.migrate()
        with (
            closing(sqlite3.connect(storage.path, timeout=60, isolation_level=None)) as db,
            _bar() as bar,
        ):
            db.executescript(PREPARE.format(count=count))
            total, sent, claimed = db.execute(COUNT).fetchone()
            await outbox.mkdir(exist_ok=True)
            if claimed:
                told = f"{claimed} e-mails were claimed by a run that has not sent them: they are "
                bar.print(f"{told}sent when their lease is over, in {LEASE} s at the most")
            row = bar.add_task("welcome e-mails", total=total, completed=sent)
            mailer = Mailer(db, outbox, total - sent, lambda: bar.advance(row))
            planton = _planton(storage, mailer)
            planton.on(AttemptEvent, attempts.append)
            yield planton
    _summarise(mailer, len(attempts), time.monotonic() - began)
    if mailer.remaining:
        Console(stderr=True).print("Interrupted: the same command goes on where it stopped.")
        sys.exit(INTERRUPTED)


def _outbox(path: str) -> trio.Path:
    """Return the folder for the e-mails of a database: beside it, called after it."""
    file = trio.Path(os.path.relpath(path))
    return file.with_name(f"{file.stem}-outbox")


def _planton(storage: SQLiteStorage, mailer: Mailer) -> Planton:
    executor = Executor(storage, concurrency=CONCURRENCY)
    executor.handler(TASK)(mailer.send)
    task = storage.claim_task(
        TASK,
        sql=CLAIM,
        concurrency=CONCURRENCY,
        lease=LEASE,
        delay=delays.exponential(initial=0.05, maximum=1),
    )
    return Planton(tasks=[task], storages=[storage], consumers=[executor], services=[mailer.stop])


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )


def _summarise(mailer: Mailer, attempts: int, seconds: float) -> None:
    table = Table(title="planton demo", show_header=False, title_justify="left")
    table.add_row("sent", str(mailer.sent))
    table.add_row("attempts", str(attempts))
    table.add_row("most active at one time", str(mailer.most_active))
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("outbox", str(mailer.outbox))
    Console().print(table)
