"""Attempts that are made together, one of whose callbacks is a plain function."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import trio

from planton._loop.attempt import Attempt
from planton._loop.entry import Callback
from planton._task import ScheduleRequest

# Those that take longer to get to `schedule` than the first by this much ask it by themselves.
_PATIENCE = 0.01
Asked: TypeAlias = tuple[Attempt, Callback, Any]


class Cohort:
    """Attempts in trio tasks of their own, which meet to ask their `schedule` in one call."""

    def __init__(
        self,
        attempts: Iterable[Attempt],
        ask: Callable[[Sequence[Asked]], Awaitable[Sequence[Any]]],
    ) -> None:
        self._coming = set(attempts)
        self._ask = ask
        self._requests: dict[Attempt, ScheduleRequest] = {}
        self._answers: dict[Attempt, Any] = {}
        self._all_are_here, self._answered = trio.Event(), trio.Event()
        self.is_closed = False

    def leave(self, attempt: Attempt) -> None:
        """Wait for an attempt no more: it has come, or ended before it asked."""
        self._coming.discard(attempt)
        if not self._coming:
            self._all_are_here.set()

    async def ask(self, attempt: Attempt, request: ScheduleRequest) -> Any:
        """Return the answer to `request`; the first that comes asks for all."""
        is_first = not self._requests
        self._requests[attempt] = request
        self.leave(attempt)
        if is_first:
            await self._ask_for_all()
        else:
            # As the first, which asks for it: what is claimed for it past its cancellation is kept.
            with trio.CancelScope(shield=True):
                await self._answered.wait()
            attempt.entry.turn.trio_task = trio.lowlevel.current_task()
        if attempt not in self._answers:
            await trio.sleep_forever()  # the first was cut off, and so is this
        answer = self._answers[attempt]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _ask_for_all(self) -> None:
        with trio.move_on_after(_PATIENCE):
            await self._all_are_here.wait()
        self.is_closed = True
        members = sorted(self._requests, key=lambda attempt: attempt.entry.number)
        asked = [(each, each.entry.schedule, self._requests[each]) for each in members]
        try:
            self._answers = dict(zip(members, await self._ask(asked), strict=True))
        finally:
            self._answered.set()
