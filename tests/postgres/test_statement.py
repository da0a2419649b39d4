"""The user's own statement on PostgreSQL: its shapes, what it does, and what it may not do."""

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import InvalidQueryError, StorageError
from planton.testing.conformance._base import attempt, claim, enqueue, failing, names, receipts
from planton_postgres import PostgresStorage
from planton_postgres._backend import PostgresBackend

TABLE = """
CREATE TABLE account (
    id bigint PRIMARY KEY, key uuid DEFAULT gen_random_uuid(), tenant text DEFAULT 'acme',
    sent_at timestamptz, facts jsonb DEFAULT '{"a": 1}'
)
"""
DUE = """
SELECT id FROM account WHERE sent_at IS NULL ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
MARK = f"UPDATE account SET sent_at = %(now)s WHERE id = ANY (ARRAY({DUE}))"
SELECT = "SELECT id FROM account ORDER BY id LIMIT %(limit)s"


@pytest.fixture
async def storage(storage, observer):
    """With a table of the user's."""
    await observer.execute(TABLE)
    await observer.execute("INSERT INTO account SELECT generate_series(1, 9)")
    return storage


@pytest.fixture
def marked(observer, rows):
    async def marked():
        query = "SELECT id FROM account WHERE sent_at IS NOT NULL ORDER BY id"
        return [str(row_id) for (row_id,) in await rows(observer, query)]

    return marked


# Shapes


@pytest.mark.parametrize(
    ("sql", "kind"),
    (
        (f"{MARK} RETURNING id", "marks"),
        (f"{MARK} RETURNING id;\n", "marks"),
        (f"{MARK} RETURNING id; -- the end", "marks"),
        (f"{MARK} RETURNING id -- the end", "marks"),
        (f"/* first */ {MARK} RETURNING account.id::text AS name", "marks"),
        (f"WITH due AS ({DUE}) UPDATE account SET sent_at = %(now)s FROM due"
         " WHERE account.id = due.id RETURNING account.id", "marks"),
        (f"WITH marked AS ({MARK} RETURNING id) SELECT id FROM marked ORDER BY id", "marks"),
        (f"{MARK} AND facts ? 'a' AND facts ?| ARRAY['a', 'b'] AND tenant LIKE 'a%%' RETURNING id",
         "marks"),
        (f"{MARK} AND tenant <> 'costs $5' RETURNING id", "marks"),
        (f"DELETE FROM account WHERE id = ANY (ARRAY({DUE})) RETURNING id", "marks"),
        ("SELECT take(%(limit)s)", "marks"),
        ("SELECT take(%(limit)s) FROM (SELECT FROM account LIMIT 1 FOR UPDATE) AS one", "marks"),
        (SELECT, "reads"),
        ("SELECT id AS limit FROM account WHERE id <> ALL (%(active)s::bigint[])"
         " AND %(now)s > now() - interval '1 hour' ORDER BY id LIMIT %(limit)s", "reads"),
        ("TABLE account_ids LIMIT %(limit)s", "reads"),
        (DUE, "locks"),
        (f"WITH due AS MATERIALIZED ({DUE}) SELECT id FROM due", "locks"),
        ("SELECT id FROM account WHERE nextval('counter') > 0 ORDER BY id LIMIT %(limit)s",
         "locks"),
    ),
)  # fmt: skip
async def test_each_shape_is_claimed_from_and_each_row_once(storage, observer, marked, sql, kind):
    """It is not guessed from its words what it does: the server is asked."""
    await observer.execute(
        "CREATE VIEW account_ids AS SELECT id FROM account ORDER BY id;"
        "CREATE SEQUENCE counter;"
        "CREATE FUNCTION take(number integer) RETURNS SETOF bigint LANGUAGE sql AS"
        " 'UPDATE account SET sent_at = now() WHERE id IN ("
        "  SELECT id FROM account WHERE sent_at IS NULL ORDER BY id LIMIT number) RETURNING id'"
    )
    task = storage.claim_task("task", sql=sql, concurrency=3)
    first = await claim(task, 2)
    second = await claim(task)
    third = await claim(task)
    await storage.complete(receipts(first))
    if kind != "marks":  # rows that disappear when the work is done
        await observer.execute("DELETE FROM account WHERE id <= 2")
    fourth = await claim(task)
    (bounds,) = storage._backend._exchanges._bounds.values()

    assert [["1", "2"], ["3"], []] == [sorted(names(each)) for each in (first, second, third)]
    assert ["4", "5"] == sorted(names(fourth))
    assert kind == bounds.mode
    if kind == "marks" and not sql.startswith("DELETE"):
        assert list("12345") == await marked(), "no row is marked that is not claimed"


