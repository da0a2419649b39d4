"""What a connection does when nothing is cancelled."""

import socket

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from planton_postgres._driver import TrioConnection


async def test_connects_through_the_socket_or_address_of_the_conninfo(postgres_dsn):
    """A conninfo is enough."""
    conninfo = make_conninfo(postgres_dsn, application_name="mine")
    async with await TrioConnection.connect(conninfo) as connection:
        cursor = await connection.execute("SELECT current_setting('application_name')")

        assert ("mine",) == await cursor.fetchone()


@pytest.mark.parametrize("host", ("127.0.0.1", "localhost"))
async def test_connects_over_tcp_by_address_and_by_name(proxy, host):
    """Names are resolved, addresses are taken as they are."""
    async with await TrioConnection.connect(make_conninfo(proxy.dsn, host=host)) as connection:
        cursor = await connection.execute("SELECT 1")

        assert (1,) == await cursor.fetchone()


async def test_goes_on_to_the_next_host_when_one_refuses_or_never_answers(proxy, silent_port):
    """Several hosts are tried in order, each within its own limit."""
    conninfo = make_conninfo(
        proxy.dsn,
        host="127.0.0.1,127.0.0.1,127.0.0.1",
        port=f"{free_port()},{silent_port},{proxy.port}",
    )
    async with await TrioConnection.connect(conninfo, connect_timeout=0.1) as connection:
        cursor = await connection.execute("SELECT 1")

        assert (1,) == await cursor.fetchone()


async def test_a_server_that_accepts_and_never_answers_times_out(silent_port):
    """A half-open server is an error that says where and how long, and no hang."""
    with pytest.raises(
        psycopg.errors.ConnectionTimeout, match=rf"127\.0\.0\.1, port {silent_port} .* 0\.1 seconds"
    ):
        await TrioConnection.connect(f"host=127.0.0.1 port={silent_port}", connect_timeout=0.1)


async def test_the_error_tells_of_every_host_that_failed(silent_port):
    """Who reads it needs the reason of each."""
    port = free_port()
    conninfo = f"host=127.0.0.1,127.0.0.1 port={port},{silent_port}"
    with pytest.raises(psycopg.OperationalError) as caught:
        await TrioConnection.connect(conninfo, connect_timeout=0.1)

    assert f"port {port} failed: Connection refused" in str(caught.value)
    assert f"port {silent_port} took longer than 0.1 seconds" in str(caught.value)


async def test_a_conninfo_that_is_not_valid_is_an_error():
    """libpq's own check of it."""
    with pytest.raises(psycopg.ProgrammingError):
        await TrioConnection.connect("hots=localhost")


async def test_a_cancelled_connect_leaves_no_connection_open(listen):
    """The server sees the end of the connection that it never answered."""
    closed = trio.Event()

    async def wait_for_the_end(client: trio.SocketStream) -> None:
        async for _ in client:
            pass
        closed.set()

    port = await listen(wait_for_the_end)
    with trio.move_on_after(0.1):
        await TrioConnection.connect(f"host=127.0.0.1 port={port} sslmode=disable")

    with trio.fail_after(1):
        await closed.wait()


async def test_autocommit_is_the_default(connection, observer):
    """A statement outside transactions is there for all at once."""
    await connection.execute("CREATE TABLE t AS SELECT 1 AS i")

    assert (1,) == await (await observer.execute("SELECT i FROM t")).fetchone()


async def test_leaving_the_block_of_a_connection_is_no_checkpoint(schema_dsn):
    """What was done is reported, also when a cancellation is pending."""
    with trio.CancelScope() as scope:
        async with await TrioConnection.connect(schema_dsn) as connection:
            await connection.execute("CREATE TABLE t (i int)")
            scope.cancel()
        done = True

    assert done
    assert connection.closed


async def test_without_a_prepare_threshold_nothing_is_prepared(schema_dsn):
    """A pooler in transaction mode keeps no prepared statements."""
    async with await TrioConnection.connect(schema_dsn, prepare_threshold=None) as connection:
        for i in range(20):
            await connection.execute("SELECT %s::int", (i,))
        cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")

        assert (0,) == await cursor.fetchone()


