"""`Task.lock`: entered before a task counts, left when it has claimed, whatever happens between."""

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias

import attrs
import trio

from planton._failures import guarded
from planton._loop.attempt import SOURCE_SAYS, Attempt
from planton._loop.caller import Caller
from planton._loop.entry import Entry

# Once the grace period is over, leaving a lock may still take this long.
_LAST_LEAVE = 1.0

Raised: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_NOTHING: Raised = (None, None, None)


async def claim_in_lock(
    caller: Caller, attempt: Attempt, claim: Callable[[], Awaitable[None]]
) -> None:
    """Count and claim within the task's lock, if it can be had.

    What was claimed in a lock that fails when it is left may break the cap, or be rolled back: it
    is released, or kept until the next attempt has counted it.
    """
    lock = _Lock(caller, attempt.entry)
    attempt.stage = "lock"
    try:
        with guarded:
            attempt.context = await lock.enter()
    except Exception as error:
        attempt.fail(error, "lock")
        return
    if attempt.context is False:
        attempt.outcome, attempt.detail = "locked", SOURCE_SAYS["locked"]
    else:
        await _claim(lock, claim)
    try:
        with guarded:
            await lock.leave(_raised(attempt))
    except Exception as error:
        attempt.withhold()
        attempt.fail(error, "lock")


async def _claim(lock: "_Lock", claim: Callable[[], Awaitable[None]]) -> None:
    try:
        await claim()
    except BaseException as raised:
        # Shielded, and bounded, by itself.
        await lock.leave_at_last((type(raised), raised, raised.__traceback__))  # noqa: ASYNC102
        raise


def _raised(attempt: Attempt) -> Raised:
    """Return what the block of the lock raised: a transaction is rolled back then."""
    if attempt.outcome != "error":
        return _NOTHING
    _, error = attempt.errors[0]
    return type(error), error, error.__traceback__


@attrs.define(eq=False)
class _Lock:
    """The context manager of one attempt; a sync one may block, so it gets worker threads."""

    caller: Caller
    entry: Entry
    manager: Any = None
    is_abandoned: bool = False

    async def enter(self) -> Any:
        task = self.entry.task
        assert task.lock is not None
        self.manager = task.lock(task.name)
        if self._is_async:
            return await self._within(self.manager.__aenter__())
        try:
            return await self.caller.call_thread(
                self.entry, "lock", self._enter_in_thread, self._leave_late
            )
        except trio.Cancelled:
            self.is_abandoned = True
            raise

    async def leave(self, raised: Raised) -> None:
        is_claimed = self.entry.overrunning.get("schedule")
        if is_claimed is not None:
            self.caller.nursery.start_soon(self._leave_after, is_claimed)
        elif self._is_async:
            await self._within(self.manager.__aexit__(*raised))
        else:
            leave = partial(self.manager.__exit__, *raised)
            await self.caller.call_thread(self.entry, "lock", leave)

    async def leave_at_last(self, raised: Raised) -> None:
        with trio.move_on_after(_LAST_LEAVE, shield=True):
            try:
                with guarded:
                    await self._leave_now(raised)
            except Exception:
                return  # nobody is left to hear of it

    async def _leave_now(self, raised: Raised) -> None:
        if self._is_async:
            await self.manager.__aexit__(*raised)
        else:
            leave = partial(self.manager.__exit__, *raised)
            await trio.to_thread.run_sync(leave, abandon_on_cancel=True)

    @property
    def _is_async(self) -> bool:
        return hasattr(type(self.manager), "__aenter__")

    async def _within(self, awaitable: Awaitable[Any]) -> Any:
        return await self.caller.within_timeout(self.entry, "lock", awaitable)

    def _enter_in_thread(self) -> Any:
        context = self.manager.__enter__()
        if self.is_abandoned:
            self.manager.__exit__(*_NOTHING)
        return context

    async def _leave_after(self, is_claimed: trio.Event) -> None:
        """Leave it when a `schedule` that outlived its timeout can claim no more."""
        try:
            await is_claimed.wait()
        finally:
            await self.leave_at_last(_NOTHING)  # noqa: ASYNC102  shielded, and bounded, by itself

    async def _leave_late(self, _: object) -> None:
        """Leave a lock that was entered only when the attempt had ended."""
        await self.leave(_NOTHING)
