"""What is queued within a transaction of the caller's, by each library that people use."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial

import aiosqlite
import asyncpg
import django
import django.conf
import psycopg
import psycopg2
import pytest
import sqlalchemy
import sqlite_utils
import trio
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from planton import InvalidArgumentError, PlantonError, ScheduleRequest, StorageError
from planton.hosting import call_blocking
from planton.testing import MemoryStorage
from planton_postgres import PostgresStorage
from planton_sqlite import SQLiteStorage


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "app.db")


@pytest.fixture
async def sqlite(path):
    async with SQLiteStorage(path) as storage:
        yield storage


@pytest.fixture
async def postgres(postgres_dsn):
    async with PostgresStorage(postgres_dsn) as storage:
        await storage.migrate()
        yield storage


REQUEST = ScheduleRequest(
    task_name="task",
    active_instructions=[],
    limit=1,
    concurrency=1,
    attempt_number=0,
)


class UndoError(Exception):
    """Leave a transaction by this, and it is rolled back."""


@contextmanager
def of_sqlite3(where):
    with closing(sqlite3.connect(where)) as connection, connection:
        yield connection


@contextmanager
def of_sqlite_utils(where):
    database = sqlite_utils.Database(where)
    with database.conn:
        yield database


@contextmanager
def of_psycopg(where):
    with psycopg.connect(where) as connection:
        yield connection


@contextmanager
def of_psycopg2(where):
    with closing(psycopg2.connect(where)) as connection, connection:
        yield connection


@contextmanager
def engine_of(where):
    if where.endswith(".db"):
        engine = sqlalchemy.create_engine(f"sqlite:///{where}")
    else:
        connect = partial(psycopg.connect, where)
        engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connect)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def of_sqlalchemy_connection(where):
    with engine_of(where) as engine, engine.begin() as connection:
        yield connection


@contextmanager
def of_sqlalchemy_session(where):
    with engine_of(where) as engine, Session(engine) as session, session.begin():
        yield session


@contextmanager
def of_scoped_session(where):
    with engine_of(where) as engine:
        session = scoped_session(sessionmaker(engine))
        with session.begin():
            yield session


@contextmanager
def of_django(where):
    if not django.conf.settings.configured:
        django.conf.settings.configure(DATABASES={"default": {}})
        django.setup()
    from django.db import connections, transaction

    engine = "sqlite3" if where.endswith(".db") else "postgresql"
    known = {} if engine == "sqlite3" else conninfo_to_dict(where)
    connections.settings["ours"] = {
        **connections.settings["default"],
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": known.get("dbname", where),
        "USER": known.get("user"),
        "HOST": known.get("host"),
    }
    try:
        with transaction.atomic(using="ours"):
            yield connections["ours"]
    finally:
        connections["ours"].close()
        del connections["ours"], connections.settings["ours"]


@asynccontextmanager
async def of_asyncpg(where):
    known = conninfo_to_dict(where)
    arguments = {"user": known["user"], "database": known["dbname"], "host": known["host"]}
    async with asyncpg.create_pool(**arguments) as pool, pool.acquire() as connection:
        # As many programs do, which then write no JSON themselves.
        await connection.set_type_codec("json", encoder=repr, decoder=eval, schema="pg_catalog")
        async with connection.transaction():
            yield connection


@asynccontextmanager
async def of_async_psycopg(where):
    async with await psycopg.AsyncConnection.connect(where) as connection:
        yield connection


@asynccontextmanager
async def of_aiosqlite(where):
    async with aiosqlite.connect(where) as connection:
        try:
            yield connection
        except UndoError:
            await connection.rollback()
            raise
        await connection.commit()


@asynccontextmanager
async def of_async_session(where):
    if where.endswith(".db"):
        engine = create_async_engine(f"sqlite+aiosqlite:///{where}")
    else:
        known = conninfo_to_dict(where)
        url = f"postgresql+asyncpg://{known['user']}@/{known['dbname']}?host={known['host']}"
        engine = create_async_engine(url)
    try:
        async with AsyncSession(engine) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


BLOCKING = {
    "sqlite": [
        of_sqlite3,
        of_sqlite_utils,
        of_sqlalchemy_connection,
        of_sqlalchemy_session,
        of_scoped_session,
        of_django,
    ],
    "postgres": [
        of_psycopg,
        of_psycopg2,
        of_sqlalchemy_connection,
        of_sqlalchemy_session,
        of_scoped_session,
        of_django,
    ],
}
ON_ASYNCIO = {
    "sqlite": [of_aiosqlite, of_async_session],
    "postgres": [of_asyncpg, of_async_psycopg, of_async_session],
}


def cases(kinds):
    return [
        pytest.param(kind, each, id=f"{kind}-{each.__name__}")
        for kind, libraries in kinds.items()
        for each in libraries
    ]


@pytest.fixture
def storage(kind, request):
    return request.getfixturevalue(kind)


def where_of(storage):
    return storage.path if isinstance(storage, SQLiteStorage) else storage.conninfo


@pytest.mark.parametrize(("kind", "of_library"), cases(BLOCKING))
async def test_a_transaction_that_blocks_is_joined(storage, of_library):
    """It is committed and rolled back with the caller's; of equal ones the first is new."""
    where = where_of(storage)
    with of_library(where) as connection:
        added = await storage.enqueue_many("task", ["a", "b", "a"], connection=connection)
        again = await storage.enqueue("task", "b", connection=connection)
    with pytest.raises(UndoError), of_library(where) as connection:
        await storage.enqueue("task", "undone", connection=connection)
        raise UndoError

    assert (2, False) == (added, again)
    assert ["a", "b"] == [found.instruction for found in await storage.find()]


