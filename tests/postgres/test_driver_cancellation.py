"""What a cancellation leaves behind: a usable connection, and an outcome told as it is.

On trio a cancellation is a level: in a cancelled scope every wait raises, those of the cleaning up
as well.
"""

import random
import signal
from functools import partial

import pytest
import trio
from psycopg.pq import TransactionStatus

from planton_postgres._driver import Pool, Statement, TrioConnection

RUNS = pytest.mark.parametrize("runs", (150, pytest.param(3000, marks=pytest.mark.slow)))


async def assert_usable(connection):
    """It is in nothing, and the next answer is that of the next statement."""
    assert TransactionStatus.IDLE == connection.info.transaction_status
    assert ("next",) == await (await connection.execute("SELECT 'next'")).fetchone()


async def state_of(connection, observer):
    """What its process on the server is doing."""
    cursor = await observer.execute(
        "SELECT state FROM pg_stat_activity WHERE pid = %s", (connection.info.backend_pid,)
    )
    return (await cursor.fetchone())[0]


async def execute(connection, query):
    await connection.execute(query)


async def execute_in_pipeline(connection, query):
    await connection.run_pipeline([Statement("SELECT 1"), Statement(query), Statement("SELECT 2")])


@pytest.mark.parametrize("execute", (execute, execute_in_pipeline))
async def test_a_cancelled_query_ends_at_once_here_and_on_the_server(connection, observer, execute):
    """Nobody waits for what nobody wants any more."""
    started = trio.current_time()
    with trio.move_on_after(0.05) as scope:
        await execute(connection, "SELECT pg_sleep(10)")

    assert scope.cancelled_caught
    assert trio.current_time() - started < 1
    assert "idle" == await state_of(connection, observer)
    await assert_usable(connection)


async def test_in_a_cancelled_scope_nothing_is_sent(connection):
    """A statement that was not begun cannot be in doubt."""
    await connection.execute("CREATE TABLE t (i int)")
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("INSERT INTO t VALUES (1)")

    assert scope.cancelled_caught
    assert [] == await (await connection.execute("SELECT i FROM t")).fetchall()


async def test_in_a_cancelled_scope_no_transaction_is_begun(connection):
    """Nor is one counted that was not: the next one is an outermost one again."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with connection.transaction():
            pytest.fail("entered")

    assert scope.cancelled_caught
    async with connection.transaction():
        await connection.execute("CREATE TABLE t (i int)")
    await assert_usable(connection)


@pytest.mark.parametrize("size", (1, 2_000_000))
async def test_a_query_cancelled_while_it_is_sent_or_answered_leaves_no_rest(connection, size):
    """What is half sent is sent to its end, and what is half read is read to its end."""
    text = "x" * size
    for limit in (0, 0.001, 0.003, 0.01, 0.03):
        with trio.move_on_after(limit):
            await connection.execute("SELECT %s, pg_sleep(10), %s", (text, text))
        await assert_usable(connection)


@RUNS
async def test_a_cancellation_at_any_moment_never_gives_a_wrong_answer(connection, runs):
    """A late answer, or a late cancel request, would strike a statement that comes after."""
    draw = random.Random(1)
    wrong = []
    for i in range(runs):
        pause, size = draw.choice((0, 0, 0.001)), draw.choice((1, 100_000))
        with trio.move_on_after(draw.choice((0, 0.0001, 0.0003, 0.0006, 0.001, 0.003))):
            cursor = await connection.execute(
                "SELECT %s::int, pg_sleep(%s), repeat('x', %s)", (i, pause, size)
            )
            wrong += [i] if (await cursor.fetchone())[0] != i else []
        cursor = await connection.execute("SELECT %s::int", (-i,))
        wrong += [-i] if await cursor.fetchone() != (-i,) else []

    assert [] == wrong
    assert not connection.closed


INSERT = "INSERT INTO t SELECT %s FROM pg_sleep(%s)"
SELECT = Statement("SELECT 1")
BEGIN = Statement("BEGIN", prepare=False)
COMMIT = Statement("COMMIT", prepare=False)


async def insert_alone(connection, *parameters):
    await connection.execute(INSERT, parameters)


async def insert_in_transaction(connection, *parameters):
    await connection.execute("BEGIN")
    await connection.execute(INSERT, parameters)
    await connection.execute("COMMIT")


async def insert_in_pipeline(connection, *parameters):
    await connection.run_pipeline([SELECT, Statement(INSERT, parameters), SELECT])


async def insert_in_both(connection, *parameters):
    await connection.execute("BEGIN")
    await connection.run_pipeline([SELECT, Statement(INSERT, parameters), SELECT])
    await connection.execute("COMMIT")


async def insert_in_pipeline_that_commits(connection, *parameters):
    await connection.run_pipeline([BEGIN, Statement(INSERT, parameters), SELECT, COMMIT])


INSERTS = (
    insert_alone,
    insert_in_transaction,
    insert_in_pipeline,
    insert_in_both,
    insert_in_pipeline_that_commits,
)


@RUNS
@pytest.mark.parametrize("insert", INSERTS)
async def test_what_is_reported_cancelled_is_not_committed(schema_dsn, runs, insert):
    """Trap 3: what was committed is reported done, and nothing else is."""
    draw = random.Random(3)
    done = []
    async with Pool(schema_dsn, size=1) as pool:
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE t (i int)")
        for i in range(runs):
            async with pool.connection() as connection:
                with trio.move_on_after(draw.uniform(0, 0.004)):
                    await insert(connection, i, draw.choice((0, 0.001, 0.002, 0.1)))
                    done.append(i)
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT i FROM t ORDER BY i")
            inserted = [i for (i,) in await cursor.fetchall()]

    assert 0 < len(done) < runs
    assert done == inserted


# A statement that a cancel request does not keep from success.
UNDETERRED = """DO $$ BEGIN
    INSERT INTO t VALUES (1);
    BEGIN PERFORM pg_sleep(10); EXCEPTION WHEN query_canceled THEN NULL; END;
