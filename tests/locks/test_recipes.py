"""The recipes of docs/locks.md, as they stand there, on real servers."""

import asyncio
import itertools
import re
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import attrs
import pymysql
import pytest
import redis
import trio

from planton import ErrorEvent, InstructionEvent, Planton, Task
from planton.asyncio import callback, running
from planton.testing import EventCollector, check_callbacks

PAGE = (Path(__file__).parents[2] / "docs" / "locks.md").read_text()


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def recipe(name):
    """Return the code of a page that defines a function, without its use."""
    (block,) = (block for block in blocks() if f"def {name}" in block)
    return block.partition("\n\n\ntask = ")[0]


@cache
def load(name):
    namespace = {}
    exec(recipe(name), namespace)
    return namespace[name]


class OnMysql:
    """Rows, and the lock, in MariaDB; claims are made on the connection of the lock."""

    def __init__(self, server):
        self.server = server
        self.connection = pymysql.connect(**server, autocommit=True)
        self.execute("DROP TABLE IF EXISTS work")
        columns = "id int PRIMARY KEY AUTO_INCREMENT, state varchar(9), claimed_by int"
        self.execute(f"CREATE TABLE work ({columns})")
        self.dispatchers = itertools.count()

    def make_lock(self):
        return load("mysql_lock")(**self.server)

    def execute(self, sql, *parameters):
        return self.execute_on(self.connection, sql, *parameters)

    def execute_on(self, connection, sql, *parameters):
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    @contextmanager
    def dispatcher(self):
        me = next(self.dispatchers)
        with closing(pymysql.connect(**self.server, autocommit=True)) as own:

            def active(task_name):
                found = "SELECT id FROM work WHERE state = 'active'"
                return [str(id_) for (id_,) in self.execute_on(own, found)]

            def schedule(request):
                connection = request.context or own
                due = "SELECT id FROM work WHERE state = 'new' LIMIT %s FOR UPDATE SKIP LOCKED"
                claimed = self.execute_on(connection, due, request.limit)
                for (id_,) in claimed:
                    claim = "UPDATE work SET state = 'active', claimed_by = %s WHERE id = %s"
                    self.execute_on(connection, claim, me, id_)
                return [str(id_) for (id_,) in claimed]

            def release(claims):
                for claim in claims:
                    its = "state = 'active' AND claimed_by = %s AND id = %s"
                    self.execute(
                        f"UPDATE work SET state = 'new' WHERE {its}", me, claim.instruction
                    )

            yield Task(
                name="task",
                schedule=schedule,
                release=release,
                get_active_instructions=active,
                lock=self.make_lock(),
                delay=0.001,
            )

    def insert(self, count):
        self.execute("INSERT INTO work (state) VALUES " + ", ".join(["('new')"] * count))

    def end(self, event):
        self.execute("UPDATE work SET state = 'done' WHERE id = %s", event.instruction)

    def active(self):
        return [str(id_) for (id_,) in self.execute("SELECT id FROM work WHERE state = 'active'")]

    def lose_the_lock(self):
        with closing(pymysql.connect(**self.server)) as connection:
            holder = "SELECT IS_USED_LOCK(SHA2('task', 256))"
            ((id_,),) = self.execute_on(connection, holder)
            self.execute_on(connection, f"KILL {id_}")


class OnRedis:
    """Sets of Redis."""

    def __init__(self, client):
        self.client = client
        self.numbers = itertools.count()

    def make_lock(self, seconds=60):
        return load("redis_lock")(self.client, seconds)

    @contextmanager
    def dispatcher(self):
        def active(task_name):
            return sorted(self.client.smembers("active"))

        def schedule(request):
            claimed = self.client.spop("new", request.limit)
            for each in claimed:
                self.client.sadd("active", each)
            return sorted(claimed)

        def release(claims):
            for claim in claims:
                self.client.smove("active", "new", claim.instruction)

        yield Task(
            name="task",
            schedule=schedule,
            release=release,
            get_active_instructions=active,
            lock=self.make_lock(),
            delay=0.001,
        )

    def insert(self, count):
        for _ in range(count):
            self.client.sadd("new", str(next(self.numbers)))

    def end(self, event):
        self.client.srem("active", event.instruction)

    def active(self):
        return sorted(self.client.smembers("active"))

    def lose_the_lock(self):
        self.client.delete("planton:task")


@pytest.fixture(params=("mysql", "redis"))
def app(request):
    if request.param == "redis":
        yield OnRedis(request.getfixturevalue("redis_client"))
    else:
        app = OnMysql(request.getfixturevalue("mysql_server"))
        yield app
        app.connection.close()


def test_a_lock_is_anothers_for_each_task(app):
    """Who comes second gets False, until the first has left; names may be long."""
    lock, other, long = app.make_lock(), app.make_lock(), "task" * 50
    with lock(long) as first, other(long) as second, other("other") as third:
        pass
    with other(long) as later:
        pass

    assert (True, False, True, True) == (bool(first), second, bool(third), bool(later))


def test_a_lock_whose_block_fails_is_free(app):
    """At once."""
    lock = app.make_lock()
    with pytest.raises(ZeroDivisionError), lock("task"):
        raise ZeroDivisionError
    with lock("task") as after:
        pass

    assert after