@pytest.mark.parametrize(("kind", "of_library"), cases(ON_ASYNCIO))
async def test_a_transaction_on_asyncio_is_joined(storage, of_library):
    """From asyncio code, without trio; also by a storage that is not open."""
    where = where_of(storage)
    producer = type(storage)(where)

    async def produce():
        async with of_library(where) as connection:
            payload = {"deep": [1, None, "ä"]}
            await producer.enqueue("task", "a", payload=payload, tags=["x"], connection=connection)
        with pytest.raises(UndoError):
            async with of_library(where) as connection:
                await producer.enqueue("task", "undone", connection=connection)
                raise UndoError

    await trio.to_thread.run_sync(asyncio.run, produce())
    (found,) = await storage.find()

    assert ("a", {"deep": [1, None, "ä"]}, ("x",)) == (found.instruction, found.payload, found.tags)


async def test_on_trio_a_session_of_asyncio_is_refused(sqlite, path):
    """By name, before anything hangs."""
    session = AsyncSession(create_async_engine(f"sqlite+aiosqlite:///{path}"))
    with pytest.raises(InvalidArgumentError, match="belongs to asyncio"):
        await sqlite.enqueue("task", "a", connection=session)


@pytest.mark.parametrize("of_library", (of_sqlite3, of_sqlalchemy_session, of_django))
async def test_a_connection_to_a_database_of_another_kind_is_refused(postgres, of_library, path):
    """It names both."""
    with of_library(path) as connection:
        with pytest.raises(InvalidArgumentError, match=r"sqlite.*postgresql"):
            await postgres.enqueue("task", "a", connection=connection)


async def test_a_session_on_another_file_is_refused(sqlite, tmp_path):
    """Whatever library it is of."""
    with of_sqlalchemy_session(str(tmp_path / "other.db")) as session:
        with pytest.raises(InvalidArgumentError, match=r"other\.db.*app\.db"):
            await sqlite.enqueue("task", "a", connection=session)


async def test_a_session_on_a_file_is_none_to_a_database_in_memory(path):
    """Which no other connection sees."""
    async with MemoryStorage() as storage:
        with of_sqlalchemy_session(path) as session:
            with pytest.raises(InvalidArgumentError, match=r"storage\.connection"):
                await storage.enqueue("task", "a", connection=session)


async def test_an_error_of_a_library_is_a_storage_error(postgres):
    """With its cause, whichever library it is."""
    with of_sqlalchemy_connection(postgres.conninfo) as connection:
        with pytest.raises(sqlalchemy.exc.ProgrammingError):
            connection.execute(sqlalchemy.text("SELECT no_such"))
        with pytest.raises(StorageError, match="transaction is aborted") as caught:
            await postgres.enqueue("task", "a", connection=connection)

    assert isinstance(caught.value.__cause__, sqlalchemy.exc.SQLAlchemyError)


@pytest.mark.parametrize(("kind", "of_library"), cases(BLOCKING))
async def test_a_synchronous_program_queues_in_its_own_transaction(storage, of_library):
    """In its own thread; the storage need not be open."""
    where = where_of(storage)
    producer = type(storage)(where)

    def produce():
        with of_library(where) as connection:
            assert call_blocking(producer.enqueue, "task", "a", priority=2, connection=connection)
        with pytest.raises(UndoError), of_library(where) as connection:
            call_blocking(producer.enqueue, "task", "undone", connection=connection)
            raise UndoError

    await trio.to_thread.run_sync(produce)
    (found,) = await storage.find()

    assert ("a", 2) == (found.instruction, found.priority)


@pytest.mark.parametrize("kind", ("sqlite", "postgres"))
async def test_a_synchronous_program_enqueues_reports_and_operates(storage):
    """Each call opens the storage and closes it."""
    producer = type(storage)(where_of(storage))

    def work():
        assert call_blocking(producer.enqueue, "task", "a")
        return [found.instruction for found in call_blocking(producer.find, task_name="task")]

    assert ["a"] == await trio.to_thread.run_sync(work)
    (claim,) = (await storage.queue_task("task").schedule(REQUEST)).claims
    done = await trio.to_thread.run_sync(call_blocking, producer.complete, claim.receipt)

    assert ((claim.receipt,), False) == (done.applied, producer.is_open)


async def test_what_would_block_trio_is_refused(sqlite):
    """And what is no method of a storage."""
    with pytest.raises(PlantonError, match="await the method"):
        call_blocking(sqlite.find)
    with pytest.raises(InvalidArgumentError, match=r"storage\.enqueue"):
        call_blocking(trio.sleep, 0)


async def test_a_session_of_asyncio_is_no_connection_of_a_synchronous_program(path, sqlite):
    """It is told so; nothing waits for ever."""
    session = AsyncSession(create_async_engine(f"sqlite+aiosqlite:///{path}"))

    def produce():
        with pytest.raises(PlantonError, match="asyncio"):
            call_blocking(sqlite.enqueue, "task", "a", connection=session)

    await trio.to_thread.run_sync(produce)


def test_what_waits_for_asyncio_is_refused_by_a_synchronous_program():
    """There is no loop that would ever answer."""

    class Slow(MemoryStorage):
        async def enqueue(self, task_name, instruction, *, connection):
            await asyncio.sleep(0)

    with pytest.raises(PlantonError, match="belongs to asyncio"):
        call_blocking(Slow().enqueue, "task", "a", connection=object())
