"""The plans of the functions and hot statements: what they read at a backlog, in pages.

Their plans are made once a session, perhaps while the tables are empty, and kept: each function is
called until its plans are kept, and measured when there is a backlog.
"""

import json
import uuid

import psycopg
import pytest

from planton_postgres import _schema
from planton_postgres._statements import Statements

SQL = Statements()
BACKLOG = """
INSERT INTO planton_pending (task_name, instruction, priority, run_at)
SELECT task_name, n, n % 5, now() - interval '1 hour' + n * interval '0.1 second'
FROM unnest(ARRAY['task', 'another']) AS task_name, generate_series(1, 50000) AS n
"""
HISTORY = """
INSERT INTO planton_ended (id, task_name, instruction, delivery, status, created_at, ended_at)
SELECT n, task_name, n, 1, CASE WHEN n % 50 = 0 THEN 'dead' ELSE 'succeeded' END, now(),
       now() - interval '30 days' + n * interval '50 seconds'
FROM unnest(ARRAY['task', 'third']) AS task_name, generate_series(1, 50000) AS n
"""
ACTIVE = """
INSERT INTO planton_active (
    token, task_name, instruction, delivery, created_at, claimed_at, lease, lease_expires_at
)
SELECT 7, 'task ' || n % 100, 'x' || n, 1, now(), now(), 60, now() + interval '1 minute'
FROM generate_series(1, 2000) AS n
"""
TABLES = ("planton_pending", "planton_active", "planton_ended")
PLENTY = 4000  # pages; reading the backlog once takes many more than what a claim of 100 needs
FILTERS = ("never analysed", "empty", "one row", "full")


def call(function, count):
    """A call of a function with that many arguments, each a list."""
    return f"SELECT * FROM {function}({', '.join(['%s'] * count)})"


def reports(pairs):
    """Calls of all reports about these claims."""
    ids, tokens = [row_id for row_id, _ in pairs], [token for _, token in pairs]
    none, zero, false = [None] * len(ids), [0] * len(ids), [False] * len(ids)
    true, nought = [True] * len(ids), [0.0] * len(ids)
    return {
        "heartbeat": (call("planton_heartbeat", 2), [ids, tokens]),
        "take_over": (
            call("planton_take_over", 4).replace("%s, %s)", "%s::float8[], %s)"),
            [ids, tokens, nought, tokens],
        ),
        "advance": (
            "SELECT * FROM planton_advance(%s, %s, %s::text[], %s::integer[])",
            [ids, tokens, none, zero],
        ),
        "complete": (
            "SELECT * FROM planton_complete(%s, %s, %s::text[], true)",
            [ids, tokens, none],
        ),
        "fail": (
            "SELECT * FROM planton_fail("
            "%s, %s, %s::text[], %s::float8[], %s, %s, %s::integer[], true)",
            [ids, tokens, ["broken"] * len(ids), nought, true, false, [1] * len(ids)],
        ),
        "release": ("SELECT * FROM planton_release(%s, %s, false)", [ids, tokens]),
        "postpone": (
            "SELECT * FROM planton_postpone(%s, %s, %s::text[], %s::integer[], %s::float8[])",
            [ids, tokens, none, zero, nought],
        ),
    }


def claim(task="task", **request):
    asked = {"limit": 100, "concurrency": 100, "lease": 60, "token": 7, **request}
    return "SELECT * FROM planton_claim(%s, %s)", [task, json.dumps(asked)]


def look():
    return "SELECT * FROM planton_look('task', '%%', '{}', NULL)", []


def warm_up(connection):
    """Call all functions until their plans are kept."""
    for _ in range(7):
        connection.execute(
            "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', 'a')"
            " ON CONFLICT DO NOTHING"
        )
        for statement, parameters in (look(), claim()):
            connection.execute(statement, parameters)
        query = "SELECT id, token FROM planton_active WHERE task_name = 'task'"
        pairs = connection.execute(query).fetchall()
        for statement, parameters in reports(pairs).values():
            with connection.transaction(force_rollback=True):
                connection.execute(statement, parameters)
        connection.execute("DELETE FROM planton_active")
        connection.execute(*claim(statement="SELECT 5 LIMIT $1", mode="reads"))
        connection.execute(*claim(statement="SELECT 5 LIMIT $1", mode="marks"))
        connection.execute("DELETE FROM planton_active")
    connection.execute("DELETE FROM planton_pending")


