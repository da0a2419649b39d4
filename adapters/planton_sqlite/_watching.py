"""Whom to wake: the Plantons that this process runs on a database, and what its watch finds."""

import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import attrs
import trio

from planton import Planton, StorageError, UnknownTaskError, delays
from planton_sqlite._open import to_storage_error
from planton_sqlite._rules import Rules
from planton_sqlite._watch import Watch
from planton_sqlite._watch_due import Due, Finder

# Differences below this are those of two clocks, not of two times.
TOLERANCE = 0.01
_restart_delay = delays.exponential(initial=1.0, maximum=60.0, jitter="equal")

# Of all storages of this process, by file: one that is told of an end wakes the tasks of another.
_served: dict[str, set["Served"]] = defaultdict(set)
_lock = threading.Lock()


@attrs.frozen(eq=False)
class Served:
    """A Planton that runs, perhaps on another thread than whoever wakes it."""

    planton: Planton
    token: trio.lowlevel.TrioToken

    def wake(self, task_names: Iterable[str]) -> None:
        """Wake those of the tasks that it has."""
        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self.token:
            self._wake(task_names)
        else:
            self.soon(self._wake, task_names)

    def soon(self, function: object, *arguments: object) -> None:
        """Call `function` on its thread."""
        try:
            self.token.run_sync_soon(function, *arguments)  # type: ignore[arg-type]
        except trio.RunFinishedError:
            pass  # its run is over: nothing is left to wake

    def _wake(self, task_names: Iterable[str]) -> None:
        for name in task_names:
            try:
                self.planton.wake(name)
            except UnknownTaskError:
                pass  # a task of another Planton

    def hear(self, due: Due) -> None:
        """Wake whose turn it is, and those who would look too late; on its thread."""
        status = {task.name: task for task in self.planton.status()}
        # One that fails waits for its delay: a busy file must not make it a hot loop.
        self._wake(
            name for name in due.now if name in status and not status[name].consecutive_errors
        )
        now = datetime.now(UTC)
        for name, seconds in due.later.items():
            planned = status[name].next_attempt_at if name in status else now
            # One that attempts now may have looked before the change.
            if planned is None or (planned - now).total_seconds() > seconds + TOLERANCE:
                self._wake([name])


class WakeUps:
    """The wake-ups of one storage.

    Args:
        path: The database.
        rules: Of the storage's tasks; tasks may be added.
        is_wanted: Whether there is a watch; what this process does wakes in any case.
    """

    def __init__(self, path: str, rules: Rules, *, is_wanted: bool) -> None:
        self._path = os.path.realpath(path)
        self._rules = rules
        self._is_wanted = is_wanted
        self._live: set[Watch] = set()

    @property
    def state(self) -> Literal["live", "polling"]:
        """Whether a change of another process wakes tasks."""
        return "live" if self._live else "polling"

    def is_live(self) -> bool:
        return bool(self._live)

    def wake(self, task_names: Iterable[str]) -> None:
        """Wake tasks in this process, of this and of other storages on the same file."""
        names = list(task_names)
        with _lock:
            served = list(_served.get(self._path, ()))
        for one in served:
            one.wake(names)

    async def serve(
        self, planton: Planton, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wake the tasks of a Planton until cancelled; started when nothing is missed any more."""
        served = Served(planton, trio.lowlevel.current_trio_token())
        with _lock:
            _served[self._path].add(served)
        ready = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_for_ever, served, ready)
                await ready.wait()
                task_status.started()
        finally:
            with _lock:
                _served[self._path].discard(served)

    async def _watch_for_ever(self, served: Served, ready: trio.Event) -> None:
        failures = 0
        while self._is_wanted:
            begun = trio.current_time()
            error = await self._watch(served, ready)
            served.wake(self._rules.by_name())  # they rested because all would be told of
            await served.planton.report(error)
            ready.set()
            failures = 0 if trio.current_time() - begun > 60 else failures + 1
            await trio.sleep(_restart_delay(failures))
        ready.set()
        await trio.sleep_forever()

    async def _watch(self, served: Served, ready: trio.Event) -> StorageError:
        """Watch until cancelled, or until it cannot be done any more."""
        finder = Finder(self._rules)

        def find(connection: sqlite3.Connection) -> None:
            due = finder.find(connection)
            if due.now or due.later:
                served.soon(served.hear, due)

        def on_ready() -> None:
            self._live.add(watch)
            if ready.is_set():
                # It is back: what happened meanwhile is found now.
                served.wake(self._rules.by_name())
            served.soon(ready.set)

        watch = Watch(self._path, find, on_ready)
        try:
            await _on_a_thread(watch)
        except sqlite3.Error as error:
            return to_storage_error(self._path, error)
        except StorageError as error:
            return error
        finally:
            self._live.discard(watch)
        raise AssertionError("a watch ends by an error or by a cancellation")


async def _on_a_thread(watch: Watch) -> None:
    """Run a watch; it is stopped by a cancellation, and waited for."""
    failure: list[Exception] = []

    async def stop_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            watch.stop()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_cancelled)
        try:
            await trio.to_thread.run_sync(watch.run, limiter=trio.CapacityLimiter(1))
        except (sqlite3.Error, StorageError) as error:
            failure.append(error)
        nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
    await trio.lowlevel.checkpoint_if_cancelled()
