"""One piece of work on its way: waiting, running, ending. No I/O."""

import math
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs
import trio

from planton import CallbackTimeoutError, InstructionEvent, PlantonError
from planton.storage import failure_of, leaves, to_count, to_error_text, to_flag, to_json, to_number
from planton_executor._errors import GiveUp, LostLeaseError, StateError, TryAgain
from planton_executor._events import AdvancedEvent, FailedEvent, Reason, SucceededEvent, Work

# The lease of an instruction ends with its time, and a report that comes later is refused. So its
# handler is stopped so many seconds before, or a tenth of the time if that is less.
MARGIN = 1.0
# A lease that nobody told of: that of a task that was given none.
USUAL_LEASE = 60.0
# Of a lease: the part in which a claim is taken to be ours; then it is renewed.
FRESH = 1 / 3

Kind: TypeAlias = Literal["complete", "fail", "advance", "postpone", "release"]
RetryDelay: TypeAlias = float | Callable[[int], float]


def _to_timeout(value: Any) -> float | None:
    return None if value is None else to_number("timeout", value, above=0)


def _to_retries(value: Any) -> int:
    return to_count("retries", value)


def _to_retry_delay(value: Any) -> RetryDelay:
    return value if callable(value) else to_number("retry_delay", value)


def _to_lower_priority(value: Any) -> bool:
    return to_flag("lower_priority", value)


@attrs.frozen(kw_only=True)
class Terms:
    """On what terms work is tried; see `Executor.handler`."""

    timeout: float | None = attrs.field(default=None, converter=_to_timeout)
    retries: int = attrs.field(default=0, converter=_to_retries)
    retry_delay: RetryDelay = attrs.field(default=0.0, converter=_to_retry_delay)
    lower_priority: bool = attrs.field(default=False, converter=_to_lower_priority)

    def retry_in(self, tries: int) -> float:
        """Return the seconds until the next try, after so many."""
        if not callable(self.retry_delay):
            return self.retry_delay
        return to_number("retry_delay", self.retry_delay(tries - 1))


@attrs.frozen(eq=False)
class End:
    """What is to be stored of a claim: a `planton.storage.Report`, and what it is about."""

    kind: Kind
    values: tuple[Any, ...] = ()
    about: Any = None


RELEASE = End("release")
_DONE = End("complete", (None,))


