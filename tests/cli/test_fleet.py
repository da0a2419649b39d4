"""`planton explain`, `planton stop`, and dispatchers in `planton status`: real processes."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest
from click.testing import CliRunner

from planton.cli._commands import planton

URL = "sqlite:///app.db"
APP = """
from contextlib import asynccontextmanager

import trio

from planton import InstructionEvent, Planton
from planton_sqlite import SQLiteStorage

URL = "app.db"


@asynccontextmanager
async def app():
    async with SQLiteStorage(URL) as storage:
        await storage.migrate()
        task = storage.queue_task("resize", concurrency=2)
        planton = Planton(tasks=[task], services=[storage.serve])

        @planton.on(InstructionEvent)
        async def resize(event):
            await storage.complete(event.receipt)

        yield planton


@asynccontextmanager
async def stuck():
    async with SQLiteStorage(URL) as storage:
        await storage.migrate()
        task = storage.queue_task("resize")
        planton = Planton(tasks=[task], services=[storage.serve], grace=1000)

        @planton.on(InstructionEvent)
        async def resize(event):
            await trio.sleep(1000)

        yield planton
"""
REPORT = {
    "state": "waiting",
    "attempt_number": 1,
    "active": None,
    "concurrency": 3,
    "cap": "strict",
    "last_error": "OSError: down\n\x1b[31m",
    "consecutive_errors": 2,
    "overdue": False,
    "wake_ups": None,
    "last_attempt_ago": 1.0,
    "next_attempt_in": 100.0,
    "decisions": ["error: schedule: OSError: down\n, attempt 1 (12:00:00 UTC)"],
}


@pytest.fixture
def app(command):
    command.write("app.py", APP)
    command("migrate", URL)
    return command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Call commands in this process, on a migrated database in the current folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"PLANTON_STORAGE": URL})

    def here(*arguments):
        return runner.invoke(planton, list(arguments))

    assert 0 == here("migrate").exit_code
    return here


def execute(folder, sql, *parameters):
    with closing(sqlite3.connect(folder / "app.db")) as connection, connection:
        return connection.execute(sql, parameters).fetchall()


def enter(folder, host, silent_for=0.0, told_for=0.0, **report):
    """Let there be a dispatcher that said something."""
    now = time.time()
    execute(
        folder,
        "INSERT INTO planton_dispatcher (id, host, pid, version, started_at, seen_at)"
        " SELECT ?1, ?1, 7, '1.0', ?2, ?3",
        host,
        now - 90000,
        now - silent_for,
    )
    values = (host, now - told_for, json.dumps({**REPORT, **report}))
    execute(folder, "INSERT INTO planton_decision VALUES (?, 'resize', ?, ?)", *values)


def test_what_a_dispatcher_decides_is_read_by_another_process(app, wait_until):
    """And the dispatcher is stopped by a third, which waits until it has ended."""
    process = app.start("run", "app:app")
    wait_until(lambda: execute(app.folder, "SELECT * FROM planton_decision"))
    app("enqueue", URL, "resize", "cat.png", "--yes")
    dispatched = "SELECT 1 FROM planton_decision WHERE report LIKE '%dispatched 1 of%'"
    wait_until(lambda: execute(app.folder, dispatched))
    status, explained = app("status", URL), app("explain", URL, "resize")
    stopped = app("stop", URL)
    _, err = process.communicate(timeout=20)

    dispatcher = next(line for line in explained.stdout.splitlines() if "(running)" in line)
    assert f":{process.pid} (running), " in dispatcher
    assert "dispatched 1 of at most 2" in explained.stdout
    assert f":{process.pid}" in status.stdout
    assert (0, "1 dispatcher stopped\n") == (stopped.returncode, stopped.stdout)
    assert "asked 1 dispatcher to stop" in stopped.stderr
    assert 0 == process.returncode
    assert "asked to stop by the storage: terminating" in err


def test_all_are_stopped_from_the_shell_of_the_database(app, wait_until):
    """By the statement of the page; whoever begins later is not."""
    processes = [app.start("run", "app:app") for _ in range(2)]
    count = "SELECT count(*) FROM planton_dispatcher WHERE seen_at > unixepoch() - 30"
    wait_until(lambda: execute(app.folder, count) == [(2,)])
    execute(app.folder, "UPDATE planton_dispatcher SET stop_requested_at = unixepoch()")
    wait_until(lambda: execute(app.folder, count) == [(0,)])
    for process in processes:
        process.communicate(timeout=20)

    assert [0, 0] == [process.returncode for process in processes]


def test_one_that_does_not_stop_in_time_is_told(app, wait_until):
    """With an exit code of its own."""
    process = app.start("run", "app:stuck")
    app("enqueue", URL, "resize", "cat.png", "--yes")
    wait_until(lambda: execute(app.folder, "SELECT * FROM planton_active"))
    done = app("stop", URL, "--timeout", "1")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)

    assert 4 == done.returncode
    assert "0 dispatchers stopped" in done.stdout
    assert f":{process.pid} has not stopped; it was seen" in done.stdout


def test_the_dead_are_not_waited_for(here, tmp_path):
    """They are told of."""
    enter(tmp_path, "dead-host", silent_for=7200)
    told, data = here("stop"), json.loads(here("stop", "--json").stdout)

    assert 0 == told.exit_code
    assert "dead-host:7 has been silent for 2 h: dead, most likely" in told.stdout
    assert ["dead-host"] == [each["host"] for each in data["lost"]]
    assert ([], []) == (data["stopped"], data["running"])


def test_one_that_was_killed_a_moment_ago_is_waited_for_only_until_it_is_taken_for_dead(
    here, tmp_path
):
    """Not for the whole time that is given."""
    enter(tmp_path, "killed", silent_for=28.5)
    told = here("stop", "--timeout", "500")

    assert 0 == told.exit_code
    assert "killed:7 has been silent for 30 s: dead, most likely" in told.stdout
    assert "0 dispatchers stopped" in told.stdout


def test_the_dead_that_are_forgotten_while_others_are_waited_for_have_not_stopped(app):
    """It is told of them all the same."""
    enter(app.folder, "dead", silent_for=570)
    enter(app.folder, "living")
    process = app.start("stop", URL)
    assert "asked 1 dispatcher to stop\n" == process.stderr.readline()
    execute(app.folder, "DELETE FROM planton_dispatcher WHERE host = 'dead'")
    execute(app.folder, "DELETE FROM planton_dispatcher")
    out, _ = process.communicate(timeout=20)

    assert 0 == process.returncode
    assert "1 dispatcher stopped\n" in out
    assert "dead:7 has been silent for 9 min: dead, most likely" in out


def test_status_tells_of_dispatchers_and_their_tasks(here, tmp_path):
    """Where each runs, whether it lives, what its tasks wait for; the lost ones come last."""
    enter(tmp_path, "two", silent_for=300, overdue=True)
    enter(tmp_path, "one")
    told, data = here("status").stdout, json.loads(here("status", "--json").stdout)
    lines = [line.split() for line in told.splitlines()]

    assert ["one:7", "running", "1", "d", "ago"] == lines[3][:5]
    assert ["two:7", "lost", "1", "d", "ago", "5", "min", "ago"] == lines[4][:8]
    assert ["resize", "one:7", "waiting", "in", "1", "min", "2"] == lines[7][:7]
    assert ["resize", "two:7", "overdue"] == lines[8][:3]
    assert r"OSError: down\n\u001b[31m" in told
    assert ["running", "lost"] == [each["state"] for each in data["dispatchers"]]
    assert [False, True] == [each["status"]["overdue"] for each in data["reports"]]


def test_status_tells_how_old_a_report_is_when_there_were_beats_since(here, tmp_path):
    """So that an attempt that is due no more does not look like one that hangs."""
    enter(tmp_path, "old", told_for=90, next_attempt_in=25)
    enter(tmp_path, "new", next_attempt_in=-1)
    lines = [re.split(r"  +", line.strip()) for line in here("status").stdout.splitlines()]

    by_host = {line[1]: line for line in lines if line[0] == "resize"}
    assert ["resize", "new:7", "waiting", "now"] == by_host["new:7"][:4]
    assert ["resize", "old:7", "waiting", "1 min ago", "1 min ago"] == by_host["old:7"][:5]


def test_explain_tells_what_the_storage_has_to_say(here, tmp_path):
    """Paused, overridden, due; and each dispatcher its own."""
    # So long ago that it does not matter how long this takes.
    ages = {"silent_for": 3.5, "told_for": 7230.0}
    enter(tmp_path, "one", **ages, overdue=True, active=1, wake_ups="polling", last_error=None)
    enter(tmp_path, "two", **ages)
    here("enqueue", "resize", "cat.png")
    execute(tmp_path, "UPDATE planton_pending SET run_at = ?", time.time() - 90)
    here("pause", "resize")
    here("set-concurrency", "resize", "2")
    told, data = (
        here("explain", "resize").stdout,
        json.loads(here("explain", "resize", "--json").stdout),
    )

    expected = r"""
    paused: nothing is claimed until `planton resume`
    in the storage: 1 queued, 0 running, 0 failed, 0 dead
      concurrency 2, whatever the code says
      the oldest has been due for 1 min
    one:7 (running), 2 h ago: overdue, 1 of 3 active, wake-ups polling
      error: schedule: OSError: down\n, attempt 1 (12:00:00 UTC)
    two:7 (running), 2 h ago: waiting, ? of 3 active
      error: schedule: OSError: down\n, attempt 1 (12:00:00 UTC)
      last error: OSError: down\n\u001b[31m
    """
    assert textwrap.dedent(expected).strip().splitlines() == told.splitlines()
    assert ["one", "two"] == [each["dispatcher"]["host"] for each in data["reports"]]
    assert ("resize", True) == (data["task_name"], data["storage"]["paused"])


def test_explain_of_a_task_that_only_a_dispatcher_knows(here, tmp_path):
    """One that claims rows of the user's own, and has none; a task can be paused by that name."""
    enter(tmp_path, "one", failing="the last 12 instructions failed")
    told, data = here("explain", "resize"), json.loads(here("explain", "resize", "--json").stdout)

    assert "one:7 (running)" in told.stdout
    assert "  the last 12 instructions failed\n" in told.stdout
    assert data["storage"] is None
    assert "its attempts fail: OSError: down\n\x1b[31m" == data["verdict"]
    assert 0 == here("pause", "resize").exit_code


def test_explain_without_a_dispatcher_says_so(here):
    """Which is why nothing is dispatched; an unknown task is a mistake."""
    here("enqueue", "resize", "cat.png", "--yes")

    assert "no dispatcher that runs has this task" in here("explain", "resize").stdout
    assert 2 == here("explain", "resise").exit_code


def test_the_command_ends_with_the_exit_code_of_the_signal(app):
    """Ctrl-C while it waits; the dispatchers have been asked all the same."""
    enter(app.folder, "one")
    process = subprocess.Popen(
        [sys.executable, "-c", "from planton.cli import main; main()", "stop", URL],
        cwd=app.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "asked 1 dispatcher to stop\n" == process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert (130, "", "") == (process.returncode, out, err)
    requested = "SELECT count(*) FROM planton_dispatcher WHERE stop_requested_at > 0"
    assert [(1,)] == execute(app.folder, requested)
