"""What every storage promises, on PostgreSQL."""

from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from planton import InvalidArgumentError
from planton.storage import load_migrations
from planton.testing import StorageConformance
from planton_postgres import PostgresStorage
from planton_postgres._driver import TrioConnection

CLAIM = """
UPDATE user_account SET email_sent_at = %(now)s
WHERE id = ANY (ARRAY(
    SELECT id FROM user_account WHERE email_sent_at IS NULL
    ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))
RETURNING id
"""
SELECT = """
SELECT id FROM user_account WHERE id::text <> ALL (%(active)s) ORDER BY id LIMIT %(limit)s
"""
DROP_CHECK = "ALTER TABLE planton_pending DROP CONSTRAINT planton_pending_payload_check"
SET_BACK = """
UPDATE planton_pending SET run_at = run_at - %(by)s, created_at = created_at - %(by)s;
UPDATE planton_active SET created_at = created_at - %(by)s, claimed_at = claimed_at - %(by)s,
    lease_expires_at = lease_expires_at - %(by)s;
UPDATE planton_dispatcher SET started_at = started_at - %(by)s, seen_at = seen_at - %(by)s,
    stop_requested_at = stop_requested_at - %(by)s;
UPDATE planton_decision SET reported_at = reported_at - %(by)s;
UPDATE planton_ended SET created_at = created_at - %(by)s, claimed_at = claimed_at - %(by)s,
    ended_at = ended_at - %(by)s;
UPDATE planton_cron SET next_fire_at = next_fire_at - %(by)s
"""


class TestPostgresStorage(StorageConformance):
    claim_sql = CLAIM
    select_sql = SELECT
    partition_claim_sql = f"{CLAIM.rstrip()}, id / 10"
    partition_select_sql = SELECT.replace("SELECT id", "SELECT id, id / 10", 1)

    @pytest.fixture
    async def storage(self, schema_dsn):
        async with PostgresStorage(schema_dsn) as storage:
            await storage.migrate()
            await self._do(
                storage,
                "CREATE TABLE user_account (id bigint PRIMARY KEY, email_sent_at timestamptz)",
            )
            yield storage

    @pytest.fixture
    async def other(self, storage):
        async with PostgresStorage(storage.conninfo) as other:
            yield other

    async def advance(self, storage, seconds):
        statements = SET_BACK.replace("%(by)s", f"interval '{float(seconds)} seconds'")
        await self._do(storage, statements)

    @asynccontextmanager
    async def transaction(self, storage):
        async with await TrioConnection.connect(storage.conninfo) as connection:
            async with connection.transaction():
                yield connection

    @asynccontextmanager
    async def locked(self, storage, task_name):
        await self._do(
            storage,
            "INSERT INTO planton_task (task_name) VALUES (%s) ON CONFLICT DO NOTHING",
            task_name,
        )
        async with self.transaction(storage) as connection:
            await connection.execute(
                "SELECT FROM planton_task WHERE task_name = %s FOR UPDATE", [task_name]
            )
            yield

    async def add_rows(self, storage, *ids):
        await self._do(
            storage,
            "INSERT INTO user_account SELECT unnest(%s::bigint[]) "
            "ON CONFLICT (id) DO UPDATE SET email_sent_at = NULL",
            list(ids),
        )

    async def remove_rows(self, storage, *ids):
        await self._do(storage, "DELETE FROM user_account WHERE id = ANY (%s)", list(ids))

    async def insert(self, storage, task_name, instruction, payload=None):
        columns = "task_name, instruction" if payload is None else "task_name, instruction, payload"
        values = [task_name, instruction, *([] if payload is None else [payload])]
        marks = ", ".join(["%s"] * len(values))
        insert = f"INSERT INTO planton_pending ({columns}) VALUES ({marks})"
        try:
            await self._do(storage, insert, *values)
        except psycopg.errors.CheckViolation:  # as if the row were from before there was a check
            await self._do(storage, DROP_CHECK)
            await self._do(storage, insert, *values)

    async def _do(self, storage, statement, *parameters):
        async with await TrioConnection.connect(storage.conninfo) as connection:
            await connection.execute(statement, parameters or None)


@pytest.mark.slow
class TestThroughPgBouncer(TestPostgresStorage):
    """All of it through a pooler in transaction mode, which keeps no state for a session."""

    @pytest.fixture
    async def storage(self, postgres_dsn, pgbouncer):
        async with PostgresStorage(pgbouncer(postgres_dsn), prepare_threshold=None) as storage:
            await storage.migrate()
            await self._do(
                storage,
                "CREATE TABLE user_account (id bigint PRIMARY KEY, email_sent_at timestamptz)",
            )
            yield storage

    @pytest.fixture
    async def other(self, storage):
        async with PostgresStorage(storage.conninfo, prepare_threshold=None) as other:
            yield other


async def test_a_transaction_of_a_sync_connection_is_joined(storage):
    """What a Django or Flask program has at hand."""
    with psycopg.connect(storage.conninfo) as connection:
        assert await storage.enqueue("task", "kept", connection=connection)
    with psycopg.connect(storage.conninfo) as connection:
        await storage.enqueue("task", "undone", connection=connection)
        connection.rollback()

    assert ["kept"] == [found.instruction for found in await storage.find()]
    with pytest.raises(ValueError, match="give a connection of psycopg"):
        await storage.enqueue("task", "a", connection="postgresql://")
    with pytest.raises(InvalidArgumentError, match=r"connection.*is closed"):
        await storage.enqueue("task", "a", connection=connection)


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


async def test_many_processes_migrate_at_once(schema_dsn):
    """One applies, the others wait and find it done."""
    applied = []

    async def migrate():
        async with PostgresStorage(schema_dsn) as storage:
            applied.append(await storage.migrate())

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(migrate)

    assert [0] * 7 + [len(load_migrations("planton_postgres"))] == sorted(applied)
