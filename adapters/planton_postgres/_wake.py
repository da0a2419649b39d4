"""Hears what other processes and plain SQL change: LISTEN, on a connection of its own.

A notification is a hint from any role that may connect, as many and as strange as it likes. All are
read at once, a few kilobytes at a time, and merged by task; tasks are woken at a pace of our own.
"""

import json
import logging
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import attrs
import psycopg
import psycopg.sql
import trio

from planton import StorageError
from planton.storage import Watcher
from planton_postgres._database import HURRY, Connection, Database
from planton_postgres._driver import TrioConnection, is_readable
from planton_postgres._errors import name_of, translated

_logger = logging.getLogger("planton.postgres")
# Seconds of silence after which it is tested whether anything would be heard.
SILENCE = 5.0
# Seconds that the server, or the way to it, may take to answer that.
PATIENCE = 5.0
# Seconds in which nothing is read after a wake-up, or after our own notifications twice in a row:
# the processes of a busy fleet would attempt all the time, mostly in vain. And after a flood.
PAUSE, FLOOD_PAUSE = 0.01, 1.0
# More notifications than that between two wake-ups are a flood: they stand for all tasks.
_MANY = 500


@attrs.define
class Hints:
    """What was heard since the last wake-up.

    Attributes:
        names: The tasks that it concerns; None for all.
        count: How many notifications there were.
        strange: How many of them were not of ours: they are dropped.

    Examples:
        >>> hints = Hints()
        >>> hints.add(['["slot", ["resize"]]', '["due", ["send", "resize"]]', "anything"])
        >>> sorted(hints.names), hints.strange
        (['resize', 'send'], 1)
        >>> hints.add(['["due", null]', '["due", ["send"]]'])
        >>> hints.names is None
        True
    """

    names: set[str] | None = attrs.field(factory=set)
    count: int = 0
    strange: int = 0

    def add(self, payloads: Iterable[str]) -> None:
        """Merge notifications; those of a flood are counted, and not read."""
        for payload in payloads:
            self.count += 1
            if self.is_flood:
                self.names = None
            else:
                self._read(payload)

    @property
    def is_flood(self) -> bool:
        return self.count > _MANY

    def _read(self, payload: str) -> None:
        found = _names_in(payload)
        if found is None:
            self.strange += 1
        elif self.names is not None:
            self.names = None if found == "all" else self.names.union(found)


def _names_in(payload: str) -> Iterable[str] | None:
    """Return the names in a notification, or "all"; None if it is not of ours."""
    try:
        kind, names = json.loads(payload)
    except (TypeError, ValueError, RecursionError):
        return None
    if kind == "test":
        return ()
    if not isinstance(kind, str) or not isinstance(names, list | None):
        return None
    if names is None:
        return "all"
    return names if all(isinstance(name, str) for name in names) else None


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
        connection.cancel_limit = HURRY  # it only listens: nothing is lost with it
        try:
            await _begin(database, connection, channel, name)
            watcher.is_live(is_live=True)
            task_status.started()
            await _Ear(database, connection, channel, watcher, name).listen()
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
        while test not in [each.payload for each in await connection.next_notifies()]:
            pass
        return
    raise StorageError(
        name,
        "what is sent does not arrive where it is listened for: it must be the same database, and "
        "no pooler in transaction mode; give listen_dsn=, or wake_ups=False",
    )


@attrs.define(eq=False)
class _Ear:
    """Reads notifications as they come, and wakes tasks at a pace of its own."""

    database: Database
    connection: Connection
    channel: str
    watcher: Watcher
    name: str
    strange: int = 0

    async def listen(self) -> None:
        """Tell `watcher` of what is heard."""
        was_own = False
        while True:
            hints = Hints()
            await self._hear_or_test(hints)
            with trio.move_on_after(FLOOD_PAUSE):
                while is_readable(self.connection.pgconn.socket):
                    await self._hear(hints)
            self._tell(hints)
            # Our own, if it is not many, must not delay what comes from others.
            if hints.count or was_own:
                await trio.sleep(FLOOD_PAUSE if hints.is_flood else PAUSE)
            was_own = not hints.count

    async def _hear_or_test(self, hints: Hints) -> None:
        """Wait for a notification; test the connection after a silence."""
        with trio.move_on_after(SILENCE):
            await self._hear(hints)
            return
        with _patiently("a test of the wake-ups", self.name):
            parameters = {"channel": self.channel, "payload": json.dumps(["test", []])}
            await self.connection.execute(self.database.sql["notify"], parameters)

    async def _hear(self, hints: Hints) -> None:
        """Read some kilobytes, with a checkpoint; what we change ourselves has woken its tasks."""
        heard, pids = await self.connection.next_notifies(), self.database.pids
        hints.add(each.payload for each in heard if each.pid not in pids)

    def _tell(self, hints: Hints) -> None:
        if hints.names is None or hints.names:
            self.watcher.changed(hints.names)
        if hints.strange and not self.strange:
            _logger.warning(
                "%s: notifications on the channel %s are not Planton's: they are dropped, look for "
                "another program that uses this channel",
                self.name,
                self.channel,
            )
        self.strange += hints.strange


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
