"""`check_callbacks` on PostgreSQL: the example of the npm README, one that is right, our own."""

from contextlib import asynccontextmanager, contextmanager

import attrs
import psycopg
import pytest

from planton import Batch, Task
from planton.testing import check_callbacks
from planton_postgres import PostgresStorage

SCHEMA = """
    CREATE TABLE user_account (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        email_sent_at timestamptz,
        claimed_until timestamptz
    );
    CREATE TABLE maintenance_task (id integer PRIMARY KEY, nid text UNIQUE);
    CREATE TABLE maintenance_task_execution (
        maintenance_task_id integer REFERENCES maintenance_task,
        instruction text,
        ended_at timestamptz
    );
    INSERT INTO maintenance_task VALUES (1, 'send_user_email');
"""
ACTIVE = """
    SELECT mte1.instruction
    FROM maintenance_task mt1
    INNER JOIN maintenance_task_execution mte1 ON mte1.maintenance_task_id = mt1.id
    WHERE mt1.nid = %s AND mte1.ended_at IS NULL
"""
NPM_CLAIM = """
    UPDATE user_account AS ua2
    SET email_sent_at = now()
    WHERE ua2.id = ANY(
        SELECT ua1.id FROM user_account ua1
        WHERE ua1.email_sent_at IS NULL AND ua1.id != ALL(%s)
        LIMIT %s
        FOR UPDATE OF ua1 SKIP LOCKED
    )
    RETURNING ua2.id
"""
LEASED_CLAIM = """
    UPDATE user_account SET claimed_until = now() + '1 minute'
    WHERE id = ANY(
        SELECT id FROM user_account
        WHERE email_sent_at IS NULL AND (claimed_until IS NULL OR claimed_until <= now())
        LIMIT %s FOR UPDATE SKIP LOCKED
    )
    RETURNING id
"""
LEASED_ACTIVE = """
    SELECT id::text FROM user_account WHERE email_sent_at IS NULL AND claimed_until > now()
"""


class App:
    """Connections, and what the consumers of the npm README do."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(SCHEMA)

    def insert(self, count):
        self.connection.execute(
            "INSERT INTO user_account (email_sent_at) SELECT NULL FROM generate_series(1, %s)",
            [count],
        )

    def deliver(self, event):
        self.connection.execute(
            "INSERT INTO maintenance_task_execution VALUES (1, %s)", [event.instruction]
        )

    def end(self, event):
        self.connection.execute(
            "UPDATE maintenance_task_execution SET ended_at = now() WHERE instruction = %s",
            [event.instruction],
        )

    @contextmanager
    def npm(self):
        with psycopg.connect(self.dsn, autocommit=True) as connection:

            def get_active_instructions(task_name):
                return [row for (row,) in connection.execute(ACTIVE, [task_name])]

            def schedule(request):
                active = list(map(int, request.active_instructions))
                rows = connection.execute(NPM_CLAIM, [active, request.limit])
                return [str(account_id) for (account_id,) in rows]

            yield Task(
                name="send_user_email",
                schedule=schedule,
                get_active_instructions=get_active_instructions,
            )

    def leased(self, lock):
        """Counts and claims in one transaction; whether that serialises is up to `lock`."""

        @contextmanager
        def dispatcher():
            with psycopg.connect(self.dsn, autocommit=True) as connection:

                def get_active_instructions(task_name):
                    return [row for (row,) in connection.execute(LEASED_ACTIVE)]

                def schedule(request):
                    with connection.transaction():
                        connection.execute(lock)
                        active = len(get_active_instructions(request.task_name))
                        room = min(request.limit, request.concurrency - active)
                        rows = connection.execute(LEASED_CLAIM, [max(room, 0)]).fetchall()
                    return Batch([str(account_id) for (account_id,) in rows], active=active)

                yield Task(
                    name="send_user_email",
                    schedule=schedule,
                    get_active_instructions=get_active_instructions,
                    cap="strict",
                )

        return dispatcher

    def end_leased(self, event):
        self.connection.execute(
            "UPDATE user_account SET email_sent_at = now() WHERE id = %s", [event.instruction]
        )

    def expire(self):
        self.connection.execute("UPDATE user_account SET claimed_until = now() - '1 s'::interval")


@pytest.fixture
def app(schema_dsn):
    app = App(schema_dsn)
    with app.connection:
        yield app


def outcomes(report):
    return {finding.guarantee: finding.outcome for finding in report}


async def test_the_example_of_the_npm_readme_breaks_its_cap(app):
    """Limit 1 runs 4 at once on 4 nodes, and what a dispatcher claimed dies with it."""
    report = await check_callbacks(app.npm, insert=app.insert, deliver=app.deliver, end=app.end)

    assert {
        "cap": "broken",
        "once": "kept",
        "limit": "kept",
        "shown": "kept",
        "ended": "kept",
        "cancellation": "not applicable",
        "crash": "broken",
    } == outcomes(report)
    assert "4 active with concurrency 1" in report["cap"].evidence
    assert "not by schedule" in report["shown"].evidence


async def check_leased(app, lock):
    return await check_callbacks(
        app.leased(lock), insert=app.insert, end=app.end_leased, expire=app.expire, patience=0.05
    )


async def test_a_transaction_that_locks_the_row_of_the_task_keeps_it(app):
    """The remedy that the report names."""
    report = await check_leased(app, "SELECT 1 FROM maintenance_task FOR UPDATE")

    report.raise_for("cap", "once", "limit", "shown", "ended", "crash")


async def test_a_transaction_alone_does_not(app):
    """Two transactions count what is committed; found while one of them is open."""
    report = await check_leased(app, "SELECT 1")

    assert "broken" == report["cap"].outcome
    assert "held up at step" in report["cap"].evidence


async def test_the_storage_keeps_everything(schema_dsn):
    """Held up at every wait for the server, with its transaction open, and cancelled there."""
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        inserted = iter(range(10_000))

        @asynccontextmanager
        async def dispatcher():
            async with PostgresStorage(schema_dsn) as own:
                yield attrs.evolve(
                    own.queue_task("task", lease=3600, concurrency=2),
                    get_active_instructions=own.get_active_instructions,
                )

        async def insert(count):
            for _ in range(count):
                await storage.enqueue("task", str(next(inserted)))

        async def end(event):
            await storage.complete(event.receipt)

        async def expire():
            async with await psycopg_connection(schema_dsn) as connection:
                await connection.execute("UPDATE planton_active SET lease_expires_at = now()")

        report = await check_callbacks(dispatcher, insert=insert, end=end, expire=expire)

    assert {"kept"} == set(outcomes(report).values())


async def psycopg_connection(dsn):
    from planton_postgres._driver import TrioConnection

    return await TrioConnection.connect(dsn)
