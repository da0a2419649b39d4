"""What people see: no password, nothing that steers a terminal, no broken word; questions."""

import json
import os
import pty
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from planton.cli._commands import planton
from planton.cli._group import Commands
from planton.cli._shown import printable, printable_lines, without_those_of, wrapped

URL = "sqlite:///app.db"
MAIN = "from planton.cli import main; main()"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Call commands in this process, on a migrated database in the current folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"PLANTON_STORAGE": URL})

    def here(*arguments, **options):
        return runner.invoke(planton, list(arguments), **options)

    assert 0 == here("migrate").exit_code
    return here


@pytest.fixture
def on_terminal(tmp_path):
    """Call a command on a terminal of 80 columns, with what is typed."""

    def on_terminal(*arguments, typed=b""):
        ours, theirs = pty.openpty()
        os.write(ours, typed)
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "COLUMNS": "80",
                "NO_COLOR": "1",
                "TERM": "xterm",
                "PLANTON_STORAGE": URL,
            },
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        code = process.wait(30)
        text = os.read(ours, 100_000).decode() if code is not None else ""
        os.close(ours)
        os.close(theirs)
        return code, re.sub(r"\x1b\[\d*m", "", text).replace("\r\n", "\n")

    return on_terminal


@pytest.mark.parametrize(
    "storage",
    (
        "host=db user=joe password=hunter2",
        "host=db user=joe password='hunter2 hunter2'",
        "postgres:/joe:hunter2@db/app",
        "postgresql://joe:hunter2@hunter2@localhost:1/app",
        "postgresql://joe:hunter2/hunter2@localhost:1/app",
        "postgresql+psycopg://joe:hunter2@db/app",
        "postgresql://localhost:1/app?password=hunter2",
    ),
)
@pytest.mark.parametrize(
    "arguments",
    (
        ("status", "STORAGE"),
        ("status", "--storage", "STORAGE"),
        ("find", "--task", "STORAGE"),
        ("enqueue", "task", "a", "STORAGE"),
        ("pause", "STORAGE"),
        ("STORAGE",),
        ("run", "STORAGE"),
        ("demo", "--storage", "STORAGE"),
        ("demo", "--database", "STORAGE/x"),
    ),
    ids=" ".join,
)
def test_what_was_misread_shows_no_password(here, storage, arguments):
    """Wherever it was given, and whatever was made of it."""
    done = here(*(each.replace("STORAGE", storage) for each in arguments))

    assert 2 == done.exit_code, done.output
    assert "hunter2" not in done.output
    assert done.stderr.strip()


def test_a_password_in_the_environment_is_not_shown():
    """Nor parts of it."""
    url = "postgresql://joe:hunter2@swordfish@localhost:1/app"
    done = CliRunner(env={"PLANTON_STORAGE": url}).invoke(planton, ["status"])

    assert 2 == done.exit_code
    assert "swordfish" not in done.output


@pytest.mark.parametrize(
    ("error", "code", "told"),
    (
        (
            ValueError("postgresql://joe:hunter2@db/app \x1b[31m"),
            1,
            "ValueError: postgresql://joe:***@",
        ),
        (click.Abort(), 130, ""),
    ),
    ids=("a fault", "Ctrl-C at a question"),
)
def test_what_a_command_raises_is_an_exit_code(error, code, told):
    """A fault is a traceback that shows no password and steers nothing."""

    def fail():
        raise error

    group = Commands("planton", [click.Command("fail", callback=fail)])
    done = CliRunner().invoke(group, ["fail"])

    assert code == done.exit_code
    assert told in done.stderr
    assert not {"hunter2", "\x1b"} & set(re.findall("hunter2|\x1b", done.stderr))


def test_characters_that_steer_a_terminal_are_escaped(here):
    """In tables, JSON, errors; also those that turn the direction of what is written."""
    evil = "a\x1b[31m\u202eb\x9b"
    here("enqueue", "task", evil, "--yes")
    table, data, error = here("find"), here("find", "--json"), here("explain", evil)

    assert evil == json.loads(data.stdout)["instructions"][0]["instruction"]
    for shown in (table.stdout, data.stdout, error.stderr):
        assert not set(shown) & set("\x1b\u202e\x9b")
        assert r"a\u001b[31m\u202eb\u009b" in shown.replace("\\\\", "\\") or "\\x1b" in shown


