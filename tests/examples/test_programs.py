"""Web applications and scripts: started, asked and stopped as in production; nothing is lost."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import httpx2
import pytest

from planton.hosting import call_blocking
from planton_postgres import PostgresStorage
from planton_sqlite import SQLiteStorage

EXAMPLES = Path(__file__).parents[2] / "examples"


@attrs.frozen
class Commands:
    """What the header of an example says, with a port that is free, and how it is reloaded."""

    set_up: str
    run: list[str]
    reload: Callable[["Program"], None] | None = None


def touch(program: "Program") -> None:
    (program.folder / "app.py").touch()


def hang_up(program: "Program") -> None:
    program.processes[0].send_signal(signal.SIGHUP)


UVICORN = Commands("python app.py", ["uvicorn app:app --port $PORT --reload"], touch)
GUNICORN = "gunicorn {} --bind localhost:$PORT --workers 2"
PROGRAMS = {
    "fastapi_asyncpg": UVICORN,
    "fastapi_sqlalchemy": UVICORN,
    "django_shop": Commands(
        "python manage.py migrate",
        ["gunicorn shop.wsgi --bind localhost:$PORT", "python manage.py run_planton"],
        hang_up,
    ),
    "flask_shop": Commands(
        "python tasks.py", [GUNICORN.format("app:app"), "planton run tasks:planton"], hang_up
    ),
    "flask_shop in_workers": Commands(
        "python tasks.py",
        [GUNICORN.format("app:app") + " --preload --config in_workers.py"],
        hang_up,
    ),
}
ON_SQLITE = {"flask_shop": "app.db", "two_processes": "mails.db"}
SCRIPTS = Commands("python add.py", ["python mails.py", "python mails.py"])


@attrs.define
class Program:
    """An example, in a folder and with a database of its own."""

    folder: Path
    database: str
    commands: Commands
    ask: Callable[..., list[tuple[object, ...]]]
    port: int = attrs.field(init=False)
    client: httpx2.Client = attrs.field(init=False)
    processes: list["subprocess.Popen[bytes]"] = attrs.field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.client = httpx2.Client(base_url=f"http://localhost:{self.port}", verify=False)
        assert 0 == self.execute(self.commands.set_up, 0).wait(30), self.log

    def execute(self, command: str, seconds: float) -> "subprocess.Popen[bytes]":
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        known = {"PATH": path, "DATABASE_URL": self.database, "PORT": str(self.port)}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self.folder,
                env={**os.environ, **known, "SECONDS": str(seconds)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self, seconds: float) -> None:
        """Start it; an e-mail takes so many seconds."""
        self.processes = [self.execute(command, seconds) for command in self.commands.run]

    def send(self, number: int) -> list[int]:
        """Send a signal to each process, and return how they ended."""
        for process in self.processes:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        return [process.wait(20) for process in self.processes]

    def request(self, method: str, path: str) -> int:
        """Ask it as a client would that tries again while there is no server."""
        for _ in until(20):
            with contextlib.suppress(httpx2.TransportError):
                return int(self.client.request(method, path).raise_for_status().json())
        raise AssertionError(self.log)

    def sign_up(self, count: int) -> list[int]:
        return [self.request("POST", f"/accounts?email={n}@example.org") for n in range(count)]

    def active(self) -> int:
        ((count,),) = self.ask(self.database, "SELECT count(*) FROM planton_active")
        return int(str(count))

    def welcomed(self, accounts: list[int]) -> list[int]:
        """Wait until each account was welcomed, and return how often."""
        for account in accounts:
            assert any(self.request("GET", f"/accounts/{account}") for _ in until(20)), self.log
        return [self.request("GET", f"/accounts/{account}") for account in accounts]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def until(seconds: float) -> Iterator[None]:
    """Try again for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)


