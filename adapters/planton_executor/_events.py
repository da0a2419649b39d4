"""What handlers are called with, and what listeners are."""

from typing import Any, Literal, TypeAlias

import attrs

from planton import ErrorEvent, InstructionEvent

Reason: TypeAlias = Literal["error", "timeout", "result", "state", "lost"]


@attrs.define(eq=False)
class Work:
    """One delivery of one instruction: what a handler is called with.

    Attributes:
        task_name: Task that claimed it.
        instruction: Tells which one unit of work to do.
        payload: Whatever came with it.
        delivery: How often it has been handed out, this time included; above 1 it may have been
            worked on before, in part or in full.
        receipt: Names the claim, for reports of your own to the storage; empty if the claim has
            none.
        is_cancelled: Whether the result is not wanted any more: the time is up, the claim was
            lost, or the executor's grace period is over. An async handler is cancelled then; a
            sync one cannot be, and should look here now and then. Safe from any thread.
    """

    task_name: str
    instruction: str
    payload: Any
    delivery: int
    receipt: str
    is_cancelled: bool = attrs.field(default=False, init=False)

    @classmethod
    def of(cls, event: InstructionEvent, receipt: str) -> "Work":
        """Make it from an event, as for a test of a handler."""
        return cls(event.task_name, event.instruction, event.payload, event.delivery, receipt)


@attrs.frozen(kw_only=True)
class StartedEvent:
    """A handler is about to be called.

    Attributes:
        work: What it is called with.
    """

    work: Work


@attrs.frozen(kw_only=True)
class SucceededEvent:
    """A handler returned, and that is stored.

    Attributes:
        work: What it was called with.
        result: What it returned.
        duration: Seconds that it took.
    """

    work: Work
    result: Any
    duration: float


@attrs.frozen(kw_only=True)
class FailedEvent:
    """Work failed, and that is stored, if the claim was not lost.

    Attributes:
        work: What the handler was called with.
        error: What it raised, or what was wrong. Of what is no `Exception`, such as SystemExit, a
            `PlantonError` whose cause it is.
        reason: `"error"` (the handler raised), `"timeout"`, `"result"` (it returned what is not
            JSON), `"state"` (of work in steps: the state fits no step, or a step did not say what
            comes next), or `"lost"` (the claim is another consumer's or nobody's: whatever the
            handler did, if it was called at all, nothing was stored).
        duration: Seconds that it took.
        retry_in: Seconds until the next try that was asked for; there is one if retries are left,
            which only the storage knows. None if none was asked for, so that there is none: after
            `GiveUp`, where another try would not help, and of a claim that was lost: another
            consumer may own it.
    """

    work: Work
    error: Exception
    reason: Reason
    duration: float
    retry_in: float | None = None


@attrs.frozen(kw_only=True)
class AdvancedEvent:
    """Work in steps has come to its next step, and that is stored.

    Attributes:
        work: What the handler was called with.
        state: Where it is now, as it is stored.
        run_in: Seconds until it goes on; None if it does so at once.
    """

    work: Work
    state: Any
    run_in: float | None


@attrs.frozen(kw_only=True)
class IdleEvent:
    """The last of what was to be done is done: nothing runs, nothing waits for a slot."""


@attrs.frozen(kw_only=True)
class LeaseAtRiskEvent:
    """Half of a lease has passed without a renewal: act, or the claim will be lost.

    Told once for a claim, until it is renewed. Listeners are plain functions and are called in a
    thread of the executor's own, as trio's may be the one that hangs.

    Attributes:
        work: Whose lease it is.
        expires_in: Seconds until it expires.
        is_blocked: Whether trio's loop has stood still all the time; else it is the storage that
            does not answer.
        stack: Where the thread of trio is, as text, if its loop is blocked.
    """

    work: Work
    expires_in: float
    is_blocked: bool
    stack: str


EVENT_TYPES: tuple[type[Any], ...] = (
    StartedEvent,
    SucceededEvent,
    FailedEvent,
    AdvancedEvent,
    IdleEvent,
    LeaseAtRiskEvent,
    ErrorEvent,
)
