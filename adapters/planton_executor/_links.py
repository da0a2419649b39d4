"""Where an executor reports to: leases are renewed and ends are stored, until it has worked."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeAlias

import trio

from planton import InstructionEvent, InvalidArgumentError, StorageError, delays
from planton.storage import Acknowledged, Reports, describe
from planton_executor._run import Run

logger = logging.getLogger("planton.executor")

# So many ends share one call at most.
GROUP = 5000
# An end that the storage refuses, though it does other things, is sent so often.
_TRIES = 5
# Seconds between two lines about one outage.
_EVERY = 60.0
# Called with some runs whose ends were answered, the receipts of the stale, and why none is stored.
Answered: TypeAlias = Callable[[Iterable[Run], Collection[str], Exception | None], None]
pause = delays.exponential(initial=0.1, maximum=5.0, jitter="equal")


class Outage:
    """Reports the first error of a storage, then logs how many there were, and when it is over."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report
        self.answers = 0  # how often the storage did what it was asked
        self.count = 0  # of errors, since it did
        self._began_at = self._told_at = 0.0

    def note(self, error: Exception) -> None:
        now = trio.current_time()
        self.count += 1
        if self.count == 1:
            self._began_at = self._told_at = now
            self._report(error)
        elif now - self._told_at >= _EVERY:
            self._told_at = now
            problem = "the storage cannot be written: %d errors in %.0f s; the last was %s"
            logger.error(problem, self.count, now - self._began_at, describe(error))

    def end(self) -> None:
        self.answers += 1
        if self.count:
            seconds = trio.current_time() - self._began_at
            logger.info("the storage answers, after %d errors in %.1f s", self.count, seconds)
            self.count = 0


class StorageLink:
    """Reports to a storage: all ends that wait go in one call, which is one commit.

    `sending` is called with these runs when a call begins, and with none when it is over.
    """

    def __init__(
        self,
        storage: Reports,
        nursery: trio.Nursery,
        answered: Answered,
        outage: Outage,
        sending: Callable[[Sequence[Run]], None],
    ) -> None:
        self._storage = storage
        self._nursery = nursery
        self._answered = answered
        self._outage = outage
        self._sending = sending
        self._waiting: list[Run] = []
        self._arrived = trio.Event()
        nursery.start_soon(self._keep_sending)

    def receipt(self, event: InstructionEvent) -> str:
        """Return the name of a claim."""
        if event.receipt is None:
            remedy = "the task's schedule must give claims with a receipt, as storages do"
            raise InvalidArgumentError("event.receipt", None, remedy)
        return event.receipt

    async def heartbeat(self, runs: Sequence[Run]) -> Iterable[Run]:
        """Renew leases; return those that are lost."""
        asked = {run.receipt: run for run in runs}
        done = await self._storage.heartbeat(list(asked))
        return [asked[receipt] for receipt in done.stale]

    async def take_over(self, run: Run) -> str | None:
        """Return a receipt of our own for a claim that came from elsewhere; None if it is lost."""
        taken = await self._storage.take_over(run.receipt, lease=run.lease)
        return taken.receipts.get(run.receipt)

    def send(self, run: Run) -> None:
        """Store `run.end` soon, and pass the answer on."""
        self._waiting.append(run)
        self._arrived.set()

    async def _keep_sending(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            batch, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            try:
                await self._send(batch)
            except StorageError as error:
                self._outage.note(error)
                self._waiting = [*batch, *self._waiting]
                await trio.sleep(pause(self._outage.count - 1))
            if self._waiting:
                self._arrived.set()

    async def _send(self, batch: Sequence[Run]) -> None:
        """Send ends in one call, and pass the answers on."""
        groups = _group(batch)
        if not self._outage.count:
            # Claims that are made now are stored together with these ends, or not at all.
            self._sending(batch)
        try:
            answers = await self._storage.report_many([_to_report(runs) for runs in groups])
        finally:
            self._sending(())
        for runs, answer in zip(groups, answers, strict=True):
            if isinstance(answer, Acknowledged):
                self._outage.end()
                self._answered(runs, answer.stale, None)
            else:
                self._refused(runs, answer)

    def _refused(self, runs: Sequence[Run], error: Exception) -> None:
        """Send ends again, each alone as one may spoil the others; at last tell the error."""
        is_away = isinstance(error, StorageError)
        if is_away:
            self._outage.note(error)
        for run in runs:
            if run.refused_at != self._outage.answers:  # it has done other things since
                run.refused_at = self._outage.answers
                run.refusals += 1
            if len(runs) > 1 or (is_away and run.refusals < _TRIES):
                self._nursery.start_soon(self._send_later, run)
            else:
                self._answered([run], (), error)

    async def _send_later(self, run: Run) -> None:
        await trio.sleep(pause(run.refusals))
        self.send(run)


def _group(batch: Iterable[Run]) -> Collection[list[Run]]:
    """Return the runs that end alike together, but alone those whose end was refused before."""
    groups: dict[object, list[Run]] = {}
    for run in batch:
        key = run if run.refusals else run.end
        if key in groups:
            groups[key].append(run)
        else:
            groups[key] = [run]
    return groups.values()


def _to_report(runs: Sequence[Run]) -> tuple[Any, Sequence[str], tuple[Any, ...]]:
    end = runs[0].end
    assert end is not None
    return end.kind, [run.receipt for run in runs], end.values
