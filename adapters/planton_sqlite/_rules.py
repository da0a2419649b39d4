"""The rules of all tasks that a storage has made, as long as somebody has the task."""

import weakref
from collections import defaultdict

from planton_sqlite._claim import ClaimRule


class Book(dict[str, ClaimRule]):
    """The rules of tasks that share a schedule, and so are claimed for together, by name."""


class Rules:
    """All of them; another thread may look while tasks are made.

    A task of a name that another one has or had - it was unregistered, or belongs to another
    Planton - begins a book of its own: each task is claimed for by the rule that it was made with.
    """

    def __init__(self) -> None:
        # Replaced, never changed: whoever looks has all of one moment.
        self._books: tuple[weakref.ref[Book], ...] = ()

    def new_book(self) -> Book:
        """Begin a book, which lasts as long as the schedule that has it."""
        book = Book()
        left = [reference for reference in self._books if reference() is not None]
        self._books = (*left, weakref.ref(book))
        return book

    def by_name(self) -> dict[str, list[ClaimRule]]:
        """Give the rules of each name."""
        found = defaultdict(list)
        for reference in self._books:
            for name, rule in (reference() or Book()).copy().items():
                found[name].append(rule)
        return found
