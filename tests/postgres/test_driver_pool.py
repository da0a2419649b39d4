"""The pool: fair, exact about what was committed, and back by itself after the server was away."""

import contextlib
import random

import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import make_conninfo

from planton_postgres._driver import (
    Pool,
    PoolTimeout,
    Statement,
)


@pytest.fixture
async def pool(schema_dsn):
    """A pool of one, so that every test sees the connection that the last one used."""
    async with Pool(schema_dsn, size=1) as pool:
        yield pool


async def fetch_one(connection, query="SELECT 1", parameters=None):
    return (await (await connection.execute(query, parameters)).fetchone())[0]


async def run(pool, function=fetch_one):
    async with pool.connection() as connection:
        return await function(connection)


async def test_a_connection_is_made_once_and_lent_again(pool):
    """Connecting costs a hundred statements."""
    async with pool.connection() as first:
        pass
    async with pool.connection() as second:
        pass

    assert first is second


async def test_the_connection_used_last_is_lent_first(schema_dsn):
    """The others rest, and what the server keeps of the busy one in its caches is of use."""
    async with Pool(schema_dsn, size=2) as pool:
        async with pool.connection() as first, pool.connection():
            pass
        async with pool.connection() as third:
            pass

    assert first is third


async def test_fifty_tasks_share_four_connections(schema_dsn):
    """Each gets its own answer, and there are never more connections than that."""
    answers = []
    pids = set()

    async def ask(i: int) -> None:
        async with pool.connection() as connection:
            pids.add(connection.info.backend_pid)
            answers.append((i, await fetch_one(connection, "SELECT %s::int", (i,))))

    async with Pool(schema_dsn, size=4) as pool, trio.open_nursery() as nursery:
        for i in range(50):
            nursery.start_soon(ask, i)

    assert [(i, i) for i in range(50)] == sorted(answers)
    assert 4 == len(pids)


async def test_who_asks_first_is_served_first(pool):
    """Also when the one who gives a connection back asks again at once."""
    served = []

    async def ask(name: str) -> None:
        async with pool.connection():
            served.append(name)

    async with trio.open_nursery() as nursery:
        async with pool.connection():
            for name in "abc":
                nursery.start_soon(ask, name)
                await trio.testing.wait_all_tasks_blocked()
        await ask("me again")

    assert ["a", "b", "c", "me again"] == served


async def test_an_exhausted_pool_times_out(schema_dsn):
    """The error says that all are in use; afterwards the pool is as before."""
    async with Pool(schema_dsn, size=1, timeout=0.2) as pool:
        async with pool.connection():
            with pytest.raises(PoolTimeout, match="all 1 are in use"):
                await run(pool)

        assert 1 == await run(pool)


async def test_cancelled_waiting_leaves_the_pool_whole(pool):
    """Whoever gave up waiting is not served any more."""
    async with pool.connection():
        with trio.move_on_after(0.05):
            async with pool.connection():
                pytest.fail("there was none left")

    assert 1 == await run(pool)


async def test_cancelled_connecting_leaves_the_pool_whole(silent_port):
    """A slot is given back when its connection is never made."""
    async with Pool(f"host=127.0.0.1 port={silent_port}", size=1) as pool:
        for _ in range(2):
            with trio.move_on_after(0.05) as scope:
                await run(pool)

            assert scope.cancelled_caught


async def test_a_server_that_cannot_be_reached_times_out_with_the_reason(silent_port):
    """The error of the last attempt is the cause."""
    conninfo = f"host=127.0.0.1 port={silent_port}"
    async with Pool(conninfo, size=1, timeout=0.2) as pool:
        for _ in range(2):
            with pytest.raises(PoolTimeout, match=r"within 0\.2 seconds") as caught:
                await run(pool)

            assert isinstance(caught.value.__cause__, psycopg.errors.ConnectionTimeout)


async def test_a_conninfo_that_is_not_valid_is_not_tried_again():
    """It would not become valid."""
    async with Pool("hots=localhost") as pool:
        with pytest.raises(psycopg.ProgrammingError):
            await run(pool)


async def test_a_pool_that_was_not_entered_or_was_left_says_so(schema_dsn):
    """It can be entered again."""
    pool = Pool(schema_dsn)
    with pytest.raises(psycopg.InterfaceError, match="not open"):
        await run(pool)
    async with pool, pool.connection() as connection:
        pass
    with pytest.raises(psycopg.InterfaceError, match="not open"):
        await run(pool)
    async with pool:
        assert 1 == await run(pool)

    assert connection.closed


async def test_a_connection_that_is_out_when_the_pool_is_left_is_closed_when_it_comes_back(
    schema_dsn,
):
    """Nothing stays open, and nothing is torn away from who uses it."""
    async with contextlib.AsyncExitStack() as stack:
        async with Pool(schema_dsn) as pool:
            connection = await stack.enter_async_context(pool.connection())
        assert 1 == await fetch_one(connection)

    assert connection.closed


async def test_who_waits_when_the_pool_is_left_gets_no_connection(schema_dsn, nursery):
    """It would be one that nobody closes."""
    refused = trio.Event()

    async def ask() -> None:
        with pytest.raises(psycopg.InterfaceError, match="not open"):
            await run(pool)
        refused.set()

    async with contextlib.AsyncExitStack() as stack:
        async with Pool(schema_dsn, size=1) as pool:
            await stack.enter_async_context(pool.connection())
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(1):
        await refused.wait()


