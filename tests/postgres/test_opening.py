"""Opening a database, its tables, and errors that say what to do."""

import pytest
import trio
from psycopg.conninfo import make_conninfo

from planton import InvalidArgumentError, StorageError
from planton.storage import load_migrations
from planton.testing.conformance._base import claim, enqueue, names
from planton_postgres import PostgresStorage
from planton_postgres._driver import TrioConnection

SETTINGS = "SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%' ORDER BY name"
PREPARED = "SELECT name FROM pg_prepared_statements"
LOCKS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


async def opened(storage):
    async with storage:
        pass  # pragma: no cover


async def rows(connection, statement):
    return await (await connection.execute(statement)).fetchall()


@pytest.mark.parametrize(
    ("changes", "problem"),
    (
        ({"dbname": "nowhere"}, "make the database first"),
        ({"host": "127.0.0.1", "port": 1}, "look whether the server runs"),
        ({"user": "nobody"}, "look at the user"),
    ),
)
async def test_a_database_that_cannot_be_opened_is_a_clear_error(schema_dsn, changes, problem):
    """It names the database and the remedy, and nobody waits for what will not come."""
    dsn = make_conninfo(schema_dsn, password="hunter2", **changes)
    with trio.fail_after(5), pytest.raises(StorageError, match=problem) as caught:
        await opened(PostgresStorage(dsn))

    assert "hunter2" not in str(caught.value) + caught.value.database
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("conninfo", ("postgresql://[", "host", 5, None, "passwort=hunter2"))
def test_a_conninfo_that_is_none_is_refused(conninfo):
    """Without showing it, as there may be a password in it."""
    with pytest.raises(InvalidArgumentError, match="conninfo") as caught:
        PostgresStorage(conninfo)

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("scheme", "remedy"),
    (
        ("mysql", "for PostgreSQL"),
        ("sqlite", "planton_sqlite"),
        ("postgresql+psycopg", "write postgresql://"),
    ),
)
@pytest.mark.parametrize("argument", ("conninfo", "listen_dsn"))
def test_a_url_of_something_else_is_refused(scheme, remedy, argument):
    """It names the scheme and the remedy, and shows no password."""
    url = f"{scheme}://joe:hunter2@db.example.com/app?a=b"
    options = {"conninfo": "postgresql://localhost/app", argument: url}
    with pytest.raises(InvalidArgumentError, match=f"{argument}.*{remedy}") as caught:
        PostgresStorage(**options)

    assert f"{scheme}://…" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    (
        {"pool_size": 0},
        {"retention": -1},
        {"connect_timeout": 0},
        {"statement_timeout": None},
        {"name": "\0"},
        {"name": 7},
    ),
)
def test_options_that_make_no_sense_are_refused(options):
    """By name."""
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        PostgresStorage("postgresql://localhost/app", **options)


async def test_a_missing_migration_is_a_clear_error(schema_dsn):
    """It says what to call, whatever is called first."""
    async with PostgresStorage(schema_dsn) as storage:
        tasks = (
            storage.queue_task("queue"),
            storage.claim_task("sql", sql="SELECT 1 LIMIT %(limit)s"),
        )
        for call in (
            *(lambda task=task: claim(task) for task in tasks),
            lambda: storage.enqueue("task", "a"),
            storage.stats,
            lambda: storage.complete("1.1"),
        ):
            with pytest.raises(StorageError, match=r"await storage\.migrate\(\)"):
                await call()
        await storage.migrate()
        await storage.enqueue("queue", "a")

        assert ["a"] == names(await claim(tasks[0]))


async def test_a_search_path_without_a_schema_is_a_clear_error(postgres_dsn):
    """There is no place for the tables."""
    dsn = make_conninfo(postgres_dsn, options="-csearch_path=nowhere")
    with pytest.raises(StorageError, match="names no schema that is there: create one"):
        await opened(PostgresStorage(dsn, migrate=True))


async def test_all_connections_of_the_pool_are_in_use(schema_dsn, observer):
    """As long as a call may wait: it says what can be done."""
    storage = PostgresStorage(schema_dsn, pool_size=1, connect_timeout=0.5, migrate=True)
    sql = "SELECT 'a' || pg_sleep(2) FROM generate_series(1, %(limit)s)"
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with storage, trio.open_nursery() as nursery:
        nursery.start_soon(claim, storage.claim_task("task", sql=sql))
        with trio.fail_after(10):
            while not await rows(observer, sleeps):
                await trio.sleep(0.01)
        with pytest.raises(StorageError, match="use a larger pool_size"):
            await storage.stats()


async def test_tables_that_are_newer_are_a_clear_error(schema_dsn, observer):
    """An old program does not touch them."""
    async with PostgresStorage(schema_dsn) as storage:
        assert [len(load_migrations("planton_postgres")), 0] == [
            await storage.migrate(),
            await storage.migrate(),
        ]
        await observer.execute("INSERT INTO planton_schema VALUES (99)")
        with pytest.raises(StorageError, match="install a newer planton"):
            await storage.migrate()
    async with PostgresStorage(schema_dsn) as storage:
        for call in (storage.stats, lambda: claim(storage.queue_task("task"))):
            with pytest.raises(StorageError, match="install a newer planton"):
                await call()


