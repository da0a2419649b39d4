"""The same random operations on every storage and on a model of what they promise.

`PLANTON_DIFFERENTIAL=2000 pytest tests/conformance/test_differential.py` plays 2000 games on each
storage instead of a few; a game that fails tells its seed and what was done until then.
"""

import importlib.util
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import trio

from planton import Claim, InvalidArgumentError, ScheduleRequest
from planton.testing import MemoryStorage
from planton_postgres import PostgresStorage
from planton_sqlite import SQLiteStorage


def load(name: str) -> Any:
    """Import a module beside this one: pytest does not."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model = load("model")
GAMES = int(os.environ.get("PLANTON_DIFFERENTIAL", "0"))
STEPS = 60
# Times in a game are odd multiples of 5 s, time passes in steps of 10 s; a game on a real clock
# ends before what it takes could blur that.
LONGEST = 0.8
INSTRUCTIONS = ("a1", "a2", "b1", "b2")
OWNER = "CASE WHEN id IN (1, 3) THEN 'odd' END"
MARKS = f"UPDATE item SET marked = true WHERE id IN ({{}}) RETURNING id, {OWNER}"
FINDS = f"SELECT id, {OWNER} FROM item ORDER BY id LIMIT :limit"
RULES = {
    "plain": model.Rule(task="queue", concurrency=2, lease=25),
    "gpu": model.Rule(task="queue", concurrency=2, lease=45, tags=("gpu",), deliveries=2),
    "keyed": model.Rule(task="queue", concurrency=3, lease=25, prefix="a", deliveries=1),
    "turns": model.Rule(task="turns", concurrency=5, lease=25, partition_concurrency=2),
    "single": model.Rule(task="turns", concurrency=4, lease=45, partition_concurrency=1),
    "marks": model.Rule(task="marks", concurrency=2, lease=25, retries=1, source="marks"),
    "owned": model.Rule(
        task="marks", concurrency=4, lease=25, source="marks", partition_concurrency=1
    ),
    "finds": model.Rule(task="finds", concurrency=2, lease=25, deliveries=2, source="finds"),
}
TASKS = ("queue", "turns", "marks", "finds")
PARTITIONS = ("", "", "x", "y", "odd")
FIELDS = ("task_name", "instruction", "status", "payload", "priority", "tags", "retries", "timeout")
FIELDS += ("partition", "delivery", "result", "error")


@attrs.define
class Subject:
    """A storage as the games need it, with a table `item (id, marked)`.

    Attributes:
        storage: Open, migrated and empty.
        execute: Runs SQL on its database, with `?` for parameters.
        advance: Lets time pass for all that is stored.
        now: Returns the time by its clock.
        marks: Marks up to `limit` items, the lowest id first, and returns them.
        finds: Finds the items, the lowest id first.
    """

    storage: Any
    execute: Callable[..., Any]
    advance: Callable[[float], Any]
    now: Callable[[], datetime]
    marks: str = MARKS.format("SELECT id FROM item WHERE NOT marked ORDER BY id LIMIT :limit")
    finds: str = FINDS


TABLE = "CREATE TABLE item (id INTEGER PRIMARY KEY, marked INTEGER NOT NULL DEFAULT 0)"
SET_BACK = {
    "planton_pending": ("run_at", "created_at"),
    "planton_active": ("created_at", "claimed_at", "lease_expires_at"),
    "planton_ended": ("created_at", "claimed_at", "ended_at"),
}


@asynccontextmanager
async def memory(request):
    storage = MemoryStorage(latency=0.0001)

    async def execute(sql, *parameters):
        storage.connection.execute(sql, parameters)

    async def advance(seconds):
        await trio.sleep(seconds + 0.001)  # dates are floats, too

    await execute(TABLE)
    now = lambda: storage.to_datetime(trio.current_time())  # noqa: E731
    yield Subject(storage, execute, advance, now)


@asynccontextmanager
async def sqlite(request):
    path = request.getfixturevalue("tmp_path") / f"{random.getrandbits(64)}.db"

    async def execute(sql, *parameters):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(sql, parameters)

    async def advance(seconds):
        for table, columns in SET_BACK.items():
            changes = ", ".join(f"{column} = {column} - {seconds}" for column in columns)
            await execute(f"UPDATE {table} SET {changes}")

    async with SQLiteStorage(path, synchronous="NORMAL") as storage:
        await execute(TABLE)
        yield Subject(storage, execute, advance, lambda: datetime.now(UTC))


@asynccontextmanager
async def postgres(request):
    dsn = request.getfixturevalue("schema_dsn")
    # Psycopg's parameters, and an order that PostgreSQL gives a SELECT in RETURNING's place.
    order = "SELECT id FROM item WHERE NOT marked ORDER BY id LIMIT %(limit)s"
    marks = f"WITH new AS ({MARKS.format(order)}) SELECT * FROM new ORDER BY id"
    finds = FINDS.replace(":limit", "%(limit)s")
    async with PostgresStorage(dsn, migrate=True) as storage:
        with psycopg.connect(dsn, autocommit=True) as connection:

            async def execute(sql, *parameters):
                connection.execute(sql.replace("?", "%s"), parameters)

            async def advance(seconds):
                for table, columns in SET_BACK.items():
                    ago = f"- interval '{seconds} seconds'"
                    changes = ", ".join(f"{column} = {column} {ago}" for column in columns)
                    await execute(f"UPDATE {table} SET {changes}")

            tables = ", ".join(SET_BACK)
            await execute(f"TRUNCATE {tables}, planton_task; DROP TABLE IF EXISTS item")
            await execute(TABLE.replace("INTEGER NOT NULL DEFAULT 0", "boolean DEFAULT false"))
            now = lambda: datetime.now(UTC)  # noqa: E731
            yield Subject(storage, execute, advance, now, marks, finds)


SUBJECTS = {"sqlite": sqlite, "postgres": postgres}


class Game:
    """Random operations on a subject and on the model, and what both answer."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.storage = subject, subject.storage
        self.rng = random.Random(seed)
        self.model = model.Model()
        self.receipts: list[tuple[int, str]] = []  # of the model, of the storage
        self.log: list[str] = [f"seed {seed}"]
        self.tasks = {name: self.make_task(rule) for name, rule in RULES.items()}

    def make_task(self, rule: Any) -> Any:
        options = {"concurrency": rule.concurrency, "lease": rule.lease}
        options["deliveries"] = rule.deliveries
        options["partition_concurrency"] = rule.partition_concurrency
        if rule.source == "queue":
            return self.storage.queue_task(
                rule.task, tags=rule.tags, key=f"{rule.prefix}%", **options
            )
        sql = getattr(self.subject, rule.source)
        return self.storage.claim_task(rule.task, sql=sql, retries=rule.retries, **options)

    async def play(self) -> None:
        began = time.monotonic()
        for _ in range(STEPS):
            (operation,) = self.rng.choices(list(OPERATIONS), list(OPERATIONS.values()))
            self.model.now += 1e-6  # no two operations are made at the same time
            await operation(self)
            await self.compare()
            if time.monotonic() - began > LONGEST:
                return

    def same(self, what: str, expected: object, actual: object) -> None:
        self.log.append(f"{what} -> {expected}")
        assert expected == actual, "\n".join(self.log)

    # Operations

    async def enqueue(self) -> None:
        rng = self.rng
        task, name = rng.choice(TASKS), rng.choice((*INSTRUCTIONS, "1", "2"))
        given = {
            "payload": rng.choice((None, rng.randrange(1000))),
            "priority": rng.choice((0, 0, 1, -1)),
            "tags": rng.choice(((), (), ("gpu",), ("gpu", "eu"))),
            "retries": rng.choice((0, 0, 1, 2)),
            "timeout": rng.choice((None, None, 15, 35)),
            "partition": rng.choice(PARTITIONS),
        }
        run_in = rng.choice((0, 0, 0, -7, 5.5, 15.5, 45.5))  # no ties with other times
        run_at = self.subject.now() + timedelta(seconds=run_in) if run_in else None
        actual = await self.storage.enqueue(task, name, run_at=run_at, **given)
        expected = self.model.enqueue(task, name, run_in=run_in, **given)
        self.same(f"enqueue {task} {name} in {run_in} {given}", expected, actual)

    async def claim(self) -> None:
        name, rule = self.rng.choice(list(RULES.items()))
        limit = self.rng.choice((1, rule.concurrency, rule.concurrency))
        request = ScheduleRequest(
            task_name=rule.task,
            active_instructions=(),
            concurrency=rule.concurrency,
            limit=limit,
            attempt_number=0,
        )
        batch = await self.tasks[name].schedule(request)
        rows, active, due_in = self.model.claim(rule, limit)
        self.receipts += zip((row.receipt for row in rows), receipts(batch.claims), strict=False)
        self.same(
            f"claim {limit} by {name}",
            [(r.instruction, r.payload, r.delivery, r.lease, r.timeout) for r in rows],
            [(c.instruction, c.payload, c.delivery, c.lease, c.timeout) for c in batch.claims],
        )
        self.same("active", active, batch.active)
        self.same("due", due_in is None, batch.due_in is None)
        if due_in is not None:
            assert abs(due_in - batch.due_in) < 2, [*self.log, due_in, batch.due_in]

    async def report(self) -> None:
        if not self.receipts:
            return
        kind, arguments = self.rng.choice(list(self.kinds()))
        # In which order several come back to the queue is nobody's promise.
        most = 3 if kind in ("heartbeat", "complete", "take_over") else 1
        some = self.rng.sample(self.receipts, min(self.rng.randint(1, most), len(self.receipts)))
        mine, theirs = zip(*some, strict=True)
        told = [self.model.report(kind, receipt, arguments) for receipt in mine]
        if kind == "give_back":
            await self.tasks["plain"].release([Claim(instruction="?", receipt=r) for r in theirs])
            self.log.append(f"give back {mine}")
            await self.pass_time(10)  # it pauses for 1, 2, 4, … seconds
            return
        answer = await getattr(self.storage, kind)(list(theirs), **arguments)
        expected = [receipt is None for receipt in told]
        self.same(f"{kind} {mine} {arguments}", expected, [each in answer.stale for each in theirs])
        if kind == "take_over":
            pairs = zip(told, theirs, strict=True)
            self.receipts += [(new, answer.receipts[old]) for new, old in pairs if new is not None]

    def kinds(self) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = self.rng
        yield "heartbeat", {}
        yield "complete", {"result": rng.choice((None, rng.randrange(1000)))}
        yield "complete", {}
        yield "release", {}
        yield "give_back", {}
        for _ in range(2):
            yield (
                "fail",
                {
                    "error": f"error {rng.randrange(1000)}",
                    "retry_in": rng.choice((0, 5, 15)),
                    "retry": rng.random() < 0.8,
                    "lower_priority": rng.random() < 0.2,
                    "retries": rng.choice((0, 0, 2)),
                },
            )
        yield (
            "advance",
            {
                "payload": rng.randrange(1000),
                "retries": rng.choice((0, 1)),
                "run_in": rng.choice((None, 0, 15)),
            },
        )
        yield "take_over", {"lease": rng.choice((None, 45))}

    async def steer(self) -> None:
        rng, task = self.rng, self.rng.choice(TASKS)
        what = rng.choice(("pause", "resume", "resume", "concurrency"))
        if what == "concurrency":
            count = rng.choice((None, None, 1, 3))
            await self.storage.set_concurrency(task, count)
            self.model.override.pop(task, None)
            if count is not None:
                self.model.override[task] = count
            self.same(f"concurrency of {task}", count, count)
            return
        await getattr(self.storage, what)(task)
        (self.model.paused.add if what == "pause" else self.model.paused.discard)(task)
        self.same(f"{what} {task}", None, None)

    async def retry(self) -> None:
        task = self.rng.choice(TASKS)
        names = self.rng.choice((None, self.rng.sample((*INSTRUCTIONS, "1", "2"), 1)))
        try:
            actual = await self.storage.retry(task, names)
        except InvalidArgumentError:
            actual = None
        self.same(f"retry {task} {names}", self.model.retry(task, names), actual)

    async def prune(self) -> None:
        statuses = self.rng.choice((["succeeded"], ["failed", "dead"]))
        older_than = self.rng.choice((5, 25))
        actual = await self.storage.prune(older_than, status=statuses)
        self.same(f"prune {statuses}", self.model.prune(older_than, statuses), actual)

    async def items(self) -> None:
        number = self.rng.randrange(1, 5)
        if self.rng.random() < 0.7:
            await self.subject.execute("DELETE FROM item WHERE id = ?", number)
            await self.subject.execute("INSERT INTO item (id) VALUES (?)", number)
            self.model.items[number] = False
        else:
            await self.subject.execute("DELETE FROM item WHERE id = ?", number)
            self.model.items.pop(number, None)
        self.same(f"item {number}", None, None)

    async def wait(self) -> None:
        await self.pass_time(self.rng.choice((10, 20, 30, 70)))

    async def pass_time(self, seconds: float) -> None:
        await self.subject.advance(seconds)
        self.model.now += seconds
        self.same(f"wait {seconds}", None, None)

    # What can be seen

    async def compare(self) -> None:
        found = await self.storage.find(limit=1000)
        actual = [tuple(getattr(each, field) for field in FIELDS) for each in found]
        names = ["task", *FIELDS[1:]]
        expected = [tuple(getattr(row, name) for name in names) for row in self.model.rows]
        self.same("find", sorted(expected, key=repr), sorted(actual, key=repr))
        self.log.pop()
        active = await self.storage.get_active_instructions.many(TASKS)
        expected = [sorted(self.model.names(task, "running")) for task in TASKS]
        self.same("active", expected, list(map(sorted, active)))
        self.log.pop()
        await self.compare_stats()

    async def compare_stats(self) -> None:
        statuses = ("queued", "running", "succeeded", "failed", "dead")
        stats = {each.task_name: each for each in await self.storage.stats()}
        for task in TASKS:
            expected = {status: len(self.model.having(task, status)) for status in statuses}
            expected |= {"paused": task in self.model.paused}
            expected |= {"concurrency": self.model.override.get(task)}
            if task in stats:
                actual = {name: getattr(stats[task], name) for name in expected}
            else:
                actual = dict.fromkeys(statuses, 0) | {"paused": False, "concurrency": None}
            self.same("stats", expected, actual)
            self.log.pop()


def receipts(claims: Any) -> list[str]:
    return [claim.receipt for claim in claims]


OPERATIONS = {
    Game.enqueue: 6,
    Game.claim: 8,
    Game.report: 8,
    Game.wait: 3,
    Game.items: 2,
    Game.steer: 1,
    Game.retry: 1,
    Game.prune: 1,
}


async def test_the_storage_in_memory_answers_as_the_model_does(request, autojump_clock):
    """Whatever is done in whatever order: claims in their order, what is active, due, found."""
    for seed in range(GAMES or 20):
        async with memory(request) as subject:
            await Game(subject, seed).play()


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_storage_answers_as_the_model_does(name, request):
    """The same on the clock of the machine."""
    for seed in range(GAMES or 10):
        async with SUBJECTS[name](request) as subject:
            await Game(subject, seed).play()
