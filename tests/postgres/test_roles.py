"""The roles of docs/roles.md, with their grants and nothing else; and who can stop a deploy."""

import re
import uuid
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import Planton, StorageError
from planton.testing.conformance._base import attempt, claim
from planton_postgres import PostgresStorage

PAGE = Path(__file__).parents[2] / "docs" / "roles.md"
ROLES = ("app_consumer", "app_producer", "app_viewer")


@pytest.fixture
async def owner(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


@pytest.fixture
async def roles(owner, schema_dsn, observer):
    """The conninfo of each role, with the grants of the page."""
    suffix = uuid.uuid4().hex[:8]
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    ((schema,),) = await (await observer.execute("SELECT current_schema()")).fetchall()
    for role in ROLES:
        grants = grants.replace(role, f"{role}_{suffix}")
        await observer.execute(f"CREATE ROLE {role}_{suffix} LOGIN")
    for statement in grants.replace("SCHEMA public", f"SCHEMA {schema}").split(";\n"):
        if statement.strip():
            await observer.execute(statement)
    yield {role: make_conninfo(schema_dsn, user=f"{role}_{suffix}") for role in ROLES}
    for role in ROLES:
        await observer.execute(f"DROP OWNED BY {role}_{suffix}")
        await observer.execute(f"DROP ROLE {role}_{suffix}")


async def test_a_consumer_does_all_but_migrate(roles, owner):
    """It dispatches, is woken, reports in every way, keeps its fleet and prunes."""
    async with PostgresStorage(roles["app_consumer"]) as storage:
        assert 0 == await storage.migrate()
        task = storage.queue_task("q", concurrency=2, delay=30, lease=2)
        planton = Planton(
            tasks=[task, storage.cron_task("c", "* * * * *")], services=[storage.serve]
        )
        ends = [
            storage.complete,
            storage.release,
            lambda receipt: storage.fail(receipt, "odd", retries=3),
            lambda receipt: storage.advance(receipt, {"step": 2}, run_in=0),
            lambda receipt: storage.advance(receipt, {"step": 2}),
            storage.heartbeat,
            lambda receipt: storage.take_over([receipt]),
        ]
        for number in range(len(ends)):
            await owner.enqueue("q", str(number))
        async with planton:
            (dispatcher,) = await storage.dispatchers()
        await storage.pause("q")
        await storage.resume("q")
        await storage.set_concurrency("q", 20)
        claims = await claim(storage.queue_task("q", concurrency=20))
        await claim(storage.cron_task("c", "* * * * *"))
        for end, one in zip(ends, claims, strict=False):
            await end(one.receipt)
        await storage.prune(status="succeeded")
        await storage.retry("q")
        stats = await storage.stats()

    assert "" != dispatcher.id
    assert claims
    assert "q" in {each.task_name for each in stats}


async def test_a_producer_enqueues_and_nothing_else(roles, owner, schema_dsn):
    """From Python and from SQL; it can neither read payloads, nor claim, nor end."""
    async with PostgresStorage(roles["app_producer"]) as storage:
        assert 0 == await storage.migrate()
        assert await storage.enqueue("q", "1", payload={"secret": 1}, tags=["a"], timeout=3)
        assert not await storage.enqueue("q", "1")
        with psycopg.connect(roles["app_producer"]) as connection:
            await storage.enqueue("q", "2", connection=connection)
            assert [(True,)] == connection.execute("SELECT planton_enqueue('q', '3')").fetchall()
        for refused in (storage.find(), storage.pause("q"), attempt(storage.queue_task("q"))):
            with pytest.raises(StorageError, match="permission denied"):
                await refused
        with psycopg.connect(roles["app_producer"]) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT payload FROM planton_pending")

    assert ["1", "2", "3"] == sorted(each.instruction for each in await owner.find())


async def test_a_viewer_sees_all_and_changes_nothing(roles, owner):
    """`find`, `stats`, `dispatchers` and `decisions` work; a role that only reads will do."""
    await owner.enqueue("q", "1")
    options = psycopg.conninfo.conninfo_to_dict(roles["app_viewer"])["options"]
    options += " -cdefault_transaction_read_only=on"
    dsn = make_conninfo(roles["app_viewer"], options=options)
    async with PostgresStorage(dsn) as storage:
        assert ["1"] == [each.instruction for each in await storage.find()]
        assert ["q"] == [each.task_name for each in await storage.stats()]
        assert [] == await storage.dispatchers()
        assert [] == await storage.decisions()
        with pytest.raises(StorageError, match="default_transaction_read_only"):
            await storage.enqueue("q", "2")
    async with PostgresStorage(roles["app_viewer"]) as storage:
        for refused in (storage.enqueue("q", "2"), storage.pause("q"), storage.retry("q")):
            with pytest.raises(StorageError, match="permission denied"):
                await refused


# Who can stop a deploy


@pytest.fixture
async def outdated(owner, observer):
    """The tables are such that there is something to migrate."""
    ((schema,),) = await (await observer.execute("SELECT current_schema()")).fetchall()
    await observer.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    await observer.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    await observer.execute("CREATE TABLE planton_schema (version integer NOT NULL)")


async def test_no_role_without_rights_can_stop_a_deploy(owner, outdated, schema_dsn):
    """Neither by reading the table of versions in a long transaction, nor by advisory locks."""
    with psycopg.connect(schema_dsn) as reader:
        reader.execute("SELECT * FROM planton_schema")
        reader.execute("SELECT pg_advisory_lock(7382190455018236)")

        assert 1 <= await owner.migrate(lock_timeout=0.5)


async def test_migrate_says_who_is_in_its_way(owner, outdated, schema_dsn):
    """It gives up after its timeout, and names the process, the role and the program."""
    with psycopg.connect(schema_dsn, application_name="long report") as holder:
        holder.execute("LOCK TABLE planton_schema")
        pid, role = holder.info.backend_pid, holder.info.user

        with pytest.raises(StorageError, match=rf"process {pid} of role {role} \(long report, "):
            await owner.migrate(lock_timeout=0.2)
    assert 1 <= await owner.migrate(lock_timeout=5)


async def test_many_migrate_an_empty_database_at_once(schema_dsn):
    """One of them does, the others find it done."""
    applied = []

    async def migrate():
        async with PostgresStorage(schema_dsn, pool_size=1) as storage:
            applied.append(await storage.migrate())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(migrate)

    assert [0, 0, 0, 0] == sorted(applied)[:4]
    assert sorted(applied)[4] >= 1


async def test_many_migrate_outdated_tables_at_once(outdated, schema_dsn):
    """One of them does, the others wait for it and find it done."""
    applied = []

    async def migrate():
        async with PostgresStorage(schema_dsn, pool_size=1) as storage:
            applied.append(await storage.migrate())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(migrate)

    assert [0, 0, 0, 0] == sorted(applied)[:4]
    assert sorted(applied)[4] >= 1


async def test_a_role_that_may_not_have_more_connections_is_told_so(owner, roles, observer):
    """Its user and its password are right."""
    role = conninfo_to_dict(roles["app_viewer"])["user"]
    await observer.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    with pytest.raises(StorageError, match=r"too many connections for role .*: all connections"):
        async with PostgresStorage(roles["app_viewer"]):
            pass


async def test_nobody_may_claim_who_was_not_granted_it(owner, roles, observer):
    """The function runs any statement: a role that may only enqueue, or nothing, cannot call it."""
    query = """
    SELECT has_function_privilege(%s, 'planton_claim(text, jsonb)', 'EXECUTE'),
           (SELECT prosecdef FROM pg_proc WHERE oid = 'planton_claim(text, jsonb)'::regprocedure)
    """
    for role in ("app_producer", "app_viewer"):
        name = psycopg.conninfo.conninfo_to_dict(roles[role])["user"]
        found = await (await observer.execute(query, [name])).fetchone()

        assert (False, False) == found