async def test_a_cap_that_is_broken_without_the_lock_is_kept_with_it(app):
    """By the same callbacks, held up at each of their steps."""

    @contextmanager
    def without():
        with app.dispatcher() as task:
            yield attrs.evolve(task, lock=None)

    options = {"insert": app.insert, "end": app.end, "patience": 0.05}
    broken = await check_callbacks(without, **options)
    kept = await check_callbacks(app.dispatcher, **options)

    assert "broken" == broken["cap"].outcome
    kept.raise_for("cap", "once", "limit", "shown", "ended")


def losing(task, app, times):
    """A task whose lock is lost after it has claimed, at some of its attempts."""

    def schedule(request):
        claimed = task.schedule(request)
        if next(times):
            app.lose_the_lock()
        return claimed

    return attrs.evolve(task, schedule=schedule)


@pytest.mark.parametrize("releases", (True, False))
async def test_what_is_claimed_under_a_lock_that_is_lost_is_not_dispatched(app, releases):
    """It is given back, or undone, or counted before it is dispatched by the next attempt."""
    app.insert(2)
    with app.dispatcher() as task:
        task = losing(task, app, iter([True, False]))
        task = attrs.evolve(task, delay=60, release=task.release if releases else None)
        planton = Planton(tasks=[task])
        seen = EventCollector(planton)
        with trio.fail_after(20):
            async with planton:
                first = await planton.attempt("task")
                dispatched = len(seen.of(InstructionEvent))
                second = await planton.attempt("task")

    assert ("error", 0, "dispatched") == (first.outcome, dispatched, second.outcome)
    assert ["lock"] == [event.stage for event in seen.of(ErrorEvent)]
    assert app.active() == [event.instruction for event in seen.of(InstructionEvent)]


async def test_two_dispatchers_keep_the_cap_while_locks_are_lost(app):
    """And dispatch all, each once."""
    running, most, dispatched = set(), [], []
    app.insert(12)

    async def consume(event):
        running.add(event.instruction)
        most.append(len(running))
        await trio.sleep(0.01)
        app.end(event)
        running.discard(event.instruction)
        dispatched.append(event.instruction)

    with app.dispatcher() as one, app.dispatcher() as two, trio.fail_after(30):
        one = losing(one, app, itertools.cycle([False, True]))
        plantons = [Planton(tasks=[task]) for task in (one, two)]
        for planton in plantons:
            planton.on(InstructionEvent, consume)
            planton.on(ErrorEvent, lambda event: None)
        async with plantons[0], plantons[1]:
            while len(dispatched) < 12:
                await trio.sleep(0.01)

    assert 1 == max(most)
    assert 12 == len(set(dispatched)) == len(dispatched)


def test_mysql_frees_the_lock_of_a_process_that_is_killed(mysql_server):
    """At once."""
    hold = (
        "with mysql_lock(**eval(sys.argv[1]))('task') as held:\n    print(bool(held), flush=True)\n"
    )
    code = f"{recipe('mysql_lock')}\n\nimport sys, time\n{hold}    time.sleep(60)"
    lock = load("mysql_lock")(**mysql_server)
    with subprocess.Popen(
        [sys.executable, "-c", code, repr(mysql_server)], stdout=subprocess.PIPE, text=True
    ) as process:
        told = process.stdout.readline()
        with lock("task") as meanwhile:
            pass
        process.kill()
    is_free = any(is_entered(lock) for _ in range(100))

    assert ("True\n", False, True) == (told, meanwhile, is_free)


def is_entered(lock):
    time.sleep(0.02)
    with lock("task") as context:
        return bool(context)


def test_redis_frees_a_lock_when_its_time_is_over(redis_client):
    """Whoever had it hears of that, and takes nothing from who has it now."""
    short, other = OnRedis(redis_client).make_lock(seconds=0.1), OnRedis(redis_client).make_lock()
    with pytest.raises(redis.exceptions.LockError), short("task"):
        assert not is_entered(other)
        time.sleep(0.15)
        with other("task") as now:
            with short("task") as third:
                pass

    assert (True, False) == (now, third)


def test_a_lock_of_redis_asyncio_keeps_a_cap_in_asyncio_programs(redis_client, redis_socket):
    """As docs/locks.md has it, with the client of this server."""
    (code,) = (block for block in blocks() if "redis.asyncio" in block)
    namespace, active, most = {}, set(), []
    exec(code, namespace)
    client = namespace["client"] = redis.asyncio.Redis(unix_socket_path=redis_socket)

    async def get_active_instructions(task_name):
        found = sorted(active)
        await asyncio.sleep(0.005)
        return found

    async def schedule(request):
        new = [f"{len(most)}.{n}" for n in range(request.limit)]
        active.update(new)
        most.append(len(active))
        return new

    def planton():
        task = Task(
            name="task",
            schedule=callback(schedule),
            get_active_instructions=callback(get_active_instructions),
            lock=namespace["lock"],
            concurrency=2,
            delay=0.001,
        )
        made = Planton(tasks=[task])
        made.on(InstructionEvent, lambda event: active.discard(event.instruction))
        return made

    async def main():
        async with asyncio.timeout(20), running(planton()), running(planton()):
            while len(most) < 10:
                await asyncio.sleep(0.01)
        await client.aclose()

    asyncio.run(main())

    assert 2 == max(most)
