"""Runs examples as their readers do, and kills them as the power company does."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Run: TypeAlias = "Callable[..., subprocess.CompletedProcess[str]]"
Query: TypeAlias = "Callable[..., list[tuple[object, ...]]]"


@pytest.fixture(params=("sqlite", "postgres"))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What an example is given: the path of a SQLite database, or the URL of a PostgreSQL one."""
    if request.param == "sqlite":
        return str(tmp_path / "example.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run an example to its end: `run("tasq", database, SECONDS="1")`."""

    def run(example: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(example, *arguments),
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def kill(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Kill an example that has printed a line: `kill("running 3", "tasq", database)`.

    With `when` it waits for that to come true as well.
    """
    processes = []

    def kill(
        line: str,
        example: str,
        *arguments: str,
        when: Callable[[], object] = lambda: True,
        **environment: str,
    ) -> None:
        process = subprocess.Popen(
            command(example, *arguments),
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert any(line in each for each in process.stdout), f"it ended without {line!r}"
        deadline = time.monotonic() + 30
        while not when():
            assert time.monotonic() < deadline, "it does not come to that"
            time.sleep(0.02)
        process.kill()
        assert -signal.SIGKILL == process.wait(30)

    yield kill
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def query() -> Query:
    """Ask a database, past the example: `query(database, "SELECT 1")`."""

    def query(database: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        if "://" in database:
            with psycopg.connect(database) as server:
                cursor = server.execute(statement, parameters or None)
                return cursor.fetchall() if cursor.description else []
        connection = sqlite3.connect(database, timeout=30)
        try:
            with connection:
                return connection.execute(statement, parameters).fetchall()
        finally:
            connection.close()

    return query


@pytest.fixture
def expire(query: Query) -> Callable[..., None]:
    """Let an hour pass for what is claimed: whoever has it is taken for dead."""

    def expire(database: str, table: str = "planton_active") -> None:
        hour = "interval '1 hour'" if "://" in database else "3600"
        query(database, f"UPDATE {table} SET lease_expires_at = lease_expires_at - {hour}")

    return expire


def command(example: str, *arguments: str) -> list[str]:
    return [sys.executable, "-u", "-W", "error", str(EXAMPLES / f"{example}.py"), *arguments]
