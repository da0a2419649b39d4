"""Behind PgBouncer in transaction mode; `pytest -m slow -k PgBouncer` runs all promises there."""

import pytest
import trio

from planton import InstructionEvent, Planton
from planton.testing import EventCollector
from planton.testing.conformance._base import claim, enqueue, names, receipts
from planton_postgres import PostgresStorage, _wake
from planton_postgres._driver import TrioConnection

CLAIM_SQL = """
UPDATE user_account SET sent = true WHERE id = ANY (ARRAY(
    SELECT id FROM user_account WHERE NOT sent ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)) RETURNING id
"""


@pytest.fixture
def pooled(postgres_dsn, pgbouncer):
    """Open storages through the pooler."""
    return lambda **options: PostgresStorage(
        pgbouncer(postgres_dsn), prepare_threshold=None, **options
    )


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def test_dispatchers_share_few_connections_of_the_server(pooled, postgres_dsn):
    """Claims, reports and time tables of three of them, the cap kept, nothing lost."""
    ended = []
    async with pooled() as first, pooled() as second, pooled() as third:
        storages = [first, second, third]
        await first.migrate()
        async with await TrioConnection.connect(postgres_dsn) as connection:
            await connection.execute("CREATE TABLE user_account (id bigint, sent boolean)")
            await connection.execute(
                "INSERT INTO user_account SELECT generate_series(1, 60), false"
            )
        await enqueue(first, "queue", *map(str, range(60)))

        async def work(storage):
            tasks = [
                storage.queue_task("queue", concurrency=3),
                storage.claim_task("send", sql=CLAIM_SQL, concurrency=3),
                storage.cron_task("cron", "0 0 1 1 *"),
            ]
            while len(ended) < 120:
                for task in tasks:
                    claims = await claim(task)
                    assert len(await storage.get_active_instructions(task.name)) <= 3
                    ended.extend((task.name, name) for name in names(claims))
                    await storage.heartbeat(receipts(claims))
                    await storage.complete(receipts(claims))

        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                for storage in storages:
                    nursery.start_soon(work, storage)

    assert 120 == len(set(ended)) == len(ended)


async def test_it_listens_on_a_way_of_its_own_to_the_server(pooled, postgres_dsn):
    """And works through the pooler."""
    async with pooled(listen_dsn=postgres_dsn) as storage, pooled(wake_ups=False) as other:
        await storage.migrate()
        planton = Planton(tasks=[storage.queue_task("task", delay=3600)], services=[storage.serve])
        seen = EventCollector(planton)
        async with planton:
            await until(lambda: planton.status()[0].wake_ups == "live")
            await enqueue(other, "task", "a")
            await until(lambda: seen.of(InstructionEvent))


async def test_to_listen_through_the_pooler_is_a_clear_error(pooled, monkeypatch):
    """It takes LISTEN, and forgets it with the transaction: polling goes on."""
    monkeypatch.setattr(_wake, "PATIENCE", 0.5)
    async with pooled() as storage:
        await storage.migrate()
        planton = Planton(tasks=[storage.queue_task("task", delay=0.1)], services=[storage.serve])
        seen = EventCollector(planton)
        async with planton:
            await until(lambda: seen.errors)
            await enqueue(storage, "task", "a")
            await until(lambda: seen.of(InstructionEvent))

            assert "polling" == planton.status()[0].wake_ups

    assert "give listen_dsn=, or wake_ups=False" in str(seen.errors[0])
