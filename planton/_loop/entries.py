"""The registered tasks of a Planton, and those that left claims behind."""

from collections.abc import Iterator
from itertools import count
from weakref import WeakValueDictionary

from planton._errors import DuplicateTaskNameError, UnknownTaskError
from planton._loop.entry import Entry, Turn
from planton._task import GetActiveInstructions, Task


class Entries:
    """Entries by name, in the order of registration.

    Attributes:
        by_name: Those that are registered.
    """

    def __init__(self, get_active: GetActiveInstructions | None = None) -> None:
        self.by_name: dict[str, Entry] = {}
        self._leaving: list[Entry] = []
        self._get_active = get_active
        self._numbers = count()
        self._turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()

    @classmethod
    def only(cls, *entries: Entry) -> "Entries":
        """Return some entries by themselves."""
        some = cls()
        some.by_name = {entry.task.name: entry for entry in entries}
        return some

    def __iter__(self) -> Iterator[Entry]:
        """All of them, with those that were unregistered and still hold something."""
        return iter([*self.by_name.values(), *self._leaving])

    @property
    def leaving(self) -> list[Entry]:
        """Those that were unregistered and still hold something."""
        return [entry for entry in self._leaving if entry.is_attempting or entry.undelivered]

    def get(self, name: str) -> Entry:
        """Return the entry of a name.

        Raises:
            UnknownTaskError: If there is none.
        """
        try:
            return self.by_name[name]
        except (KeyError, TypeError):
            raise UnknownTaskError(name, list(self.by_name)) from None

    def make(self, task: Task) -> Entry:
        """Return an entry for `task`, which is not added yet.

        Raises:
            DuplicateTaskNameError: If its name is taken.
            InvalidTaskError: If it cannot be counted.
        """
        if task.name in self.by_name:
            raise DuplicateTaskNameError(task.name)
        turn = self._turns.setdefault(task.name, Turn())
        return Entry.of(task, self._get_active, turn, next(self._numbers))

    def add(self, entry: Entry) -> None:
        """Register an entry."""
        self.by_name[entry.task.name] = entry

    def remove(self, name: str) -> Entry:
        """Unregister the task of a name; what it still holds is delivered all the same."""
        entry = self.get(name)
        del self.by_name[name]
        entry.unregistered = True
        self._leaving = [*self.leaving, entry]
        return entry
