"""Statements of the user's that take too long: they end, and hold nobody else up for ever."""

import trio

from planton import ErrorEvent, InstructionEvent, Planton
from planton.testing import EventCollector
from planton_sqlite import SQLiteStorage

# For half a minute, so that a test that fails ends.
ENDLESS = """
    WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200000000)
    SELECT n FROM n WHERE n < 0 LIMIT :limit
"""


async def played_beside_an_endless_statement(storage, **options):
    """Return the errors, once a task beside it was dispatched."""
    slow = storage.claim_task("slow", sql=ENDLESS, **options)
    planton = Planton(tasks=[slow, storage.queue_task("quick")], storages=[storage], grace=0.1)
    seen = EventCollector(planton)
    with trio.fail_after(20):
        async with planton:
            await seen.wait_for(ErrorEvent)
            await storage.enqueue("quick", "a")
            await seen.wait_for(InstructionEvent)
    return str(seen.errors[0])


async def test_a_statement_that_takes_too_long_is_broken_off(path):
    """It held up all other tasks, and all other processes."""
    storage = SQLiteStorage(path, statement_timeout=0.1)
    error = await played_beside_an_endless_statement(storage, delay=0.05)

    assert "took too long and was broken off: give it an index" in error


async def test_the_timeout_of_its_task_breaks_a_statement_off(path):
    """As on other databases."""
    error = await played_beside_an_endless_statement(SQLiteStorage(path), timeout=0.1, delay=0.05)

    assert "took too long and was broken off: give it an index" in error


async def test_a_statement_that_never_ends_does_not_keep_a_run_from_ending(path):
    """It is broken off with the grace period."""
    storage = SQLiteStorage(path, statement_timeout=1000)
    planton = Planton(
        tasks=[storage.claim_task("slow", sql=ENDLESS, delay=0)], storages=[storage], grace=0.1
    )
    EventCollector(planton)
    with trio.fail_after(20):
        async with planton:
            await trio.sleep(0.2)

    assert not planton.is_running
