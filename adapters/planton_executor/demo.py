"""What `planton demo` runs: accounts of a table are claimed, and each is sent an e-mail."""

import os
import re
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import attrs
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from planton import AttemptEvent, Planton, delays
from planton.storage import Storage
from planton_executor._events import Work
from planton_executor._executor import Executor

TASK = "send_user_email"
CONCURRENCY = 20
LEASE = 10  # short, so that what a killed demo had claimed is sent soon
INTERRUPTED = 130
# SQLite and PostgreSQL read all of it. Makes the table, and as many accounts as are missing.
PREPARE = """
CREATE TABLE IF NOT EXISTS user_account (
    id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL,
    claimed_at timestamp, sent_at timestamp
);
CREATE INDEX IF NOT EXISTS user_account_unclaimed ON user_account (id) WHERE claimed_at IS NULL;
WITH RECURSIVE number (n) AS (
    SELECT count(*) + 1 FROM user_account UNION ALL SELECT n + 1 FROM number WHERE n < {count}
)
INSERT INTO user_account (id, name, email)
SELECT n, 'User ' || n, 'user' || n || '@example.com' FROM number WHERE n <= {count}
"""
CLAIM = """
UPDATE user_account SET claimed_at = CURRENT_TIMESTAMP
WHERE id IN (SELECT id FROM user_account WHERE claimed_at IS NULL ORDER BY id LIMIT {limit})
RETURNING id
"""
FIND = "SELECT name, email FROM user_account WHERE id = {id}"
SENT = "UPDATE user_account SET sent_at = CURRENT_TIMESTAMP WHERE id = {id} AND sent_at IS NULL"
COUNT = "SELECT count(*), count(sent_at), count(claimed_at) - count(sent_at) FROM user_account"


class Database:
    """The user's side: a connection of its own to the database of a storage, and an outbox."""

    def __init__(self, storage: Any) -> None:
        self.limit = ":limit"
        if hasattr(storage, "conninfo"):
            import psycopg

            self.db: Any = psycopg.connect(storage.conninfo, autocommit=True)
            self.limit, info = "%(limit)s", self.db.info
            place = re.sub(r"[^\w.]+", "-", f"{info.host} {info.port} {info.dbname}").strip("-")
            self.outbox = Path(f"planton-demo-{place[-100:]}-outbox")
        else:
            self.db = sqlite3.connect(storage.path, timeout=60, isolation_level=None)
            file = Path(os.path.relpath(storage.path))
            self.outbox = file.with_name(f"{file.stem}-outbox")

    def prepare(self, count: int) -> None:
        for statement in PREPARE.format(count=count).split(";"):
            self.db.execute(statement)
        self.outbox.mkdir(exist_ok=True)

    def execute(self, statement: str, account_id: str) -> Any:
        return self.db.execute(statement.format(id=int(account_id)))


@attrs.define
class Mailer:
    """Writes each e-mail as a file, once, and counts."""

    database: Database
    remaining: int
    advance: Callable[[], object]
    sent: int = 0
    active: int = 0
    most_active: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, work: Work) -> None:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await self._send(work)
        finally:
            self.active -= 1
        if not self.remaining:
            self.done.set()

    async def _send(self, work: Work) -> None:
        # Written, noted, and only then reported. Killed in between it is delivered again, and finds
        # the file: nothing is lost, and nothing is sent twice.
        file = trio.Path(self.database.outbox) / f"account-{work.instruction}.eml"
        if not await file.exists():
            unfinished = file.with_suffix(".unfinished")
            await unfinished.write_bytes(self._message(work.instruction))
            await unfinished.replace(file)
            self.sent += 1
        self.remaining -= self.database.execute(SENT, work.instruction).rowcount
        self.advance()

    def _message(self, account_id: str) -> bytes:
        name, address = self.database.execute(FIND, account_id).fetchone()
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
async def demo(storage: Storage, count: int) -> AsyncIterator[Planton]:
    """Yield a Planton that sends an e-mail to each of `count` accounts; then sum up."""
    began, attempts = time.monotonic(), list[AttemptEvent]()
    async with storage:
        await storage.migrate()
        database = Database(storage)
        with closing(database.db), _bar() as bar:
            database.prepare(count)
            total, sent, claimed = database.db.execute(COUNT).fetchone()
            if claimed:
                told = f"{claimed} e-mails were claimed by a run that has not sent them: they are "
                bar.print(f"{told}sent when their lease is over, in {LEASE} s at the most")
            row = bar.add_task("welcome e-mails", total=total, completed=sent)
            mailer = Mailer(database, total - sent, lambda: bar.advance(row))
            planton = _planton(storage, mailer)
            planton.on(AttemptEvent, attempts.append)
            yield planton
    _summarise(mailer, len(attempts), time.monotonic() - began)
    if mailer.remaining:
        Console(stderr=True).print("Interrupted: the same command goes on where it stopped.")
        sys.exit(INTERRUPTED)


def _planton(storage: Storage, mailer: Mailer) -> Planton:
    executor = Executor(storage, concurrency=CONCURRENCY)
    # What cannot be sent, as the disk is full, is tried again until it can.
    executor.handler(TASK, retries=1_000_000, retry_delay=1)(mailer.send)
    task = storage.claim_task(
        TASK,
        sql=CLAIM.format(limit=mailer.database.limit),
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
    table.add_row("outbox", str(mailer.database.outbox))
    Console().print(table)
