"""The command line on PostgreSQL: real processes, as on SQLite (tests/cli)."""

import json
import os
import subprocess
import sys
import time

import psycopg
import pytest

APP = """
import os
from contextlib import asynccontextmanager

from planton import InstructionEvent, Planton
from planton_postgres import PostgresStorage


@asynccontextmanager
async def app():
    async with PostgresStorage(os.environ["PLANTON_STORAGE"]) as storage:
        task = storage.queue_task("resize", concurrency=2)
        planton = Planton(tasks=[task], services=[storage.serve])

        @planton.on(InstructionEvent)
        async def resize(event):
            await storage.complete(event.receipt)

        yield planton
"""


@pytest.fixture
def url(postgres_dsn):
    """The database of the test as people write it."""
    with psycopg.connect(postgres_dsn) as connection:
        info = connection.info
        host = info.host.replace("/", "%2F")
        return f"postgresql://{info.user}@/{info.dbname}?host={host}&port={info.port}"


@pytest.fixture
def start(tmp_path, url):
    (tmp_path / "app.py").write_text(APP)
    environment = {**os.environ, "NO_COLOR": "1", "PLANTON_STORAGE": url}

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-c", "from planton.cli import main; main()", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def command(start):
    def command(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return command


@pytest.fixture
def query(postgres_dsn):
    def query(sql):
        with psycopg.connect(postgres_dsn, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    return query


def wait_until(condition):
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def read(done):
    assert (0, "") == (done.returncode, done.stderr)
    return json.loads(done.stdout)


def test_the_day_of_an_operator(command, query):
    """As on SQLite; before the tables are there it is told what to do."""
    early = command("status")
    assert read(command("migrate", "--json"))["applied"] > 0
    assert {"applied": 0} == read(command("migrate", "--json"))
    for instruction in ("cat.png", "dog.png"):
        command("enqueue", "resize", instruction, "--payload", '{"w": 1}', "--in", "1h", "--yes")
    query(
        "WITH gone AS (DELETE FROM planton_pending RETURNING *)"
        " INSERT INTO planton_ended"
        " (id, task_name, instruction, delivery, status, error, created_at)"
        " SELECT id, task_name, instruction, 1, 'dead', 'broken', created_at FROM gone"
    )
    dead = read(command("find", "--status", "dead", "--json"))["instructions"]
    retried = read(command("retry", "resize", "dog.png", "--json"))
    command("pause", "resize")
    command("set-concurrency", "resize", "4")
    (task,) = read(command("status", "--json"))["tasks"]
    pruned = read(command("prune", "--older-than", "0", "--status", "dead", "-y", "--json"))

    assert 2 == early.returncode
    assert "planton migrate URL" in early.stderr
    assert ["cat.png", "dog.png"] == [each["instruction"] for each in dead]
    assert ({"task_name": "resize", "retried": 1}, {"pruned": 1}) == (retried, pruned)
    assert (1, 1, True, 4) == (task["queued"], task["dead"], task["paused"], task["concurrency"])
    assert 2 == command("pause", "resise").returncode


def test_a_dispatcher_explains_itself_and_is_stopped(start, command, query):
    """By other processes, through the database."""
    command("migrate")
    process = start("run", "app:app")
    wait_until(lambda: query("SELECT 1 FROM planton_decision"))
    command("enqueue", "resize", "cat.png")
    dispatched = "SELECT 1 FROM planton_decision WHERE report::text LIKE '%dispatched 1 of%'"
    wait_until(lambda: query(dispatched))
    explained, stopped = command("explain", "resize"), command("stop")
    process.communicate(timeout=20)

    assert f":{process.pid} (running), " in explained.stdout
    assert "dispatched 1 of at most 2" in explained.stdout
    assert (0, "1 dispatcher stopped\n") == (stopped.returncode, stopped.stdout)
    assert 0 == process.returncode


def test_all_are_stopped_from_psql(start, command, query):
    """And waited for there."""
    command("migrate")
    processes = [start("run", "app:app") for _ in range(2)]
    running = (
        "SELECT host, pid FROM planton_dispatcher WHERE seen_at > now() - interval '30 seconds'"
    )
    wait_until(lambda: len(query(running)) == 2)
    query("UPDATE planton_dispatcher SET stop_requested_at = now()")
    wait_until(lambda: not query(running))
    for process in processes:
        process.communicate(timeout=20)

    assert [0, 0] == [process.returncode for process in processes]


def test_the_schema_is_all_that_migrate_does(command, query):
    """Applied by hand there is nothing left to migrate."""
    query(command("schema").stdout)

    assert {"applied": 0} == read(command("migrate", "--json"))


@pytest.mark.parametrize("scheme", ("postgresql", "postgres"))
def test_no_password_is_told(command, scheme):
    """Neither by a server that is not there nor by a URL that is none."""
    for url in (f"{scheme}://me:secret@127.0.0.1:1/app", f"{scheme}://me:secret@host:port/app"):
        done = command("status", url)

        assert 2 == done.returncode
        assert "secret" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
