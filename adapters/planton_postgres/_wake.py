"""Wake-ups: hears what other processes and plain SQL change, and knows whether it would."""

import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import attrs
import psycopg
import psycopg.sql
import trio

from planton import PlantonError, StorageError
from planton_postgres._database import Database, fetch
from planton_postgres._driver import TrioConnection, full_jitter
from planton_postgres._errors import name_of, to_storage_error
from planton_postgres._statements import WAKE

# Seconds of silence after which it is looked whether anything would be heard.
SILENCE = 5.0
# Seconds that the server, or the way to it, may take to answer that.
PATIENCE = 5.0
# Seconds that tasks with nothing to do may rest, because they would be woken.
REST = 10.0
# Seconds between two wake-ups because slots were freed elsewhere: a fleet that is busy would
# otherwise attempt all the time in all processes, mostly in vain.
PAUSE = 0.01
LONGEST_PAUSE = 5.0

Names: TypeAlias = Collection[str] | None
Report: TypeAlias = Callable[[Exception], Awaitable[None]]
Connection: TypeAlias = TrioConnection[tuple[Any, ...]]


def heard(payload: str) -> tuple[str, Names]:
    """Give why a notification was sent and the tasks that it concerns, None for all of them.

    Examples:
        >>> heard('["slot", ["resize_image"]]')
        ('slot', ['resize_image'])
        >>> heard('["due", null]')
        ('due', None)
        >>> heard("what a person may have sent")
        ('?', None)
    """
    try:
        kind, names = json.loads(payload)
        return str(kind), None if names is None else [str(name) for name in names]
    except (TypeError, ValueError):
        return "?", None


@attrs.define(eq=False)
class Channel:
    """The wake-ups of a storage.

    Attributes:
        database: Where the changes are made.
        conninfo: Where they are listened for; None if they are not.
        listeners: One for each Planton that is served.
    """

    database: Database
    conninfo: str | None
    listeners: "set[Listener]" = attrs.field(factory=set)

    @property
    def state(self) -> Literal["live", "polling"]:
        """Whether changes are heard."""
        is_live = self.listeners and all(listener.is_live for listener in self.listeners)
        return "live" if is_live else "polling"

    def rest(self) -> float:
        """Give the seconds that a task with nothing to do may rest.

        All of them rest until the same moments, so that they are attempted together then, however
        they were woken meanwhile.
        """
        if self.state == "polling":
            return 0.0
        left = REST - trio.current_time() % REST
        return left if left >= 1 else left + REST

    async def serve(self, wake: Callable[[Names], None], report: Report) -> None:
        """Wake tasks until cancelled, if changes are listened for."""
        if self.conninfo is None:
            return
        listener = Listener(self.database, self.conninfo, wake, report)
        self.listeners.add(listener)
        try:
            await listener.run()
        finally:
            self.listeners.discard(listener)


class Listener:
    """Listens on a connection of its own, and on a new one when that is lost.

    Args:
        database: Where the changes are made.
        conninfo: Where to listen; not through a pooler that shares connections.
        wake: Told of the tasks to wake, None for all of them.
        report: Told once when nothing is heard any more.
    """

    def __init__(
        self, database: Database, conninfo: str, wake: Callable[[Names], None], report: Report
    ) -> None:
        self._database = database
        self._conninfo = conninfo
        self._wake = wake
        self._report = report
        self._failures = 0
        self._freed: set[str] = set()
        self._woken_at = -PAUSE
        self.is_live = False

    async def run(self) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    await self._listen()
                except (psycopg.Error, PlantonError) as error:
                    if self._failures == 0:
                        # Beside this: whoever is told may take as long as he likes.
                        nursery.start_soon(self._report, self._told(error))
                await trio.sleep(full_jitter(self._failures, maximum=LONGEST_PAUSE))
                self._failures += 1

    def _told(self, error: Exception) -> StorageError:
        database = name_of(self._conninfo)
        if isinstance(error, psycopg.Error):
            error = to_storage_error(database, error)
        problem = f"nothing wakes its tasks, which are polled until that is mended: {error}"
        told = StorageError(database, problem)
        told.__cause__ = error
        return told

    async def _listen(self) -> None:
        """Listen until the connection is lost."""
        ((channel,),) = await self._database.rows(WAKE["channel"])
        connection = await TrioConnection.connect(
            self._conninfo, connect_timeout=self._database.connect_timeout
        )
        try:
            await self._begin(connection, channel)
            # What was changed while nobody listened.
            self.is_live, self._failures = True, 0
            self._wake(None)
            while True:
                await self._hear(connection, channel)
        finally:
            self.is_live = False
            await connection.close()  # noqa: ASYNC102  no checkpoint

    async def _begin(self, connection: Connection, channel: str) -> None:
        """Listen, and find out whether what is sent by others arrives."""
        statement = psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel))
        with patiently("LISTEN", name_of(self._conninfo)):
            await connection.execute(statement)
        test = json.dumps(["test", [secrets.token_hex(8)]])
        await self._database.rows(WAKE["notify"], {"channel": channel, "payload": test})
        with trio.move_on_after(PATIENCE):
            while (await connection.next_notify()).payload != test:
                pass
            return
        raise StorageError(
            name_of(self._conninfo),
            "what is sent does not arrive where it is listened for: it must be the same database, "
            "and no pooler in transaction mode; give listen_dsn=, or wake_ups=False",
        )

    async def _hear(self, connection: Connection, channel: str) -> None:
        """Wait for a notification, or for the time to do something else."""
        with trio.move_on_after(max(0.0, self._freed_in()) if self._freed else SILENCE):
            notify = await connection.next_notify()
            if notify.pid not in self._database.pids:  # else they were woken when it was done
                self._take(*heard(notify.payload))
            return
        if self._freed:
            self._wake_freed()
        else:
            with patiently("a test of the wake-ups", name_of(self._conninfo)):
                test = {"channel": channel, "payload": json.dumps(["test", []])}
                await fetch(connection, WAKE["notify"], test)

    def _take(self, kind: str, names: Names) -> None:
        if kind == "test":
            return
        if kind == "slot" and names is not None:
            self._freed.update(names)
            if self._freed_in() <= 0:
                self._wake_freed()
        else:
            self._wake(names)

    def _freed_in(self) -> float:
        return self._woken_at + PAUSE - trio.current_time()

    def _wake_freed(self) -> None:
        self._woken_at = trio.current_time()
        names, self._freed = self._freed, set()
        self._wake(names)


@contextmanager
def patiently(what: str, database: str) -> Iterator[None]:
    """Give the block some seconds.

    Raises:
        StorageError: If it takes longer.
    """
    with trio.move_on_after(PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise StorageError(database, f"{what} was not answered within {PATIENCE:g} seconds")
