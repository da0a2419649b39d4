"""The tasks of a Planton, as users see them."""

import time
from collections.abc import Sequence

from planton._errors import InvalidArgumentError, PlantonError
from planton._loop.consumers import Takers
from planton._loop.entry import Entries, Entry
from planton._loop.log import log_change
from planton._loop.run import Session
from planton._loop.standing import status_of, verdict
from planton._status import TaskStatus
from planton._task import Task


class Registry:
    """The part of `Planton` that has to do with its tasks, running or not."""

    def __init__(self, entries: Entries, takers: Takers) -> None:
        self._entries = entries
        self._takers = takers
        self._session: Session | None = None

    @property
    def is_running(self) -> bool:
        """Whether it runs, from the beginning of its start to the end of its drain."""
        return self._live_session() is not None

    def register(self, task: Task) -> None:
        """Add a task, also while running; its first attempt follows after its delay.

        Raises:
            DuplicateTaskNameError: If its name is taken.
            InvalidTaskError: If it cannot be counted.
            InvalidArgumentError: If it is no `Task`, or two consumers take it.
        """
        if not isinstance(task, Task):
            raise InvalidArgumentError("task", task, "give a planton.Task")
        session = self._live_session()
        entry = self._entries.make(task)
        if session is not None:
            self._takers.check(task.name)
        self._entries.add(entry)
        if session is not None:
            session.admit(entry)

    def unregister(self, name: str) -> None:
        """Remove a task; an attempt that is being made is finished, what it claimed delivered.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        session = self._live_session()
        entry = self._entries.remove(name)
        if session is not None:
            session.dismiss(entry)

    def pause(self, name: str) -> None:
        """Make no more attempts for a task, in this process; one that is being made is finished.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entries.get(name)
        session = self._live_session()
        if not entry.paused:
            entry.paused = True
            entry.decisions.add("paused", "paused", time.time())
            log_change(name, "is paused in this process")
        if session is not None:
            session.plan.suspend(entry)

    def resume(self, name: str) -> None:
        """Attempt a paused task at once, and go on; a task that is not paused stays as it is.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entries.get(name)
        if entry.paused:
            entry.paused = False
            entry.decisions.add("resumed", "resumed", time.time())
            log_change(name, "is resumed in this process")
            self._wake(entry)

    def wake(self, name: str | None = None) -> None:
        """Attempt a task now instead of after its delay; all tasks when no name is given.

        A wake-up during an attempt is not lost: the next attempt follows at once. A paused task
        stays paused.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        by_name = self._entries.by_name
        for entry in list(by_name.values()) if name is None else [self._entries.get(name)]:
            self._wake(entry)

    def names(self) -> list[str]:
        """Return the names of all tasks, in the order of registration."""
        return list(self._entries.by_name)

    def status(self, names: Sequence[str] | None = None) -> list[TaskStatus]:
        """Return where tasks stand: all of them in the order of registration, or those of `names`.

        Raises:
            UnknownTaskError: If a name is that of no task.
        """
        by_name = self._entries.by_name
        entries = by_name.values() if names is None else map(self._entries.get, names)
        return [self._status(entry) for entry in entries]

    def explain(self, name: str) -> list[str]:
        """Return why a task dispatches, or does not: the verdict, then the last decisions.

        The first line says where the task stands now. The decisions follow, the newest last;
        equal ones that follow each other are one line with their number, and so are attempts that
        only looked in vain.

        Raises:
            UnknownTaskError: If there is no such task.
        """
        entry = self._entries.get(name)
        return [verdict(entry, self._status(entry)), *entry.decisions]

    def _status(self, entry: Entry) -> TaskStatus:
        return status_of(entry, self._takers, is_running=self.is_running)

    def _live_session(self) -> Session | None:
        """Return the run that there is in this process.

        Raises:
            PlantonError: If it is one of the process that this one was forked from.
        """
        if self._session is not None and self._session.is_forked:
            problem = "this Planton runs in the process that this one was forked from"
            raise PlantonError(f"{problem}: make one in this process, after the fork")
        return self._session

    def _wake(self, entry: Entry) -> None:
        session = self._live_session()
        if session is None:
            entry.woken = True
        else:
            session.plan.wake(entry)
