"""Statements that travel together are one: done and heard of, or undone; whatever goes wrong.

Afterwards the connection is usable, or it is closed; its lock is free in either case.
"""

import itertools
import random
from collections import Counter

import psycopg
import pytest
import trio
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.types.json import Jsonb

from planton_postgres._driver import Pool, Statement, TrioConnection

BEGIN = Statement("BEGIN", prepare=False)
COMMIT = Statement("COMMIT", prepare=False)
CREATE = Statement("CREATE TABLE t (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
INSERT = Statement("INSERT INTO t VALUES (1)")
FAILING = Statement("SELECT 1/0")


def numbers(count):
    return [Statement("SELECT %s::int", (i,)) for i in range(count)]


async def rows(connection, query):
    with trio.fail_after(2):
        return await (await connection.execute(query)).fetchall()


async def assert_usable(connection):
    """It is in nothing, and the next answer is that of the next statement."""
    assert TransactionStatus.IDLE == connection.info.transaction_status
    assert PipelineStatus.OFF == connection.pgconn.pipeline_status
    assert [("next",)] == await rows(connection, "SELECT 'next'")


async def test_it_returns_the_rows_of_each_statement(connection):
    """In the order of the statements, and [] of those that have none."""
    found = await connection.run_pipeline(
        [
            CREATE,
            Statement("INSERT INTO t SELECT generate_series(1, %(n)s) RETURNING i", {"n": 3}),
            Statement("SELECT i FROM t WHERE i > 3"),
            Statement(b"SELECT %s::jsonb, NULL, true", (Jsonb({"a": [1]}),)),
            ("SELECT '100%'", None, False),
        ]
    )

    assert [[], [(1,), (2,), (3,)], [], [({"a": [1]}, None, True)], [("100%",)]] == found


async def test_a_pipeline_of_nothing_returns_nothing(connection):
    """Who collects statements need not look whether there are any."""
    assert [] == await connection.run_pipeline([])
    await assert_usable(connection)


async def test_a_pipeline_of_500_gives_each_statement_its_rows(connection):
    """Answers come in the order of the statements."""
    assert [[(i,)] for i in range(500)] == await connection.run_pipeline(numbers(500))


async def test_what_does_not_fit_into_any_buffer_is_sent_while_the_answers_are_read(connection):
    """The server stops reading when nobody takes its answers."""
    text = "x" * 5_000_000
    found = await connection.run_pipeline([Statement("SELECT %s", (text,))] * 4)

    assert [[(text,)]] * 4 == found


async def test_its_statements_share_one_transaction(connection):
    """One commit for all: the server gives each transaction a number."""
    (((first,),), ((second,),)) = await connection.run_pipeline(
        [Statement("SELECT pg_current_xact_id()")] * 2
    )

    assert first == second


async def test_it_may_leave_a_transaction_open_for_the_next_one_to_commit(connection, observer):
    """Between them the transaction is the caller's."""
    await connection.run_pipeline([CREATE])
    await connection.run_pipeline([BEGIN, INSERT])
    assert [] == await rows(observer, "SELECT * FROM t")
    await connection.run_pipeline([Statement("INSERT INTO t VALUES (2)"), COMMIT])

    assert [(1,), (2,)] == await rows(observer, "SELECT i FROM t")


async def test_it_is_a_part_of_the_transaction_around_it(connection):
    """What is rolled back there is rolled back with it."""
    await connection.run_pipeline([CREATE])
    async with connection.transaction():
        await connection.run_pipeline([INSERT])
        raise psycopg.Rollback

    assert [] == await rows(connection, "SELECT * FROM t")


@pytest.mark.parametrize("around", ((), (BEGIN,), (BEGIN, COMMIT)))
async def test_a_statement_that_fails_undoes_all_and_is_raised_once(connection, around):
    """A transaction that it began is rolled back, and the connection usable."""
    await connection.run_pipeline([CREATE])
    begin, commit = around[:1], around[1:]
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.run_pipeline(
            [*begin, INSERT, *numbers(250), FAILING, *numbers(250), *commit]
        )

    await assert_usable(connection)
    assert [] == await rows(connection, "SELECT * FROM t")


async def test_the_error_shows_the_place_in_the_statement(connection):
    """As errors of single statements do."""
    with pytest.raises(psycopg.errors.UndefinedColumn, match="LINE 1: SELECT nothing") as caught:
        await connection.run_pipeline([*numbers(1), Statement("SELECT nothing")])

    assert "8" == caught.value.diag.statement_position


@pytest.mark.parametrize("around", ((), (BEGIN, COMMIT)))
async def test_a_commit_that_fails_is_the_error_of_the_pipeline(connection, around):
    """The server answers the Sync, which commits, with an error that belongs to no statement."""
    await connection.run_pipeline([CREATE])
    begin, commit = around[:1], around[1:]
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.run_pipeline([*begin, INSERT, INSERT, *numbers(1), *commit])

    await assert_usable(connection)
    assert [] == await rows(connection, "SELECT * FROM t")


async def test_a_failure_in_a_transaction_is_for_the_block_around_it_to_undo(connection):
    """What is before it belongs to somebody else."""
    await connection.run_pipeline([CREATE])
    async with connection.transaction():
        await connection.run_pipeline([INSERT])
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection.transaction():
                await connection.run_pipeline([Statement("INSERT INTO t VALUES (2)"), FAILING])

    assert [(1,)] == await rows(connection, "SELECT i FROM t")


@pytest.mark.parametrize("direction", ("FROM STDIN", "TO STDOUT"))
async def test_a_copy_closes_the_connection(connection, caplog, direction):
    """It would go on without an end; nobody is kept waiting for the lock."""
    with pytest.raises(psycopg.NotSupportedError, match="COPY"):
        await connection.run_pipeline([CREATE, Statement(f"COPY t {direction}"), *numbers(5)])

    assert connection.closed
    assert "left before its answer was read" in caplog.text
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await rows(connection, "SELECT 1")


@pytest.mark.parametrize("parameter", ("\ud800", "\0", object(), Jsonb({1, 2})))
async def test_a_parameter_that_cannot_be_sent_is_an_error_before_anything_is(
    connection, parameter
):
    """Whatever the adaptation raises is an error of psycopg."""
    await connection.run_pipeline([CREATE])
    with pytest.raises(psycopg.Error):
        await connection.run_pipeline([INSERT, Statement("SELECT %s", (parameter,))])

    await assert_usable(connection)
    assert [] == await rows(connection, "SELECT * FROM t")


async def test_a_row_that_cannot_be_loaded_is_an_error(connection):
    """A number of 5,000 digits is valid in PostgreSQL, and not in Python."""
    with pytest.raises(psycopg.DataError, match="digits"):
        await connection.run_pipeline([Statement("SELECT repeat('9', 5000)::jsonb")])

    await assert_usable(connection)


async def test_a_row_that_cannot_be_loaded_undoes_what_is_not_committed(connection):
    """As any other failure of the pipeline does."""
    await connection.run_pipeline([CREATE])
    with pytest.raises(psycopg.DataError, match="digits"):
        await connection.run_pipeline([BEGIN, INSERT, Statement("SELECT repeat('9', 5000)::jsonb")])

    await assert_usable(connection)
    assert [] == await rows(connection, "SELECT * FROM t")


async def test_a_cancellation_does_not_hide_that_a_row_cannot_be_loaded(connection):
    """It was committed: who is told of a cancellation believes that nothing was done."""
    await connection.run_pipeline([CREATE])
    undeterred = """DO $$ BEGIN
        PERFORM pg_sleep(10); EXCEPTION WHEN query_canceled THEN INSERT INTO t VALUES (1);
    END $$"""
    with trio.move_on_after(0.05), pytest.raises(psycopg.DataError, match="digits"):
        await connection.run_pipeline(
            [Statement(undeterred), Statement("SELECT repeat('9', 5000)::jsonb")]
        )

    assert [(1,)] == await rows(connection, "SELECT i FROM t")


async def terminate(connection, observer, server):
    await observer.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))