async def test_a_function_that_marks_only_what_it_finds_loses_nothing(storage, observer, marked):
    """That there was nothing to mark when it was looked at first is not believed for ever."""
    await observer.execute(
        "CREATE FUNCTION take(number integer) RETURNS SETOF bigint LANGUAGE plpgsql AS"
        " $$ DECLARE due bigint; BEGIN"
        "  FOR due IN SELECT id FROM account WHERE sent_at IS NULL ORDER BY id LIMIT number"
        "   FOR UPDATE SKIP LOCKED"
        "  LOOP UPDATE account SET sent_at = now() WHERE id = due; RETURN NEXT due; END LOOP;"
        " END $$"
    )
    await observer.execute("UPDATE account SET sent_at = now()")
    task = storage.claim_task("task", sql="SELECT take(%(limit)s)", concurrency=4)
    first = await claim(task)
    await observer.execute("UPDATE account SET sent_at = NULL")
    second = await claim(task)
    await storage.complete(receipts(second[:2]))
    third = await claim(task)

    assert [[], list("1234"), list("56")] == [names(each) for each in (first, second, third)]
    assert list("123456") == await marked(), "no row is marked that is not claimed"


async def test_what_marks_in_a_table_that_the_claim_writes_to_loses_nothing(storage, observer):
    """As one that moves instructions from another task: the claim has locked the table before."""
    await enqueue(storage, "other", *map(str, range(9)))
    await enqueue(storage, "task", "own")
    take = (
        "DELETE FROM planton_pending WHERE id = ANY (ARRAY(SELECT id FROM planton_pending"
        " WHERE task_name = 'other' ORDER BY id LIMIT %(limit)s)) RETURNING instruction"
    )
    task = storage.claim_task("task", sql=take, concurrency=4)
    first = await claim(task)
    await storage.complete(receipts(first[:2]))
    second = await claim(task)

    assert [["own", "0", "1", "2"], ["3", "4"]] == [names(first), names(second)]
    assert 4 == len(await storage.find(task_name="other"))


@pytest.mark.parametrize(
    ("sql", "problem"),
    (
        ("SELECT id FROM account", "lacks the parameter %(limit)s"),
        ("SELECT id FROM account -- LIMIT %(limit)s", "lacks the parameter %(limit)s"),
        ("SELECT '%(limit)s' FROM account", "lacks the parameter %(limit)s"),
        ("SELECT id FROM account WHERE id > %(least)s LIMIT %(limit)s", "%(least)s"),
        ("SELECT id FROM account WHERE 'a' LIKE 'a%' LIMIT %(limit)s", "write %% for"),
        ("SELECT id FROM account LIMIT %s", "lacks the parameter %(limit)s"),
        ("SELECT id FROM account LIMIT %(limit)s -- \0", "NUL"),
        ("SELECT id FROM account LIMIT %(limit)s -- \ud800", "surrogate"),
        ("", "lacks"),
    ),
)
async def test_sql_that_cannot_be_used_is_refused_when_the_task_is_made(schema_dsn, sql, problem):
    """Without a connection; it names the task and the remedy."""
    storage = PostgresStorage(schema_dsn)
    with pytest.raises(InvalidQueryError, match="send") as caught:
        storage.claim_task("send", sql=sql)

    assert problem in str(caught.value)
    storage.claim_task("send", sql="SELECT id FROM account WHERE 'a' LIKE 'a%%' LIMIT %(limit)s")


