"""From the claim to the consumer: hand over, give back, or keep; nothing is dropped.

Claims are in exactly one place at any time: still to be delivered or given back (the attempt),
with a consumer, with the storage again, or kept by the entry. A cancellation moves what is in
the attempt to the entry, where the end of the run finds it.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import trio

from planton._errors import UndeliveredInstructionsError
from planton._events import ErrorEvent, InstructionEvent, make_instruction_event
from planton._loop.attempt import Attempt, take
from planton._loop.callbacks import Callback
from planton._loop.entry import Entry
from planton._loop.listeners import Listener, Listeners
from planton._task import Claim, to_claim


@attrs.frozen
class Handover:
    """Settles what an attempt claimed.

    Attributes:
        listeners: Who consumes instructions and hears of errors.
        ask: Calls a callback of a task.
        time_limit: Gives a scope that is cancelled when a stop leaves consumers no more time.
    """

    listeners: Listeners
    time_limit: Callable[[], AbstractContextManager[trio.CancelScope]]
    ask: Callable[[Entry, Callback, Any], Awaitable[Any]]

    async def settle(self, attempt: Attempt) -> None:
        """Deliver, give back what was not delivered, and report what went wrong."""
        try:
            await self._deliver(attempt)
            await self._give_back(attempt)
        finally:
            if attempt.deliver or attempt.surplus:
                rest = [to_claim(member) for member in attempt.deliver]
                attempt.entry.keep([*rest, *attempt.surplus])
                attempt.deliver = attempt.surplus = ()
        for stage, error in attempt.errors:
            await self.listeners.report(
                ErrorEvent(task_name=attempt.entry.task.name, error=error, stage=stage)
            )

    async def give_back(self, entry: Entry, claims: Sequence[Claim]) -> None:
        """Release claims; keep them if they cannot be released."""
        attempt = Attempt(entry, 0.0)
        attempt.surplus = claims
        await self.settle(attempt)

    async def _deliver(self, attempt: Attempt) -> None:
        if not attempt.deliver:
            return
        listeners = self.listeners.of(InstructionEvent)
        if not listeners:
            _refuse_all(attempt, "no listener for InstructionEvent")
        elif attempt.entry.task.release is None:
            # Nobody takes back what consumers leave, so they have until the very end.
            await _tell_all(attempt, listeners)
        else:
            with self.time_limit() as scope:
                await _tell_all(attempt, listeners)
            if scope.cancelled_caught:
                _refuse_all(attempt, "consumers did not take them before the stop")
        attempt.outcome = "dispatched" if attempt.handed_over else "error"

    async def _give_back(self, attempt: Attempt) -> None:
        release = attempt.entry.task.release
        if release is None or not attempt.surplus:
            return
        try:
            claims = tuple(attempt.surplus)
            await self.ask(attempt.entry, Callback.of("release", release), claims)
            attempt.surplus = ()
        except Exception as error:
            attempt.fail("release", error)


def _refuse_all(attempt: Attempt, problem: str) -> None:
    claims = [to_claim(member) for member in attempt.deliver]
    is_released = attempt.entry.task.release is not None
    ending = "released" if is_released else "kept for the next attempt"
    names = [claim.instruction for claim in claims]
    error = UndeliveredInstructionsError(
        attempt.entry.task.name, names, f"{problem}; {ending}", released=is_released
    )
    attempt.fail("deliver", error)
    attempt.deliver, attempt.surplus = (), [*claims, *attempt.surplus]


async def _tell_all(attempt: Attempt, listeners: Sequence[Listener]) -> None:
    """Tell every listener of every claim, in order; a claim leaves the attempt once all know."""
    task = attempt.entry.task
    done = refused = 0
    try:
        for member in attempt.deliver:
            event = make_instruction_event(task.name, member)
            failure = None
            for listener in listeners:
                try:
                    result = listener(event)
                    if result is not None and inspect.isawaitable(result):
                        await result
                except Exception as error:
                    attempt.fail("deliver", error)
                    failure = error
            if failure is not None:
                refused += 1
                if task.release is not None or _is_nobodys(failure):
                    attempt.surplus = [*attempt.surplus, to_claim(member)]
            done += 1
    finally:
        attempt.deliver = attempt.deliver[done:]
        attempt.handed_over += done - refused


def _is_nobodys(error: Exception) -> bool:
    """Tell a listener that has not taken the instruction from one that took it and failed."""
    return isinstance(error, UndeliveredInstructionsError)


def claims_of(entry: Entry, answer: Any) -> list[Claim]:
    """Give all that a belated answer of `schedule` claimed.

    Raises:
        UnexpectedInstructionsError: If it is malformed; its well-formed members are kept.
    """
    attempt = Attempt(entry, 0.0)
    take(attempt, answer, None)
    for _, error in attempt.errors:
        entry.keep(attempt.surplus)
        raise error
    return [to_claim(member) for member in attempt.deliver]