async def test_tables_that_are_older_are_a_clear_error(schema_dsn, observer):
    """At first use; nothing of them is touched."""
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        await observer.execute("UPDATE planton_schema SET version = 0")
        problem = r"this planton needs version \d+: call `await storage\.migrate\(\)`"
        for call in (storage.stats, lambda: claim(storage.claim_task("t", sql="SELECT %(limit)s"))):
            with pytest.raises(StorageError, match=problem) as caught:
                await call()

            assert "\n" not in str(caught.value)


async def test_a_migration_that_fails_is_undone(schema_dsn, observer):
    """There is a table in the way; afterwards it is as before."""
    await observer.execute("CREATE TABLE planton_ended (mine int)")
    async with PostgresStorage(schema_dsn) as storage:
        with pytest.raises(StorageError, match="already exists"):
            await storage.migrate()
        await observer.execute("DROP TABLE planton_ended")

        assert len(load_migrations("planton_postgres")) == await storage.migrate()


@pytest.mark.parametrize(("options", "kind"), (({}, "p"), ({"unlogged": True}, "u")))
async def test_tables_are_unlogged_if_that_is_asked_for(schema_dsn, observer, options, kind):
    """All that instructions and cron times are kept in; by default a crash loses nothing."""
    tables = ("task", "pending", "active", "ended", "cron", "fired")
    query = "SELECT DISTINCT relpersistence FROM pg_class WHERE oid = ANY (ARRAY[{}]::regclass[])"
    async with PostgresStorage(schema_dsn, **options) as storage:
        await storage.migrate()
        found = await rows(
            observer, query.format(", ".join(f"'planton_{table}'" for table in tables))
        )

        assert [(kind,)] == found
        await enqueue(storage, "task", "a")
        assert ["a"] == names(await claim(storage.queue_task("task")))


async def test_a_storage_that_is_closed_says_so(schema_dsn):
    """Used outside its block; it can be opened again."""
    storage = PostgresStorage(schema_dsn)
    async with storage:
        await storage.migrate()
    for call in (storage.stats, lambda: claim(storage.claim_task("t", sql="SELECT %(limit)s"))):
        with pytest.raises(StorageError, match="not open"):
            await call()
    async with storage:
        assert [] == await storage.stats()


async def test_a_pooler_without_prepared_statements(schema_dsn, observer):
    """Nothing is left in the session: no prepared statement, no setting, no lock."""
    async with PostgresStorage(schema_dsn, prepare_threshold=None, pool_size=1) as storage:
        await storage.migrate()
        task = storage.queue_task("task", concurrency=50)
        source = storage.claim_task("sql", sql="SELECT 1 LIMIT %(limit)s")
        async with await TrioConnection.connect(schema_dsn) as fresh:
            expected = await rows(fresh, SETTINGS)
        for number in range(12):
            await enqueue(storage, "task", str(number))
            (claimed,) = await claim(task)
            await storage.complete(claimed.receipt)
            await claim(source)

        async def looked(connection):
            return [await rows(connection, query) for query in (SETTINGS, PREPARED, LOCKS)]

        found = await storage._backend._database.use(looked)

        assert [expected, [], []] == found


async def test_the_server_may_restart(postgres_server, postgres_dsn):
    """What is in hand fails with a clear error; the next attempt goes on."""
    if not postgres_server.is_ours:  # pragma: no cover
        pytest.skip("the server is not ours to restart")
    async with PostgresStorage(postgres_dsn) as storage:
        await storage.migrate()
        await enqueue(storage, "task", "a")
        task = storage.queue_task("task")
        (claimed,) = await claim(task)
        await trio.to_thread.run_sync(postgres_server.restart)

        assert (claimed.receipt,) == (await storage.complete(claimed.receipt)).applied


@pytest.mark.parametrize(
    ("instruction", "options", "argument"),
    (
        ("a", {"retries": 2**31}, "retries"),
        ("a", {"timeout": 1e9}, "timeout"),
        ("a\0", {}, "instruction"),
        ("\ud800", {}, "instruction"),
        ("a", {"tags": ["\0"]}, "tags"),
    ),
)
async def test_what_no_column_holds_is_refused(schema_dsn, instruction, options, argument):
    """By name, before the server sees it."""
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        with pytest.raises(InvalidArgumentError, match=argument):
            await storage.enqueue("task", instruction, **options)

        assert [] == await storage.find()


async def test_json_may_have_half_characters(schema_dsn):
    """As other programs write them; they come back as they were."""
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        await storage.enqueue("task", "a", payload={"half": "\ud800ü"})

        assert [{"half": "\ud800ü"}] == [found.payload for found in await storage.find()]


@pytest.mark.parametrize("password", ("hun@ter2", "hun/ter2", "hun?ter2", "hun#ter2", "a/hun@ter2"))
def test_a_password_that_would_be_taken_for_a_host_is_refused_without_being_told(password):
    """It says how such signs are written."""
    with pytest.raises(InvalidArgumentError, match="%40") as caught:
        PostgresStorage(f"postgresql://joe:{password}@localhost/app")

    assert "ter2" not in str(caught.value)