@pytest.mark.parametrize(
    ("sql", "problem"),
    (
        ("SELEC id FROM account LIMIT %(limit)s", "syntax error"),
        ("SELECT id FROM acount LIMIT %(limit)s", 'relation "acount" does not exist'),
        ("SELECT id FROM acount LIMIT %(limit)s", "LINE 1: SELECT id FROM acount"),
        (MARK, "it gives none (an UPDATE needs RETURNING)"),
        (f"{MARK} RETURNING id, id * 2 AS two, 3 AS three", "it gives id, two, three"),
        ("UPDATE account SET sent_at = now() WHERE %(limit)s > 0 RETURNING id",
         "gave more instructions than its limit of 2"),
        (f"{MARK} RETURNING NULL", "gave a NULL: an instruction must name its work"),
        (f"{MARK} RETURNING ''", "gave an empty text"),
        (f"{MARK} RETURNING repeat('x', 3000)", "gave a text of 3000 bytes"),
        (f"{MARK} RETURNING 1 / (id - 2)", "division by zero"),
        (f"{MARK} RETURNING id; SELECT 1", "multiple commands"),
        ("COMMIT -- %(limit)s\n; SELECT %(limit)s", "multiple commands"),
        (f"WITH marked AS ({MARK} RETURNING id) SELECT id FROM marked, LATERAL"
         " set_config('search_path', 'nowhere', id = 0)", "changes a setting of the session"),
        ("SELECT end_it() WHERE %(limit)s > 0", "invalid transaction termination"),
    ),
)  # fmt: skip
async def test_a_statement_that_gives_nonsense_is_undone(
    storage, observer, marked, rows, sql, problem
):
    """Nothing is claimed, and the error says why, at every attempt; bystanders are claimed."""
    await observer.execute(
        "CREATE FUNCTION end_it() RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE account SET sent_at = now() WHERE id = 1; COMMIT; RETURN 1; END'"
    )
    task = storage.claim_task("send", sql=sql, concurrency=2)
    for _ in range(2):
        with pytest.raises(InvalidQueryError) as caught:
            await claim(task)

        assert problem in str(caught.value)
    assert [] == await marked()
    assert [] == await storage.get_active_instructions("send")
    assert ["1"] == names(await claim(storage.claim_task("good", sql=SELECT)))


async def test_a_queued_instruction_is_claimed_though_the_statement_fails(storage):
    """The error undoes only what the statement did; it is told when there is nothing else."""
    task = storage.claim_task("send", sql=f"{MARK} RETURNING 1 / (id - 1)", concurrency=2)
    await enqueue(storage, "send", "by hand")

    assert ["by hand"] == names(await claim(task))
    with pytest.raises(InvalidQueryError, match="division by zero"):
        await claim(task)


async def test_a_column_that_is_dropped_meanwhile_is_told_with_its_place(storage, observer):
    """The server forgets the place while it runs a statement: it parses it again."""
    task = storage.claim_task("send", sql=f"{MARK} RETURNING id", concurrency=9)
    await claim(task, 1)
    await observer.execute("ALTER TABLE account DROP COLUMN sent_at")
    with pytest.raises(InvalidQueryError, match="LINE") as caught:
        await claim(task)

    assert 'column "sent_at"' in str(caught.value)


async def test_one_that_waits_for_a_lock_is_an_error_of_the_server(storage, connection, observer):
    """Not of the statement: it is tried again."""
    await observer.execute("CREATE FUNCTION wait() RETURNS bigint LANGUAGE sql"
                           " SET lock_timeout = '50ms' AS 'SELECT id FROM account WHERE id = 1"
                           " FOR UPDATE'")  # fmt: skip
    task = storage.claim_task("send", sql="SELECT wait() LIMIT %(limit)s")
    async with connection.transaction():
        await connection.execute("SELECT FROM account FOR UPDATE")
        with pytest.raises(StorageError, match="lock timeout"):
            await claim(task)

    assert ["1"] == names(await claim(task))