async def stop(connection, observer, server):
    await trio.to_thread.run_sync(server.restart, "immediate")


@pytest.mark.parametrize("end", (terminate, stop))
async def test_a_connection_that_is_lost_in_a_pipeline_is_closed(
    connection, observer, postgres_server, nursery, end
):
    """Its user is told, and the next one as well: nobody waits for a lock."""

    async def end_soon() -> None:
        await trio.sleep(0.05)
        await end(connection, observer, postgres_server)

    nursery.start_soon(end_soon)
    with pytest.raises(psycopg.OperationalError):
        await connection.run_pipeline(
            [*numbers(250), Statement("SELECT pg_sleep(10)"), *numbers(250)]
        )

    assert connection.closed
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await rows(connection, "SELECT 1")


async def test_a_connection_that_ends_itself_in_a_pipeline_says_why(connection):
    """The server's last words are the error, not that the connection was lost."""
    ending = Statement("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg.errors.AdminShutdown):
        await connection.run_pipeline([*numbers(250), ending, *numbers(250)])

    assert connection.closed


@pytest.mark.parametrize("runs", (100, pytest.param(2000, marks=pytest.mark.slow)))
@pytest.mark.parametrize("around", ((), (BEGIN, COMMIT)))
async def test_a_pipeline_of_500_cancelled_at_any_moment_is_done_or_undone(
    connection, observer, runs, around
):
    """What is reported done is committed, and nothing else is; the connection is usable."""
    await connection.run_pipeline([CREATE])
    draw = random.Random(7)
    begin, commit = around[:1], around[1:]
    done = []
    for run in range(runs):
        pause = draw.choice((0, 0.005, 0.1))
        insert = Statement("INSERT INTO t SELECT %s FROM pg_sleep(%s)", (run, pause))
        with trio.move_on_after(draw.uniform(0, 0.02)):
            found = await connection.run_pipeline(
                [*begin, *numbers(250), insert, *numbers(250), *commit]
            )
            assert [(249,)] == found[len(begin) + 249]
            done.append(run)
        await assert_usable(connection)

    assert 0 < len(done) < runs
    assert done == [i for (i,) in await rows(observer, "SELECT i FROM t ORDER BY i")]


async def test_connections_ended_and_pipelines_cancelled_at_any_moment_leave_a_pool_whole(
    schema_dsn, observer
):
    """Only errors of psycopg, and cancellations, and after each of them the pool goes on."""
    draw = random.Random(11)
    seen = Counter()

    async def use(pool) -> None:
        async with pool.connection() as connection:
            await connection.run_pipeline(numbers(500))
            seen["done"] += 1

    async def end_some() -> None:
        while True:
            await trio.sleep(draw.uniform(0, 0.03))
            for pid in pool.pids:
                await observer.execute("SELECT pg_terminate_backend(%s)", (pid,))

    async with Pool(schema_dsn, size=1, timeout=5) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(end_some)
        for _ in itertools.takewhile(lambda n: n < 100 or not seen["lost"], range(1000)):
            with trio.move_on_after(draw.uniform(0, 0.05)):
                try:
                    await use(pool)
                except psycopg.OperationalError:
                    seen["lost"] += 1
        nursery.cancel_scope.cancel()
    async with Pool(schema_dsn, size=1, timeout=5) as pool:
        await use(pool)

    assert seen["done"] > 1
    assert seen["lost"] > 0


async def prepared(connection):
    """What the server has prepared, without what asks for it."""
    query = "SELECT statement FROM pg_prepared_statements ORDER BY 1"
    cursor = await connection.execute(query, prepare=False)
    return [statement for (statement,) in await cursor.fetchall()]


async def test_statements_are_prepared_as_asked_for(connection):
    """At once, never, or when they were executed often enough; and once for all that are alike."""
    await connection.run_pipeline(
        [
            *[Statement("SELECT %s::int", (i,), prepare=True) for i in range(3)],
            *[Statement("SELECT %s::text", ("a",)) for _ in range(7)],
            *[Statement("SELECT 'never'", prepare=False) for _ in range(7)],
            *[Statement("SELECT 'rare'") for _ in range(5)],
        ]
    )

    assert ["SELECT $1::int", "SELECT $1::text"] == await prepared(connection)


async def test_without_a_prepare_threshold_nothing_is_prepared(schema_dsn):
    """A pooler in transaction mode keeps no prepared statements."""
    async with await TrioConnection.connect(schema_dsn, prepare_threshold=None) as connection:
        await connection.run_pipeline([Statement("SELECT 1", prepare=True)] * 10)

        assert [] == await prepared(connection)


async def test_statements_that_fail_again_and_again_leave_nothing_prepared_behind(connection):
    """The server would keep every one of them until its memory is full."""
    failing = Statement("SELECT 1 / %s", (0,), prepare=True)
    for _ in range(5):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.run_pipeline([*numbers(1), failing])
    await connection.run_pipeline([Statement("SELECT 1 / %s", (1,), prepare=True)])

    assert ["SELECT 1 / $1"] == await prepared(connection)


async def test_statements_that_are_rarely_used_make_room_for_others(connection):
    """The server keeps no more of them than the connection counts."""
    connection.prepared_max = 3
    for i in range(10):
        await connection.run_pipeline([Statement(f"SELECT {i}", prepare=True)])
    await connection.run_pipeline([])

    assert [f"SELECT {i}" for i in (7, 8, 9)] == await prepared(connection)


async def test_what_was_not_reached_is_not_taken_for_prepared(connection):
    """A statement that fails keeps those after it from being prepared."""
    after = Statement("SELECT %s::int", (1,), prepare=True)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.run_pipeline([FAILING, after])

    assert [[(1,)]] == await connection.run_pipeline([after])


async def test_a_prepared_statement_whose_table_was_changed_fails_once(connection, observer):
    """The server refuses it from then on, however often it is tried."""
    select = Statement("SELECT * FROM t", prepare=True)
    await connection.run_pipeline([CREATE])
    await connection.run_pipeline([select])
    await observer.execute("ALTER TABLE t ADD COLUMN j int")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
        await connection.run_pipeline([select])

    assert [[]] == await connection.run_pipeline([select])


INT4, TEXT, OID = 23, 25, 26


async def test_describe_returns_the_columns_of_a_statement_and_does_not_execute_it(connection):
    """The server has parsed it: their names are those that it would return."""
    await connection.run_pipeline([CREATE])

    assert ["oid", "ä"] == await connection.describe(
        'SELECT oid, relname AS "ä" FROM pg_class WHERE oid = $1 AND relname = $2', [OID, TEXT]
    )
    assert ["i"] == await connection.describe("INSERT INTO t VALUES ($1) RETURNING i", [])
    assert [] == await connection.describe("INSERT INTO t VALUES ($1)", [INT4])
    assert [] == await connection.describe("", [])
    assert [] == await rows(connection, "SELECT * FROM t")
    assert [] == await prepared(connection)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    (
        ("SELECT 1,\n  nothing", psycopg.errors.UndefinedColumn, r"LINE 2:   nothing\n +\^"),
        ("SELEC 1", psycopg.errors.SyntaxError, "LINE 1: SELEC 1"),
        ("SELECT 1; SELECT 2", psycopg.errors.SyntaxError, "multiple commands"),
        ("SELECT $1 + $1", psycopg.errors.AmbiguousFunction, "LINE 1"),
        ("SELECT '\ud800'", psycopg.DataError, "surrogates"),
        ("SELECT 1 \0", psycopg.DataError, "NUL"),
    ),
)
async def test_describe_tells_what_is_wrong_and_where(connection, query, error, message):
    """The connection is usable afterwards."""
    with pytest.raises(error, match=message):
        await connection.describe(query, [])

    await assert_usable(connection)


async def test_describe_is_a_part_of_the_transaction_around_it(connection):
    """It sees what was created there; an error of it is one of the transaction."""
    async with connection.transaction():
        await connection.run_pipeline([CREATE])
        assert ["i"] == await connection.describe("SELECT i FROM t", [])
        with pytest.raises(psycopg.errors.UndefinedTable):
            async with connection.transaction():
                await connection.describe("SELECT i FROM u", [])
        assert ["i"] == await connection.describe("SELECT i FROM t", [])


async def test_describe_can_be_cancelled(connection, observer):
    """Parsing waits for whoever has locked the table."""
    await connection.run_pipeline([CREATE])
    started = trio.current_time()
    async with observer.transaction():
        await observer.execute("LOCK TABLE t")
        with trio.move_on_after(0.05) as scope:
            await connection.describe("SELECT i FROM t", [])

    assert scope.cancelled_caught
    assert trio.current_time() - started < 1
    await assert_usable(connection)


async def test_pipelines_and_descriptions_work_through_a_pooler(pgbouncer, schema_dsn, connection):
    """In transaction mode: each goes to one server process, and leaves nothing there."""
    await connection.run_pipeline([CREATE])
    (((schema,),),) = await connection.run_pipeline([Statement("SELECT current_schema()")])

    clients = [
        await TrioConnection.connect(pgbouncer(schema_dsn), prepare_threshold=None)
        for _ in range(8)
    ]
    async with trio.open_nursery() as nursery:
        for i, client in enumerate(clients):
            nursery.start_soon(use_often, client, schema, i)
    for client in clients:
        await client.close()

    expected = [(i,) for i in range(80)]
    assert expected == await rows(connection, "SELECT i FROM t ORDER BY i")


async def use_often(client, schema, i):
    for j in range(10):
        insert = Statement(f"INSERT INTO {schema}.t VALUES (%s)", (10 * i + j,))
        await client.run_pipeline([BEGIN, insert, COMMIT])
        assert ["i"] == await client.describe(f"SELECT i FROM {schema}.t", [])