async def test_rollback_ends_a_transaction_that_was_begun_by_hand(connection):
    """For whoever sends BEGIN and COMMIT himself; with nothing begun it does nothing."""
    await connection.execute("CREATE TABLE t (i int)")
    await connection.execute("BEGIN; INSERT INTO t VALUES (1)")
    await connection.rollback()
    await connection.rollback()

    assert [] == await (await connection.execute("SELECT i FROM t")).fetchall()


async def test_a_nested_transaction_rolls_back_to_its_savepoint(connection):
    """Transactions nest as psycopg's do."""
    await connection.execute("CREATE TABLE t (i int)")
    async with connection.transaction():
        await connection.execute("INSERT INTO t VALUES (1)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (2)")
            raise psycopg.Rollback
        await connection.execute("INSERT INTO t VALUES (3)")

    assert [(1,), (3,)] == await (await connection.execute("SELECT i FROM t")).fetchall()


async def test_a_transaction_that_cannot_begin_leaves_the_connection_usable(connection):
    """Inside a failed transaction no savepoint can be made; the outer block ends it."""

    async def begin_after_a_failure() -> None:
        async with connection.transaction():
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1/0")
            async with connection.transaction():
                pytest.fail("entered")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await begin_after_a_failure()

    assert (1,) == await (await connection.execute("SELECT 1")).fetchone()


async def test_a_parameter_of_20_megabytes_goes_there_and_back(connection):
    """More than any socket buffer holds: writing has to wait, and to read meanwhile."""
    text = "x" * 20_000_000
    cursor = await connection.execute("SELECT length(%s), %s", (text, text))

    assert (20_000_000, text) == await cursor.fetchone()


async def test_fifty_tasks_share_one_connection(connection):
    """Their statements take turns, and each gets its own answer."""
    answers = []

    async def ask(i: int) -> None:
        cursor = await connection.execute("SELECT %s::int", (i,))
        answers.append((i, *(await cursor.fetchone())))

    async with trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(ask, i)

    assert [(i, i) for i in range(50)] == sorted(answers)


async def test_a_connection_that_is_left_in_the_middle_of_an_answer_is_closed(connection, caplog):
    """Nobody would read the rest: what comes then would be taken for another answer."""
    with pytest.raises(psycopg.ProgrammingError, match="COPY cannot be used"):
        await connection.execute("COPY (SELECT 1) TO STDOUT")

    assert connection.closed
    assert "left before its answer was read" in caplog.text
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await connection.execute("SELECT 1")


async def test_errors_of_a_connection_are_errors_of_psycopg(connection):
    """Whatever cannot be adapted, and by whatever exception."""
    with pytest.raises(psycopg.DataError, match="UnicodeEncodeError"):
        await connection.execute("SELECT %s", ("\ud800",))

    assert (1,) == await (await connection.execute("SELECT 1")).fetchone()


async def test_close_wakes_a_task_that_waits_for_an_answer(connection, nursery):
    """Trap 2: the kernel reports nothing about a descriptor that was closed."""
    ended = trio.Event()

    async def ask() -> None:
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await connection.execute("SELECT pg_sleep(2)")
        ended.set()

    nursery.start_soon(ask)
    await trio.sleep(0.1)
    await connection.close()
    with trio.fail_after(1):
        await ended.wait()


async def test_close_wakes_a_task_that_waits_to_write(proxy, nursery):
    """Trap 2, where the task waits for the socket to be readable or writable."""
    connection = await TrioConnection.connect(proxy.dsn)
    proxy.block()
    ended = trio.Event()

    async def ask() -> None:
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT %s", ("x" * 20_000_000,))
        ended.set()

    nursery.start_soon(ask)
    await trio.sleep(0.1)
    await connection.close()
    with trio.fail_after(1):
        await ended.wait()


async def test_a_closed_connection_says_so(connection):
    """Closing again does nothing, and statements are errors."""
    await connection.close()
    await connection.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await connection.execute("SELECT 1")

    assert connection.closed
    assert not connection.broken


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