async def test_a_statement_that_claims_nothing_keeps_what_it_has_changed(storage, marked):
    """It may mark rows that are not to be worked on."""
    sql = """
    WITH skipped AS (UPDATE account SET sent_at = now() WHERE id = 1 RETURNING id)
    SELECT id FROM skipped WHERE false LIMIT %(limit)s
    """

    assert [] == await claim(storage.claim_task("send", sql=sql))
    assert ["1"] == await marked()


async def test_a_setting_in_a_reading_statement_is_undone(storage, rows):
    """So that the tasks that use the connection next find their tables."""
    sql = """
    SELECT id FROM account, set_config('search_path', 'nowhere', false)
    ORDER BY id LIMIT %(limit)s
    """
    async with PostgresStorage(storage.conninfo, pool_size=1) as single:
        first = await claim(single.claim_task("one", sql=sql))
        second = await claim(single.claim_task("two", sql=SELECT))

    assert (["1"], ["1"]) == (names(first), names(second))


async def test_duplicates_are_one_instruction(storage):
    """However many there are."""
    task = storage.claim_task(
        "send", sql="SELECT 7 FROM generate_series(1, %(limit)s)", concurrency=3
    )
    with trio.fail_after(5):
        found = [names(await claim(task)) for _ in range(3)]

    assert [["7"], [], []] == found


async def test_an_error_with_a_code_of_the_users_own_is_told(storage, observer):
    """In the words that it has."""
    await observer.execute(
        "CREATE FUNCTION mine(n integer) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'out of stamps' USING ERRCODE = 'ZZ999'; END $$"
    )
    with pytest.raises(StorageError, match="out of stamps"):
        await claim(storage.claim_task("send", sql="SELECT mine(%(limit)s)"))


# What its rows are worth: active, queued, failed


async def test_a_row_that_is_marked_while_it_is_active_keeps_the_retries_of_the_task(
    storage, observer
):
    """It is claimed after the claim in hand, as if it was claimed then."""
    task = storage.claim_task("send", sql=f"{MARK} RETURNING id", concurrency=20, retries=2)
    claims = await claim(task, 1)
    await observer.execute("UPDATE account SET sent_at = NULL")
    others = await claim(task)
    (queued,) = await storage.find(status="queued")
    await storage.complete(receipts(claims))
    (again,) = await claim(task)

    assert (["1"], list("23456789")) == (names(claims), names(others))
    assert ("1", 2) == (queued.instruction, queued.retries)
    assert ("1", 1) == (again.instruction, again.delivery)


async def test_a_row_that_somebody_queues_meanwhile_undoes_the_statement(
    storage, connection, observer, marked
):
    """It is active, marked again, and to be queued: an open transaction has done that already."""
    task = storage.claim_task("send", sql=f"{MARK} RETURNING id", concurrency=20)
    (first,) = await claim(task, 1)
    await observer.execute("UPDATE account SET sent_at = NULL")
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO planton_pending (task_name, instruction) VALUES ('send', '1')"
        )
        with trio.fail_after(2), pytest.raises(StorageError, match="lock timeout"):
            await claim(task)

        assert [] == await marked()
    await claim(task)
    await storage.complete(first.receipt)

    assert ["1"] == names(await claim(task))


async def test_rows_behind_those_that_failed_are_reached(storage):
    """However much room there is: those in front take none of it."""
    task = storage.claim_task("send", sql=SELECT, concurrency=3)
    await failing(storage)(receipts(await claim(task, 2)))

    assert ["3", "4", "5"] == names(await claim(task))


async def test_rows_behind_very_many_that_failed_are_reached(storage, observer):
    """It is asked for more and more."""
    await observer.execute("INSERT INTO account SELECT generate_series(10, 3000)")
    await observer.execute(
        "INSERT INTO planton_ended (id, task_name, instruction, delivery, status, created_at)"
        " SELECT n, 'send', n, 1, 'dead', now() FROM generate_series(1, 2500) AS n"
    )
    task = storage.claim_task("send", sql=SELECT, concurrency=3)

    assert ["2501", "2502", "2503"] == names(await claim(task))