@pytest.mark.parametrize("cancels", (False, True))
async def test_a_connection_that_comes_back_within_a_transaction_is_replaced(pool, cancels):
    """Trap 1: what was begun and not ended is undone, also in a cancelled scope."""
    await run(pool, lambda connection: connection.execute("CREATE TABLE t (i int)"))
    with trio.CancelScope() as scope:
        async with pool.connection() as first:
            await first.execute("BEGIN; INSERT INTO t VALUES (1)")
            if cancels:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    async with pool.connection() as second:
        assert 0 == await fetch_one(second, "SELECT count(*) FROM t")

    assert first.closed


async def test_a_connection_that_the_server_closed_is_replaced_before_it_is_lent(pool, observer):
    """Its user never sees it."""
    async with pool.connection() as first:
        pid = first.info.backend_pid
    await observer.execute("SELECT pg_terminate_backend(%s, 1000)", (pid,))
    async with pool.connection() as second:
        assert pid != second.info.backend_pid
        assert 1 == await fetch_one(second)

    assert first.closed


async def test_a_connection_that_hears_notifications_is_replaced(pool, observer):
    """A LISTEN that was left in the session would keep every later user busy with its flood."""
    async with pool.connection() as first:
        await first.execute("LISTEN news")
    await observer.execute("NOTIFY news")
    await trio.lowlevel.wait_readable(first.fileno())
    async with pool.connection() as second:
        assert 1 == await fetch_one(second)

    assert first.closed


async def test_the_pool_tells_the_processes_of_its_open_connections(schema_dsn):
    """Whoever listens knows by them what the pool itself has sent."""
    async with Pool(schema_dsn, size=2) as pool:
        async with pool.connection() as first, pool.connection() as second:
            both = {each.info.backend_pid for each in (first, second)}
            assert both == pool.pids
        assert both == pool.pids
        await first.close()

        assert {second.info.backend_pid} == pool.pids


async def test_a_connection_that_breaks_in_use_is_replaced(pool, observer):
    """Its user gets the error, the next one a new connection."""
    async with pool.connection() as connection:
        pid = connection.info.backend_pid
        await observer.execute("SELECT pg_terminate_backend(%s, 1000)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")

    assert 1 == await run(pool)


@pytest.mark.parametrize("runs", (150, pytest.param(3000, marks=pytest.mark.slow)))
async def test_no_claim_is_lost_to_a_cancellation_at_any_moment(pool, runs):
    """Trap 3: what was taken is what was handed over, in one statement and in a pipeline."""
    await run(pool, lambda c: c.execute("CREATE TABLE t AS SELECT generate_series(1, 100000) AS i"))

    query = "DELETE FROM t WHERE i = (SELECT i FROM t LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING i"

    async def claim(connection):
        return await fetch_one(connection, query)

    async def claim_in_pipeline(connection):
        _, ((claimed,),), _ = await connection.run_pipeline(
            [Statement("BEGIN"), Statement(query), Statement("COMMIT")]
        )
        return claimed

    draw = random.Random(5)
    claimed = []
    cancelled = 0
    for i in range(runs):
        with trio.move_on_after(draw.uniform(0, 0.002)) as scope:
            await trio.sleep(draw.choice((0, 0.001)))
            async with pool.connection() as connection:
                claimed.append(await (claim if i % 2 else claim_in_pipeline)(connection))
            await trio.lowlevel.checkpoint()
        cancelled += scope.cancelled_caught
    left = await run(pool, lambda c: fetch_one(c, "SELECT array_agg(i) FROM t"))

    assert cancelled > 0
    assert set(range(1, 100001)) == set(claimed) | set(left)
    assert 100000 == len(claimed) + len(left)


async def test_the_pool_survives_the_servers_restart(postgres_server, schema_dsn):
    """Statements in hand fail; after that all goes on, and nobody had to do anything for it."""
    restarted = trio.Event()
    served = 0

    async def wait_for_an_answer() -> None:
        with pytest.raises(psycopg.OperationalError):
            await run(pool, lambda connection: connection.execute("SELECT pg_sleep(60)"))

    async def work() -> None:
        nonlocal served
        afterwards = False
        while not afterwards:
            afterwards = restarted.is_set()
            try:
                await run(pool, lambda c: fetch_one(c, "SELECT 1 FROM pg_sleep(0.01)"))
            except psycopg.OperationalError:
                afterwards = False
        served += 1

    pool = Pool(schema_dsn, size=4)
    with trio.fail_after(30):
        async with pool, trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_an_answer)
            for _ in range(8):
                nursery.start_soon(work)
            await trio.sleep(0.1)
            await trio.to_thread.run_sync(postgres_server.restart, "immediate")
            restarted.set()

    assert 8 == served


async def test_who_asks_while_the_server_is_away_waits_until_it_is_back(postgres_server, pool):
    """Within the pool's time-out it is not even an error."""
    assert 1 == await run(pool)
    await trio.to_thread.run_sync(postgres_server.stop)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, postgres_server.start)
        answer = await run(pool)

    assert 1 == answer


async def test_a_pool_over_several_hosts_uses_the_one_that_answers(proxy, silent_port):
    """The conninfo may name a fail-over partner; the first may be silent, as when it is off."""
    conninfo = make_conninfo(
        proxy.dsn, host="127.0.0.1,127.0.0.1", port=f"{silent_port},{proxy.port}"
    )
    async with Pool(conninfo, timeout=1) as pool:
        assert 1 == await run(pool)
