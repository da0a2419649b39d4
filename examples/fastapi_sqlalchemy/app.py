"""FastAPI and SQLAlchemy: accounts are claimed from their own table, by a statement of its own.

To install: pip install 'planton[executor,postgres,cli,sqlalchemy]' fastapi uvicorn asyncpg greenlet
To run: planton migrate "$DATABASE_URL" && python app.py && uvicorn app:app --port 8000
Then: curl -X POST 'localhost:8000/accounts?email=ann@example.org'; curl localhost:8000/accounts/1
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from fastapi import FastAPI
from sqlalchemy import bindparam, func, make_url, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from planton import Planton
from planton.asyncio import callback, running
from planton_executor import Executor, Work
from planton_postgres import PostgresStorage
from planton_sqlalchemy import claim_task

DATABASE_URL = os.environ["DATABASE_URL"]
SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that an e-mail takes

engine = create_async_engine(make_url(DATABASE_URL).set(drivername="postgresql+asyncpg"))
session_of = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """Of the tables of this program."""


class Account(Base):
    """Somebody who is to be welcomed once."""

    __tablename__ = "user_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    claimed_at: Mapped[datetime | None]
    welcomed: Mapped[int] = mapped_column(default=0)


unclaimed = (
    select(Account.id)
    .where(Account.claimed_at.is_(None))
    .order_by(Account.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
claim = (
    update(Account)
    .where(Account.id.in_(unclaimed.scalar_subquery()))
    .values(claimed_at=func.now())
    .returning(Account.id)
)

storage = PostgresStorage(DATABASE_URL)
executor = Executor(storage, concurrency=10)
task = claim_task(storage, "welcome", statement=claim, concurrency=5, retries=3)
planton = Planton(tasks=[task], storages=[storage], consumers=[executor])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with running(planton):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/accounts")
async def sign_up(email: str) -> int:
    async with session_of() as session, session.begin():
        account = Account(email=email)
        session.add(account)
    planton.wake("welcome")
    return account.id


@app.get("/accounts/{account_id}")
async def welcomed(account_id: int) -> int | None:
    async with session_of() as session:
        return await session.scalar(select(Account.welcomed).where(Account.id == account_id))


@executor.handler("welcome", retry_delay=60)
@callback
async def welcome(work: Work) -> None:
    await asyncio.sleep(SECONDS)  # send the e-mail here
    async with session_of() as session, session.begin():
        account = await session.get_one(Account, int(work.instruction))
        account.welcomed += 1


async def create_tables() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
