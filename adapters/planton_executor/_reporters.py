"""Where ends and heartbeats go: a storage, or functions of the user's."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from planton import InstructionEvent
from planton.storage import Reports
from planton_executor._ends import Advance, Complete, Fail
from planton_executor._run import Run, to_receipt


class Reporter(Protocol):
    """What an executor needs to do its work."""

    def receipt(self, event: InstructionEvent) -> str:
        """Return the name of a claim, or raise `InvalidArgumentError` if it has none."""

    async def heartbeat(self, runs: Sequence[Run]) -> Iterable[Run]:
        """Renew leases; return those that are lost."""

    async def take_over(self, run: Run) -> str | None:
        """Return a receipt of our own for a claim that came from elsewhere; None if it is lost."""

    async def end(self, run: Run) -> bool:
        """Store `run.end`; return whether the claim was ours to end."""


class StorageReporter:
    """Reports to a storage, each claim by itself."""

    def __init__(self, storage: Reports) -> None:
        self._storage = storage

    receipt = staticmethod(to_receipt)

    async def heartbeat(self, runs: Sequence[Run]) -> Iterable[Run]:
        asked = {run.receipt: run for run in runs}
        done = await self._storage.heartbeat(list(asked))
        return [asked[receipt] for receipt in done.stale]

    async def take_over(self, run: Run) -> str | None:
        taken = await self._storage.take_over(run.receipt, lease=run.lease)
        return taken.receipts.get(run.receipt)

    async def end(self, run: Run) -> bool:
        storage, receipt, end = self._storage, run.receipt, run.end
        if isinstance(end, Complete):
            done = await storage.complete(receipt, end.result)
        elif isinstance(end, Fail):
            done = await storage.fail(
                receipt,
                end.text,
                retry_in=end.retry_in,
                retry=end.retry_in is not None,
                lower_priority=end.lower_priority,
                retries=end.retries,
            )
        elif isinstance(end, Advance):
            done = await storage.advance(receipt, end.state, retries=end.retries, run_in=end.run_in)
        else:
            done = await storage.release(receipt)
        return bool(done.applied)
