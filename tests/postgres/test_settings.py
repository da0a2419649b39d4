"""A server, a database or a role that is set otherwise: it works the same or is refused by name."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import StorageError
from planton.testing.conformance._base import attempt, claim, enqueue, names, receipts
from planton_postgres import PostgresStorage

SETTINGS = (
    "DateStyle=SQL, DMY",
    "DateStyle=German",
    "IntervalStyle=sql_standard",
    "IntervalStyle=iso_8601",
    "bytea_output=escape",
    "standard_conforming_strings=off",
    "TimeZone=Asia/Kathmandu",
    "TimeZone=<-10>+10",
    "search_path=nowhere, here, pg_catalog",
    "lc_messages=C",
    "extra_float_digits=-3",
    "default_transaction_isolation=repeatable read",
    "default_transaction_deferrable=on",
    "plan_cache_mode=force_generic_plan",
    "plan_cache_mode=force_custom_plan",
    "enable_indexscan=off",
    "track_counts=off",
    "plpgsql.extra_errors=all",
    "plpgsql.variable_conflict=use_variable",
    "check_function_bodies=on",
    "row_security=off",
    "transform_null_equals=on",
    "quote_all_identifiers=on",
    "xmloption=document",
    "jit_above_cost=0",
    "work_mem=64kB",
    "client_encoding=LATIN1",
    "lock_timeout=30s",
    "idle_in_transaction_session_timeout=30s",
    "synchronous_commit=off",
)


@pytest.fixture
def set_otherwise(postgres_dsn):
    """A database whose sessions all have some setting; `here` is a schema of it."""

    def set_otherwise(setting):
        name, _, value = setting.partition("=")
        with psycopg.connect(postgres_dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA here")
            connection.execute(
                "CREATE TABLE account (id bigint PRIMARY KEY, sent_at timestamptz);"
                "INSERT INTO account VALUES (7)"
            )
            values = [each.strip() for each in value.split(",")]
            alter = sql.SQL("ALTER DATABASE {} SET {} TO {}").format(
                sql.Identifier(connection.info.dbname),
                sql.SQL(name),
                sql.SQL(", ").join(map(sql.Literal, values)),
            )
            connection.execute(alter)
        return postgres_dsn

    return set_otherwise


@pytest.mark.parametrize("setting", SETTINGS)
async def test_the_life_of_an_instruction_is_the_same(set_otherwise, setting):
    """Queued, claimed, failed, retried, expired, taken over, fired, found; and a user's table."""
    run_at = datetime.now(UTC) - timedelta(days=1)
    async with PostgresStorage(set_otherwise(setting), migrate=True) as storage:
        await enqueue(storage, "task", "ü\\€'", payload={"a": "\\ €"}, run_at=run_at, retries=1)
        task = storage.queue_task("task", key="ü\\\\%", lease=0.3)
        (first,) = await claim(task)
        await storage.fail(first.receipt, "ü € \\", retry_in=timedelta(0).total_seconds())
        (second,) = await claim(task)
        await storage.heartbeat(second.receipt)
        taken = await storage.take_over(second.receipt, lease=0.05)
        await trio.sleep(0.1)
        (third,) = await claim(task)
        await storage.complete(third.receipt, {"to": "€"})
        later = datetime.now(UTC) + timedelta(hours=1)
        await enqueue(storage, "task", "ü\\later", run_at=later)
        waiting = await attempt(task)
        cron = storage.cron_task("cron", "* * * * *")
        fires = await attempt(cron)
        source = storage.claim_task(
            "source",
            sql="UPDATE public.account SET sent_at = %(now)s WHERE id IN (SELECT id FROM"
            " public.account WHERE sent_at IS NULL AND id <> ALL (%(active)s::bigint[])"
            " LIMIT %(limit)s) RETURNING id",
        )
        from_table = await claim(source)
        await storage.release(receipts(from_table))
        found = {each.instruction: each for each in await storage.find()}
        stats = {each.task_name: each for each in await storage.stats()}

    assert ({"a": "\\ €"}, 1, 2, 3) == (
        first.payload,
        *(each.delivery for each in (first, second, third)),
    )
    assert (1, 0) == (len(taken.receipts), len(taken.stale))
    assert 3500 < waiting.due_in <= 3600
    assert 0 <= fires.due_in <= 60
    assert ["7"] == names(from_table)
    done = found["ü\\€'"]
    assert ("succeeded", {"to": "€"}, "ü € \\") == (done.status, done.result, done.error)
    assert abs(found["ü\\later"].run_at - later) < timedelta(milliseconds=1)
    assert (1, 1) == (stats["task"].queued, stats["task"].succeeded)


