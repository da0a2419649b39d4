"""The commands on a storage: real processes on SQLite; mistakes in this one, for their number."""

import json
import re
import sqlite3
from contextlib import closing

import pytest
from click.testing import CliRunner

from planton.cli._commands import planton

URL = "sqlite:///app.db"


@pytest.fixture
def app(command):
    """A folder with a migrated database."""
    assert 0 == command("migrate", URL).returncode
    return command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Call commands in this process, on a migrated database in the current folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"PLANTON_STORAGE": URL})

    def here(*arguments, **options):
        return runner.invoke(planton, list(arguments), **options)

    assert 0 == here("migrate").exit_code
    return here


def read(done):
    """Give what a command that went well printed as JSON."""
    assert (0, "") == (done.returncode, done.stderr)
    return json.loads(done.stdout)


def end(folder, status):
    """End all that is queued, as a consumer would have."""
    with closing(sqlite3.connect(folder / "app.db")) as connection, connection:
        connection.execute(
            "INSERT INTO planton_ended (task_name, instruction, delivery, status, created_at,"
            " claimed_at, ended_at, error) SELECT task_name, instruction, 1, ?, created_at,"
            " created_at, created_at, ? FROM planton_pending",
            (status, "OSError: it\nbroke \x1b[31m"),
        )
        connection.execute("DELETE FROM planton_pending")


def test_migrate_makes_the_tables_once(command):
    """And says whether there was anything to do."""
    first, again = command("migrate", URL), read(command("migrate", URL, "--json"))

    assert "applied" in first.stdout
    assert {"applied": 0} == again
    assert "the tables are up to date\n" == command("migrate", URL).stdout


def test_the_url_comes_from_wherever_it_is_given(app, monkeypatch):
    """The first argument, the option, the environment; the nearest counts."""
    monkeypatch.setenv("PLANTON_STORAGE", "sqlite:///elsewhere.db")

    assert [] == read(app("status", URL, "--json"))["tasks"]
    assert [] == read(app("status", "--json", "--storage", URL))["tasks"]
    assert "elsewhere.db: there is no such file" in app("status").stderr
    monkeypatch.setenv("PLANTON_STORAGE", URL)
    assert [] == read(app("status", "--json"))["tasks"]


def test_what_is_enqueued_is_found(app):
    """With all that it was given."""
    told = app("enqueue", URL, "resize", "cat.png", "--yes", "--payload", '{"width": 200}')
    options = ("--priority", "-3", "--tag", "gpu", "--tag", "big", "--retries", "2")
    options += ("--partition", "acme")
    again = read(app("enqueue", URL, "resize", "cat.png", "--json"))
    later = read(app("enqueue", URL, "resize", "dog.png", "--in", "1h30m", *options, "--json"))
    cat, dog = read(app("find", URL, "--json"))["instructions"]

    assert "queued\n" == told.stdout
    assert (False, True) == (again["queued"], later["queued"])
    assert ("cat.png", {"width": 200}, "queued") == (
        cat["instruction"],
        cat["payload"],
        cat["status"],
    )
    assert (-3, ["gpu", "big"], 2) == (dog["priority"], dog["tags"], dog["retries"])
    assert ("", "acme") == (cat["partition"], dog["partition"])
    assert dog["run_at"] > cat["run_at"]
    plain = app("find", URL, "--task", "resize")
    header, first, _ = plain.stdout.splitlines()
    assert ["task", "instruction", "status"] == header.split()[:3]
    assert ["resize", "cat.png", "queued"] == first.split()[:3]
    assert " in 1 h" in plain.stdout
    assert " acme " in plain.stdout


def test_an_instruction_may_look_like_a_url(app):
    """Only the first argument is the storage."""
    read(app("enqueue", URL, "fetch", "https://example.com/", "--yes", "--json"))

    assert "https://example.com/" in app("find", URL).stdout


def test_a_task_may_look_like_an_option(app):
    """Behind two dashes, as everywhere; also without anything behind them."""
    read(app("enqueue", "--storage", URL, "--json", "--yes", "--", "--odd", "a"))

    assert "--odd" in app("status", URL, "--").stdout


