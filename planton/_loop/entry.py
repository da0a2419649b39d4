"""The registered tasks at run time: their counters, callbacks, and what they still hold."""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import Any

import attrs
import trio

from planton import delays
from planton._errors import DuplicateTaskNameError, InvalidTaskError, UnknownTaskError
from planton._events import Stage
from planton._functions import is_async
from planton._loop.reason import Reason
from planton._status import Decisions
from planton._task import Claim, GetActiveInstructions, Task, to_seconds
from planton._text import describe

_NEXT = object()  # holds a turn that was given to whoever waited for it, until that one runs


class Turn:
    """Whose attempt it is: one at a time for a task's name, first come, first served."""

    def __init__(self) -> None:
        self.holder: object | None = None
        self.trio_task: trio.lowlevel.Task | None = None
        self._waiting: trio.lowlevel.ParkingLot | None = None

    @property
    def is_awaited(self) -> bool:
        return bool(self._waiting)

    def try_take(self, holder: object) -> bool:
        """Begin an attempt if none is being made; return whether none was."""
        is_free = self.holder is None
        if is_free:
            self.holder = holder
        return is_free

    async def take(self, holder: object) -> None:
        """Wait until no attempt is being made, and begin one."""
        if self.holder is not None:
            if self._waiting is None:
                self._waiting = trio.lowlevel.ParkingLot()
            await self._waiting.park()
        self.holder = holder

    def give_back(self) -> None:
        """End the attempt: the turn goes straight to the first that waits for it."""
        self.trio_task = None
        is_awaited = self._waiting is not None and bool(self._waiting.unpark())
        self.holder = _NEXT if is_awaited else None


@attrs.frozen(eq=False)
class Callback:
    """A user's function with what has to be known to call it; `name` is its field of the task."""

    name: Stage
    function: Callable[..., Any]
    is_async: bool
    many: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]] | None

    @classmethod
    def of(cls, name: Stage, function: Callable[..., Any]) -> "Callback":
        many = getattr(function, "many", None)
        return cls(name, function, is_async(function), many if callable(many) else None)