@pytest.fixture(params=FILTERS, scope="module")
def backlog(request, shared_dsn):
    """A connection whose plans are kept; tables with 50,000 rows of two tasks each."""
    schema = f"plans_{uuid.uuid4().hex}"
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"SET search_path TO {schema}")
        connection.execute(_schema.script(schema))
        for table in TABLES:
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        connection.execute("INSERT INTO planton_task VALUES ('task'), ('another'), ('third')")
        if request.param == "one row":
            for statement in (BACKLOG, HISTORY, ACTIVE):
                connection.execute(f"{statement} LIMIT 1")
        if request.param in ("empty", "one row"):
            connection.execute("ANALYZE")
        if request.param != "full":
            connection.execute("DELETE FROM planton_pending; DELETE FROM planton_active")
            warm_up(connection)
        for statement in (BACKLOG, HISTORY, ACTIVE):
            connection.execute(statement)
        if request.param == "full":
            connection.execute("ANALYZE")
            for _ in range(7):
                with connection.transaction(force_rollback=True):
                    connection.execute(*claim())
                connection.execute(*look())
        yield connection


def explain(connection, statement, parameters):
    """The plan, with what it did."""
    cursor = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
    return cursor.fetchone()[0][0]["Plan"]


def pages(plan):
    """How many pages it has touched, functions within it included."""
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def nodes(plan):
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_a_claim_reads_what_it_takes(backlog):
    """However many rows there are, and however small the tables were when it was planned."""
    for _ in range(2):
        with backlog.transaction(force_rollback=True):
            plan = explain(backlog, *claim())

        assert 101 == plan["Actual Rows"]
        assert pages(plan) < PLENTY


def test_a_saturated_claim_counts_by_the_index_of_its_task(backlog):
    """Not what is active of others."""
    with backlog.transaction(force_rollback=True):
        backlog.execute("UPDATE planton_active SET task_name = 'task' WHERE instruction = 'x7'")
        plan = explain(backlog, *claim(concurrency=1))

    assert 1 == plan["Actual Rows"]
    assert pages(plan) < 200


def test_a_look_reads_a_few_pages(backlog):
    """Whatever the backlog."""
    for _ in range(2):
        plan = explain(backlog, *look())

    assert pages(plan) < 200


def test_a_plain_select_looks_up_what_it_has_found(backlog):
    """In the queue and in the history: neither is read."""
    statement = "SELECT n + 49800 FROM generate_series(1, $1) AS n"
    with backlog.transaction(force_rollback=True):
        plan = explain(backlog, *claim("third", statement=statement, mode="reads"))

    assert 101 == plan["Actual Rows"]
    assert pages(plan) < PLENTY


def test_a_report_looks_up_its_receipts(backlog):
    """And reads nothing of the queue nor of the history."""
    query = "SELECT id, token FROM planton_active ORDER BY random() LIMIT 50"
    pairs = sorted(backlog.execute(query).fetchall())
    for kind, (statement, parameters) in reports(pairs).items():
        with backlog.transaction(force_rollback=True):
            plan = explain(backlog, statement, parameters)

        assert 50 == plan["Actual Rows"], kind
        assert pages(plan) < 3000, kind


def test_reports_search_no_list_for_each_row(backlog):
    """As a nested loop would that was planned while the tables were empty."""
    query = "SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
    query += " AND NOT coalesce('enable_nestloop=off' = ANY (proconfig), false)"
    joining = {f"planton_{name}" for name in reports([])}

    assert set() == joining & {name for (name,) in backlog.execute(query)}


def test_who_is_busy_is_found_from_name_to_name(backlog):
    """Through the indexes, a few pages for each name, whatever its backlog."""
    plan = explain(backlog, SQL["busy"].rstrip(";"), {"limit": 10_000})

    assert 102 == plan["Actual Rows"]
    assert pages(plan) < 1000


@pytest.mark.parametrize(("instructions", "most"), ((None, 100), (["7", "50"], 3000)))
def test_a_retry_of_what_failed_looks_that_up(backlog, instructions, most):
    """Named ones are looked for in the history: it has no index that an end must write."""
    backlog.execute("ANALYZE planton_ended")
    parameters = {"task_name": "task", "instructions": instructions}
    plan = explain(backlog, SQL["last_ends"].rstrip(";"), parameters)
    used = {node.get("Index Name") for node in nodes(plan)}

    assert ("planton_ended_failed" in used) == (instructions is None)
    assert pages(plan) < most * 10


def test_a_prune_reads_what_is_old(backlog):
    """Not the whole of the history."""
    backlog.execute("ANALYZE planton_ended")
    backlog.execute("VACUUM planton_ended")
    parameters = {"older_than": 29 * 86400.0, "statuses": ["succeeded"], "limit": 100_000}
    with backlog.transaction(force_rollback=True):
        plan = explain(backlog, SQL["prune"].rstrip(";"), parameters)
    used = {node.get("Index Name") for node in nodes(plan)}

    assert "planton_ended_at" in used
