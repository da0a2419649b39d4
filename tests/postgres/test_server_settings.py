"""A server, a database or a role that is set otherwise: it works, or is refused by name."""

import uuid
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from planton import InstructionEvent, Planton, StorageError
from planton.testing.conformance._base import claim, names
from planton_postgres import PostgresStorage

ODD = "jò\\'日本\n%s"
SETTINGS = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "TimeZone": "Asia/Kathmandu",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "extra_float_digits": "3",
    "client_encoding": "LATIN1",
    "quote_all_identifiers": "on",
    "session_replication_role": "origin",
    "xmloption": "document",
}


@pytest.fixture
def altered(postgres_dsn):
    """Set something for the database: `altered(name=value)`."""

    def altered(**settings):
        writable = make_conninfo(postgres_dsn, options="-cdefault_transaction_read_only=off")
        with psycopg.connect(writable, autocommit=True) as connection:
            database = sql.Identifier(connection.info.dbname)
            for name, value in settings.items():
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                        database, sql.Identifier(name), sql.Literal(value)
                    )
                )
        return postgres_dsn

    return altered


async def live(dsn):
    """Use most of what a storage does; what it found."""
    moment = datetime(2031, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    async with PostgresStorage(dsn) as storage:
        await storage.migrate()
        await storage.enqueue("q", ODD, payload={ODD: [ODD, 1.5]}, tags=[ODD], timeout=0.1234567)
        await storage.enqueue("q", "later", run_at=moment)
        task = storage.queue_task("q", tags=[ODD], concurrency=5)
        sql_task = storage.claim_task(
            "s", sql="SELECT 'a' WHERE %(now)s > '2020-01-02' AND 1 <= %(limit)s", concurrency=1
        )
        cron = storage.cron_task("c", "* * * * *")
        planton = Planton(tasks=[task, sql_task, cron], services=[storage.serve])
        planton.on(InstructionEvent, lambda _: None)
        async with planton:
            assert "live" == storage.wake_ups
            await planton.attempt("c")
        await storage.stats()
        again = [each.instruction for each in await storage.find(status="running")]
        await storage.release([])
        (later,) = await storage.find(instruction="later")
        (odd,) = await storage.find(instruction=ODD)
        moved = storage.cron_task("c", "*/2 * * * *")
        await claim(moved)
        assert (await storage.dispatchers()) == []
        return [odd.payload, odd.tags, odd.timeout, later.run_at == moment, len(again)]


EXPECTED = [{ODD: [ODD, 1.5]}, (ODD,), 0.1234567, True, 2]


async def test_all_settings_of_taste_change_nothing(altered):
    """Formats, encodings of the client and quoting are those that the storage needs."""
    assert EXPECTED == await live(altered(**SETTINGS))


@pytest.mark.parametrize("isolation", ("serializable", "repeatable read", "read uncommitted"))
async def test_another_isolation_changes_nothing(altered, isolation):
    """Claims are made in READ COMMITTED, whatever the default is."""
    assert EXPECTED == await live(altered(default_transaction_isolation=isolation))


async def test_the_environment_changes_nothing(altered, monkeypatch):
    """PGCLIENTENCODING and the like are for other programs."""
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German")

    assert EXPECTED == await live(make_conninfo(altered(), client_encoding="SQL_ASCII"))


async def test_another_search_path_of_the_session_finds_functions_and_tables(altered):
    """Names of ours are qualified; the search_path of a writer's session leads elsewhere."""
    dsn = altered()
    async with PostgresStorage(dsn) as storage:
        await storage.migrate()
        with psycopg.connect(dsn, options="-csearch_path=pg_temp") as connection:
            connection.execute("CREATE TABLE planton_task (task_name text)")
            connection.execute("SELECT public.planton_enqueue('q', '1')")
            connection.execute(
                "INSERT INTO public.planton_pending (task_name, instruction) VALUES ('q', '2')"
            )

        assert ["1", "2"] == names(await claim(storage.queue_task("q", concurrency=3)))


@pytest.mark.parametrize(
    ("setting", "value", "needed"),
    (
        ("default_transaction_read_only", "on", "off"),
        ("array_nulls", "off", "on"),
        ("extra_float_digits", "0", "1"),
    ),
)
async def test_what_would_change_the_content_is_refused_by_name(altered, setting, value, needed):
    """The error has the setting, its value, and what to do; nothing was created."""
    dsn = altered(**{setting: value})
    async with PostgresStorage(dsn) as storage:
        with pytest.raises(StorageError, match=f"setting {setting} is {value}.*ALTER DATABASE"):
            await storage.migrate()
    altered(**{setting: needed})
    async with PostgresStorage(dsn) as storage:
        assert 1 <= await storage.migrate()


@pytest.mark.parametrize("encoding", ("LATIN1", "SQL_ASCII", "EUC_JP"))
async def test_a_database_of_another_encoding_is_refused_by_name(postgres_server, encoding):
    """It could not hold what others can, or would hold anything."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.uri, autocommit=True) as connection:
        statement = "CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0"
        connection.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Literal(encoding)))
        try:
            async with PostgresStorage(make_conninfo(postgres_server.uri, dbname=name)) as storage:
                with pytest.raises(StorageError, match=f"server_encoding is {encoding}, not UTF8"):
                    await storage.migrate()
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(name)))
