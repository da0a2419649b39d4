"""Promises about harm: what others have done, or do at the same time, goes on."""

import json
from functools import partial
from random import Random
from typing import Any

import pytest

from planton._errors import InvalidQueryError
from planton.storage._arguments import NAME_LENGTH
from planton.testing.conformance import _base as do
from planton.testing.conformance._base import Hooks

# JSON that Python does not read; a table may refuse it.
UNREADABLE = ("7" * 5000, "[" * 900 + "]" * 900 + " ", f'{{"a": {"9" * 6000}}}')


class HarmPromises(Hooks):
    """Whatever is in the tables, and whatever fails, harms only itself."""

    async def test_the_longest_names_go_all_the_way(self, storage: Any) -> None:
        """Of characters that no index makes shorter."""
        random = Random(1)
        name, partition, instruction = [
            "".join(chr(random.randrange(0x1F300, 0x1F9FF)) for _ in range(length // 4))
            for length in (NAME_LENGTH, NAME_LENGTH, 2000)
        ]
        assert await storage.enqueue(name, instruction, partition=partition)
        (only,) = await do.claim(storage.queue_task(name))

        assert (instruction, partition) == (only.instruction, only.partition)
        assert (only.receipt,) == (await storage.fail(only.receipt, "no", retry=False)).applied
        assert 1 == await storage.retry(name)

    async def test_migrating_again_changes_nothing(self, storage: Any) -> None:
        """And what is there stays."""
        _, claimed = await do.claim_first(storage)

        assert 0 == await storage.migrate()
        assert (claimed.receipt,) == (await storage.complete(claimed.receipt)).applied
        assert [] == await do.claim(storage.queue_task("another"))

    async def test_a_row_that_cannot_be_read_ends_by_itself(self, storage: Any) -> None:
        """With the reason; those beside it are found, counted and delivered as any."""
        bad = {
            f"bad {number}": payload
            for number, payload in enumerate(UNREADABLE)
            if not _is_readable(payload)
        }
        for name, payload in {"good": "1", **bad}.items():
            await self.insert(storage, "task", name, payload)
        await do.enqueue(storage, "task", "last")
        queued, (stats,) = await do.statuses(storage), await storage.stats()
        claimed = await do.claim(storage.queue_task("task", concurrency=9))

        assert [f"{name} queued" for name in (*bad, "good", "last")] == queued
        assert len(queued) == stats.queued
        assert ["good", "last"] == do.names(claimed)
        assert ["good", "last"] == sorted(await storage.get_active_instructions("task"))
        for name in bad:
            found = await do.record(storage, name)
            assert found.status in ("failed", "dead")
            assert "payload" in str(found.error)

    async def test_a_statement_that_fails_stops_no_other_task(self, storage: Any) -> None:
        """Nor those that claim at the same time, nor what consumers report meanwhile."""
        await self.add_rows(storage, 1)
        limit = "%(limit)s" if "%(limit)s" in self.select_sql else ":limit"
        bad = storage.claim_task("bad", sql=f"SELECT NULL LIMIT {limit}")
        one = await do.queue_up(storage, *"abc", task_name="one", concurrency=3)
        two, claimed = await do.claim_first(storage, *"abc", task_name="two", concurrency=3)

        async def fail() -> None:
            with pytest.raises(InvalidQueryError, match="bad"):
                await do.claim(bad)

        others = [partial(do.claim, one), partial(storage.complete, claimed.receipt)]
        await do.at_once(fail, *others, partial(do.claim, two))

        assert ["a", "b", "c"] == sorted(await storage.get_active_instructions("one"))
        assert ["a succeeded", "b running", "c running"] == (await do.statuses(storage, "two"))


def _is_readable(payload: str) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True
