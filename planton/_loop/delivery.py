"""From the claim to the consumer: hand over, release, or keep; nothing is dropped.

Claims are in exactly one place at any time: still to be delivered or released (the attempt),
with a consumer, with the storage again, or kept by the entry. A cancellation moves what is in
the attempt to the entry, where the end of the run finds it.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from planton._errors import PlantonError, UndeliveredInstructionsError
from planton._events import ErrorEvent, InstructionEvent
from planton._failures import failure_of, guarded
from planton._listeners import Listener, call_listener
from planton._loop.attempt import Attempt
from planton._loop.caller import Caller
from planton._loop.entry import Callback, Entry
from planton._parts import Consumer
from planton._task import Claim, to_claim
from planton._text import short_repr


async def settle(caller: Caller, attempt: Attempt) -> None:
    """Hand over what an attempt claimed, release what has to be, and report its errors."""
    try:
        await _deliver(caller, attempt)
        await _release(caller, attempt)
    finally:
        attempt.keep_undelivered()
    for stage, error in attempt.errors:
        event = ErrorEvent(task_name=attempt.entry.task.name, error=error, stage=stage)
        await caller.listeners.report(event)


async def release(caller: Caller, entry: Entry, claims: Sequence[Claim]) -> None:
    """Release claims; keep them if they cannot be released."""
    attempt = Attempt(entry, 0.0)
    attempt.surplus = claims
    await settle(caller, attempt)


async def _deliver(caller: Caller, attempt: Attempt) -> None:
    if not attempt.deliver:
        return
    consumer = None if attempt.slots is None else attempt.slots.consumer
    listeners = caller.listeners.of(InstructionEvent)
    if consumer is None and not listeners:
        _refuse_all(attempt, "no consumer takes them, and nothing listens to InstructionEvent")
    elif attempt.entry.task.release is None:
        # No one takes back what consumers leave, so they have until the very end.
        await _hand_over(attempt, consumer, listeners)
    else:
        with caller.plan.handover() as scope:
            await _hand_over(attempt, consumer, listeners)
        if scope.cancelled_caught and attempt.deliver:
            _refuse_all(attempt, "consumers did not take them before the stop")
    attempt.outcome = "dispatched" if attempt.handed_over else "error"


async def _release(caller: Caller, attempt: Attempt) -> None:
    release = attempt.entry.task.release
    if release is None or not attempt.surplus:
        return
    try:
        claims = tuple(attempt.surplus)
        with guarded:
            await caller.call(attempt.entry, Callback.of("release", release), claims)
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
    """Give every claim to the consumer and to all listeners, in order."""
    if consumer is None:
        await _tell_all(attempt, listeners)
        return
    name = attempt.entry.task.name
    events = [InstructionEvent.of(name, member) for member in attempt.deliver]
    if hasattr(consumer, "submit_many"):
        _leave(attempt, await _submit_many(consumer, events))
    for event in events:
        if attempt.deliver:
            _leave(attempt, [await _submit(consumer, event)])
        for listener in listeners:
            try:
                await call_listener(listener, event)
            except Exception as error:
                attempt.note("deliver", error)


async def _submit(consumer: Consumer, event: InstructionEvent) -> Exception | None:
    """Return why an instruction was not taken; None if it was."""
    try:
        with guarded:
            await consumer.submit(event)
    except Exception as error:
        return error
    return None


async def _submit_many(
    consumer: Any, events: Sequence[InstructionEvent]
) -> Sequence[Exception | None]:
    try:
        with guarded:
            answers = list(await consumer.submit_many(events))
        if len(answers) == len(events):
            return [None if answer is None else failure_of(answer) for answer in answers]
        problem = f"it answered {len(answers)} times to {len(events)} instructions"
        raise PlantonError(f"{short_repr(consumer)}.submit_many: {problem}")
    except Exception as error:
        return [error] * len(events)


def _leave(attempt: Attempt, refusals: Sequence[Exception | None]) -> None:
    """Let the first claims leave the attempt: the consumer has them, or has refused them."""
    count = len(refusals)
    members, attempt.deliver = attempt.deliver[:count], attempt.deliver[count:]
    attempt.reserve_only(len(attempt.deliver))
    errors = {id(error): error for error in refusals if error is not None}
    refused = [member for member, error in zip(members, refusals, strict=True) if error is not None]
    attempt.surplus = [*attempt.surplus, *map(to_claim, refused)]
    attempt.handed_over += count - len(refused)
    for error in errors.values():
        attempt.note("deliver", error)


async def _tell_all(attempt: Attempt, listeners: Sequence[Listener]) -> None:
    """Tell listeners of all claims; one leaves the attempt once all of them know of it."""
    name = attempt.entry.task.name
    done = refused = 0
    try:
        for member in attempt.deliver:
            event = InstructionEvent.of(name, member)
            refusal = None
            for listener in listeners:
                try:
                    # As `call_listener` does, without calls in between.
                    result = listener(event)
                    if result is not None and inspect.isawaitable(result):
                        await result
                except BaseException as raised:  # noqa: ASYNC103  ours is raised again
                    refusal = failure_of(raised)
                    attempt.note("deliver", refusal)
            if refusal is not None:
                refused += 1
                _take_back(attempt, member, refusal)
            done += 1
    finally:
        attempt.deliver = attempt.deliver[done:]
        attempt.handed_over += done - refused


def _take_back(attempt: Attempt, member: str | Claim, refusal: Exception) -> None:
    """Release what a listener refused; without `release`, keep it if it was surely not taken."""
    is_not_taken = isinstance(refusal, UndeliveredInstructionsError)
    if attempt.entry.task.release is not None or is_not_taken:
        attempt.surplus = [*attempt.surplus, to_claim(member)]
