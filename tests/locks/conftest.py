"""Real servers for the recipes of docs/locks.md, each started for the tests that ask for it."""

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pymysql
import pytest
import redis

SBIN = "/usr/sbin:/usr/bin:/usr/local/bin"


@contextmanager
def running(name, package, *arguments):
    """Run a server in a folder of its own, whose path is short enough for a socket."""
    binary = shutil.which(name, path=SBIN)
    if binary is None:
        pytest.skip(f"there is no {name}: apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="planton-") as folder:
        process = subprocess.Popen(
            [binary, *(argument.format(folder) for argument in arguments)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Path(folder)
        finally:
            process.kill()
            process.wait()


def wait_for(path):
    deadline = time.monotonic() + 20
    while True:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(path))
            return
        assert time.monotonic() < deadline, "the server has not started"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def mysql_server():
    """What `pymysql.connect` takes to reach a MariaDB."""
    with running(
        "mariadbd",
        "mariadb-server",
        "--no-defaults",
        "--user=root",
        "--datadir={}",
        "--socket={}/socket",
        "--skip-networking",
        "--skip-grant-tables",
        "--innodb-buffer-pool-size=8M",
        "--innodb-log-file-size=4M",
        "--innodb-flush-log-at-trx-commit=0",
    ) as folder:
        server = {"unix_socket": str(folder / "socket"), "user": "root", "ssl_disabled": True}
        wait_for(folder / "socket")
        with pymysql.connect(**server) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE app")
        yield {**server, "database": "app"}


@pytest.fixture(scope="session")
def redis_socket():
    """Where a Redis listens."""
    with running(
        "redis-server", "redis-server", "--port", "0", "--unixsocket", "{}/socket", "--save", ""
    ) as folder:
        wait_for(folder / "socket")
        yield str(folder / "socket")


@pytest.fixture
def redis_client(redis_socket):
    """A client of a Redis that is empty."""
    with redis.Redis(unix_socket_path=redis_socket, decode_responses=True) as client:
        client.flushall()
        yield client
