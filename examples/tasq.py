"""tasq's TaskExecutor: N jobs at a time per instance, pushed and polled, each claimed by UNIQUE.

| tasq | here |
| --- | --- |
| INSERT INTO executing_job, jobId UNIQUE | `planton_active`, UNIQUE (task_name, instruction) |
| DELETE FROM executing_job, FINALLY | `complete`, `fail`, or, if the process died, the lease |
| `TaskExecutor(n)` | `Executor(storage, concurrency=n)`, and its `capacity` for the task |
| `post(job)` | `planton.wake("job")`: look at once; nothing is held in memory that may be lost |
| query for all old jobs on boot, when idle, after every Nth | `planton.wake("job")`, likewise |
| poll every N minutes | `delay` |
| events idle, success, fail | `IdleEvent`, `SucceededEvent`, `FailedEvent` |
| on, removeListener; start, stop | `on`, `off`; `async with planton` |

SQLite has no SKIP LOCKED and needs none: the claim is a plain SELECT, in a transaction that counts
what is active and is refused what another instance has. With `storage.serve` among the services a
free slot asks for more by itself; it is left out here to show who asks.

To install: pip install 'planton[sqlite,executor]', or [postgres,executor]
To run: python examples/tasq.py [jobs.db | postgresql://user@host/database]
With a database named, SECONDS=30 gives you time to kill it in the middle; started again, it goes on
when the lease is over.

Prints:
    left over at start-up: 6 jobs, for 2 instances of 2 at a time
      each was executed once: True; most at a time: 2 and 2
      fail: 3
      success: 1, 2, 4, 5, 6
    polling found 7, which nobody pushed
    pushed: 8 (goes on), 9, 10, 11
      after every 3rd it asked, and found 12
      when idle it asked, and found 13
    jobs: 1 error, 12 success
"""

import os
import sqlite3
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any

import attrs
import trio

from planton import InstructionEvent, Planton
from planton_executor import Executor, FailedEvent, IdleEvent, SucceededEvent, Work

SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that a job takes
EVERY = 3  # ended jobs ask for old ones
NEVER = 3600.0

CREATE = "CREATE TABLE IF NOT EXISTS job (id {serial}, status text NOT NULL DEFAULT 'new')"
LEFT_OVER = "INSERT INTO job (status) VALUES ('new'), ('new'), ('new'), ('new'), ('new'), ('new')"
ADD = "INSERT INTO job DEFAULT VALUES RETURNING id"
COUNT = "SELECT status, count(*) FROM job GROUP BY status ORDER BY status"
CHANGE = "UPDATE job SET status = {parameter} WHERE id = {parameter}"
# It finds active jobs again and again; what is active already is not claimed a second time.
FIND = "SELECT id FROM job WHERE status = 'new' ORDER BY id LIMIT {limit}"


@attrs.frozen
class Database:
    """The server's own table. Its statements block, so they run in worker threads."""

    sql: dict[str, str]
    connect: Callable[[], Any]
    open_storage: Callable[[], Any]

    @classmethod
    def on_sqlite(cls, path: str) -> "Database":
        from planton_sqlite import SQLiteStorage

        sql = {"serial": "INTEGER PRIMARY KEY", "parameter": "?", "limit": ":limit"}
        connect = partial(sqlite3.connect, path, timeout=10, isolation_level=None)
        return cls(sql, connect, partial(SQLiteStorage, path))

    @classmethod
    def on_postgres(cls, url: str) -> "Database":
        import psycopg

        from planton_postgres import PostgresStorage

        serial = "integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
        sql = {"serial": serial, "parameter": "%s", "limit": "%(limit)s"}
        connect = partial(psycopg.connect, url, autocommit=True)
        return cls(sql, connect, partial(PostgresStorage, url))

    def _execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(self.connect()) as connection:
            cursor = connection.execute(statement.format(**self.sql), parameters)
            return cursor.fetchall() if cursor.description else []

    async def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await trio.to_thread.run_sync(self._execute, statement, *parameters)

    async def add_job(self) -> int:
        """Do no more than a program that knows nothing of us."""
        ((job_id,),) = await self.execute(ADD)
        return int(job_id)


