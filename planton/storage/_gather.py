"""Group commit: what waits for a storage at the same time shares a transaction; no timer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import attrs
import trio

from planton.storage._backend import Claimed, ClaimRequest, Receipt, Report

Found: TypeAlias = Mapping[Receipt, str]
Send: TypeAlias = Callable[
    [Sequence[Report], Sequence[ClaimRequest]],
    Awaitable[tuple[list[Found | Exception], list[Claimed | Exception]]],
]

# The most entries of one transaction: large enough for the cost of a commit to vanish.
GROUP = 5000
# Turns of the event loop that a batch waits: one for what comes at the same moment, more only for
# the claims of tasks that its reports wake: the loop wakes, the attempt begins, the claim arrives.
# Measured: 0.1 ms, and one commit instead of two.
TURNS = 4


@attrs.define(eq=False)
class Entry:
    """Some reports, or some claims, that wait; with the answers to them once it is done."""

    reports: Sequence[Report] = ()
    requests: Sequence[ClaimRequest] = ()
    task: trio.lowlevel.Task | None = None  # to be woken; None while it leads
    is_done: bool = False
    found: Sequence[Found | Exception] = ()
    claimed: Sequence[Claimed | Exception] = ()
    error: BaseException | None = None  # why nothing at all was sent


class Gatherer:
    """Sends what waits, one batch at a time.

    The first that comes leads: it sends for all that wait with it, then wakes them, and hands the
    lead to the first of those that came meanwhile. So no background task is needed, and nobody
    waits for a timer. Whoever waits costs an append and a park.

    Args:
        send: Sends reports and claims in one commit, and returns the answers to each.
        expected: Returns how many claims are about to come.
    """

    def __init__(self, send: Send, expected: Callable[[], int]) -> None:
        self._send = send
        self._expected = expected
        self._waiting: dict[Entry, None] = {}
        self._is_led = False

    # A KeyboardInterrupt between the append and the park would leave an entry whose trio task
    # does not wait for it.
    @trio.lowlevel.enable_ki_protection
    async def __call__(self, entry: Entry) -> Entry:
        """Wait until `entry` is committed, and return it, answered.

        A cancellation takes effect only while it has not been sent: from then on the answer is
        returned.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._waiting[entry] = None
        if self._is_led:
            entry.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(lambda _: self._withdraw(entry))
        if not entry.is_done:
            self._is_led = True
            with trio.CancelScope(shield=True):
                await self._lead()
        if entry.error is not None:
            raise entry.error.with_traceback(None)  # shared with those that waited with it
        return entry

    def _withdraw(self, entry: Entry) -> trio.lowlevel.Abort:
        if entry not in self._waiting:
            return trio.lowlevel.Abort.FAILED
        del self._waiting[entry]
        return trio.lowlevel.Abort.SUCCEEDED

    async def _lead(self) -> None:
        batch: list[Entry] = []
        try:
            await self._let_others_join()
            batch = self._take()
            await self._send_batch(batch)
        finally:
            for entry in batch:
                entry.is_done = True
                if entry.task is not None:
                    trio.lowlevel.reschedule(entry.task)
            self._pass_on_the_lead()

    def _pass_on_the_lead(self) -> None:
        for entry in self._waiting:
            assert entry.task is not None, "only the leader has none"
            trio.lowlevel.reschedule(entry.task)
            entry.task = None
            return
        self._is_led = False

    async def _let_others_join(self) -> None:
        for _ in range(TURNS):
            await trio.lowlevel.checkpoint()  # what comes at the same moment joins
            claims = sum(len(entry.requests) for entry in self._waiting)
            if claims >= self._expected():
                return

    def _take(self) -> list[Entry]:
        batch = list(self._waiting)[:GROUP]
        for entry in batch:
            del self._waiting[entry]
        return batch

    async def _send_batch(self, batch: Sequence[Entry]) -> None:
        reports = [each for entry in batch for each in entry.reports]
        requests = [each for entry in batch for each in entry.requests]
        try:
            found, claimed = await self._send(reports, requests)
        except BaseException as error:  # noqa: ASYNC103  raised by each that waits
            for entry in batch:
                entry.error = error
            return  # noqa: ASYNC104
        answers, outcomes = iter(found), iter(claimed)
        for entry in batch:
            entry.found = [next(answers) for _ in entry.reports]
            entry.claimed = [next(outcomes) for _ in entry.requests]