def test_the_day_of_an_operator(app):
    """Queued, dead, retried, paused, resumed, limited, pruned; status tells of all of it."""
    for instruction in "abc":
        app("enqueue", URL, "task", instruction, "--yes")
    end(app.folder, "dead")
    (task,) = read(app("status", URL, "--json"))["tasks"]
    assert (0, 3, None) == (task["queued"], task["dead"], task["oldest_due_at"])
    assert "queued 1 again\n" == app("retry", URL, "task", "a").stdout
    assert {"task_name": "task", "retried": 2} == read(app("retry", URL, "task", "--json"))
    assert "task is paused\n" == app("pause", URL, "task").stdout
    assert 4 == read(app("set-concurrency", URL, "task", "4", "--json"))["concurrency"]
    header, row, *_ = app("status", URL).stdout.splitlines()
    assert header.split()[:2] == ["task", "queued"]
    assert ["task", "3", "0", "0", "0", "0"] == row.split()[:6]
    assert ["paused", "4"] == row.split()[-2:]
    assert "task is not paused\n" == app("resume", URL, "task").stdout
    done = app("set-concurrency", URL, "task", "default")
    assert "the concurrency of task is what the code says\n" == done.stdout
    end(app.folder, "succeeded")
    assert {"pruned": 0} == read(app("prune", URL, "--older-than", "7d", "--yes", "--json"))
    assert "deleted 3 from the history\n" == app("prune", URL, "--older-than", "0", "-y").stdout
    assert "nothing found\n" == app("find", URL).stdout


def test_the_schema_is_all_that_migrate_does(command):
    """Applied by hand, there is nothing left to migrate; nothing is connected to."""
    done = command("schema", URL)
    assert 0 == done.returncode
    assert [] == list(command.folder.iterdir())
    with closing(sqlite3.connect(command.folder / "app.db")) as connection:
        connection.executescript(done.stdout)

    assert {"applied": 0} == read(command("migrate", URL, "--json"))
    assert {"schema": done.stdout.removesuffix("\n")} == read(command("schema", URL, "--json"))


def test_find_says_that_there_is_more(here):
    """On stderr, so that the JSON stays whole."""
    for instruction in "abc":
        here("enqueue", "task", instruction, "--yes")
    done = here("find", "--limit", "2", "--json")

    assert 2 == len(json.loads(done.stdout)["instructions"])
    assert "the first 2: give a higher --limit" in done.stderr


def test_find_shows_what_consumers_got_and_gave(here, tmp_path):
    """Where there is any; elsewhere than on a terminal nothing is cut off."""
    here("enqueue", "task", "plain", "--yes")
    before = here("find").stdout.splitlines()[0].split()
    here("enqueue", "task", "other")
    end(tmp_path, "dead")
    values = "UPDATE planton_ended SET result = '[1, 2]', claimed_by = 'host:7', payload = ?"
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute(values, [json.dumps("x" * 100)])
    assert 2 == len(here("find", "--instruction", "other").stdout.splitlines())
    header, _, row = here("find").stdout.splitlines()

    assert "due" == before[-1]
    assert ["claimed", "claimed by", "payload", "result", "error"] == re.split("  +", header)[6:]
    assert ["host:7", f'"{"x" * 100}"', "[1, 2]"] == re.split("  +", row)[7:10]


def test_what_would_steer_the_terminal_is_escaped(here, tmp_path):
    """An error of a consumer is text from somewhere; it takes one line."""
    here("enqueue", "task", "a", "--yes")
    end(tmp_path, "failed")
    done = here("find", "--status", "failed")

    assert r"OSError: it\nbroke \u001b[31m" in done.stdout
    assert 2 == len(done.stdout.splitlines())


def test_a_name_that_the_storage_does_not_know_is_a_mistake(here):
    """It is misspelt, most likely; what is known is told, and --yes is for what is new."""
    here("enqueue", "resize", "a", "--yes")
    for arguments in (
        ("enqueue", "resise", "b"),
        ("drop", "resise"),
        ("pause", "resise"),
        ("resume", "resise"),
        ("retry", "resise"),
        ("set-concurrency", "resise", "3"),
        ("find", "--task", "resise"),
    ):
        done = here(*arguments)

        assert 2 == done.exit_code
        assert "knows no task 'resise'; those it knows: 'resize'" in done.stderr
    assert 0 == here("pause", "nightly", "--yes").exit_code
    assert 0 == here("set-concurrency", "weekly", "3", "--yes").exit_code
    names = [task["task_name"] for task in json.loads(here("status", "--json").stdout)["tasks"]]
    assert ["nightly", "resize", "weekly"] == names


