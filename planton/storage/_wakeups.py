"""Waking the tasks of this process, whichever storage object learns of a change."""

import threading
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING

import attrs
import trio

from planton._errors import UnknownTaskError

if TYPE_CHECKING:
    from planton._planton import Planton


@attrs.frozen(eq=False)
class Served:
    """A Planton that runs, perhaps on another thread than whoever wakes it."""

    planton: "Planton"
    token: trio.lowlevel.TrioToken

    def wake(self, task_names: Collection[str]) -> None:
        """Wake those of the tasks that it has; from any thread."""
        if trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self.token:
            self._wake(task_names)
            return
        try:
            self.token.run_sync_soon(self._wake, task_names)
        except trio.RunFinishedError:
            pass  # its run is over: nothing is left to wake

    def _wake(self, task_names: Iterable[str]) -> None:
        for name in task_names:
            try:
                self.planton.wake(name)
            except UnknownTaskError:
                pass  # a task of another Planton


# All Plantons of this process by the database whose tables they use: an end that one storage
# reports wakes the tasks that another one claims for.
_served: dict[Hashable, list[Served]] = defaultdict(list)
_lock = threading.Lock()


def serve(identity: Hashable, served: Served) -> None:
    with _lock:
        _served[identity].append(served)


def stop_serving(identity: Hashable, served: Served) -> None:
    with _lock:
        _served[identity].remove(served)
        if not _served[identity]:
            del _served[identity]


def wake(identity: Hashable, task_names: Collection[str]) -> None:
    """Wake tasks in all Plantons of this process that use the tables of `identity`."""
    with _lock:
        everyone = list(_served.get(identity, ()))
    for one in everyone:
        one.wake(task_names)
