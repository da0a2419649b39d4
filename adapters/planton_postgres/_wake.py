"""Hears what other processes and plain SQL change: LISTEN, on a connection of its own.

A notification is a hint from anybody who may connect: a bounded number is read at a time, they are
merged by task, and what is strange is dropped.
"""

import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
import psycopg.sql
import trio

from planton import StorageError
from planton.storage import Watcher
from planton_postgres._database import Connection, Database
from planton_postgres._driver import TrioConnection
from planton_postgres._errors import name_of, translated

# Seconds of silence after which it is tested whether anything would be heard.
SILENCE = 5.0
# Seconds that the server, or the way to it, may take to answer that.
PATIENCE = 5.0
# Seconds between two wake-ups: a fleet that is busy would otherwise attempt all the time in all
# processes, mostly in vain.
PAUSE = 0.01
# More notifications than that at a time are not read one by one: they stand for all tasks.
_MANY = 500


def names_in(payloads: Iterable[str]) -> set[str] | None:
    """Return the tasks that notifications concern; None if that may be any.

    Examples:
        >>> sorted(names_in(['["slot", ["resize"]]', '["due", ["send", "resize"]]', "anything"]))
        ['resize', 'send']
        >>> names_in(['["due", null]']) is None
        True
    """
    names: set[str] = set()
    for payload in set(payloads):
        try:
            kind, some = json.loads(payload)
        except (TypeError, ValueError, RecursionError):
            continue  # of somebody who means something else
        if kind == "test":
            continue
        if some is None:
            return None
        if isinstance(some, list):
            names.update(name for name in some if isinstance(name, str))
    return names


async def listen(
    database: Database, conninfo: str, watcher: Watcher, task_status: "trio.TaskStatus[None]"
) -> None:
    """Tell `watcher` what is changed until the connection is lost.

    Raises:
        StorageError: When it is, or if nothing is heard.
    """
    name = name_of(conninfo)
    ((channel,),) = await database.rows("channel")
    with translated(name):
        connection = await TrioConnection.connect(
            conninfo, connect_timeout=database.connect_timeout
        )
        try:
            await _begin(database, connection, channel, name)
            watcher.is_live(is_live=True)
            task_status.started()
            while True:
                await _hear(database, connection, channel, watcher, name)
                await trio.sleep(PAUSE)
        finally:
            await connection.close()  # noqa: ASYNC102  no checkpoint


async def _begin(database: Database, connection: Connection, channel: str, name: str) -> None:
    """Listen, and test whether what others send arrives."""
    statement = psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel))
    with _patiently("LISTEN", name):
        await connection.execute(statement)
    test = json.dumps(["test", [secrets.token_hex(8)]])
    await database.rows("notify", {"channel": channel, "payload": test})
    with trio.move_on_after(PATIENCE):
        while (await connection.next_notify()).payload != test:
            pass
        return
    raise StorageError(
        name,
        "what is sent does not arrive where it is listened for: it must be the same database, and "
        "no pooler in transaction mode; give listen_dsn=, or wake_ups=False",
    )


async def _hear(
    database: Database, connection: Connection, channel: str, watcher: Watcher, name: str
) -> None:
    """Wait for notifications, and tell of them together; test the connection after a silence."""
    with trio.move_on_after(SILENCE):
        heard = [await connection.next_notify(), *connection.waiting_notifies()]
        if len(heard) > _MANY:
            watcher.changed(None)
            await trio.sleep(1.0)
            return
        pids = database.pids  # what we change ourselves has woken its tasks already
        names = names_in(each.payload for each in heard if each.pid not in pids)
        if names is None or names:
            watcher.changed(names)
        return
    with _patiently("a test of the wake-ups", name):
        payload = json.dumps(["test", []])
        await connection.execute(database.sql["notify"], {"channel": channel, "payload": payload})


@contextmanager
def _patiently(what: str, database: str) -> Iterator[None]:
    """Give the block some seconds.

    Raises:
        StorageError: If it takes longer.
    """
    with trio.move_on_after(PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise StorageError(database, f"{what} was not answered within {PATIENCE:g} seconds")