def test_text_is_made_fit_to_show():
    """A line, lines, what was given, a width."""
    assert r"a\nb ***" == printable("a\nb ***")
    assert "password=*** x\n\\u202e" == printable_lines("password='a b' x\n\u202e")
    assert "*** and ***" == without_those_of(["u://j:ab%40cd@h"], "ab@cd and ab%40cd")
    assert "  one\n  two" == wrapped("  one two", 7)


def test_no_summary_of_a_command_is_cut(here, monkeypatch):
    """At 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    told = here("--help").stdout

    assert "..." not in told.partition("Commands:")[2]
    assert 80 >= max(map(len, told.splitlines()))


def test_a_table_that_does_not_fit_turns_into_blocks(here, on_terminal):
    """No word is broken; each instruction has its lines."""
    for name in ("cat", "dog"):
        here("enqueue", "resize_image", name, "-y", "--tag", "gpu", "--payload", '"two words"')
    here("enqueue", "resize_image", "x" * 90, "--payload", json.dumps("word " * 30))
    code, told = on_terminal("find")

    assert 0 == code
    first, second, third = told.strip().split("\n\n")
    assert ["task         resize_image", "instruction  cat"] == first.splitlines()[:2]
    assert "tags         gpu" in first
    assert "instruction  dog" in second
    assert f"instruction  {'x' * 90}" in third
    assert 80 >= max(len(line) for line in told.splitlines() if "xxx" not in line)
    assert {'"word', "word", '"'} == set(re.findall(r'"?word|"', third))


def test_a_name_that_nobody_knows_is_asked_about(here, on_terminal):
    """And queued only after a yes; where nobody can be asked it is a mistake."""
    refused = on_terminal("enqueue", "resise", "a", typed=b"n\n")
    before = here("find").stdout
    accepted = on_terminal("enqueue", "resise", "a", typed=b"y\n")
    here("enqueue", "resise", "b")
    unasked = here("enqueue", "resize", "c")

    assert 2 == refused[0]
    assert "the storage knows no task 'resise'" in refused[1]
    assert "nothing was changed" in refused[1]
    assert "nothing found\n" == before
    assert 0 == accepted[0]
    assert 3 == len(here("find").stdout.splitlines())
    assert (2, True) == (unasked.exit_code, "give --yes if that is meant" in unasked.stderr)


def test_what_is_queued_is_dropped(here):
    """Those that are named, or all after a question."""
    for name in "abcd":
        here("enqueue", "task", name, "--yes")

    assert "dropped 1\n" == here("drop", "task", "a").stdout
    assert "dropped 1 of 2: no other is queued\n" == here("drop", "task", "a", "b").stdout
    refused = here("drop", "task")
    assert (2, True) == (refused.exit_code, "all that is queued for 'task'" in refused.stderr)
    assert '{"task_name": "task", "dropped": 2}\n' == here("drop", "task", "-y", "--json").stdout


def test_prune_asks(here):
    """It says what it deletes: what succeeded, unless it is told otherwise."""
    plain = here("prune", "--older-than", "3d")
    dead = here("prune", "--older-than", "0", "--status", "dead", "--status", "failed")

    assert "all that is succeeded and ended more than 3 d ago; give --yes" in plain.stderr
    assert "all that is dead or failed; give --yes" in dead.stderr
    assert (2, 2) == (plain.exit_code, dead.exit_code)


@pytest.mark.parametrize("options", ("", "--watch --interval 0.1"))
def test_a_reader_that_goes_is_no_failure(command, options):
    """As of `planton status | head -1`; with --watch it ends then."""
    command("migrate", URL)
    pipe = f"{sys.executable} -c '{MAIN}' status {URL} {options} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", pipe],
        cwd=command.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (0, "no tasks yet\n", "") == (done.returncode, done.stdout, done.stderr)
