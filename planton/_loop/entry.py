"""One registered task at run time: its counters, its callbacks, and what it still holds."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
import trio

from planton._errors import InvalidTaskError
from planton._loop.callbacks import Ask, Callback, ThreadCall
from planton._status import OVERDUE_AFTER, Decisions, State, TaskStatus, WakeUps, wall_time
from planton._task import Claim, GetActiveInstructions, Task, to_seconds


def _schedule(entry: "Entry") -> Callback:
    return Callback.of("schedule", entry.task.schedule)


def _fixed_concurrency(entry: "Entry") -> int | None:
    return None if callable(entry.task.concurrency) else entry.task.concurrency


def _timeout(entry: "Entry") -> float | None:
    return to_seconds(entry.task.timeout)


@attrs.define(eq=False)
class Entry:
    """A registered task with its state.

    Attributes:
        task: What the user wrote down.
        get_active: The task's callback for active instructions, or the Planton-wide one.
        ask_active: The question what is active; not asked if there is no callback for it.
        is_counted: Whether every attempt asks what is active; a strict task counts for itself.
        is_concurrency_asked: Whether the concurrency is a function, read at every attempt.
        is_limit_asked: Whether there is a function for the limit or for the capacity.
        fixed_delay: Seconds to sleep before every attempt; None if there is a function for it.
        is_batched: Whether it may be asked together with other tasks.
        attempt_number: Attempts in a row that dispatched nothing.
        kept: Claims that were neither delivered nor released; they are delivered before
            `schedule` is called again.
        late: Calls by callback name that outlived their timeout and still run in their thread.
        in_hand: Whether an attempt is being made.
        ended: Set when the attempt in hand has ended.
        woken: Whether a wake-up arrived during the attempt in hand.
        paused: Whether no attempts are to be made.
        leaving: Whether the task was unregistered.
        flyer: Trio task that makes the attempt in hand, while it makes no other.
        cut_off: Whether `schedule` was cancelled because the grace period was over.
        due: When the attempt that is waited for, or in hand, was due (trio's clock); infinity while
            none is planned: before services have started, paused, in the drain.
    """

    task: Task
    get_active: Callback | None
    schedule: Callback = attrs.field(init=False, default=attrs.Factory(_schedule, takes_self=True))
    timeout: float | None = attrs.field(
        init=False, default=attrs.Factory(_timeout, takes_self=True)
    )
    ask_active: Ask = attrs.field(init=False)
    is_counted: bool = attrs.field(init=False)
    is_concurrency_asked: bool = attrs.field(init=False)
    is_limit_asked: bool = attrs.field(init=False)
    is_batched: bool = attrs.field(init=False)
    fixed_delay: float | None = attrs.field(init=False)
    attempt_number: int = 0
    kept: list[Claim] = attrs.field(factory=list)
    late: dict[str, ThreadCall] = attrs.field(factory=dict)
    in_hand: bool = False
    ended: trio.Event | None = None
    woken: bool = False
    paused: bool = False
    leaving: bool = False
    flyer: trio.lowlevel.Task | None = None
    cut_off: bool = False
    due: float = math.inf
    last_attempt_at: float | None = None
    active: int | None = None
    concurrency: int | None = attrs.field(
        init=False, default=attrs.Factory(_fixed_concurrency, takes_self=True)
    )
    last_error: str | None = None
    consecutive_errors: int = 0
    decisions: Decisions = attrs.field(factory=Decisions)

    def __attrs_post_init__(self) -> None:
        # Looked at in every attempt, so found out once.
        task = self.task
        self.ask_active = Ask(self.get_active or self.schedule, task.name)
        self.is_counted = task.cap == "advisory"
        self.is_concurrency_asked = callable(task.concurrency)
        self.is_limit_asked = (task.limit or task.capacity) is not None
        self.fixed_delay = None if callable(task.delay) else to_seconds(task.delay)
        active = self.get_active.many if self.get_active and self.is_counted else None
        self.is_batched = (self.schedule.many or active) is not None

    @classmethod
    def of(cls, task: Task, get_active: GetActiveInstructions | None) -> "Entry":
        """Make the entry for `task`.

        Raises:
            InvalidTaskError: If the cap is advisory and nothing tells what is active.
        """
        function = task.get_active_instructions or get_active
        if function is None and task.cap == "advisory":
            remedy = "give it, or give it to Planton for all tasks, or set cap='strict'"
            raise InvalidTaskError(
                "get_active_instructions", None, f"task {task.name!r} cannot be counted: {remedy}"
            )
        callback = None if function is None else Callback.of("get_active_instructions", function)
        return cls(task, callback)

    def keep(self, claims: Sequence[Claim]) -> None:
        """Hold on to claims that could not be handed over yet."""
        self.kept.extend(claims)

    def note_error(self, error: Exception) -> None:
        # The text, not the exception: that would keep its frames and all their data alive.
        self.last_error = f"{type(error).__name__}: {error}"

    def count_error(self, error: Exception) -> None:
        """Count an error that made no attempt fail: one more in a row all the same."""
        self.attempt_number += 1
        self.consecutive_errors += 1
        self.note_error(error)

    def let_go(self) -> None:
        """Say that no attempt is in hand, to whoever waits for that."""
        self.in_hand = False
        self.flyer = None
        self.due = math.inf
        if self.ended is not None:
            self.ended.set()
            self.ended = None

    async def wait_until_free(self) -> None:
        """Wait until no attempt is in hand."""
        while self.in_hand:
            self.ended = self.ended or trio.Event()
            await self.ended.wait()

    def status(self, *, running: bool) -> TaskStatus:
        state = self._state(running)
        return TaskStatus(
            name=self.task.name,
            state=state,
            attempt_number=self.attempt_number,
            last_attempt_at=_datetime(self.last_attempt_at),
            next_attempt_at=self._next_attempt_at() if state == "waiting" else None,
            active=self.active,
            concurrency=self.concurrency,
            cap=self.task.cap,
            last_error=self.last_error,
            consecutive_errors=self.consecutive_errors,
            overdue=state in ("waiting", "attempting")
            and trio.current_time() > self.due + OVERDUE_AFTER,
            wake_ups=self._wake_ups(),
            decisions=self.decisions.news,
        )

    def _next_attempt_at(self) -> datetime | None:
        return None if self.due == math.inf else wall_time(self.due)

    def _wake_ups(self) -> WakeUps | None:
        found = getattr(self.task.schedule, "wake_ups", None)
        return found if found in ("live", "polling") else None

    def _state(self, running: bool) -> State:
        if self.in_hand:
            return "attempting"
        if not running:
            return "stopped"
        return "paused" if self.paused else "waiting"


def _datetime(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
