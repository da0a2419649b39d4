"""FastAPI and asyncpg: an account and its welcome e-mail are committed together.

To install: pip install 'planton[executor,postgres,cli]' fastapi uvicorn asyncpg
To run: planton migrate "$DATABASE_URL" && python app.py && uvicorn app:app --port 8000
Then: curl -X POST 'localhost:8000/accounts?email=ann@example.org'; curl localhost:8000/accounts/1
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI

from planton import Planton
from planton.asyncio import callback, running
from planton_executor import Executor, Work
from planton_postgres import PostgresStorage

DATABASE_URL = os.environ["DATABASE_URL"]
TABLE = """
    CREATE TABLE IF NOT EXISTS account (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        email text NOT NULL,
        welcomed integer NOT NULL DEFAULT 0
    )
"""
SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that an e-mail takes

storage = PostgresStorage(DATABASE_URL)
executor = Executor(storage, concurrency=10)
task = storage.queue_task("welcome", concurrency=5)
planton = Planton(tasks=[task], storages=[storage], consumers=[executor])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(DATABASE_URL) as app.state.pool, running(planton):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/accounts")
async def sign_up(email: str) -> int:
    async with app.state.pool.acquire() as connection, connection.transaction():
        insert = "INSERT INTO account (email) VALUES ($1) RETURNING id"
        account_id: int = await connection.fetchval(insert, email)
        await storage.enqueue("welcome", str(account_id), connection=connection)
    return account_id


@app.get("/accounts/{account_id}")
async def welcomed(account_id: int) -> int | None:
    """Return how many e-mails an account was sent."""
    select = "SELECT welcomed FROM account WHERE id = $1"
    count: int | None = await app.state.pool.fetchval(select, account_id)
    return count


@executor.handler("welcome", retries=3, retry_delay=60)
@callback
async def welcome(work: Work) -> None:
    await asyncio.sleep(SECONDS)  # send the e-mail here
    update = "UPDATE account SET welcomed = welcomed + 1 WHERE id = $1"
    await app.state.pool.execute(update, int(work.instruction))


async def create_tables() -> None:
    connection = await asyncpg.connect(DATABASE_URL)
    await connection.execute(TABLE)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(create_tables())