class TaskExecutor:
    """An instance: at most `n` jobs at a time."""

    def __init__(self, database: Database, storage: Any, n: int, poll: float, jobs: "Jobs") -> None:
        self.database, self.jobs = database, jobs
        self.running = self.most = self.ended = 0
        self.executor = Executor(storage, concurrency=n)
        self.executor.handler("job")(self.execute)
        for event_type in (IdleEvent, SucceededEvent, FailedEvent):
            self.executor.on(event_type, self.ask_again)
            self.executor.on(event_type, jobs.note)
        task = storage.claim_task(
            "job",
            sql=FIND.format(**database.sql),
            concurrency=1000,  # of all instances together
            capacity=self.executor.capacity,  # of this one
            delay=poll,
            lease=10,
        )
        self.planton = Planton(tasks=[task], services=[self.executor.serve])
        self.planton.on(InstructionEvent, self.executor.submit)

    def ask_again(self, event: IdleEvent | SucceededEvent | FailedEvent) -> None:
        """Ask for old jobs when idle, and after every Nth."""
        if not isinstance(event, IdleEvent):
            self.ended += 1
        if isinstance(event, IdleEvent) or self.ended % EVERY == 0:
            self.planton.wake("job")

    async def post(self, what: Callable[[], Awaitable[object]] | None = None) -> int:
        """Store the job of a request, and push: whatever happens to us now, it is in the table."""
        job_id = await self.database.add_job()
        if what is not None:
            self.jobs.what[job_id] = what
        self.planton.wake("job")
        return job_id

    async def execute(self, work: Work) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.database.execute(CHANGE, "executing", work.instruction)
        try:
            await self.jobs.execute(int(work.instruction))
        except ValueError:
            await self.database.execute(CHANGE, "error", work.instruction)
            raise
        else:
            await self.database.execute(CHANGE, "success", work.instruction)
        finally:
            self.running -= 1


@asynccontextmanager
async def instance(
    database: Database, jobs: "Jobs", *, n: int, poll: float
) -> AsyncIterator[TaskExecutor]:
    """Start an instance; it takes up what is left over; at the end of the block, stop it."""
    async with database.open_storage() as storage:
        server = TaskExecutor(database, storage, n, poll, jobs)
        async with server.planton:
            await server.planton.attempt("job")
            yield server


@attrs.define
class Jobs:
    """What jobs do here, and what became of them."""

    what: dict[int, Callable[[], Awaitable[object]]] = attrs.field(factory=dict)
    executed: Counter[int] = attrs.field(factory=Counter)
    ended: dict[int, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event))
    events: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list))

    async def execute(self, job_id: int) -> None:
        self.executed[job_id] += 1
        await trio.sleep(SECONDS)
        if job_id in self.what:
            await self.what[job_id]()
        if job_id == 3:
            raise ValueError("no such user")

    def note(self, event: IdleEvent | SucceededEvent | FailedEvent) -> None:
        if isinstance(event, IdleEvent):
            self.events["idle"].append("")
            return
        name = "success" if isinstance(event, SucceededEvent) else "fail"
        self.events[name].append(event.work.instruction)
        self.ended[int(event.work.instruction)].set()


async def take_up_what_is_left(database: Database) -> None:
    rows = await database.execute("SELECT id FROM job WHERE status IN ('new', 'executing')")
    left = [job_id for (job_id,) in rows]
    print(f"left over at start-up: {len(left)} jobs, for 2 instances of 2 at a time", flush=True)
    jobs, all_slots_are_taken = Jobs(), trio.Event()

    async def wait_for_the_others() -> None:
        if sum(jobs.executed.values()) >= min(4, len(left)):
            all_slots_are_taken.set()
        await all_slots_are_taken.wait()

    jobs.what = dict.fromkeys(left, wait_for_the_others)
    async with (
        instance(database, jobs, n=2, poll=0.2) as one,
        instance(database, jobs, n=2, poll=0.2) as two,
    ):
        for job_id in left:
            await jobs.ended[job_id].wait()
        once = all(jobs.executed[job_id] == 1 for job_id in left)
        print(f"  each was executed once: {once}; most at a time: {one.most} and {two.most}")
        for name in ("fail", "success"):
            print(f"  {name}: {', '.join(sorted(jobs.events[name], key=int))}")
        unpushed = await database.add_job()
        await jobs.ended[unpushed].wait()
        print(f"polling found {unpushed}, which nobody pushed", flush=True)


async def push(database: Database) -> None:
    jobs, others = Jobs(), []
    has_been_found = trio.Event()

    async def add_behind_its_back() -> None:
        others.append(await database.add_job())

    async def go_on() -> None:
        await has_been_found.wait()
        await add_behind_its_back()

    async with instance(database, jobs, n=2, poll=NEVER) as server:
        pushed = [await server.post(go_on)]
        for what in (None, None, add_behind_its_back):
            pushed.append(await server.post(what))
            await jobs.ended[pushed[-1]].wait()
        first, *rest = map(str, pushed)
        print(f"pushed: {first} (goes on), {', '.join(rest)}")
        await jobs.ended[others[0]].wait()
        print(f"  after every {EVERY}rd it asked, and found {others[0]}")
        has_been_found.set()
        await jobs.ended[pushed[0]].wait()
        await jobs.ended[others[1]].wait()
        print(f"  when idle it asked, and found {others[1]}")


async def main(name: str) -> None:
    database = Database.on_postgres(name) if "://" in name else Database.on_sqlite(name)
    await database.execute(CREATE)
    if not await database.execute(COUNT):
        await database.execute(LEFT_OVER)
    async with database.open_storage() as storage:
        await storage.migrate()
    await take_up_what_is_left(database)
    await push(database)
    counts = await database.execute(COUNT)
    print("jobs:", ", ".join(f"{count} {status}" for status, count in counts))


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/jobs.db")
