"""Sending ends, so that nobody has to wait for it: again and again until they are stored."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import trio

from planton import StorageError
from planton.storage import Acknowledged
from planton_executor._ends import Kind
from planton_executor._outage import Outage, pause
from planton_executor._reporters import Reporter
from planton_executor._run import Run

# So many ends share one call at most.
GROUP = 5000
# An end that the storage refuses while it takes others is tried so often.
_TRIES = 3
# One that a function of the user's refuses: for about a minute, in which a database may come back.
_CALLS = 16


class Answered(Protocol):
    """Called with the answer to the ends of some runs: those that are not stale are stored."""

    def __call__(
        self, runs: Iterable[Run], stale: Collection[str], error: Exception | None
    ) -> None: ...


class Sender(Protocol):
    """Sends `run.end`, and tells what the answer was."""

    @property
    def leaving(self) -> int:
        """How many slots the call that is under way will free."""

    def open(self, nursery: trio.Nursery) -> None:
        """Send in this nursery from now on."""

    def send(self, run: Run) -> None:
        """Send `run.end` soon."""


@runtime_checkable
class ManyReports(Protocol):
    """A storage that takes many different reports in one call."""

    async def report_many(
        self, reports: Sequence[tuple[Kind, Sequence[str], tuple[Any, ...]]]
    ) -> list[Acknowledged | Exception]: ...


class GroupSender:
    """Sends all that waits in one call, which is one commit.

    Args:
        storage: Where to.
        answered: Told of the answers.
        outage: Told of errors of the storage.
        leaves: Called when a call begins that will free slots.
    """

    def __init__(
        self,
        storage: ManyReports,
        answered: Answered,
        outage: Outage,
        leaves: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._answered = answered
        self._outage = outage
        self._leaves = leaves
        self._waiting: list[Run] = []
        self._arrived = trio.Event()
        self.leaving = 0

    def open(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._keep_sending)

    def send(self, run: Run) -> None:
        if not self._waiting:
            self._arrived.set()
        self._waiting.append(run)

    async def _keep_sending(self) -> None:
        failures = 0
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            if not self._waiting:
                self._arrived = trio.Event()
            failures = 0 if await self._send(batch, is_retry=failures > 0) else failures + 1
            if failures:
                await trio.sleep(pause(failures - 1))

    async def _send(self, batch: Sequence[Run], *, is_retry: bool) -> bool:
        """Send ends; return whether all were answered. The others wait again."""
        groups = _group(batch)
        if not is_retry:
            # Claims that are made now are stored together with these ends, or not at all.
            self.leaving = sum(run.stored is None for run in batch)
            self._leaves()
        try:
            answers = await self._storage.report_many([_to_report(runs) for runs in groups])
        except StorageError as error:
            self._outage.note(error)
            self._wait_again(batch)
            return False
        finally:
            self.leaving = 0
        if not all(isinstance(answer, Exception) for answer in answers):
            self._outage.end()
        refused = [
            run
            for runs, answer in zip(groups, answers, strict=True)
            for run in self._take(runs, answer)
        ]
        self._wait_again(refused)
        return not refused

    def _take(self, runs: Sequence[Run], answer: Acknowledged | Exception) -> Sequence[Run]:
        """Pass an answer on; return those that have to be sent again."""
        if not isinstance(answer, Exception):
            self._answered(runs, answer.stale, None)
            return ()
        if len(runs) > 1:
            for run in runs:
                run.refusals = 1  # each alone from now on: one of them spoils the others
            return runs
        if isinstance(answer, StorageError) and not _is_at_fault(runs[0], self._outage):
            self._outage.note(answer)
            return runs
        self._answered(runs, (), answer)
        return ()

    def _wait_again(self, runs: Sequence[Run]) -> None:
        if runs:
            self._waiting = [*runs, *self._waiting]
            self._arrived.set()


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


def _to_report(runs: Sequence[Run]) -> tuple[Kind, Sequence[str], tuple[Any, ...]]:
    assert runs[0].end is not None
    kind, values = runs[0].end.report
    return kind, [run.receipt for run in runs], values


def _is_at_fault(run: Run, outage: Outage) -> bool:
    """Return whether it is this end that cannot be stored, while the storage does other things."""
    if run.refused_after != outage.answers:
        run.refusals += 1
        run.refused_after = outage.answers
    return run.refusals > _TRIES


class SingleSender:
    """Sends each end by itself, in a trio task of its own."""

    leaving = 0

    def __init__(self, reporter: Reporter, answered: Answered, outage: Outage) -> None:
        self._reporter = reporter
        self._answered = answered
        self._outage = outage
        self._nursery: trio.Nursery

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def send(self, run: Run) -> None:
        self._nursery.start_soon(self._send, run)

    async def _send(self, run: Run) -> None:
        failures = 0
        while (answer := await self._try(run, failures)) is None:
            await trio.sleep(pause(failures))
            failures += 1
        is_stale, error = answer is False, answer if isinstance(answer, Exception) else None
        self._answered([run], [run.receipt] if is_stale else (), error)

    async def _try(self, run: Run, failures: int) -> bool | Exception | None:
        """Return the answer; None if it is to be sent again."""
        try:
            answer = await self._reporter.end(run)
        except StorageError as error:
            self._outage.note(error)
            return error if _is_at_fault(run, self._outage) else None
        except Exception as error:
            self._outage.note(error)
            return error if failures >= _CALLS else None
        self._outage.end()
        return answer