@attrs.define(eq=False)
class Entry:
    """A registered task with its state.

    Attributes:
        turn: Shared by all entries that ever had the name.
        number: Of those that are due together the lowest is first.
        counter: Callback for what is active; `schedule` in its place is not asked for it.
        is_counted: Whether every attempt asks what is active; a strict task counts for itself.
        is_computed: Whether functions of the task say how many may be claimed.
        is_batched: Whether one of its callbacks may be asked together with those of other tasks.
        fixed_delay: Seconds to sleep before every attempt; None if there is a function for it.
        is_delay_quick: Whether the delay is known without calling a function of the user's.
        undelivered: Claims that were neither delivered nor released; they are delivered before
            `schedule` is called again.
        overrunning: By callback name when a call that outlived its timeout, and still runs in its
            thread, is done.
        woken: Whether a wake-up arrived while the next attempt could not be planned.
        is_schedule_cut_off: Whether `schedule` was cancelled because the grace period was over.
        early_attempts: Attempts in a row that came earlier than the delay and dispatched nothing.
        locked_attempts: Attempts in a row that found the lock taken.
        due: When the attempt that is waited for, or being made, was due (trio's clock); infinity
            while none is planned: before services have started, paused, in the drain.
        last_attempt_at: When the last attempt ended (Unix time).
        concurrency: Most active instructions, as last read from the task.
        concurrency_in_force: That of the source if it overrides the task's.
        lease: Of the last claim that was delivered.
        saturated_since: Since when all attempts found the task saturated (trio's clock).
        is_source_paused: Whether the source said that the task is paused there.
        failing_since: When the first of the errors in a row ended (Unix time).
    """

    task: Task
    schedule: Callback
    get_active: Callback | None
    turn: Turn
    number: int
    timeout: float | None = attrs.field(init=False)
    counter: Callback = attrs.field(init=False)
    is_counted: bool = attrs.field(init=False)
    is_computed: bool = attrs.field(init=False)
    is_batched: bool = attrs.field(init=False)
    fixed_delay: float | None = attrs.field(init=False)
    is_delay_quick: bool = attrs.field(init=False)
    attempt_number: int = 0
    undelivered: Sequence[Claim] = ()
    overrunning: Mapping[Stage, trio.Event] = MappingProxyType({})
    woken: bool = False
    paused: bool = False
    unregistered: bool = False
    is_schedule_cut_off: bool = False
    early_attempts: int = 0
    locked_attempts: int = 0
    due: float = math.inf
    last_attempt_at: float | None = None
    active: int | None = None
    concurrency: int | None = None
    concurrency_in_force: int | None = None
    lease: float | None = None
    saturated_since: float | None = None
    is_source_paused: bool = False
    last_error: str | None = None
    consecutive_errors: int = 0
    failing_since: float = 0.0
    decisions: Decisions = attrs.field(factory=Decisions)
    last_reason: Reason | None = None

    def __attrs_post_init__(self) -> None:
        # Looked at in every attempt, so found out once.
        task = self.task
        self.timeout = to_seconds(task.timeout)
        self.counter = self.get_active or self.schedule
        self.is_counted = task.cap == "advisory"
        if not callable(task.concurrency):
            self.concurrency = task.concurrency
        self.is_computed = callable(task.concurrency) or (task.limit or task.capacity) is not None
        self.fixed_delay = None if callable(task.delay) else to_seconds(task.delay)
        self.is_delay_quick = not callable(task.delay) or isinstance(task.delay, delays.Pure)
        active = self.get_active.many if self.get_active and self.is_counted else None
        # In a lock of its own a task claims by itself.
        self.is_batched = (self.schedule.many or active) is not None and task.lock is None

    @property
    def has_to_count(self) -> bool:
        return self.is_counted or (bool(self.undelivered) and self.get_active is not None)

    @property
    def is_overridden(self) -> bool:
        """Whether the source said something else than the task, when it was asked last."""
        return self.concurrency_in_force is not None or self.is_source_paused

    @property
    def is_attempting(self) -> bool:
        return self.turn.holder is not None

    def keep(self, claims: Sequence[Claim]) -> None:
        self.undelivered = (*self.undelivered, *claims)

    def note_error(self, error: Exception) -> None:
        # The text, not the exception: that would keep its frames and all their data alive.
        self.last_error = describe(error)

    def count_error(self, error: Exception) -> None:
        """Count an error that made no attempt fail: one more in a row all the same."""
        self.attempt_number += 1
        self.consecutive_errors += 1
        self.note_error(error)

    def end_attempt(self) -> None:
        """End the attempt; whoever waits for the turn begins the next."""
        self.due = math.inf
        self.turn.give_back()


class Entries:
    """Entries by name, in the order of registration."""

    def __init__(self, get_active: GetActiveInstructions | None = None) -> None:
        self.by_name: dict[str, Entry] = {}
        self._leaving: list[Entry] = []
        self._get_active = get_active
        self._numbers = count()
        self._callbacks: dict[Stage, Callback] = {}

    @classmethod
    def only(cls, entries: Iterable[Entry]) -> "Entries":
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
        try:
            return self.by_name[name]
        except (KeyError, TypeError):
            raise UnknownTaskError(name, list(self.by_name)) from None

    def make(self, task: Task) -> Entry:
        """Return an entry for `task`, which is not added yet."""
        if task.name in self.by_name:
            raise DuplicateTaskNameError(task.name)
        function = task.get_active_instructions or self._get_active
        if function is None and task.cap == "advisory":
            remedy = "give it, or give it to Planton for all tasks, or set cap='strict'"
            raise InvalidTaskError(
                "get_active_instructions", None, f"task {task.name!r} cannot be counted: {remedy}"
            )
        get_active = function and self._callback("get_active_instructions", function)
        turns = [entry.turn for entry in self.leaving if entry.task.name == task.name]
        schedule = self._callback("schedule", task.schedule)
        return Entry(task, schedule, get_active, turns[0] if turns else Turn(), next(self._numbers))

    def _callback(self, name: Stage, function: Callable[..., Any]) -> Callback:
        """Return a callback; tasks that are made one after the other and share it have one."""
        callback = self._callbacks.get(name)
        if callback is None or callback.function is not function:
            callback = self._callbacks[name] = Callback.of(name, function)
        return callback

    def add(self, entry: Entry) -> None:
        self.by_name[entry.task.name] = entry

    def remove(self, name: str) -> Entry:
        """Unregister the task of a name; what it still holds is delivered all the same."""
        entry = self.get(name)
        del self.by_name[name]
        entry.unregistered = True
        self._leaving = [*self.leaving, entry]
        return entry