@pytest.mark.parametrize(
    ("arguments", "problem"),
    (
        (("enqueue", "task", "a", "--payload", "{broken"), "is not JSON"),
        (("enqueue", "task", "a", "--payload", "[NaN]"), "NaN is no number in JSON"),
        (("enqueue", "task", "a", "--payload", "[" * 100_000), "is not JSON"),
        (("enqueue", "task", "a", "--run-at", "tomorrow"), "is no time"),
        (("enqueue", "task", "a", "--run-at", "0001-01-01T00:00:00+05:00"), "is no time"),
        (("enqueue", "task", "a", "--run-at", "2030-01-01T00:00"), "has no zone"),
        (("enqueue", "task", "a", "--in", "soon"), "is no duration"),
        (("enqueue", "task", "a", "--in", "1h", "--run-at", "2030-01-01T00:00Z"), "give one"),
        (("enqueue", "task", "a", "--priority", "high"), "'high' is not a valid integer"),
        (("enqueue", "task", "a", "--priority", str(2**31)), "-2147483647<=x<=2147483647"),
        (("enqueue", "task", "a", "--retries", "-1"), "--retries"),
        (("enqueue", "task", "a", "--timeout", "0"), "timeout is 0.0: give finite seconds above"),
        (("enqueue", "", "a"), "TASK"),
        (("enqueue", "task", "\udcff"), "not UTF-8"),
        (("enqueue", "task"), "INSTRUCTION"),
        (("find", "--status", "pending"), "--status"),
        (("find", "--older-than", "-5"), "is no duration"),
        (("find", "--limit", "0"), "--limit"),
        (("find", "--limit", str(10**30)), "--limit"),
        (("retry", "task", "unknown"), "unknown"),
        (("set-concurrency", "task", "0"), "0 is not in the range"),
        (("set-concurrency", "task", "9" * 30), "is not in the range"),
        (("set-concurrency", "task", "-1"), "No such option '-1'. No concurrency is below 1"),
        (("set-concurrency", "task", "1", "--froce"), "No such option '--froce'"),
        (("explain", "task", URL), "The URL of the storage goes first."),
        (("explain", "task", "other"), "unexpected extra argument (other)"),
        (("set-concurrency", "task", "many"), "for 'N|default': 'many' is not a valid integer"),
        (("prune",), "--older-than"),
        (("prune", "--older-than", "9999999d"), "too long"),
        (("status", "app.db"), "the first argument is no storage URL: write sqlite:///app.db"),
        (("status", URL, "--storage", URL), "given twice"),
        (("status", URL, f"--storage={URL}"), "given twice"),
        (("status", "--storage", "app.db"), "no storage URL: write sqlite:///app.db"),
        (("status", "mysql://me:secret@host/app"), "no storage is installed for mysql"),
        (("status", "sqlite://me:secret@host/app"), "write sqlite:///app.db"),
        (("status", "sqlite:///none.db"), "there is no such file: `planton migrate URL` makes it"),
        (("status", "sqlite:///empty.db"), "planton migrate URL"),
        (("status", "sqlite:///text.db"), "not a database"),
    ),
    ids=lambda value: " ".join(map(ascii, value))[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_in_words(here, tmp_path, arguments, problem):
    """Exit code 2, no traceback, no password, and nothing is changed."""
    here("set-concurrency", "task", "1", "--yes")
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database at all" * 100)
    done = here(*arguments)

    assert 2 == done.exit_code, done.output
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.output
    assert "nothing found\n" == here("find").stdout
    assert not (tmp_path / "none.db").exists()


def test_no_storage_at_all_is_a_mistake(here):
    """It says where one may be given."""
    done = here("status", env={"PLANTON_STORAGE": ""})

    assert 2 == done.exit_code
    assert (
        "which storage? give its URL as the first argument, or set PLANTON_STORAGE" in done.stderr
    )