END $$"""


async def test_a_statement_that_succeeds_all_the_same_is_reported_done(connection):
    """Trap 3 without luck: what is asked to be cancelled may be beyond it."""
    await connection.execute("CREATE TABLE t (i int)")
    done = False
    with trio.move_on_after(0.05) as scope:
        await connection.execute(UNDETERRED)
        done = True
        await trio.lowlevel.checkpoint()

    assert done
    assert scope.cancelled_caught
    assert [(1,)] == await (await connection.execute("SELECT i FROM t")).fetchall()


async def make_commit_slow(connection, seconds):
    """Let every COMMIT after an INSERT into the new table t take that long."""
    await connection.execute(
        f"CREATE TABLE t (i int); CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END';"
        f" CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW EXECUTE FUNCTION slow()"
    )


async def test_a_commit_that_is_cancelled_is_undone(connection, observer):
    """Trap 3: the cancellation comes while the server commits; it is told, and nothing is there."""
    await make_commit_slow(connection, 10)
    with trio.move_on_after(0.1) as scope:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")

    assert scope.cancelled_caught
    assert [] == await (await observer.execute("SELECT i FROM t")).fetchall()
    await assert_usable(connection)


async def test_a_server_that_does_not_answer_a_cancel_request_loses_the_connection(proxy, caplog):
    """Cancelling takes a limited time, whatever the server does."""
    connection = await TrioConnection.connect(proxy.dsn)
    connection.cancel_limit = 0.1
    started = trio.current_time()
    with trio.move_on_after(0.1) as scope:
        proxy.block()
        await connection.execute("SELECT 1")

    assert scope.cancelled_caught
    assert trio.current_time() - started < 1
    assert connection.closed
    assert "a cancelled statement did not end within 0.1 s" in caplog.text


async def test_a_server_that_takes_no_cancel_request_loses_the_connection(
    schema_dsn, proxy, caplog
):
    """What cannot be cancelled is not waited for."""
    connection = await TrioConnection.connect(proxy.dsn)
    with trio.move_on_after(0.1) as scope:
        proxy.refuse()
        await connection.execute("SELECT pg_sleep(2)")

    assert scope.cancelled_caught
    assert connection.closed
    assert "could not be cancelled" in caplog.text


# A statement that ends with its server, when it is asked to be cancelled.
FATAL = """DO $$ BEGIN
    PERFORM pg_sleep(10);
EXCEPTION WHEN query_canceled THEN PERFORM pg_terminate_backend(pg_backend_pid());
END $$"""


@pytest.mark.parametrize("execute", (execute, execute_in_pipeline))
async def test_a_server_that_dies_while_it_is_asked_to_cancel_does_not_hide_the_cancellation(
    connection, execute
):
    """Whoever is cancelled is told that, and finds the connection closed."""
    with trio.move_on_after(0.05) as scope:
        await execute(connection, FATAL)

    assert scope.cancelled_caught
    assert connection.closed


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises, also where the tests run in the background and it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_statement_and_is_not_lost(schema_dsn):
    """Unlike a cancellation it is told once, so no late success of the statement may hide it."""

    @trio.lowlevel.enable_ki_protection  # so that it is the main task that is interrupted
    async def press_ctrl_c() -> None:
        await trio.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    async def insert(connection) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (2)")

    async def assert_interrupted(nursery, work) -> None:
        nursery.start_soon(press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            await work()

    async def main() -> None:
        async with (
            await TrioConnection.connect(schema_dsn) as connection,
            trio.open_nursery() as nursery,
        ):
            await connection.execute("CREATE TABLE t (i int)")
            await assert_interrupted(nursery, partial(connection.execute, "SELECT pg_sleep(10)"))
            await assert_interrupted(nursery, partial(connection.execute, UNDETERRED))
            await connection.execute("DROP TABLE t")
            await make_commit_slow(connection, 10)
            await assert_interrupted(nursery, partial(insert, connection))

            cursor = await connection.execute("SELECT i FROM t")
            assert [] == await cursor.fetchall()
            await assert_usable(connection)

    trio.run(main)
