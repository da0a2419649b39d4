"""`planton demo`: rows of a user's table, claimed, handed out, executed outside the core."""

import re
import sys
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import attrs
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from planton import delays
from planton._events import AttemptEvent, InstructionEvent
from planton._planton import Planton
from planton._signals import StopOnSignals
from planton.cli._exits import SIGNAL
from planton.cli._plugins import plugin, storage_at

TASK = "send_user_email"
CONCURRENCY = 20
# Short, so that what a killed demo had claimed is sent soon after it is started again.
LEASE = 10.0
# What else in a URL says which database it is.
_WHERE = ("host", "port", "dbname")


@attrs.define
class Mailer:
    """The consumer: writes each e-mail as a file, once."""

    accounts: Any
    storage: Any
    outbox: Path
    sent: int = 0
    active: int = 0
    most_active: int = 0
    ended: int = 0  # e-mails of an earlier run included

    async def send(self, event: InstructionEvent) -> None:
        """Do the work of one instruction, and report it by its receipt."""
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            # Written and only then reported. Killed in between it is delivered again, and finds
            # the file: nothing is lost, and nothing is sent twice.
            is_new = await trio.to_thread.run_sync(self._write, event.instruction)
            self.sent += is_new
            done = await self.storage.complete(event.receipt)
            self.ended += len(done.applied)
        finally:
            self.active -= 1

    def _write(self, account_id: str) -> bool:
        path = self.outbox / f"account-{account_id}.eml"
        if path.exists():
            self.accounts.note_sent(account_id)
            return False
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_bytes(bytes(_message(*self.accounts.find(account_id))))
        unfinished.replace(path)
        self.accounts.note_sent(account_id)
        return True


def _message(name: str, address: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Planton <welcome@example.com>"
    message["To"] = f"{name} <{address}>"
    message["Subject"] = f"Welcome, {name}"
    message.set_content(f"Dear {name},\n\nwelcome aboard.\n")
    return message


def outbox_of(url: str) -> Path:
    """Give the folder for the e-mails of the database that a URL names; each has its own.

    What is a name of another database would otherwise look as if it had been sent to.

    Examples:
        >>> str(outbox_of("sqlite:////srv/app.db"))
        '/srv/app-outbox'
        >>> str(outbox_of("postgresql://me:secret@db:5432/app?sslmode=disable"))
        'planton-demo-db-5432-app-outbox'
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if scheme == "sqlite":
        file = Path(unquote(place).removeprefix("/"))
        return file.parent / f"{file.stem}-outbox"
    # Neither the user nor what else a query may hold, such as a password.
    values = parse_qs(query)
    where = [unquote(place.rpartition("@")[2]), *(values.get(key, [""])[0] for key in _WHERE)]
    name = "-".join(re.findall(r"[\w.]+", " ".join(where)))
    return Path(f"planton-demo-{name[-100:] or 'local'}-outbox")


def run_demo(url: str, outbox: Path, accounts: int) -> None:
    """Run the demo on the storage that a URL names; ends the process with its exit code."""
    storage = storage_at(url, create=True)
    code = trio.run(_demo, storage, plugin("demos", url), accounts, outbox)
    if code:
        sys.exit(code)


async def _demo(storage: Any, accounts_of: Any, count: int, outbox: Path) -> int:
    async with storage:
        await storage.migrate()
        accounts = accounts_of(storage)
        await trio.to_thread.run_sync(accounts.prepare, count)
        await trio.Path(outbox).mkdir(exist_ok=True)
        return await _send_all(Mailer(accounts, storage, outbox))


async def _send_all(mailer: Mailer) -> int:
    storage, accounts = mailer.storage, mailer.accounts
    task = storage.claim_task(
        TASK,
        sql=accounts.claim_sql,
        concurrency=CONCURRENCY,
        lease=LEASE,
        delay=delays.exponential(initial=0.05, maximum=1.0),
    )
    planton = Planton(tasks=[task], storages=[storage])
    attempts: list[AttemptEvent] = []
    planton.on(AttemptEvent, attempts.append)
    total, remaining = await trio.to_thread.run_sync(accounts.progress, TASK)
    began = time.monotonic()
    claimed = await storage.get_active_instructions(TASK)
    with StopOnSignals(planton) as signals, _progress() as progress:
        if claimed:
            progress.print(
                f"{len(claimed)} e-mails were claimed by a run that has not ended them: they are "
                f"sent when their lease is over, in {LEASE:g} s at the most"
            )
        bar = progress.add_task("welcome e-mails", total=total, completed=total - remaining)
        await _dispatch(planton, mailer, remaining, lambda: progress.advance(bar))
    _summarise(mailer, len(attempts), time.monotonic() - began)
    if mailer.ended < remaining:
        Console(stderr=True).print("Interrupted: the same command goes on where it stopped.")
        return SIGNAL + signals.received[-1]
    return 0


async def _dispatch(planton: Planton, mailer: Mailer, remaining: int, advance: Any) -> None:
    async def consume(event: InstructionEvent) -> None:
        await mailer.send(event)
        advance()
        if mailer.ended >= remaining:
            await planton.terminate()

    async with trio.open_nursery() as consumers:
        planton.on(InstructionEvent, lambda event: consumers.start_soon(consume, event))
        if remaining:
            await planton.run()
        # What was handed out before the stop is finished here, outside of the core.


def _progress() -> Progress:
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
