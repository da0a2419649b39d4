"""One piece of work on its way: waiting, running, ending."""

import inspect
import math
from typing import Any

import attrs
import trio

from planton import CallbackTimeoutError, InstructionEvent, InvalidArgumentError, PlantonError
from planton.abc import FailureReport, to_json
from planton_executor._ends import Complete, End, Fail, Release
from planton_executor._errors import GiveUp, LostLeaseError, NoHandlerError
from planton_executor._events import Reason
from planton_executor._handlers import Handler
from planton_executor._work import Work


@attrs.define(eq=False)
class Run:
    """A claim that was submitted.

    Attributes:
        work: What the handler is called with.
        timeout: Seconds that the instruction itself allows.
        scope: Cancelled to break it off.
        is_lost: Whether the claim is no longer ours.
        is_stopped: Whether it was broken off because the executor ends.
        began_at: When its handler was called, by trio's clock.
        result: What the handler returned.
        error: What went wrong.
        reason: Where.
        thread_ended: Set when the thread of a sync handler has ended.
    """

    work: Work
    timeout: float | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_lost: bool = False
    is_stopped: bool = False
    is_ending: bool = False
    began_at: float = math.nan
    result: Any = None
    error: Exception | None = None
    reason: Reason = "error"
    thread_ended: trio.Event | None = None

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
        if not self.is_ending:
            self.is_lost = True
            self._break_off()

    def stop(self) -> None:
        """Break it off: the executor ends."""
        if not self.is_ending:
            self.is_stopped = True
            self._break_off()

    def _break_off(self) -> None:
        self.work.is_cancelled = True
        self.scope.cancel()

    async def call(self, handler: Handler, limiter: trio.CapacityLimiter) -> None:
        """Call the handler, and note what came of it; what it returned counts in any case."""
        self.began_at = trio.current_time()
        timeout = min(_or_never(handler.timeout), _or_never(self.timeout))
        try:
            with self.scope, trio.move_on_after(timeout) as limit:
                self.result = await self._call(handler, limiter)
                self.is_ending = True
        except Exception as error:
            self.error = error
        else:
            if not self.is_ending and limit.cancelled_caught:
                self.work.is_cancelled = True
                name = self.work.task_name
                self.error = CallbackTimeoutError(name, "the handler", timeout)
                self.reason = "timeout"
        self.is_ending = True

    async def _call(self, handler: Handler, limiter: trio.CapacityLimiter) -> Any:
        if handler.is_async:
            return await handler.function(self.work)
        value = await self._call_in_thread(handler, limiter)
        return await value if inspect.isawaitable(value) else value

    async def _call_in_thread(self, handler: Handler, limiter: trio.CapacityLimiter) -> Any:
        token = trio.lowlevel.current_trio_token()
        ended = self.thread_ended = trio.Event()

        def call() -> Any:
            try:
                return handler.function(self.work)
            finally:
                try:
                    token.run_sync_soon(ended.set)
                except trio.RunFinishedError:
                    pass  # nobody waits any more

        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)

    def end(self, handler: Handler | None, known: tuple[str, ...]) -> End | None:
        """Give what is to be stored; None if nothing is to be."""
        if self.is_lost:
            self._fail(LostLeaseError(self.work.task_name, self.work.instruction), "lost")
            return None
        if handler is None:
            self._fail(NoHandlerError(self.work.task_name, known), "no_handler")
        elif self.error is None and self.is_stopped:
            # A thread that is still at it may yet do the work: its lease shall run out first.
            return Release() if self.thread_ended is None else None
        elif self.error is None:
            end = self._completed()
            if end is not None:
                return end
        return self._failed(handler)

    def _completed(self) -> Complete | None:
        try:
            return Complete(self.result, to_json("result", self.result))
        except InvalidArgumentError as error:
            name = self.work.task_name
            self._fail(PlantonError(f"the handler of task {name!r} is done, but {error}"), "result")
            return None

    def _failed(self, handler: Handler | None) -> Fail:
        error = self.error
        assert error is not None
        is_hopeless = isinstance(error, GiveUp) or self.reason in ("result", "no_handler")
        text = str(error) if isinstance(error, GiveUp) else f"{type(error).__name__}: {error}"
        retry_in = 0.0
        if handler is not None and not is_hopeless:
            try:
                retry_in = handler.retry_in(self.work.delivery)
            except Exception as failure:
                text += f" (and its retry_delay raised {type(failure).__name__}: {failure})"
        return Fail(
            FailureReport(
                error=text,
                delay=retry_in,
                retry=not is_hopeless,
                lower_priority=handler is not None and handler.lower_priority,
                retries=0 if handler is None else handler.retries,
            )
        )

    def _fail(self, error: Exception, reason: Reason) -> None:
        self.error, self.reason = error, reason


def _or_never(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout
