"""pg_task's tutorial: tasks in steps that are stored, so that each resumes where it stopped.

| pg_task | here |
| --- | --- |
| `impl Step`, RETRY_LIMIT, RETRY_DELAY | a class of `Step`, retry_limit, retry_delay |
| NextStep::now, delay, none | `then`, `later`, `done` |
| task!, scheduler! | `Steps(executor, "Greeter", [ReadName, SayHello])` |
| enqueue; delay, schedule; a row inserted by hand | `steps.enqueue`; with `run_at`; likewise |
| columns step, wakeup_at, tried, error | payload, run_at, delivery, error |
| is_running | status = 'running': a lease and a receipt, which a dead worker cannot keep |
| update pg_task set error = null | `storage.retry("Greeter")`, or `planton retry` in a shell |
| Worker::new(db).run(), for itself | `planton.run()`: the concurrency is that of all workers |
| a worker that starts frees all running rows | it takes only those whose lease is over |
| pg_notify(…, 'stop_worker') | UPDATE planton_dispatcher, or `storage.request_stop()` |

To install: pip install 'planton[sqlite,executor]', or [postgres,executor]
To run: python examples/pg_task.py [tasks.db | postgresql://user@host/database]
With a database named, SECONDS=1 makes the counter slow and gives you time to kill it; started
again, it goes on when the lease is over, from the number that it had come to.

Prints:
    Defining tasks: Greeter is ReadName, then SayHello
    Investigating errors:
      ReadName, try 1: No such file or directory
      ReadName, try 2: No such file or directory
      ReadName, try 3: No such file or directory
      ReadName, try 4: No such file or directory
      ReadName, try 5: No such file or directory
      ReadName, try 6: No such file or directory
      status   | dead
      payload  | {"Greeter": {"ReadName": {"filename": "name.txt"}}}
      delivery | 6
      error    | FileNotFoundError: [Errno 2] No such file or directory: 'name.txt'
    Fixing the world:
      Hello, Fixed World
    Scheduling tasks:
      Hello, whoever inserts a row
      Hello, whoever waits a moment; not before its time: True
    Delaying steps, one at a time:
      nap 1 goes to sleep, queued: True
      nap 2 goes to sleep, queued: True
      nap 1 wakes up
      nap 2 wakes up
    Counting:
      from 0 to 100 in 101 steps, each of them stored
    Running workers: two, with a concurrency of 3
      9 tasks done, most at a time: 3
    Running one more:
      the first worker is at it: running, delivery 1
      Hello, says the one that came later
      the first worker is at it: running, delivery 1
      begun once: True; succeeded, delivery 1
    Stopping workers, by SQL:
      at work: 2
      none is running, both workers have stopped
      pulse 1 rests before its next step: queued, True
      pulse 2 rests before its next step: queued, True
    19 tasks succeeded
"""

import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from planton import Planton
from planton.storage import InstructionRecord
from planton_executor import (
    AdvancedEvent,
    Executor,
    FailedEvent,
    Next,
    Step,
    StepContext,
    Steps,
    done,
    later,
    then,
)

SECONDS = float(os.environ.get("SECONDS", "0"))  # that the counter takes for each number


# Defining tasks: each step is a frozen class, whose fields are its state


@attrs.frozen
class ReadName(Step):
    """The name is read from a file; that may fail, so it is tried again a few times."""

    filename: str
    retry_limit = 5
    retry_delay = 0.05

    async def step(self, context: StepContext) -> Next:
        name = await trio.Path(self.filename).read_text()
        return then(SayHello(name.strip()))


@attrs.frozen
class SayHello(Step):
    """The last step of a greeting; the only one of those that are queued by hand."""

    name: str
    not_before: datetime | None = None

    async def step(self, context: StepContext) -> Next:
        remark = ""
        if self.not_before is not None:
            remark = f"; not before its time: {datetime.now(UTC) >= self.not_before}"
        print(f"  Hello, {self.name}{remark}")
        return done()


@attrs.frozen
class Sleep(Step):
    """Comes back later; a `trio.sleep` would hold the slot, and begin anew after a crash."""

    seconds: float

    async def step(self, context: StepContext) -> Next:
        return later(WakeUp(), self.seconds)


@attrs.frozen
class WakeUp(Step):
    """What comes after it."""

    async def step(self, context: StepContext) -> Next:
        print(f"  {context.work.instruction} wakes up")
        return done()


@attrs.frozen
class Count(Step):
    """One number after the other."""

    up_to: int
    number: int = 0

    async def step(self, context: StepContext) -> Next:
        world: World = context.resources
        world.numbers.append(self.number)
        await trio.sleep(SECONDS)
        return done() if self.number == self.up_to else then(Count(self.up_to, self.number + 1))


@attrs.frozen
class Meet(Step):
    """Takes part in a meeting."""

    async def step(self, context: StepContext) -> Next:
        await context.resources.meet()
        return done()


@attrs.frozen
class Hold(Step):
    """Takes as long as the gate is closed."""

    async def step(self, context: StepContext) -> Next:
        world: World = context.resources
        world.begun[context.work.instruction] += 1
        if world.gate is not None:
            await world.gate.wait()
        return done()


@attrs.frozen
class Beat(Step):
    """Goes on and on: only the end of its worker stops it, or that of the world."""

    number: int

    async def step(self, context: StepContext) -> Next:
        world: World = context.resources
        world.begun[context.work.instruction] += 1
        await trio.sleep(0.02)
        return then(Beat(self.number + 1)) if world.is_beating else done()


TASKS: dict[str, tuple[list[type[Step]], int]] = {  # and how many of each at a time
    "Greeter": ([ReadName, SayHello], 10),
    "Nap": ([Sleep, WakeUp], 1),
    "Counter": ([Count], 10),
    "Meeting": ([Meet], 3),
    "Long": ([Hold], 10),
    "Pulse": ([Beat], 10),
}


@attrs.define
class World:
    """What is outside of the database; given to the steps as `resources`."""

    numbers: list[int] = attrs.field(factory=list)
    begun: Counter[str] = attrs.field(factory=Counter)
    gate: trio.Event | None = None
    is_beating: bool = False
    party: int = 0
    present: int = 0
    most: int = 0
    is_complete: trio.Event = attrs.field(factory=trio.Event)

    async def meet(self) -> None:
        """Wait until the party is complete; after that it is open to anybody."""
        self.present += 1
        self.most = max(self.most, self.present)
        if self.most >= self.party:
            self.is_complete.set()
        await self.is_complete.wait()
        self.present -= 1


# Running workers


@attrs.frozen
class Database:
    """Where the tasks are, and how people look into it by hand."""

    connect: Callable[[], Any]
    open_storage: Callable[[], Any]
    now: str

    @classmethod
    def on_sqlite(cls, path: str) -> "Database":
        from planton_sqlite import SQLiteStorage

        connect = partial(sqlite3.connect, path, timeout=10, isolation_level=None)
        return cls(connect, partial(SQLiteStorage, path), "unixepoch()")

    @classmethod
    def on_postgres(cls, url: str) -> "Database":
        import psycopg

        from planton_postgres import PostgresStorage

        connect = partial(psycopg.connect, url, autocommit=True)
        return cls(connect, partial(PostgresStorage, url), "now()")

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(self.connect()) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Do what you might do in psql or in the sqlite3 shell."""
        return await trio.to_thread.run_sync(self._execute, statement)


def define(storage: Any, world: World, concurrency: int = 10) -> tuple[Executor, dict[str, Steps]]:
    executor = Executor(storage, concurrency=concurrency)
    machines = {
        name: Steps(executor, name, steps, resources=world) for name, (steps, _) in TASKS.items()
    }
    return executor, machines


@asynccontextmanager
async def worker(database: Database, world: World, concurrency: int = 10) -> AsyncIterator[Planton]:
    """Run a worker: in this process, as here, or in as many as you like; they share no memory."""
    async with database.open_storage() as storage:
        executor, _ = define(storage, world, concurrency)

        @executor.on(FailedEvent)
        def log_failure(event: FailedEvent) -> None:
            reason = event.error.strerror if isinstance(event.error, OSError) else event.error
            print(f"  ReadName, try {event.work.delivery}: {reason}")

        @executor.on(AdvancedEvent)
        async def log_delay(event: AdvancedEvent) -> None:
            if event.run_in is not None:
                name = event.work.instruction
                waits = name in {each.instruction for each in await storage.find(status="queued")}
                print(f"  {name} goes to sleep, queued: {waits}")

        planton = Planton(
            tasks=[
                storage.queue_task(name, concurrency=most, delay=0.1, lease=10)
                for name, (_, most) in TASKS.items()
            ],
            storages=[storage],
            consumers=[executor],
        )
        async with planton:
            yield planton


@attrs.frozen
class Tutorial:
    """Its chapters. Any of them may have been interrupted and be begun again."""

    database: Database
    storage: Any
    machines: dict[str, Steps]
    world: World

    async def find(self) -> dict[str, InstructionRecord]:
        return {each.instruction: each for each in await self.storage.find(limit=1000)}

    async def add(self, instruction: str, task: str, step: Step, **options: Any) -> None:
        """Queue it, unless an earlier start did: it may be done by now."""
        if instruction not in await self.find():
            await self.machines[task].enqueue(instruction, step, **options)

    async def wait_for(self, *instructions: str) -> InstructionRecord:
        """Wait until all have ended; gives the last."""
        while True:
            records = await self.find()
            if all(records[each].ended_at is not None for each in instructions):
                return records[instructions[-1]]
            await trio.sleep(0.02)

    async def greet(self) -> None:
        print("Defining tasks: Greeter is ReadName, then SayHello")
        await self.add("greeting", "Greeter", ReadName("name.txt"))
        print("Investigating errors:")
        async with worker(self.database, self.world):
            if (await self.wait_for("greeting")).status == "dead":
                columns = ("status", "payload", "delivery", "error")
                ((*values,),) = await self.database.execute(
                    "SELECT status, CAST(payload AS text), delivery, error"
                    " FROM planton_instruction WHERE instruction = 'greeting'"
                )
                for column, value in zip(columns, values, strict=True):
                    print(f"  {column:8} | {value}")
                print("Fixing the world:")
                await trio.Path("name.txt").write_text("Fixed World\n")
                await self.storage.retry("Greeter")
                await self.wait_for("greeting")

    async def schedule(self) -> None:
        print("Scheduling tasks:")
        async with worker(self.database, self.world):
            if "by hand" not in await self.find():
                await self.database.execute(
                    "INSERT INTO planton_pending (task_name, instruction, payload) VALUES"
                    " ('Greeter', 'by hand',"
                    """ '{"Greeter": {"SayHello": {"name": "whoever inserts a row"}}}')"""
                    " ON CONFLICT DO NOTHING"
                )
            await self.wait_for("by hand")
            soon = datetime.now(UTC) + timedelta(seconds=0.5)
            await self.add("soon", "Greeter", SayHello("whoever waits a moment", soon), run_at=soon)
            await self.wait_for("soon")

    async def delay(self) -> None:
        print("Delaying steps, one at a time:")
        naps = ("nap 1", "nap 2")
        async with worker(self.database, self.world):
            for nap in naps:
                await self.add(nap, "Nap", Sleep(0.5))
            await self.wait_for(*naps)

    async def count(self) -> None:
        print("Counting:")
        async with worker(self.database, self.world):
            await self.add("counter", "Counter", Count(up_to=100))
            await self.wait_for("counter")
        if numbers := self.world.numbers:
            steps = f"{len(numbers)} steps, each of them stored"
            print(f"  from {numbers[0]} to {numbers[-1]} in {steps}")

    async def run_two(self) -> None:
        print("Running workers: two, with a concurrency of 3")
        names = [f"meeting {number}" for number in range(1, 10)]
        for name in names:
            await self.add(name, "Meeting", Meet())
        records = await self.find()
        self.world.party = min(3, sum(records[name].ended_at is None for name in names))
        async with worker(self.database, self.world), worker(self.database, self.world):
            await self.wait_for(*names)
        print(f"  {len(names)} tasks done, most at a time: {self.world.most}")

    async def run_one_more(self) -> None:
        print("Running one more:")
        gate = trio.Event()
        async with worker(self.database, self.world, concurrency=1):
            if "long" not in await self.find():
                self.world.gate = gate
                await self.add("long", "Long", Hold())
                while not self.world.begun["long"]:
                    await trio.sleep(0.02)
            await self.look_at_the_first_worker()
            async with worker(self.database, self.world):
                await self.add("later", "Greeter", SayHello("says the one that came later"))
                await self.wait_for("later")  # the first one has no slot for it
                await self.look_at_the_first_worker()
                gate.set()
                record = await self.wait_for("long")
        once = self.world.begun["long"] == 1
        print(f"  begun once: {once}; {record.status}, delivery {record.delivery}")

    async def look_at_the_first_worker(self) -> None:
        record = (await self.find())["long"]
        print(f"  the first worker is at it: {record.status}, delivery {record.delivery}")

    async def stop(self) -> None:
        print("Stopping workers, by SQL:")
        pulses = ("pulse 1", "pulse 2")
        self.world.is_beating = True
        for pulse in pulses:
            await self.add(pulse, "Pulse", Beat(1))
        one, two = (worker(self.database, self.world, concurrency=1) for _ in pulses)
        async with one as first, two as second:
            left = [each for each in pulses if (await self.find())[each].ended_at is None]
            while not all(self.world.begun[each] for each in left):
                await trio.sleep(0.02)
            print("  at work:", len(await self.storage.find(status="running")))
            await self.database.execute(
                f"UPDATE planton_dispatcher SET stop_requested_at = {self.database.now}"
            )
            while await self.database.execute("SELECT 1 FROM planton_active"):
                await trio.sleep(0.05)
            while any(each.state != "stopped" for each in [*first.status(), *second.status()]):
                await trio.sleep(0.02)
            print("  none is running, both workers have stopped")
        for pulse in left:
            record = (await self.find())[pulse]
            has_advanced = record.payload["Pulse"]["Beat"]["number"] > 1
            print(f"  {pulse} rests before its next step: {record.status}, {has_advanced}")
        self.world.is_beating = False
        async with worker(self.database, self.world):
            await self.wait_for(*pulses)


async def main(name: str) -> None:
    database = Database.on_postgres(name) if "://" in name else Database.on_sqlite(name)
    async with database.open_storage() as storage:
        await storage.migrate()
        world = World()
        _, machines = define(storage, world)
        tutorial = Tutorial(database, storage, machines, world)
        await tutorial.greet()
        await tutorial.schedule()
        await tutorial.delay()
        await tutorial.count()
        await tutorial.run_two()
        await tutorial.run_one_more()
        await tutorial.stop()
        print(len(await storage.find(status="succeeded", limit=1000)), "tasks succeeded")


if __name__ == "__main__":
    folder = tempfile.mkdtemp()
    name = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/tasks.db"
    name = name if "://" in name else str(Path(name).absolute())
    os.chdir(folder)  # name.txt is read and written there
    trio.run(main, name)
