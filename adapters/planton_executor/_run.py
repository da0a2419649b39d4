"""One piece of work on its way: waiting, running, ending."""

import math
from typing import Any

import attrs
import trio

from planton import CallbackTimeoutError, InstructionEvent, InvalidArgumentError, PlantonError
from planton.storage import FailureReport, to_json
from planton_executor._ends import Advance, Complete, End, Fail, Release
from planton_executor._errors import GiveUp, LostLeaseError, NoHandlerError, StateError
from planton_executor._events import Reason
from planton_executor._handlers import Handler, Terms
from planton_executor._work import Work

# The lease of an instruction ends with its time: whoever is late is told that it was lost. So its
# handler is stopped so many seconds before, or a tenth of the time if that is less.
MARGIN = 1.0
# What another try would not help.
_HOPELESS = ("result", "no_handler", "state")


@attrs.define(eq=False)
class Run:
    """A claim that was submitted.

    Attributes:
        work: What the handler is called with.
        timeout: Seconds that the instruction itself allows.
        terms: On what terms it is tried.
        tries: How often that was tried, this time included.
        scope: Cancelled to break it off; its deadline is when the time is up.
        is_lost: Whether the claim is no longer ours.
        is_leaving: Whether it should end as soon as it can, because the executor ends.
        is_stopped: Whether it was broken off because the executor ends.
        is_storing: Whether something is being stored, which is not broken off.
        has_result: Whether the handler returned.
        began_at: When its handler was called, by trio's clock.
        result: What the handler returned.
        error: What went wrong.
        reason: Where.
        retry_in: Seconds until the next try that is asked for; None if none is.
        thread_ended: Set when the thread of a sync handler has ended; None while there is none.
    """

    work: Work
    timeout: float | None = None
    terms: Terms = attrs.field(factory=Terms)
    tries: int = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_lost: bool = False
    is_leaving: bool = False
    is_stopped: bool = False
    is_storing: bool = False
    has_result: bool = False
    began_at: float = math.nan
    result: Any = None
    error: Exception | None = None
    reason: Reason = "error"
    retry_in: float | None = None
    thread_ended: trio.Event | None = None

    def __attrs_post_init__(self) -> None:
        self.tries = self.work.delivery

    @classmethod
    def of(cls, event: InstructionEvent) -> "Run":
        """Make it for an event, which must have a receipt."""
        if event.receipt is None:
            remedy = "the task's schedule must give claims with a receipt, as storages do"
            raise InvalidArgumentError("event.receipt", None, remedy)
        return cls(Work.of(event, event.receipt), event.timeout)

    @property
    def duration(self) -> float:
        """Seconds since it began; 0 if it has not."""
        return 0.0 if math.isnan(self.began_at) else trio.current_time() - self.began_at

    def lose(self) -> None:
        """Break it off: the claim is somebody else's. What is being stored tells for itself."""
        if not self.is_storing:
            self.is_lost = True
            self._break_off()

    def stop(self) -> None:
        """Break it off: the executor ends."""
        self.is_leaving = self.is_stopped = True
        if not self.is_storing:
            self._break_off()

    def _break_off(self) -> None:
        self.work.is_cancelled = True
        self.scope.cancel()

    async def call(self, handler: Handler, limiter: trio.CapacityLimiter) -> None:
        """Call the handler, and note what came of it; what it returned counts in any case."""
        self.began_at = trio.current_time()
        self.begin(handler.terms, self.tries)
        try:
            with self.scope:
                self.result = await handler.call(self, limiter)
                self.has_result = True
        except Exception as error:
            if isinstance(error, PlantonError) and not error.is_failure:
                self.is_stopped = True
            else:
                self.error = error
        else:
            if not (self.has_result or self.is_lost or self.is_stopped):
                self._time_out()
        self.is_storing = True

    def begin(self, terms: Terms, tries: int) -> None:
        """Begin with something that has these terms, and a time limit of its own."""
        self.terms, self.tries = terms, tries
        allowed = self._time_allowed()
        if allowed < math.inf or self.scope.deadline < math.inf:
            self.scope.deadline = trio.current_time() + allowed

    def _time_allowed(self) -> float:
        return min(_or_never(self.terms.timeout), _in_time(self.timeout))

    def _time_out(self) -> None:
        self.work.is_cancelled = True
        name = self.work.task_name
        seconds = min(_or_never(self.terms.timeout), _or_never(self.timeout))
        self._fail(CallbackTimeoutError(name, "the handler", seconds), "timeout")

    def end(self, handler: Handler | None, known: tuple[str, ...]) -> End | None:
        """Give what is to be stored; None if nothing is to be."""
        if self.is_lost:
            self.note_loss()
            return None
        if handler is None:
            self._fail(NoHandlerError(self.work.task_name, known), "no_handler")
        elif self.error is None and not self.has_result:
            # A thread that is still at it may yet do the work: its lease shall run out first.
            return Release() if self.thread_ended is None else None
        elif self.error is None:
            end = self._completed()
            if end is not None:
                return end
        return self._failed()

    def note_loss(self) -> None:
        """Count it as lost, whatever the handler did."""
        self.retry_in = None
        self._fail(LostLeaseError(self.work.task_name, self.work.instruction), "lost")

    def _completed(self) -> End | None:
        if isinstance(self.result, Advance | Release):
            return self.result
        try:
            return Complete(self.result, to_json("result", self.result))
        except InvalidArgumentError as error:
            name = self.work.task_name
            self._fail(PlantonError(f"the handler of task {name!r} is done, but {error}"), "result")
            return None

    def _failed(self) -> Fail:
        error = self.error
        assert error is not None
        if isinstance(error, StateError):
            self.reason = "state"
        is_hopeless = isinstance(error, GiveUp) or self.reason in _HOPELESS
        text = str(error) if isinstance(error, GiveUp) else f"{type(error).__name__}: {error}"
        retry_in = 0.0
        if not is_hopeless:
            try:
                retry_in = self.terms.retry_in(self.tries)
            except Exception as failure:
                text += f" (and its retry_delay raised {type(failure).__name__}: {failure})"
        self.retry_in = None if is_hopeless else retry_in
        return Fail(
            FailureReport(
                error=text,
                delay=retry_in,
                retry=not is_hopeless,
                lower_priority=self.terms.lower_priority,
                retries=self.terms.retries,
            )
        )

    def _fail(self, error: Exception, reason: Reason) -> None:
        self.error, self.reason = error, reason


def _or_never(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout


def _in_time(timeout: float | None) -> float:
    """Give the time that an instruction allows, less what it takes to tell before it is taken."""
    return math.inf if timeout is None else max(timeout - MARGIN, timeout * 0.9)
