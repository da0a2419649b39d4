"""What consumers report, by receipt."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from planton._errors import InvalidArgumentError
from planton._task import Claim
from planton.storage._arguments import to_count, to_error_text, to_flag, to_json, to_number
from planton.storage._backend import Kind, Receipt, Report
from planton.storage._base import ENDING, Base
from planton.storage._gather import Entry, Found
from planton.storage._records import Acknowledged, TakenOver

Receipts: TypeAlias = str | Iterable[str]
_LARGEST = 2**63


@runtime_checkable
class Reports(Protocol):
    """What consumers report, which is all that an executor needs of a storage.

    Each method takes one receipt or many, returns after the commit, and says which were applied
    and which were stale. A stale one changes nothing. Reports that arrive at the same time share a
    transaction.
    """

    async def heartbeat(self, receipts: Receipts) -> Acknowledged:
        """Renew leases, each for its own seconds from now, but never beyond its `timeout`.

        Args:
            receipts: One receipt or many.

        Raises:
            InvalidArgumentError: If one is no receipt.
            StorageError: If the database fails.
        """
        return await _report(self, "heartbeat", receipts)

    async def complete(self, receipts: Receipts, result: Any = None) -> Acknowledged:
        """End claims whose work is done; frees their slots and wakes their tasks.

        Args:
            receipts: One receipt or many.
            result: Any JSON; kept in the history.

        Raises:
            InvalidArgumentError: If one is no receipt, or the result is not JSON. Nothing was
                changed.
            StorageError: If the database fails.
        """
        text = None if result is None else to_json("result", result)
        return await _report(self, "complete", receipts, text)

    async def fail(
        self,
        receipts: Receipts,
        error: str | BaseException,
        *,
        retry_in: float | None = None,
        retry: bool = True,
        lower_priority: bool = False,
        retries: int = 0,
    ) -> Acknowledged:
        """Report that the work failed; frees the slots and wakes the tasks.

        With retries left it is queued again, with one retry less; with none left it ends as dead;
        with `retry=False` it ends as failed.

        Args:
            receipts: One receipt or many.
            error: Kept with the instruction; of an exception the type and the message.
            retry_in: Seconds until it may be claimed again; at once if None.
            retry: False ends it as failed, whatever retries are left.
            lower_priority: Whether a next try has a priority one lower.
            retries: How many it is granted if it has none of its own and fails for the first time,
                or for the first time since `retry`.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
            StorageError: If the database fails.
        """
        delay = 0.0 if retry_in is None else to_number("retry_in", retry_in)
        flags = to_flag("retry", retry), to_flag("lower_priority", lower_priority)
        values = (to_error_text(error), delay, *flags)
        return await _report(self, "fail", receipts, *values, to_count("retries", retries))

    async def advance(
        self,
        receipts: Receipts,
        payload: Any = None,
        *,
        retries: int = 0,
        run_in: float | None = None,
    ) -> Acknowledged:
        """Store how far the work has come: it begins anew with another payload.

        Its deliveries, its timeout and its error begin anew. Whoever gets it next, also after a
        crash, gets the new payload.

        Args:
            receipts: One receipt or many.
            payload: Any JSON, for whoever goes on.
            retries: How many there are from now on.
            run_in: Seconds until it goes on; it is queued until then, which frees its slot. If None
                the claim is kept, with its receipt and a new lease, and the caller goes on.

        Raises:
            InvalidArgumentError: If an argument cannot be used; nothing was changed.
            StorageError: If the database fails.
        """
        values = (to_json("payload", payload), to_count("retries", retries))
        if run_in is None:
            return await _report(self, "advance", receipts, *values)
        delay = to_number("run_in", run_in)
        return await _report(self, "postpone", receipts, *values, delay)

    async def release(self, receipts: Receipts) -> Acknowledged:
        """Give claims back unfinished, at once claimable again; frees slots, wakes tasks.

        For consumers; what could not even be delivered comes back through `Task.release`.

        Args:
            receipts: One receipt or many.

        Raises:
            InvalidArgumentError: If one is no receipt.
            StorageError: If the database fails.
        """
        return await _report(self, "release", receipts)

    async def take_over(self, receipts: Receipts, *, lease: float | None = None) -> TakenOver:
        """Exchange receipts for new ones, before the work begins.

        For a consumer whose instruction came through a broker: of two that hold the same message
        one gets a new receipt and the other is told that its own is stale. The old receipt names
        nothing any more.

        Args:
            receipts: One receipt or many.
            lease: Seconds that the claim lasts from now on without a heartbeat; as before if None.

        Raises:
            InvalidArgumentError: If one is no receipt, or the lease is no such number.
            StorageError: If the database fails.
        """
        seconds = None if lease is None else to_number("lease", lease, above=0)
        token = secrets.randbits(63)
        done = await _report(self, "take_over", receipts, seconds, token)
        new = {old: f"{old.partition('.')[0]}.{token}" for old in done.applied}
        return TakenOver(new, done.stale)

    async def report_many(
        self, reports: Sequence[tuple[Kind, Receipts, tuple[Any, ...]]]
    ) -> list[Acknowledged | Exception]:
        """Send different reports in one commit, for consumers that end many claims at a time.

        Args:
            reports: Of each its kind, its receipts and its values, checked and as
                `planton.storage.Report` has them.

        Returns:
            What became of each. One that fails is answered by its exception and undoes only
            itself.

        Raises:
            StorageError: If the database fails.
        """


class Consumers(Base, Reports):
    """Takes reports."""

    async def report_many(
        self, reports: Sequence[tuple[Kind, Receipts, tuple[Any, ...]]]
    ) -> list[Acknowledged | Exception]:
        self._check_open()
        named: list[Mapping[str, Receipt] | InvalidArgumentError] = []
        sent: list[Report] = []
        for kind, receipts, values in reports:
            try:
                named.append(parsed := to_receipts(receipts))
            except InvalidArgumentError as error:
                named.append(error)
                continue
            if kind in ENDING:
                self._free(parsed)
            if parsed:
                sent.append(Report(kind, list(parsed.values()), values))
        found = iter((await self._gather(Entry(sent))).found if sent else ())
        return [
            each
            if isinstance(each, InvalidArgumentError)
            else _acknowledge(each, next(found) if each else {})
            for each in named
        ]


async def _report(to: Reports, kind: Kind, receipts: Receipts, *values: Any) -> Acknowledged:
    (answer,) = await to.report_many([(kind, receipts, values)])
    if isinstance(answer, Exception):
        raise answer
    return answer


def _acknowledge(
    parsed: Mapping[str, Receipt], found: Found | Exception
) -> Acknowledged | Exception:
    if isinstance(found, Exception):
        return found
    if len(found) == len(parsed):
        return Acknowledged(tuple(parsed), ())
    applied = {text for text, receipt in parsed.items() if receipt in found}
    return Acknowledged.of(list(parsed), applied)


def to_receipts(receipts: object) -> Mapping[str, Receipt]:
    """Return one receipt or many as the numbers that they are stored as, in their order."""
    if isinstance(receipts, str) or not isinstance(receipts, Sequence | set | frozenset):
        return {receipts: _to_receipt(receipts)}  # type: ignore[dict-item]
    return {receipt: _to_receipt(receipt) for receipt in receipts}


def _to_receipt(receipt: object) -> Receipt:
    if isinstance(receipt, str) and receipt.isascii() and len(receipt) <= 40:
        id_, dot, token = receipt.partition(".")
        if dot and id_.isdigit() and token.isdigit():
            numbers = int(id_), int(token)
            if max(numbers) < _LARGEST:
                return numbers
    remedy = "give the receipt of an event, as it was received"
    raise InvalidArgumentError("receipt", receipt, remedy)


def receipts_of(claims: Sequence[Claim]) -> Mapping[str, Receipt]:
    """Return the receipts of claims that have one."""
    return to_receipts([claim.receipt for claim in claims if claim.receipt is not None])