class Run:
    """A claim that was submitted.

    A plain class with defaults on the class: one is made for every instruction, and most of its
    attributes are never set. Times are those of trio's clock, but for those of the watchdog.

    Attributes:
        timeout: Seconds that the instruction itself allows since `claimed_at`; None for no limit.
        fresh_until: Until when the claim is taken to be ours.
        beat_at: When its lease is to be renewed.
        renewed_at: When it was last renewed, and `tried_at`: begun to be, by `time.monotonic`.
        is_at_risk: Whether it was told that the lease is at risk.
        is_foreign: Whether the event came from elsewhere, and has yet to be taken over.
        scope: Cancelled to break it off; None before a worker has it.
        broken_off: Why it was broken off.
        tries: How often it was begun, this time included.
        is_storing: Whether something is being stored, which is not broken off.
        thread_ended: Set when the thread of a sync handler has ended; None while there is none.
        end: What is to be stored; None if nothing is.
        stored: Set by the answer of the storage, if a trio task waits for it.
        answer: That answer: whether the claim was ours, or why it cannot be stored; None before.
        refusals: How often the storage refused it, last when it had done `refused_at` other things.
        event_type: The type of the event that tells of the end; None for what was given back.
    """

    tried_at = began_at = duration = 0.0
    is_at_risk = is_storing = has_result = False
    scope: trio.CancelScope | None = None
    broken_off: Literal["lost", "stopped"] | None = None
    terms = Terms()
    result: Any = None
    error: Exception | None = None
    reason: Reason = "error"
    retry_in: float | None = None
    thread_ended: trio.Event | None = None
    end: End | None = None
    stored: trio.Event | None = None
    answer: bool | Exception | None = None
    refusals, refused_at = 0, -1
    event_type: type[Any] | None = None

    def __init__(self, event: InstructionEvent, receipt: str) -> None:
        self.work = Work.of(event, receipt)
        self.receipt = receipt
        self.timeout = event.timeout
        self.lease = min(event.lease or USUAL_LEASE, event.timeout or math.inf)
        self.is_foreign = event.is_foreign
        if event.claimed_at is None:  # it may be old
            self.claimed_at = self.fresh_until = self.beat_at = trio.current_time()
        else:
            self.claimed_at = event.claimed_at
            self.fresh_until = self.beat_at = self.claimed_at + self.lease * FRESH
        self.renewed_at = time.monotonic()
        self.tries = event.delivery

    # On its way

    def break_off(self, reason: Literal["lost", "stopped"]) -> None:
        """Cancel the handler; what is being stored is not broken off, and its answer counts."""
        if not self.is_storing:
            self.broken_off = self.broken_off or reason
            self.work.is_cancelled = True
            if self.scope is not None:
                self.scope.cancel()

    def begin(self, terms: Terms, tries: int) -> None:
        """Begin with something that has these terms, and a time limit of its own."""
        assert self.scope is not None, "a worker has it"
        self.terms, self.tries = terms, tries
        if terms.timeout is not None or self.timeout is not None:
            self.scope.deadline = self._deadline(trio.current_time())

    def _deadline(self, now: float) -> float:
        deadline = math.inf if self.terms.timeout is None else now + self.terms.timeout
        if self.timeout is None:
            return deadline
        return min(deadline, self.claimed_at + max(self.timeout - MARGIN, self.timeout * 0.9))

    def renewed(self, at: float) -> None:
        """Note that its lease was renewed, at a time of `time.monotonic`."""
        self.renewed_at, self.is_at_risk = at, False
        self.fresh_until = self.beat_at = trio.current_time() + self.lease * FRESH

    def fail(self, error: Exception) -> None:
        """Note what went wrong; what was only broken off is as if it had been stopped."""
        if isinstance(error, PlantonError) and not error.is_failure:
            self.broken_off = self.broken_off or "stopped"
            return
        self.error = error
        self.reason = "state" if isinstance(error, StateError) else "error"

    # Its end

    def decide(self) -> None:
        """Decide what is to be stored, and break nothing off from now on."""
        self.is_storing = True
        if self.broken_off == "lost":
            self.note_loss()
        elif self.error is not None:
            self.end = self._failed(self.error)
        elif self.has_result:
            self.end = self._completed()
        elif self.broken_off is None:
            self.end = self._timed_out()
        elif self.thread_ended is None:
            self.end = RELEASE
        # Else a thread is still at it and may yet do the work: its lease shall run out first.
        if self.end is not None and self.error is None:
            self.event_type = _EVENT_TYPES[self.end.kind]

    def note_loss(self) -> None:
        self.error = LostLeaseError(self.work.task_name, self.work.instruction)
        self.reason, self.retry_in, self.end = "lost", None, None
        self.event_type = FailedEvent

    def refuse_result(self, error: Exception) -> End:
        """Return how it ends if its result cannot be stored."""
        problem = f"the handler of task {self.work.task_name!r} is done, but its result cannot be"
        failure = PlantonError(f"{problem} stored: {to_error_text(error)}")
        failure.__cause__ = error
        self.error, self.reason = failure, "result"
        return self._failed(failure)

    def _completed(self) -> End:
        result = self.result
        if result is None:
            return _DONE
        if isinstance(result, End):
            return result
        try:
            return End("complete", (to_json("result", result),), result)
        except BaseException as raised:  # noqa: ASYNC103  a class of the user's may raise anything
            return self.refuse_result(failure_of(raised))  # noqa: ASYNC104

    def _timed_out(self) -> End:
        self.work.is_cancelled = True
        limits = [each for each in (self.terms.timeout, self.timeout) if each is not None]
        error = CallbackTimeoutError(self.work.task_name, "the handler", min(limits, default=None))
        self.error, self.reason = error, "timeout"
        return self._failed(error)

    def _failed(self, error: Exception) -> End:
        self.event_type = FailedEvent
        text, terms = _to_text(error), self.terms
        is_hopeless = self.reason in ("result", "state") or _gives_up(error)
        self.retry_in = None if is_hopeless else 0.0
        if not is_hopeless:
            try:
                if isinstance(error, TryAgain):
                    self.retry_in = error.after
                else:
                    self.retry_in = terms.retry_in(self.tries)
            except BaseException as raised:  # noqa: ASYNC103  raised again if it is no failure
                text += f" (and its retry_delay raised {to_error_text(failure_of(raised))})"
        delay = self.retry_in or 0.0
        values = (text, delay, not is_hopeless, terms.lower_priority, terms.retries)
        return End("fail", values, error)

    def to_event(self) -> SucceededEvent | FailedEvent | AdvancedEvent:
        if self.error is not None:
            return FailedEvent(
                work=self.work,
                error=self.error,
                reason=self.reason,
                duration=self.duration,
                retry_in=self.retry_in,
            )
        if self.end is not None and self.end.kind == "postpone":
            return AdvancedEvent(work=self.work, state=self.end.about, run_in=self.end.values[-1])
        return SucceededEvent(work=self.work, result=self.result, duration=self.duration)


_EVENT_TYPES = {"complete": SucceededEvent, "postpone": AdvancedEvent, "release": None}


def _gives_up(error: Exception) -> bool:
    """Return whether a `GiveUp` was raised, perhaps in a nursery."""
    return any(isinstance(each, GiveUp) for each in leaves(error))


def _to_text(error: Exception) -> str:
    text = to_error_text(error)
    return text.removeprefix("GiveUp: ") if type(error) is GiveUp else text
