"""What consumers tell a Postgres storage about their claims."""

from collections.abc import Sequence
from typing import Any

from planton.storage import Acknowledged, AdvanceReport, FailureReport, to_json
from planton_postgres._limits import to_error_column, to_integer, to_json_column, to_seconds
from planton_postgres._sources import Sources


class Consumers(Sources):
    """Takes reports; see `planton.storage.Storage`."""

    async def heartbeat(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Renew the leases of claims, each for its own seconds from now, within its `timeout`."""
        acknowledged, _ = await self._reports.heartbeat(receipts)
        return acknowledged

    async def complete(self, receipts: str | Sequence[str], result: Any = None) -> Acknowledged:
        """End claims whose work is done, and wake their tasks.

        What several consumers report at the same time is written in one statement.

        Args:
            receipts: One receipt or many.
            result: Kept in the history; anything that JSON holds.

        Raises:
            InvalidArgumentError: If a receipt is none, or the result is not JSON.
        """
        text = to_json_column(to_json("result", result))
        return await self._end(self._reports.complete, receipts, text)

    async def fail(
        self,
        receipts: str | Sequence[str],
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        retry: bool = True,
        lower_priority: bool = False,
        retries: int = 0,
    ) -> Acknowledged:
        """Report that the work failed, and wake the tasks.

        With retries left it is queued again, with one retry less; with none left it ends as dead.

        Args:
            receipts: One receipt or many.
            error: What went wrong; an exception is kept as its type and message.
            retry_in: Seconds until it is due again; None for at once.
            retry: False ends it as failed, retries left or not.
            lower_priority: Queue it with a priority one lower.
            retries: How many it is given if it fails for the first time, or the first time since
                `retry`, and has none of its own.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
        """
        report = FailureReport.of(
            error,
            retry_in=retry_in,
            retry=retry,
            lower_priority=lower_priority,
            retries=retries,
        )
        values = (
            to_error_column(report.error),
            to_seconds("retry_in", report.delay),
            bool(report.retry),
            bool(report.lower_priority),
            to_integer("retries", report.retries),
        )
        return await self._end(self._reports.fail, receipts, *values)

    async def advance(
        self,
        receipts: str | Sequence[str],
        payload: Any = None,
        *,
        retries: int = 0,
        run_in: float | None = None,
    ) -> Acknowledged:
        """Store how far the work has come: it begins anew with another payload.

        What several consumers report at the same time is written in one statement.

        Args:
            receipts: One receipt or many.
            payload: For whoever goes on; anything that JSON holds.
            retries: How many there are from now on.
            run_in: Seconds until it goes on; that frees its slot. If None the claim is kept, with
                a new lease, and the caller goes on.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
        """
        report = AdvanceReport.of(payload, retries=retries, run_in=run_in)
        values = (to_json_column(report.payload), to_integer("retries", report.retries))
        if report.delay is None:
            acknowledged, _ = await self._reports.advance(receipts, *values)
            return acknowledged
        delay = to_seconds("run_in", report.delay)
        return await self._end(self._reports.put_off, receipts, *values, delay)

    async def release(self, receipts: str | Sequence[str]) -> Acknowledged:
        """Give claims back unfinished, at once claimable again, and wake their tasks."""
        return await self._end(self._reports.release, receipts)

    async def _end(self, report: Any, receipts: str | Sequence[str], *values: Any) -> Acknowledged:
        acknowledged: Acknowledged
        acknowledged, task_names = await report(receipts, *values)
        self._wake(task_names)
        return acknowledged
