"""`planton status --watch`, on a terminal and elsewhere; what Ctrl-C does."""

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from planton.cli._output import ago, since

URL = "sqlite:///app.db"


@contextmanager
def renamed(path):
    """Break the database, for as long as the block lasts."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute("ALTER TABLE planton_task RENAME TO moved")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE moved RENAME TO planton_task")


@pytest.fixture
def app(command):
    command("migrate", URL)
    command("enqueue", URL, "resize", "a", "--yes")
    return command


def test_watch_prints_a_json_document_a_line(app):
    """Until Ctrl-C, which is no failure."""
    process = app.start("status", URL, "--watch", "--json", "--interval", "0.1")
    first = json.loads(process.stdout.readline())
    with closing(sqlite3.connect(app.folder / "app.db")) as connection, connection:
        connection.execute("INSERT INTO planton_pending (task_name, instruction) VALUES ('b', 1)")
    while len(json.loads(process.stdout.readline())["tasks"]) == 1:
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert ["resize"] == [task["task_name"] for task in first["tasks"]]
    assert (0, "") == (process.returncode, err)


def test_watch_goes_on_while_the_database_does_not_answer(app):
    """It tells why, and what was there last; programs have a key that is there only then."""
    process = app.start("status", URL, "--watch", "--json", "--interval", "0")
    broken = json.loads(process.stdout.readline())
    with renamed(app.folder / "app.db"):
        while "error" not in broken:
            broken = json.loads(process.stdout.readline())
    again = broken
    while "error" in again:
        again = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert "no such table" in broken["error"]
    assert 0 == process.returncode
    assert ["resize"] == [task["task_name"] for task in broken["tasks"]]
    assert ["resize"] == [task["task_name"] for task in again["tasks"]]


def test_watch_tells_people_why_there_is_nothing_new(app):
    """Below the table."""
    process = app.start("status", URL, "--watch", "--interval", "0")
    assert "task" == process.stdout.readline().split()[0]
    with renamed(app.folder / "app.db"):
        lines = iter(process.stdout.readline, "")
        assert any("no such table" in line for line in lines)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert 0 == process.returncode


@pytest.mark.parametrize("variables", ({}, {"NO_COLOR": "1"}))
def test_on_a_terminal_status_is_a_table_that_is_kept_up_to_date(app, variables):
    """In place; NO_COLOR is heard."""
    app("pause", URL, "resize")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **variables}
    environment.pop("NO_COLOR" if not variables else "", None)
    process = subprocess.Popen(
        [sys.executable, "-c", "from planton.cli import main; main()", "status", URL, "--watch"],
        cwd=app.folder,
        env=environment,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = b""
    while b"paused" not in seen.partition(b"resize")[2]:
        seen += os.read(ours, 10_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)

    assert (0, "") == (process.returncode, err)
    assert b"\x1b[?1049h" in seen  # the other screen, as of `top`
    assert (b"\x1b[33m" in seen) == (not variables)


def test_on_a_terminal_a_table_fits_it(app):
    """Blocks where it is narrow; a name is never broken or cut off, however long it is."""
    app("enqueue", URL, "task", "x" * 90, "--yes")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from planton.cli import main; main()", "find", URL],
        cwd=app.folder,
        env={**os.environ, "COLUMNS": "70", "NO_COLOR": "1", "TERM": "xterm"},
        stdout=theirs,
    )
    assert 0 == process.wait(20)
    text = re.sub(r"\x1b\[\d*m", "", os.read(ours, 100_000).decode())
    os.close(ours)
    os.close(theirs)

    assert "x" * 90 in text
    assert max(len(line) for line in text.splitlines() if "x" * 90 not in line) <= 70


def test_on_a_terminal_a_payload_is_shortened(app):
    """So that each instruction takes a few lines at the most."""
    app("enqueue", URL, "task", "long", "--yes", "--payload", f'"{"x" * 900}"')
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from planton.cli import main; main()", "find", URL],
        cwd=app.folder,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "xterm"},
        stdout=theirs,
    )
    assert 0 == process.wait(20)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)

    assert "x…" in text
    assert text.count("x") < 200


def test_ctrl_c_elsewhere_is_an_exit_code(app):
    """130, without a traceback; here it waits for another writer."""
    with closing(sqlite3.connect(app.folder / "app.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        code = (
            "import signal, threading; from planton.cli import main;"
            "threading.Timer(1.5, signal.raise_signal, [signal.SIGINT]).start(); main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "pause", URL, "resize"],
            cwd=app.folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, err = process.communicate(timeout=20)

    assert (130, "") == (process.returncode, err)


def test_a_time_is_told_as_people_do():
    """Past, future, none."""
    now = datetime.now(UTC)

    assert ("5 min ago", "in 2 d", None) == (
        ago(now - timedelta(minutes=5, seconds=1)),
        ago(now + timedelta(days=2, seconds=1)),
        ago(None),
    )
    assert ("5 min", "0 s", None) == (
        since(now - timedelta(minutes=5, seconds=1)),
        since(now + timedelta(days=2)),
        since(None),
    )


def test_an_empty_storage_has_no_tasks_yet(command):
    """In words, not an empty table."""
    command("migrate", URL)

    assert "no tasks yet\n\nno dispatcher runs\n" == command("status", URL).stdout
