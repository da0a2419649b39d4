"""Promises of isolation: a bad row, claim or report harms only itself."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from planton._errors import InvalidQueryError, PlantonError
from planton._events import ErrorEvent, InstructionEvent
from planton._planton import Planton
from planton.testing._collector import EventCollector
from planton.testing.conformance._base import (
    Hooks,
    at_once,
    claim,
    claim_one,
    enqueue,
    failing,
    names,
    receipts,
    record,
    statuses,
)

# JSON that Python does not read; a table may refuse it.
UNREADABLE = ("7" * 5000, "[" * 900 + "]" * 900 + " ", f'{{"a": {"9" * 6000}}}')


class HarmPromises(Hooks):
    """What others have done, or do at the same time, goes on."""

    async def test_a_row_that_cannot_be_read_ends_by_itself(self, storage: Any) -> None:
        """With the reason; those beside it are delivered, and nobody holds its slot."""
        await self.insert(storage, "task", "good", "1")
        unreadable = [payload for payload in UNREADABLE if not _is_readable(payload)]
        for number, payload in enumerate(unreadable):
            await self.insert(storage, "task", f"bad {number}", payload)
        await enqueue(storage, "task", "last")
        claimed = await claim(storage.queue_task("task", concurrency=9))

        assert ["good", "last"] == names(claimed)
        assert ["good", "last"] == sorted(await storage.get_active_instructions("task"))
        for number in range(len(unreadable)):
            found = await record(storage, f"bad {number}")
            assert found.status in ("failed", "dead")
            assert "payload" in str(found.error)

    async def test_a_row_that_cannot_be_read_hides_no_other(self, storage: Any) -> None:
        """From those who look: it is found and counted as any."""
        await self.insert(storage, "task", "bad", UNREADABLE[0])
        await enqueue(storage, "task", "good", payload=1)
        (stats,) = await storage.stats()

        assert [("bad", "queued"), ("good", "queued")] == await statuses(storage)
        assert 2 == stats.queued

    async def test_a_statement_that_fails_stops_no_other_task(self, storage: Any) -> None:
        """Nor those whose claims travel in the same call, nor what consumers report meanwhile."""
        await self.add_rows(storage, 1)
        limit = "%(limit)s" if "%(limit)s" in self.select_sql else ":limit"
        bad = storage.claim_task("bad", sql=f"SELECT NULL LIMIT {limit}", delay=0.01)
        tasks = [storage.queue_task(name, delay=0.01) for name in ("one", "two")]
        planton = Planton(tasks=[bad, *tasks])
        seen = EventCollector(planton)

        @planton.on(InstructionEvent)
        async def complete(event: InstructionEvent) -> None:
            await storage.complete(event.receipt)

        with trio.fail_after(30):
            async with planton:
                await seen.wait_for(ErrorEvent)
                await enqueue(storage, "one", *"abc")
                await enqueue(storage, "two", *"abc")
                await seen.wait_for(InstructionEvent, 6)

        assert {("bad", InvalidQueryError)} == {
            (event.task_name, type(event.error)) for event in seen.of(ErrorEvent)
        }

    async def test_a_report_that_is_refused_stops_no_other(self, storage: Any) -> None:
        """Of those that are made at the same time, and share a commit."""
        await enqueue(storage, "task", *map(str, range(10)))
        claimed = receipts(await claim(storage.queue_task("task", concurrency=10)))

        async def report(receipt: str, result: Any) -> Any:
            with suppress(PlantonError):
                return (await storage.complete(receipt, result)).applied

        calls = [partial(report, each, number) for number, each in enumerate(claimed)]
        calls[4] = partial(report, claimed[4], {4})  # no JSON
        answers = await at_once(*calls, partial(report, "no receipt", None))

        assert {(each,) for each in claimed} - {(claimed[4],)} == {*answers} - {None}
        assert ["4"] == await storage.get_active_instructions("task")

    async def test_a_claim_that_reaches_its_end_twice_in_one_commit_ends_once(
        self, storage: Any
    ) -> None:
        """By reports of different kinds at the same time: the first wins."""
        receipt = (await claim_one(storage, retries=1)).receipt
        ends = (storage.complete, failing(storage), storage.release)
        done = await at_once(*(partial(end, receipt) for end in ends))

        assert 1 == sum(len(each.applied) for each in done)
        assert 1 == len(await statuses(storage))


def _is_readable(payload: str) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True
