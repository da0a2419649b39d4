"""What a handler is called with."""

from typing import Any

import attrs

from planton import InstructionEvent


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
