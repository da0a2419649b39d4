"""SQLAlchemy's statements as sources, and its sessions to queue in."""

import asyncio
from datetime import datetime

import pytest
import sqlalchemy
import trio
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from planton import InstructionEvent, InvalidArgumentError, InvalidQueryError, Planton, PlantonError
from planton.testing import EventCollector
from planton_postgres import PostgresStorage
from planton_sqlalchemy import claim_task, enqueue
from planton_sqlite import SQLiteStorage


class Base(DeclarativeBase):
    """Of the tables of this program."""


class Account(Base):
    """Who is to be written to."""

    __tablename__ = "user_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[str]
    claimed_at: Mapped[datetime | None]


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request, tmp_path):
    if request.param == "sqlite":
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    else:
        engine = sqlalchemy.create_engine(
            url_of(request.getfixturevalue("postgres_dsn"), "psycopg")
        )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def url_of(dsn, driver):
    known = dict(part.split("=") for part in dsn.split())
    return f"postgresql+{driver}://{known['user']}@/{known['dbname']}?host={known['host']}"


@pytest.fixture
async def storage(engine):
    async with opened(engine) as storage:
        yield storage


def opened(engine):
    if engine.dialect.name == "sqlite":
        return SQLiteStorage(engine.url.database)
    conninfo = engine.url.set(drivername="postgresql").render_as_string()
    return PostgresStorage(conninfo, migrate=True)


UNSENT = (
    select(Account.id)
    .where(Account.claimed_at.is_(None), Account.plan == "100 % it's :limit")
    .order_by(Account.id)
    .limit(bindparam("limit"))
)
CLAIM = (
    update(Account)
    .where(Account.id.in_(UNSENT.scalar_subquery()))
    .values(claimed_at=func.now())
    .returning(Account.id)
    .execution_options(synchronize_session=False)
)


async def test_an_update_is_a_source(storage, engine):
    """With its values, whatever characters they have, and the limit of each claim."""
    plans = ["100 % it's :limit", "other", "100 % it's :limit"]
    with Session(engine) as session, session.begin():
        session.add_all(Account(id=id_, plan=plan) for id_, plan in enumerate(plans))
    planton = Planton(tasks=[claim_task(storage, "mail", statement=CLAIM, concurrency=5, lease=9)])
    seen = EventCollector(planton)
    with trio.fail_after(10):
        async with planton:
            events = [await seen.wait_for(InstructionEvent, n) for n in (1, 2)]
            await storage.complete([event.receipt for event in seen.of(InstructionEvent)])

    assert events
    assert ["0", "2"] == sorted(event.instruction for event in seen.of(InstructionEvent))
    with Session(engine) as session:
        claimed = session.scalars(select(Account.id).where(Account.claimed_at.is_not(None)))
        assert [0, 2] == sorted(claimed)


async def test_a_statement_that_cannot_be_used_is_refused_by_name(storage):
    """When the task is made: no limit, a value that cannot be written, no statement."""
    with pytest.raises(InvalidQueryError, match="limit"):
        claim_task(storage, "mail", statement=select(Account.id))
    with pytest.raises(InvalidQueryError, match=r"mail.*'missing'"):
        claim_task(storage, "mail", statement=UNSENT.where(Account.plan == bindparam("missing")))
    with pytest.raises(InvalidArgumentError, match="statement"):
        claim_task(storage, "mail", statement="SELECT 1")


async def test_a_session_queues_in_its_own_transaction(storage, engine):
    """Without a storage: from any program."""

    def produce():
        with Session(engine) as session, session.begin():
            session.add(Account(id=1, plan="x"))
            assert enqueue(session, "mail", "1", payload={"a": 1}, priority=3)
            assert not enqueue(session, "mail", "1")
        with Session(engine) as session:
            enqueue(session, "mail", "undone")
            session.rollback()

    await trio.to_thread.run_sync(produce)
    (found,) = await storage.find()

    assert ("1", {"a": 1}, 3) == (found.instruction, found.payload, found.priority)


async def test_a_session_on_asyncio_queues_in_its_own_transaction(storage, engine):
    """It is awaited."""
    if engine.dialect.name == "sqlite":
        url = f"sqlite+aiosqlite:///{engine.url.database}"
    else:
        url = engine.url.set(drivername="postgresql+asyncpg")

    async def produce():
        its = create_async_engine(url)
        async with AsyncSession(its) as session, session.begin():
            session.add(Account(id=1, plan="x"))
            assert await enqueue(session, "mail", "1")
        async with AsyncSession(its) as session:
            await enqueue(session, "mail", "undone")
            await session.rollback()
        await its.dispose()

    await trio.to_thread.run_sync(asyncio.run, produce())

    assert ["1"] == [found.instruction for found in await storage.find()]


async def test_it_does_not_block_trio(engine):
    """There the storage is awaited, with the session as its connection."""
    with Session(engine) as session:
        with pytest.raises(PlantonError, match="would block trio"):
            enqueue(session, "mail", "1")
