"""Notices what other processes commit: the cheapest way, `PRAGMA data_version` now and then.

Asked on the connection that writes here, it changes only with the commits of other connections.
Looking every 20 ms costs 0.3 % of a core (benchmarks/sqlite_wake.py) and finds a commit 10 ms later
on average. What the kernel tells of the -wal file comes before the commit can be seen; watching
that took ten times the code.
"""

import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs
import trio

from planton import StorageError
from planton.storage import ClaimRequest, Watcher
from planton_sqlite._claim import Claim

INTERVAL = 0.02
# Asking which tasks may have something takes at most this share of a core, however busy the file.
SHARE = 0.05
# Times that differ by less are equal.
_TOLERANCE = 0.01


class Idler(Protocol):
    """Calls work on the connection's thread when there is nothing else to do."""

    def when_idle(
        self, work: Callable[[sqlite3.Connection], None] | None, interval: float = 0.0
    ) -> None: ...


@attrs.define
class _Seen:
    """What was seen of a task at the last look.

    Attributes:
        active: How many were active.
        changes: What the triggers of `wake_on_change` have counted.
        due_at: When something is due.
    """

    active: int
    changes: int
    due_at: float


class _Look:
    """Looks, on the connection's thread, which tasks may have something to claim."""

    def __init__(
        self,
        watcher: Watcher,
        now: Callable[[sqlite3.Connection], Callable[[], float]],
        token: trio.lowlevel.TrioToken,
        fail: Callable[[sqlite3.Error], None],
    ) -> None:
        self._watcher, self._now, self._token, self._fail = watcher, now, token, fail
        self._version = -1
        self._rest_until = 0.0
        self._seen: dict[str, _Seen] = {}

    def __call__(self, connection: sqlite3.Connection) -> None:
        began = time.monotonic()
        if began < self._rest_until:
            return
        try:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return
            names = set(self._find(connection))
        except sqlite3.Error as error:
            self._tell(self._fail, error)
            return
        self._version = version
        self._rest_until = time.monotonic() + (time.monotonic() - began) / SHARE
        if names:
            self._tell(self._watcher.changed, names)

    def _find(self, connection: sqlite3.Connection) -> Iterator[str]:
        for request in self._watcher.requests():
            if self._has_changed(connection, request):
                yield request.rule.task_name

    def _has_changed(self, connection: sqlite3.Connection, request: ClaimRequest) -> bool:
        now = self._now(connection)
        claim = Claim(connection, request, now)
        found = claim.look()
        if claim.is_paused:
            return False
        name, before = request.rule.task_name, self._seen.get(request.rule.task_name)
        wait = math.inf if found is None or found.due_in is None else found.due_in
        seen = self._seen[name] = _Seen(claim.active, claim.changes, now() + wait)
        if request.rule.statement is None:
            is_sooner = before is not None and seen.due_at < before.due_at - _TOLERANCE
            return found is None or is_sooner
        # What the user's table holds is not known: a slot was freed, or a trigger has counted.
        return before is not None and (seen.active < before.active or seen.changes > before.changes)

    def _tell(self, function: Callable[[Any], None], argument: object) -> None:
        try:
            self._token.run_sync_soon(function, argument)
        except trio.RunFinishedError:
            pass  # nobody waits any more


async def watch(
    idler: Idler,
    watcher: Watcher,
    now: Callable[[sqlite3.Connection], Callable[[], float]],
    database: str,
    task_status: "trio.TaskStatus[None]",
) -> None:
    """Tell `watcher` of what other processes commit, until cancelled.

    Raises:
        StorageError: If the database cannot be read.
    """
    failed = trio.Event()
    errors: list[sqlite3.Error] = []

    def fail(error: sqlite3.Error) -> None:
        errors.append(error)
        failed.set()

    look = _Look(watcher, now, trio.lowlevel.current_trio_token(), fail)
    idler.when_idle(look, INTERVAL)
    try:
        watcher.is_live(is_live=True)
        task_status.started()
        await failed.wait()
    finally:
        idler.when_idle(None)
    raise StorageError(database, str(errors[0])) from errors[0]
