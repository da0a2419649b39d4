"""`planton run MODULE:ATTRIBUTE`."""

import signal
import subprocess
import sys

import pytest

APP = """
import sys
from contextlib import asynccontextmanager

import trio

from planton import InstructionEvent, Planton, Task


async def schedule(request):
    print("attempt", flush=True)
    return ["a"]


def make(schedule=schedule, **options):
    task = Task(name="task", schedule=schedule, cap="strict", delay=0.01)
    planton = Planton(tasks=[task], **options)
    planton.on(InstructionEvent, lambda event: print(event.instruction, flush=True))
    return planton


async def failing(request):
    print("attempt", flush=True)
    raise OSError("down")


async def slowly(request):
    print("attempt", flush=True)
    await trio.sleep(0.5)
    return ["claimed meanwhile"]


async def hang(request):
    print("attempt", flush=True)
    await trio.sleep(1000)


async def block(event):
    import time
    print("blocked", flush=True)
    time.sleep(1000)


planton = make()
slow = make(slowly)
failing_planton = make(failing)
hung = make(hang, grace=1000)
short = make(hang, grace=0.05)
blocked = make(grace=1000)
blocked.on(InstructionEvent, block)
nothing = 5


async def make_async():
    return make()


@asynccontextmanager
async def opened():
    print("opened", flush=True)
    try:
        yield make()
    finally:
        print("closed", flush=True)


def broken():
    return {}["missing"]


def refused():
    return Planton(grace=-1)


def stopping():
    planton = make()

    @planton.on(InstructionEvent)
    async def stop(event):
        await planton.terminate()

    return planton


class Unspeakable(Exception):
    def __str__(self):
        raise TypeError("no text")


def unspeakable():
    raise Unspeakable


@asynccontextmanager
async def fails_to_open():
    raise OSError("no such host")
    yield
"""


@pytest.fixture
def app(command):
    command.write("app.py", APP)
    return command


@pytest.mark.parametrize("attribute", ("planton", "make", "make_async", "opened"))
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_terminates_within_grace(app, attribute, number):
    """Whatever gives the Planton; exit code 0."""
    process = app.start("run", f"app:{attribute}")
    lines = iter(process.stdout.readline, "")
    assert any(line == "a\n" for line in lines)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert 0 == process.returncode, err
    assert ("closed" in out) == (attribute == "opened")
    assert "running 1 tasks" in err


def test_what_is_being_claimed_is_delivered_before_the_end(app):
    """The drain."""
    process = app.start("run", "app:slow")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)

    assert ("claimed meanwhile\n", 0) == (out, process.returncode)


def test_a_second_signal_stops_at_once(app):
    """With the exit code of the signal, and says what is not known."""
    process = app.start("run", "app:hung")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)

    assert process.returncode in (130, 143)
    assert "what it claims is not known" in err


def test_a_third_signal_ends_a_loop_that_does_not_answer(app, wait_until):
    """A listener blocks trio's thread."""
    process = app.start("run", "app:blocked")
    lines = iter(process.stdout.readline, "")
    assert any(line == "blocked\n" for line in lines)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        signal.sigtimedwait([], 0.05)
    process.communicate()

    assert 130 == process.returncode


def test_work_that_is_undelivered_at_the_end_of_grace_is_an_exit_code(app):
    """3, and a line in the log."""
    process = app.start("run", "app:short")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert 3 == process.returncode
    assert "terminate of task 'task' failed" in err


def test_errors_of_callbacks_are_logged_and_it_goes_on(app):
    """They are no exit code."""
    process = app.start("run", "app:failing_planton")
    assert ["attempt\n"] * 3 == [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert 0 == process.returncode
    assert "schedule of task 'task' failed: OSError: down" in err


def test_the_current_folder_may_be_on_the_path_already(app, monkeypatch):
    """It is not added twice."""
    monkeypatch.setenv("PYTHONPATH", str(app.folder))

    assert 0 == app("run", "app:stopping").returncode


def test_a_planton_that_terminates_itself_ends_the_command(app):
    """Exit code 0."""
    assert 0 == app("run", "app:stopping").returncode


@pytest.mark.parametrize(
    ("target", "problem"),
    (
        ("app", "not MODULE:ATTRIBUTE"),
        (":x", "not MODULE:ATTRIBUTE"),
        ("nowhere:planton", "No module named 'nowhere'"),
        ("app:plantoon", "has no attribute 'plantoon'; it has"),
        ("app:nothing", "app:nothing is 5: it must be a Planton"),
        ("app:broken", "raised KeyError: 'missing' ("),
        ("app:refused", "grace is -1"),
        ("app:unspeakable", "raised Unspeakable: <Unspeakable whose text fails with TypeError> ("),
        ("app:fails_to_open", "raised OSError: no such host ("),
        ("bad_syntax:planton", "SyntaxError"),
        ("bad_name:planton", "NameError"),
        ("app:opened.x", "has no attribute"),
    ),
)
def test_a_mistake_is_told_in_one_line(app, target, problem):
    """Exit code 2, the remedy, no traceback."""
    app.write("bad_syntax.py", "def (")
    app.write("bad_name.py", "import planton\nnowhere.at.all\n")
    done = app("run", target)

    assert 2 == done.returncode
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_level_that_there_is_not_is_a_usage_error(app):
    """It names the option."""
    done = app("run", "app:planton", "--log-level", "loud")

    assert 2 == done.returncode
    assert "--log-level" in done.stderr


def test_help_tells_the_exit_codes(command):
    """Where somebody looks for them."""
    for arguments in ((), ("run",), ("demo",)):
        done = command(*arguments, "--help")

        assert 0 == done.returncode
        assert "Exit codes:" in done.stdout
        assert "143: by SIGTERM" in done.stdout


def test_version(command):
    """Of the distribution."""
    assert "version" in command("--version").stdout


def test_without_its_extra_the_command_says_what_to_install(tmp_path):
    """Instead of a traceback."""
    code = "import sys; sys.modules['click'] = None; from planton.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (1, "planton: click is not installed: pip install 'planton[cli]'\n") == (
        done.returncode,
        done.stderr,
    )
