"""One piece of work on its way: waiting, running, ending. No I/O."""

import math
import time
from typing import Any

import trio

from planton import CallbackTimeoutError, InstructionEvent, InvalidArgumentError, PlantonError
from planton.storage import to_json
from planton_executor import _failures
from planton_executor._ends import Advance, Complete, End, Fail, Release
from planton_executor._errors import LostLeaseError, StateError
from planton_executor._events import AdvancedEvent, FailedEvent, Reason, SucceededEvent
from planton_executor._terms import Terms
from planton_executor._work import Work

# The lease of an instruction ends with its time, and a report that comes later is refused. So its
# handler is stopped so many seconds before, or a tenth of the time if that is less.
MARGIN = 1.0
# A lease that nobody told of: that of a task that was given none.
USUAL_LEASE = 60.0
# Of a lease: how long after its renewal the next one is due.
RENEWED_AFTER = 1 / 3
_NO_TERMS = Terms()
_DONE = Complete()


class Run:
    """A claim that was submitted.

    A plain class with defaults on the class: one is made for every instruction, and most of its
    attributes are never set.

    Attributes:
        work: What the handler is called with.
        receipt: Names the claim.
        lease: Seconds that the claim lasts without a heartbeat.
        timeout: Seconds that the instruction itself allows; None for no limit.
        claimed_at: Since when these count, by trio's clock.
        beat_at: When the lease is to be renewed, by trio's clock.
        renewed_at: When it was last renewed at the latest, by `time.monotonic`.
        tried_at: When a renewal was last begun, by the same clock.
        is_at_risk: Whether it was told that the lease is at risk.
        is_foreign: Whether the event came from another process and is to be taken over.
        terms: On what terms it is tried.
        tries: How often that was tried, this time included.
        is_started: Whether it has a slot.
        scope: Cancelled to break it off; None before a worker has taken it.
        is_lost: Whether the claim is no longer ours.
        is_broken_off: Whether its scope was cancelled, because it was lost or stopped.
        is_timed: Whether its scope has a deadline.
        is_leaving: Whether it should end as soon as it can, because the executor ends.
        is_stopped: Whether it was broken off because the executor ends.
        is_decided: Whether its end is known.
        is_storing: Whether something is being stored, which is not broken off.
        has_result: Whether the handler returned.
        began_at: When a worker began with it, by trio's clock.
        duration: Seconds that the handler took.
        result: What the handler returned.
        error: What went wrong.
        reason: Where.
        retry_in: Seconds until the next try that is asked for; None if none is.
        thread_ended: Set when the thread of a sync handler has ended; None while there is none.
        end: What is to be stored.
        refusals: How often the storage refused that, though it has done other things since.
        refused_after: How many other things the storage had done when it last refused that.
        stored: Set by the answer of the storage, if a trio task waits for it.
        answer: That answer: whether the claim was ours, or why it cannot be stored; None before.
    """

    tried_at = 0.0
    is_at_risk = False
    terms = _NO_TERMS
    is_started = False
    scope: trio.CancelScope | None = None
    is_lost = False
    is_broken_off = False
    is_timed = False
    is_leaving = False
    is_stopped = False
    is_decided = False
    is_storing = False
    has_result = False
    began_at = 0.0
    duration = 0.0
    result: Any = None
    error: BaseException | None = None
    reason: Reason = "error"
    retry_in: float | None = None
    thread_ended: trio.Event | None = None
    end: End | None = None
    refusals = 0
    refused_after = -1
    stored: trio.Event | None = None
    answer: bool | Exception | None = None

    def __init__(self, event: InstructionEvent, receipt: str, now: float) -> None:
        self.work = Work(event.task_name, event.instruction, event.payload, event.delivery, receipt)
        self.receipt = receipt
        self.timeout = event.timeout
        self.lease = min(event.lease or USUAL_LEASE, event.timeout or math.inf)
        self.is_foreign = getattr(event, "is_foreign", False)
        claimed_at = getattr(event, "claimed_at", now)
        self.claimed_at = now if claimed_at is None else claimed_at
        # Nobody knows how old it is: it is looked at before its handler is called.
        self.beat_at = now if claimed_at is None else claimed_at + self.lease * RENEWED_AFTER
        self.renewed_at = time.monotonic()
        self.tries = event.delivery

    def lose(self) -> None:
        """Break it off: the claim is another consumer's, or nobody's.

        What is being stored is not broken off: its own answer says whether the claim was lost.
        """
        if not self.is_storing:
            self.is_lost = True
            self._break_off()

    def stop(self) -> None:
        """Break it off: the executor ends."""
        self.is_leaving = self.is_stopped = True
        if not self.is_storing:
            self._break_off()

    def _break_off(self) -> None:
        self.is_broken_off = self.work.is_cancelled = True
        if self.scope is not None:
            self.scope.cancel()

    def begin(self, terms: Terms, tries: int) -> None:
        """Begin with something that has these terms, and a time limit of its own."""
        self.terms, self.tries = terms, tries
        is_timed = terms.timeout is not None or self.timeout is not None
        if self.scope is not None and (is_timed or self.is_timed):
            self.scope.deadline = self._deadline(trio.current_time())
            self.is_timed = True

    def _deadline(self, now: float) -> float:
        deadline = math.inf if self.terms.timeout is None else now + self.terms.timeout
        if self.timeout is None:
            return deadline
        return min(deadline, self.claimed_at + max(self.timeout - MARGIN, self.timeout * 0.9))

    def returned(self, result: Any) -> None:
        """Note what the handler returned; it counts, whatever happens from now on."""
        self.result, self.has_result = result, True

    def fail(self, error: BaseException, reason: Reason | None = None) -> None:
        """Note what went wrong."""
        self.error = error
        self.reason = reason or ("state" if isinstance(error, StateError) else "error")

    def note_loss(self) -> None:
        """Count it as lost, whatever the handler did."""
        self.retry_in = None
        self.fail(LostLeaseError(self.work.task_name, self.work.instruction), "lost")

    def decide(self) -> End | None:
        """Return what is to be stored; None if nothing is to be."""
        self.is_decided = self.is_storing = True
        if self.is_lost:
            self.note_loss()
        elif self.error is None and not (self.has_result or self.is_stopped):
            self._time_out()
        self.end = self._end()
        return self.end

    def _end(self) -> End | None:
        if self.is_lost:
            return None
        if self.error is None and self.has_result:
            return self._completed()
        if self.error is None:
            # A thread that is still at it may yet do the work: its lease shall run out first.
            return Release() if self.thread_ended is None else None
        return self._failed(self.error)

    def _time_out(self) -> None:
        self.work.is_cancelled = True
        limits = [each for each in (self.terms.timeout, self.timeout) if each is not None]
        seconds = min(limits, default=None)
        self.fail(CallbackTimeoutError(self.work.task_name, "the handler", seconds), "timeout")

    def _completed(self) -> End:
        result = self.result
        if result is None:
            return _DONE
        if isinstance(result, Advance | Release):
            return result
        try:
            return Complete(result, to_json("result", result))
        except BaseException as error:  # a class of the user's may raise anything
            if _failures.is_ours(error):
                raise
            return self.refuse_result(error)

    def refuse_result(self, error: BaseException) -> Fail:
        """End it as failed, since its result cannot be stored."""
        problem = f"the handler of task {self.work.task_name!r} is done, but its result cannot be"
        failure = PlantonError(f"{problem} stored: {_failures.to_text(error)}")
        failure.__cause__ = error
        self.fail(failure, "result")
        return self._failed(failure)

    def _failed(self, error: BaseException) -> Fail:
        text = _failures.to_text(error)
        is_hopeless = self.reason in ("result", "state") or _failures.gives_up(error)
        self.retry_in = None if is_hopeless else 0.0
        if not is_hopeless:
            try:
                self.retry_in = self.terms.retry_in(self.tries)
            except BaseException as failure:
                if _failures.is_ours(failure):
                    raise
                text = _failures.with_note(error, "its retry_delay", failure)
        return Fail(
            error=error,
            text=text,
            retry_in=self.retry_in,
            retries=self.terms.retries,
            lower_priority=self.terms.lower_priority,
        )

    @property
    def event_type(self) -> type[Any] | None:
        """The type of the event that tells of the end; None for what was given back."""
        return FailedEvent if self.error is not None else _EVENT_TYPES[type(self.end)]

    def to_event(self) -> SucceededEvent | FailedEvent | AdvancedEvent:
        """Return the event that tells of the end."""
        if self.error is not None:
            return FailedEvent(
                work=self.work,
                error=self.error,
                reason=self.reason,
                duration=self.duration,
                retry_in=self.retry_in,
            )
        if isinstance(self.end, Advance):
            return AdvancedEvent(work=self.work, state=self.end.state, run_in=self.end.run_in)
        return SucceededEvent(work=self.work, result=self.result, duration=self.duration)


_EVENT_TYPES: dict[type[Any], type[Any] | None] = {
    Complete: SucceededEvent,
    Advance: AdvancedEvent,
    Release: None,
    type(None): None,
}


def to_receipt(event: InstructionEvent) -> str:
    """Return the receipt of an event, which must have one."""
    if event.receipt is None:
        remedy = "the task's schedule must give claims with a receipt, as storages do"
        raise InvalidArgumentError("event.receipt", None, remedy)
    return event.receipt