@pytest.fixture
def program(request, tmp_path, query):
    """Copy an example and make its tables; whatever it leaves behind is killed."""
    commands = PROGRAMS.get(request.param, SCRIPTS)
    name = request.param.split()[0]
    shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    if name in ON_SQLITE:
        database = str(tmp_path / name / ON_SQLITE[name])
        call_blocking(SQLiteStorage(database).migrate)
    else:
        database = request.getfixturevalue("postgres_url")
        call_blocking(PostgresStorage(database).migrate)
    program = Program(tmp_path / name, database, commands, query)
    yield program
    for process in program.processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    program.client.close()


@pytest.mark.parametrize("program", PROGRAMS, indirect=True)
def test_a_program_loses_nothing_however_it_is_stopped(program, expire):
    """By a reload, SIGTERM and SIGKILL in the middle of work; all is done once."""
    program.start(seconds=0.5)
    accounts = program.sign_up(6)
    program.commands.reload(program)
    assert [1] * 6 == program.welcomed(accounts)

    accounts += program.sign_up(6)
    assert any(program.active() for _ in until(20))
    codes = program.send(signal.SIGTERM)
    assert 0 == program.active()
    assert {0, -signal.SIGTERM} >= set(codes), program.log  # uvicorn ends by the signal itself
    assert "Traceback" not in program.log

    program.start(seconds=1)
    assert [1] * 12 == program.welcomed(accounts)
    accounts += program.sign_up(6)
    assert any(program.active() == 5 for _ in until(20))
    program.send(signal.SIGKILL)
    assert 5 == program.active()
    expire(program.database)
    program.start(seconds=0.01)
    assert all(program.welcomed(accounts))


IN_A_TEST = """
import time
from app import app
from fastapi.testclient import TestClient
with TestClient(app) as client:
    account = client.post("/accounts?email=ann@example.org").json()
    while not client.get(f"/accounts/{account}").json():
        time.sleep(0.01)
"""


@pytest.mark.parametrize("program", ("fastapi_asyncpg",), indirect=True)
def test_a_program_of_fastapi_runs_in_its_own_tests(program):
    """`TestClient` runs the lifespan on a loop of its own, in a thread of its own."""
    (program.folder / "in_a_test.py").write_text(IN_A_TEST)

    assert 0 == program.execute("timeout 20 python in_a_test.py", 0).wait(30), program.log


@pytest.mark.parametrize("program", ("django_shop",), indirect=True)
def test_a_handler_of_django_outlives_a_restart_of_the_server(program, query):
    """By `close_old_connections`: no worker thread keeps a connection that is broken by then."""
    program.start(seconds=0.01)
    first = program.welcomed(program.sign_up(1))
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    query(program.database, f"SELECT pg_terminate_backend(pid) {others}")
    second = program.welcomed(program.sign_up(1))

    assert ([1], [1]) == (first, second)


@pytest.mark.parametrize("program", ("two_processes",), indirect=True)
def test_two_scripts_keep_an_exact_cap_and_lose_nothing(program, query):
    """Never more than two at a time by both together, also when one of them is killed."""
    program.start(seconds=0.4)
    running = "SELECT count(*) FROM planton_dispatcher"
    assert any([(2,)] == query(program.database, running) for _ in until(20)), program.log
    assert 0 == program.execute(f"python add.py {' '.join('abcdefgh')}", 0).wait(20)
    by = "SELECT claimed_by FROM planton_active"
    ((victim,), *_) = next(filter(None, (query(program.database, by) for _ in until(20))))
    os.kill(int(victim.rpartition(":")[2]), signal.SIGKILL)
    over = "UPDATE planton_active SET lease_expires_at = 0 WHERE claimed_by = ?"
    query(program.database, over, victim)
    unsent = "SELECT id FROM mail WHERE sent = 0"
    assert any(not query(program.database, unsent) for _ in until(20)), program.log
    codes = program.send(signal.SIGTERM)
    mails = query(program.database, "SELECT began_at, sent_at FROM mail")
    most = max(sum(began_at <= time < sent_at for began_at, sent_at in mails) for time, _ in mails)

    assert [-signal.SIGKILL, 0] == sorted(codes), program.log
    assert 8 == len(mails)
    assert 2 == most
