"""Hears what other processes and plain SQL change: LISTEN, on a connection of its own.

A notification is a hint from any role that may connect. So names of tasks are all that is read of
it; what is something else is dropped; and a flood of them ends the connection: a new one begins to
listen where the channel is then.
"""

import json
import logging
import math
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import psycopg
import psycopg.sql
import trio

from planton import StorageError
from planton.storage import Watcher
from planton_postgres._database import Connection, Database, with_utf8
from planton_postgres._driver import TrioConnection
from planton_postgres._errors import name_of, translated

# Seconds of silence after which it is tested whether anything would be heard.
SILENCE = 5.0
# Seconds that the server, or the way to it, may take to answer that.
PATIENCE = 5.0
# Seconds between two wake-ups by freed slots: a fleet that is busy would otherwise attempt all the
# time in all processes, mostly in vain.
PAUSE = 0.01
# More notifications a second than a fleet makes: somebody plays with the channel.
FLOOD = 20_000

logger = logging.getLogger("planton")


def read(payload: str) -> tuple[str, list[str] | None] | None:
    """Return the kind of a notification and the tasks that it concerns; None for no notification.

    Examples:
        >>> read('["slot", ["resize", "send"]]')
        ('slot', ['resize', 'send'])
        >>> read('["due", null]')  # any task
        ('due', None)
        >>> [read(text) for text in ("anything", "[[", '["due"]', '["due", 5]', "[1, []]")]
        [None, None, None, None, None]
    """
    try:
        kind, names = json.loads(payload)
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(kind, str) or not isinstance(names, list | None):
        return None
    return kind, names and [name for name in names if isinstance(name, str)]


async def listen(
    database: Database, conninfo: str, watcher: Watcher, task_status: "trio.TaskStatus[None]"
) -> None:
    """Tell `watcher` what is changed until the connection is lost.

    Raises:
        StorageError: When it is, if nothing is heard, or if far too much is.
    """
    name = name_of(conninfo)
    ((channel,),) = await database.rows("channel")
    with translated(name):
        connection = await TrioConnection.connect(
            with_utf8(conninfo), connect_timeout=database.connect_timeout
        )
        listener = Listener(database, connection, channel, watcher, name)
        try:
            await listener.begin()
            watcher.is_live(is_live=True)
            task_status.started()
            await listener.hear()
        finally:
            await connection.close()  # noqa: ASYNC102  no checkpoint


@attrs.define(eq=False)
class Listener:
    """Listens on a channel, and tells of what it hears.

    Attributes:
        database: Whose changes.
        connection: That listens.
        channel: The channel of the tables.
        watcher: Whom it tells.
        name: Of the database that it listens to, for errors.
    """

    database: Database
    connection: Connection
    channel: str
    watcher: Watcher
    name: str
    _freed: set[str] = attrs.field(factory=set)
    _told_at: float = -math.inf
    _second: float = -math.inf
    _senders: Counter[int] = attrs.field(factory=Counter)
    _is_warned: bool = False

    async def begin(self) -> None:
        """Listen, and test whether what others send arrives.

        Raises:
            StorageError: If it does not.
        """
        statement = psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(self.channel))
        with _patiently("LISTEN", self.name):
            await self.connection.execute(statement)
        test = json.dumps(["test", [secrets.token_hex(8)]])
        await self.database.rows("notify", {"channel": self.channel, "payload": test})
        with trio.move_on_after(PATIENCE):
            while (await self.connection.next_notify()).payload != test:
                pass
            return
        raise StorageError(
            self.name,
            "what is sent does not arrive where it is listened for: it must be the same database, "
            "and no pooler in transaction mode; give listen_dsn=, or wake_ups=False",
        )

    async def hear(self) -> None:
        """Hear until the connection is lost.

        Raises:
            StorageError: If nothing would be heard, or there is a flood.
        """
        while True:
            is_silent = not self._freed
            until = trio.current_time() + SILENCE if is_silent else self._told_at + PAUSE
            with trio.move_on_at(until) as scope:
                heard = [await self.connection.next_notify(), *self.connection.waiting_notifies()]
                self._take(heard)
            if scope.cancelled_caught and is_silent:
                await self._test()
            self._tell_of_freed_slots()

    def _take(self, heard: Sequence[psycopg.Notify]) -> None:
        self._refuse_a_flood(heard)
        ours = self.database.pids  # what we change ourselves has woken its tasks already
        names: set[str] = set()
        for payload in {each.payload for each in heard if each.pid not in ours}:
            known = read(payload)
            if known is None:
                self._warn(payload)
            elif known[1] is None:
                self.watcher.changed(None)
            elif known[0] == "slot":
                self._freed.update(known[1])
            elif known[0] != "test":
                names.update(known[1])
        if names:
            self.watcher.changed(names)

    def _tell_of_freed_slots(self) -> None:
        now = trio.current_time()
        if self._freed and now >= self._told_at + PAUSE:
            self._told_at = now
            self.watcher.changed(self._freed)
            self._freed = set()

    def _refuse_a_flood(self, heard: Sequence[psycopg.Notify]) -> None:
        if trio.current_time() > self._second + 1:
            self._second = trio.current_time()
            self._senders.clear()
        self._senders.update(each.pid for each in heard)
        count = self._senders.total()
        if count > FLOOD:
            ((pid, _),) = self._senders.most_common(1)
            problem = f"{count} notifications came within a second, most of them of process {pid}"
            raise StorageError(self.name, f"{problem}: look at it in pg_stat_activity")

    def _warn(self, payload: str) -> None:
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "notifications that are none of planton's arrive on its channel %s, and are "
                "dropped: the first is %r",
                self.channel,
                payload[:100],
            )

    async def _test(self) -> None:
        with _patiently("a test of the wake-ups", self.name):
            parameters = {"channel": self.channel, "payload": json.dumps(["test", []])}
            await self.connection.execute(self.database.sql["notify"], parameters)


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