@pytest.mark.parametrize("encoding", ("LATIN1", "SQL_ASCII", "EUC_JP"))
async def test_a_database_that_holds_not_all_text_is_refused_when_it_is_migrated(
    postgres_server, encoding
):
    """By name, and with the remedy; nothing is made there."""
    name = f"test_{encoding.lower()}"
    create = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    with psycopg.connect(postgres_server.uri, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(create)
    dsn = make_conninfo(postgres_server.uri, dbname=name)
    async with PostgresStorage(dsn) as storage:
        with pytest.raises(StorageError, match=f"its encoding is {encoding}.*ENCODING 'UTF8'"):
            await storage.migrate()
        with pytest.raises(StorageError, match="has no planton tables"):
            await storage.stats()
    with psycopg.connect(postgres_server.uri, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_that_can_only_be_read_is_told(set_otherwise):
    """As a replica is, or a role that may not write."""
    dsn = set_otherwise("default_transaction_read_only=on")
    writing = make_conninfo(dsn, options="-cdefault_transaction_read_only=off")
    async with PostgresStorage(writing, migrate=True) as storage:
        await enqueue(storage, "task", "a")
    async with PostgresStorage(dsn) as storage:
        for call in (
            lambda: storage.enqueue("task", "b"),
            lambda: claim(storage.queue_task("task")),
        ):
            with pytest.raises(StorageError, match="connect to the primary"):
                await call()


# Where our tables are


async def test_functions_and_triggers_know_their_own_schema(postgres_dsn):
    """A program that inserts by plain SQL has another search_path, or an empty one."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "O\'Hara ""jobs"""')
        dsn = make_conninfo(postgres_dsn, options='-csearch_path="O\'Hara\\ ""jobs"""')
        async with PostgresStorage(dsn, migrate=True) as storage:
            table = '"O\'Hara ""jobs""".planton_pending'
            for path in ("public", "''", "pg_temp, pg_catalog"):
                connection.execute(f"SET search_path TO {path}")
                connection.execute(
                    f"INSERT INTO {table} (task_name, instruction) VALUES ('task', %s)", [path]
                )
                assert connection.execute(
                    f"SELECT {table.replace('pending', 'enqueue')}('task', %s)", [f"{path} too"]
                ).fetchone() == (True,)
            claims = await claim(storage.queue_task("task", concurrency=9))
            await storage.complete(receipts(claims))

    assert 6 == len(claims)


async def test_two_fleets_share_a_database(schema_dsn, shared_dsn):
    """Each in a schema of its own; the tables of one are none of the other's."""
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS second_fleet")
    elsewhere = make_conninfo(shared_dsn, options="-csearch_path=second_fleet")
    assert conninfo_to_dict(schema_dsn)["dbname"] == conninfo_to_dict(elsewhere)["dbname"]
    async with (
        PostgresStorage(schema_dsn, migrate=True) as one,
        PostgresStorage(elsewhere, migrate=True) as two,
    ):
        await enqueue(one, "task", "a")
        await enqueue(two, "task", "b")
        found = [names(await claim(each.queue_task("task", concurrency=5))) for each in (one, two)]

    assert [["a"], ["b"]] == found
