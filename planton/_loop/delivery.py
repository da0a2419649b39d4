"""From the claim to the consumer: hand over, release, or keep; nothing is dropped.

Claims are in exactly one place at any time: still to be delivered or released (the attempt),
with a consumer, with the storage again, or kept by the entry. A cancellation moves what is in
the attempt to the entry, where the end of the run finds it.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import attrs

from planton._errors import PlantonError, UndeliveredInstructionsError
from planton._events import ErrorEvent, InstructionEvent
from planton._failures import failure_of, guarded
from planton._listeners import Listener, call_listener
from planton._loop.attempt import Attempt
from planton._loop.caller import Caller
from planton._loop.entry import Callback, Entry
from planton._loop.listeners import Listeners
from planton._loop.plan import Plan
from planton._parts import Consumer
from planton._task import Claim, to_claim
from planton._text import short_repr


@attrs.frozen
class Delivery:
    """Settles what an attempt claimed."""

    plan: Plan
    listeners: Listeners
    caller: Caller

    async def settle(self, attempt: Attempt) -> None:
        try:
            await self._deliver(attempt)
            await self._release(attempt)
        finally:
            attempt.keep_undelivered()
        for stage, error in attempt.errors:
            await self.listeners.report(
                ErrorEvent(task_name=attempt.entry.task.name, error=error, stage=stage)
            )

    async def release(self, entry: Entry, claims: Sequence[Claim]) -> None:
        """Release claims; keep them if they cannot be released."""
        attempt = Attempt(entry, 0.0)
        attempt.surplus = claims
        await self.settle(attempt)

    async def _deliver(self, attempt: Attempt) -> None:
        if not attempt.deliver:
            return
        consumer = None if attempt.slots is None else attempt.slots.consumer
        listeners = self.listeners.of(InstructionEvent)
        if consumer is None and not listeners:
            _refuse_all(attempt, "no consumer takes them, and nothing listens to InstructionEvent")
        elif attempt.entry.task.release is None:
            # No one takes back what consumers leave, so they have until the very end.
            await _hand_over(attempt, consumer, listeners)
        else:
            with self.plan.handover() as scope:
                await _hand_over(attempt, consumer, listeners)
            if scope.cancelled_caught and attempt.deliver:
                _refuse_all(attempt, "consumers did not take them before the stop")
        attempt.outcome = "dispatched" if attempt.handed_over else "error"

    async def _release(self, attempt: Attempt) -> None:
        release = attempt.entry.task.release
        if release is None or not attempt.surplus:
            return
        try:
            claims = tuple(attempt.surplus)
            with guarded:
                await self.caller.call(attempt.entry, Callback.of("release", release), claims)
            attempt.surplus = ()
        except Exception as error:
            attempt.note("release", error)


def _refuse_all(attempt: Attempt, problem: str) -> None:
    is_released = attempt.entry.task.release is not None
    ending = "released" if is_released else "kept for the next attempt"
    names = [to_claim(member).instruction for member in attempt.deliver]
    error = UndeliveredInstructionsError(
        attempt.entry.task.name, names, f"{problem}; {ending}", released=is_released
    )
    attempt.note("deliver", error)
    attempt.withhold()


async def _hand_over(
    attempt: Attempt, consumer: Consumer | None, listeners: Sequence[Listener]
) -> None:
    """Give every claim to the consumer and to all listeners, in order.

    A claim leaves the attempt once the consumer has it or, without one, all listeners know.
    """
    if hasattr(consumer, "submit_many"):
        await _hand_over_together(attempt, consumer, listeners)
        return
    name = attempt.entry.task.name
    done = refused = 0
    try:
        for member in attempt.deliver:
            event = InstructionEvent.of(name, member)
            refusal = None
            if consumer is not None:
                refused += not await _submit(attempt, consumer, event, member)
                done += 1
            for listener in listeners:
                try:
                    # As `call_listener` does, without calls in between.
                    result = listener(event)
                    if result is not None and inspect.isawaitable(result):
                        await result
                except BaseException as raised:  # noqa: ASYNC103  ours is raised again
                    refusal = failure_of(raised)
                    attempt.note("deliver", refusal)
            if consumer is None:
                if refusal is not None:
                    refused += 1
                    _take_back(attempt, member, refusal)
                done += 1
    finally:
        attempt.deliver = attempt.deliver[done:]
        attempt.handed_over += done - refused


async def _submit(
    attempt: Attempt, consumer: Consumer, event: InstructionEvent, member: str | Claim
) -> bool:
    """Hand an instruction to the consumer of its task; return whether it has taken it."""
    try:
        with guarded:
            await consumer.submit(event)
    except Exception as error:
        attempt.note("deliver", error)
        attempt.surplus = [*attempt.surplus, to_claim(member)]
        return False
    finally:
        attempt.reserve_only(attempt.reserved - 1)
    return True


async def _hand_over_together(
    attempt: Attempt, consumer: Any, listeners: Sequence[Listener]
) -> None:
    """Give all claims to a consumer in one call, and then to all listeners."""
    members = attempt.deliver
    events = [InstructionEvent.of(attempt.entry.task.name, member) for member in members]
    refusals = await _submit_many(consumer, events)
    attempt.deliver = ()
    attempt.reserve_only(0)
    errors = {id(error): error for error in refusals if error is not None}
    refused = [member for member, error in zip(members, refusals, strict=True) if error is not None]
    attempt.surplus = [*attempt.surplus, *map(to_claim, refused)]
    attempt.handed_over += len(members) - len(refused)
    for error in errors.values():
        attempt.note("deliver", error)
    for event in events:
        for listener in listeners:
            try:
                await call_listener(listener, event)
            except Exception as error:
                attempt.note("deliver", error)


async def _submit_many(
    consumer: Any, events: Sequence[InstructionEvent]
) -> Sequence[Exception | None]:
    """Return why each instruction was not taken; None for each that was."""
    try:
        with guarded:
            answers = list(await consumer.submit_many(events))
        if len(answers) == len(events):
            return [None if answer is None else failure_of(answer) for answer in answers]
        problem = f"it answered {len(answers)} times to {len(events)} instructions"
        raise PlantonError(f"{short_repr(consumer)}.submit_many: {problem}")
    except Exception as error:
        return [error] * len(events)


def _take_back(attempt: Attempt, member: str | Claim, refusal: Exception) -> None:
    """Release what a listener refused; without `release`, keep it if it was surely not taken."""
    is_not_taken = isinstance(refusal, UndeliveredInstructionsError)
    if attempt.entry.task.release is not None or is_not_taken:
        attempt.surplus = [*attempt.surplus, to_claim(member)]
