"""Notices what other processes commit: the cheapest way, `PRAGMA data_version` now and then.

Asked on the connection that writes here, it changes only with the commits of other connections.
Looking every 20 ms costs 0.3 % of a core (benchmarks/sqlite_wake.py) and finds a commit 10 ms later
on average. What the kernel tells of the -wal file comes before the commit can be seen; watching
that took ten times the code.
"""

import math
import sqlite3
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import attrs
import trio

from planton.storage import Claimed, ClaimRequest, Rule, Watcher
from planton_sqlite._claim import Claim
from planton_sqlite._owner import Owner

INTERVAL = 0.02
# Asking which tasks may have something takes at most this share of a core, however busy the file.
SHARE = 0.05
# Times that differ by less are equal.
_TOLERANCE = 0.01


@attrs.frozen
class _Sight:
    """How a task looked."""

    is_paused: bool
    slots: int  # that were free, of those that the concurrency allows
    changes: int  # that its triggers had counted
    due_at: float


class Sights:
    """How the tasks of this process looked at their last claims, or when they were woken.

    Used by the connection's thread alone.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: WeakKeyDictionary[Rule, _Sight] = WeakKeyDictionary()

    def note(self, rule: Rule, claim: Claim, answer: Claimed | None) -> None:
        """Note what a claim of this process has seen and left."""
        wait = math.inf if answer is None or answer.due_in is None else answer.due_in
        slots = claim.concurrency - claim.held
        self._seen[rule] = _Sight(claim.is_paused, slots, claim.changes, self._clock() + wait)

    def has_changed(self, rule: Rule, claim: Claim, answer: Claimed | None) -> bool:
        """Tell whether there may be more for a task than it has seen; that is seen then."""
        before = self._seen.get(rule)
        self.note(rule, claim, answer)
        now = self._seen[rule]
        if now.is_paused or before is None or before.is_paused:
            return not now.is_paused
        if rule.statement is None:
            return answer is None or now.due_at < before.due_at - _TOLERANCE
        # What the user's table holds is not known: a slot was freed, or a trigger has counted.
        return now.slots > before.slots or now.changes > before.changes


async def watch(
    owner: Owner,
    watcher: Watcher,
    look: Callable[[sqlite3.Connection, ClaimRequest], bool],
    task_status: "trio.TaskStatus[None]",
) -> None:
    """Tell `watcher` of what other processes commit, until cancelled.

    `look` tells whether there may be more for a task than it has seen.
    """
    failed = trio.Event()
    looking = _Look(owner, watcher, look, trio.lowlevel.current_trio_token(), failed)
    owner.when_idle(looking, INTERVAL)
    try:
        watcher.is_live(is_live=True)
        task_status.started()
        await failed.wait()
    finally:
        owner.when_idle(None)
    assert looking.error is not None, "it is why it has failed"
    raise looking.error


@attrs.define(eq=False)
class _Look:
    """Looks, on the connection's thread, which tasks may have something to claim."""

    _owner: Owner
    _watcher: Watcher
    _look: Callable[[sqlite3.Connection, ClaimRequest], bool]
    _token: trio.lowlevel.TrioToken
    _failed: trio.Event
    error: Exception | None = None
    _version: int = -1
    _rest_until: float = 0.0

    def __call__(self) -> None:
        began = time.monotonic()
        if began < self._rest_until:
            return
        try:
            names = self._owner.done(self._changed, is_write=False).unwrap()
        except Exception as error:
            self.error = error
            self._token.run_sync_soon(self._failed.set)
            return
        self._rest_until = time.monotonic() + (time.monotonic() - began) / SHARE
        if names:
            self._token.run_sync_soon(self._watcher.changed, names)

    def _changed(self, connection: sqlite3.Connection) -> set[str]:
        """Return the tasks that may have more than they have seen, if anything was committed."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return set()
        requests = self._watcher.requests()
        names = {each.rule.task_name for each in requests if self._look(connection, each)}
        self._version = version
        return names
