"""What tests of PostgreSQL need besides the server, which `tests/conftest.py` starts."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton_postgres import PostgresStorage
from planton_postgres._driver import TrioConnection


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


@pytest.fixture
async def storage(schema_dsn: str) -> AsyncIterator[PostgresStorage]:
    """A storage on the test's schema, with its tables."""
    async with PostgresStorage(schema_dsn, migrate=True) as storage:
        yield storage


@pytest.fixture
async def other(storage: PostgresStorage) -> AsyncIterator[PostgresStorage]:
    """A second one, as another process has it."""
    async with PostgresStorage(storage.conninfo) as other:
        yield other


@pytest.fixture
async def session(schema_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A third connection, for a transaction of somebody's that stays open."""
    async with await TrioConnection.connect(schema_dsn) as connection:
        yield connection


async def _rows(connection: Any, statement: str, parameters: Any = None) -> list[Any]:
    cursor = await connection.execute(statement, parameters)
    return await cursor.fetchall() if cursor.description else []


@pytest.fixture
def rows() -> Any:
    """`await rows(connection, statement, parameters)`: what a statement returns."""
    return _rows


@pytest.fixture
def blocked(observer: TrioConnection[Any], schema_dsn: str) -> Any:
    """`await blocked()`: wait until a statement of another session waits for a lock."""
    query = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
        " AND backend_type = 'client backend' AND datname = current_database()"
    )

    async def blocked(count: int = 1) -> None:
        with trio.fail_after(20):
            while (await _rows(observer, query))[0][0] < count:
                await trio.sleep(0.005)

    return blocked


_DEFAULTS = {"limit": 100, "concurrency": 100, "lease": 60, "claimed_by": "me"}


@pytest.fixture
def ask(observer: TrioConnection[Any]) -> Any:
    """`await ask(task, connection=…, **request)`: planton_claim itself; its rows and its state."""

    async def ask(
        task: str = "task", connection: Any = None, **request: Any
    ) -> tuple[list[tuple[str, int, str]], Any]:
        asked = {**_DEFAULTS, "token": secrets.randbits(63), **request}
        found = await _rows(
            connection or observer,
            "SELECT kind, id, instruction, payload FROM planton_claim(%s, %s)",
            [task, json.dumps(asked)],
        )
        *claimed, (kind, _, _, state) = found
        return [row[:3] for row in claimed], json.loads(state) if kind == "state" else kind

    return ask


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

    def accept(self) -> None:
        """Let them in again."""
        self._refusing = False

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


_PGBOUNCER = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


@pytest.fixture(scope="session")
def pgbouncer(
    postgres_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """A PgBouncer in transaction mode; gives the way through it to the database of a dsn."""
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        pytest.skip("there is no pgbouncer: apt-get install pgbouncer")
    with psycopg.connect(postgres_server.uri) as connection:
        info = connection.info
        server: dict[str, Any] = {"host": info.host, "port": info.port, "user": info.user}
    with socket.create_server(("127.0.0.1", 0)) as free:
        own_port = free.getsockname()[1]
    settings = tmp_path_factory.mktemp("pgbouncer") / "pgbouncer.ini"
    settings.write_text(_PGBOUNCER.format(**server, own_port=own_port))
    # It refuses to be root: it is whom the server is, too. Standard input, as that user may not
    # look into pytest's folder.
    owner = None
    if not os.getuid() and str(server["host"]).startswith("/"):
        owner = Path(server["host"]).stat().st_uid
    with settings.open() as stdin:
        process = subprocess.Popen(
            [binary, "-q", "/dev/stdin"], stdin=stdin, user=owner, stderr=subprocess.DEVNULL
        )
    try:
        _wait_for_port(own_port)
        yield lambda dsn: make_conninfo(
            host="127.0.0.1", port=own_port, user=server["user"], dbname=_database(dsn)
        )
    finally:
        process.terminate()
        process.wait()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "pgbouncer has not started"
            time.sleep(0.02)


def _database(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])