async def test_rows_that_failed_and_have_gone_take_nobodys_place(storage, observer):
    """They are in the history only: all that the first look finds is claimed."""
    task = storage.claim_task("send", sql=SELECT, concurrency=3)
    await failing(storage)(receipts(await claim(task, 2)))
    await observer.execute("DELETE FROM account WHERE id <= 2")

    assert ["3", "4", "5"] == names(await claim(task))


async def test_a_row_that_failed_and_is_marked_anew_is_claimed(storage, observer):
    """An UPDATE finds only what its user wants to be done."""
    task = storage.claim_task("send", sql=f"{MARK} RETURNING id")
    await failing(storage)(receipts(await claim(task)))
    await observer.execute("UPDATE account SET sent_at = NULL")

    assert ["1"] == names(await claim(task))


async def test_rows_that_failed_come_back_where_no_history_is_kept(storage):
    """Nobody knows of them any more."""
    async with PostgresStorage(storage.conninfo, retention=0) as forgetful:
        task = forgetful.claim_task("send", sql=SELECT)
        await failing(forgetful)(receipts(await claim(task)))

        assert ["1"] == names(await claim(task))


# Planner settings, leases


async def test_it_is_planned_as_the_user_has_set_it(storage, observer):
    """Our own settings are not in force while it runs, nor his while ours run."""
    await observer.execute(
        "CREATE FUNCTION setting(name text) RETURNS text LANGUAGE sql VOLATILE AS"
        " 'SELECT current_setting(name)'"
    )
    options = f"{conninfo_to_dict(storage.conninfo)['options']} -cenable_bitmapscan=off"
    dsn = make_conninfo(storage.conninfo, options=options)
    sql = """
    SELECT concat_ws(' ', setting('enable_seqscan'), setting('enable_bitmapscan'),
                     setting('search_path')) LIMIT %(limit)s
    """
    async with PostgresStorage(dsn, pool_size=1) as other:
        (found,) = names(await claim(other.claim_task("send", sql=sql)))
        after = await other._backend._database.use(_settings)

    assert found.startswith("on off test_")
    assert [("on", "off")] == after


async def _settings(connection):
    query = "SELECT current_setting('enable_seqscan'), current_setting('enable_bitmapscan')"
    return await (await connection.execute(query)).fetchall()


async def test_a_lease_begins_when_the_statement_has_ended(storage, rows, observer):
    """Not before: it may take longer than the lease is."""
    sql = "SELECT id FROM account, pg_sleep(0.3) ORDER BY id LIMIT %(limit)s"
    task = storage.claim_task("send", sql=sql, lease=0.2)
    await claim(task)
    query = "SELECT lease_expires_at - claimed_at, claimed_at > now() - interval '0.2 s' FROM {}"
    ((lease, is_late),) = await rows(observer, query.format("planton_active"))

    assert (0.2, True) == (lease.total_seconds(), is_late)


async def test_one_task_that_fails_does_not_undo_another(storage):
    """Each has its own transaction, and its own answer."""
    tasks = [
        storage.claim_task("bad", sql="SELECT 1 / 0 LIMIT %(limit)s"),
        storage.claim_task("good", sql=f"{MARK} RETURNING id"),
    ]
    found, errors = [], []

    async def one(task):
        try:
            found.extend((await attempt(task)).claims)
        except InvalidQueryError as error:
            errors.append(str(error))

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(one, task)

    assert ["1"] == names(found)
    assert ["division by zero" in each for each in errors] == [True]


def test_a_backend_knows_no_password():
    """Nor does what it shows of itself."""
    storage = PostgresStorage("postgresql://me:secret@host/app")
    assert isinstance(storage._backend, PostgresBackend)

    assert "secret" not in storage.database + repr(storage._backend)
