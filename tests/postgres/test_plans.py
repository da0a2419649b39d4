"""The plans of hot statements, at a backlog: the planner has tempting ways to read all of it."""

import uuid

import psycopg
import pytest
from psycopg.types.json import Jsonb

from planton_postgres._schema import migrations
from planton_postgres._statements import CLAIM, END, OPERATE

BACKLOG = """
INSERT INTO planton_pending (task_name, instruction, priority, run_at)
SELECT task_name, n, n % 5, now() - interval '1 hour' + n * interval '0.1 second'
FROM unnest(ARRAY['task', 'another']) AS task_name, generate_series(1, 50000) AS n
"""
HISTORY = """
INSERT INTO planton_ended (task_name, instruction, delivery, status, created_at)
SELECT 'task', n, 1, CASE WHEN n % 50 = 0 THEN 'dead' ELSE 'succeeded' END, now()
FROM generate_series(1, 50000) AS n
"""
ACTIVE = """
INSERT INTO planton_active (
    receipt, task_name, instruction, delivery, created_at, claimed_at, lease, lease_expires_at
)
SELECT gen_random_uuid(), 'task ' || n % 100, n, 1, now(), now(), 60, now() + interval '1 minute'
FROM generate_series(1, 2000) AS n
"""
PLENTY = 3000  # pages; reading the backlog once takes many more than what a claim of 100 needs


@pytest.fixture(params=("analysed", "analysed when it was empty"), scope="module")
def backlog(request, shared_dsn):
    """A connection; tables with 50,000 rows of two tasks each."""
    schema = f"plans_{uuid.uuid4().hex}"
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"SET search_path TO {schema}")
        for migration in migrations():
            connection.execute(migration)
        for table in ("planton_pending", "planton_active", "planton_ended"):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        if request.param == "analysed when it was empty":
            connection.execute("ANALYZE")
        for statement in (BACKLOG, HISTORY, ACTIVE):
            connection.execute(statement)
        connection.execute("INSERT INTO planton_task VALUES ('task'), ('another')")
        if request.param == "analysed":
            connection.execute("ANALYZE")
        yield connection


def nodes(plan):
    """All nodes of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def reads(plan, table):
    """How a plan reads a table: the node types and their indexes."""
    return {
        (node["Node Type"], node.get("Index Name"))
        for node in nodes(plan)
        if node.get("Relation Name") == table and "Scan" in node["Node Type"]
    }


def explain(connection, statement, parameters, options="ANALYZE, BUFFERS"):
    """The plan, and unless it is said otherwise what it did."""
    cursor = connection.execute(
        f"EXPLAIN ({options}, FORMAT JSON) {statement.rstrip(';')}", parameters
    )
    return cursor.fetchone()[0][0]["Plan"]


def pages(plan):
    """How many pages it has touched."""
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


def asked(*names):
    rule = {"limit": 100, "concurrency": 100, "key": "%", "tags": [], "lease": 60}
    more = {"source": "queue", "looks_ahead": True, "deliveries": None}
    wanted = [{"task_name": name, **rule, **more} for name in names]
    return {"asked": Jsonb(wanted), "keep": True, "claimed_by": "me", "locks": True}


@pytest.mark.parametrize("names", (("task",), ("task", "another")))
@pytest.mark.parametrize("mode", ("force_custom_plan", "force_generic_plan"))
def test_a_claim_reads_what_it_takes(backlog, names, mode):
    """Through the one index that has its order, however many rows there are."""
    with backlog.transaction(force_rollback=True):
        backlog.execute("SELECT set_config('plan_cache_mode', %s, true)", [mode])
        lock = explain(backlog, CLAIM["lock"], asked(*names))
        # It sets what `claim` is planned with, which EXPLAIN does, too.
        claim = explain(backlog, CLAIM["claim"], asked(*names))

    for plan in (lock, claim):
        assert {"Index Scan", "Index Only Scan"} >= {
            node for node, _ in reads(plan, "planton_pending")
        }
        assert pages(plan) < PLENTY * len(names)
    assert ("Index Scan", "planton_pending_due") in reads(lock, "planton_pending")
    assert ("Index Scan", "planton_pending_due") in reads(claim, "planton_pending")
    assert len(names) * 101 == claim["Actual Rows"]


@pytest.mark.parametrize("statement", ("lock", "claim"))
def test_a_prepared_claim_has_the_same_plan(backlog, statement):
    """After five executions the server may plan without looking at the parameters."""
    if backlog.info.server_version < 160000:  # pragma: no cover
        pytest.skip("EXPLAIN knows no GENERIC_PLAN before PostgreSQL 16")
    sql = CLAIM[statement].replace("%(asked)s", "$1").replace("%(keep)s", "$2::boolean")
    sql = sql.replace("%(locks)s", "$3::boolean").replace("%(claimed_by)s", "$4::text")
    # The extended protocol would want values for the parameters.
    with backlog.transaction(), psycopg.ClientCursor(backlog) as cursor:
        backlog.execute(CLAIM["lock"], asked("task"))
        cursor.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {sql.rstrip(';')}")
        plan = cursor.fetchone()[0][0]["Plan"]

    assert {"Index Scan", "Index Only Scan"} >= {node for node, _ in reads(plan, "planton_pending")}
    assert ("Index Scan", "planton_pending_due") in reads(plan, "planton_pending")


def test_who_is_busy_is_found_from_name_to_name(backlog):
    """Through the indexes, a few pages for each name, whatever its backlog."""
    plan = explain(backlog, CLAIM["busy"], {"limit": 10_000})

    assert ("Seq Scan", None) not in reads(plan, "planton_pending") | reads(plan, "planton_active")
    assert 102 == plan["Actual Rows"]
    assert pages(plan) < 1000


def test_a_plain_select_leaves_out_by_an_index_of_what_failed(backlog):
    """The history is looked into, not read: neither for their number nor for those given."""
    given = {"instructions": [str(n) for n in range(49_900, 50_100)], "room": 100}
    given |= {"retries": 0, "lease": 60, "claimed_by": "me"}
    parameters = {"task_name": "task", "is_marked": False, "is_time": False, **given}
    with backlog.transaction(force_rollback=True):
        known = explain(backlog, CLAIM["known"], parameters)
        record = explain(backlog, CLAIM["record"], parameters)

    for plan in (known, record):
        assert "planton_ended_failed" in {node.get("Index Name") for node in nodes(plan)}
        assert ("Seq Scan", None) not in reads(plan, "planton_ended")
        assert pages(plan) < PLENTY


def test_a_report_looks_up_its_receipts(backlog):
    """And reads nothing of the queue nor of the history."""
    cursor = backlog.execute("SELECT receipt::text FROM planton_active LIMIT 50")
    parameters = {
        "receipts": [receipt for (receipt,) in cursor.fetchall()],
        "results": [None] * 50,
        "errors": ["broken"] * 50,
        "retry_ins": [0.0] * 50,
        "retries": [True] * 50,
        "lower_priorities": [False] * 50,
        "granted": [None] * 50,
        "payloads": [None] * 50,
        "run_ins": [0.0] * 50,
        "keep": True,
    }
    for name, statement in END.items():
        with backlog.transaction(force_rollback=True):
            if name in ("advance", "put_off"):
                parameters = {**parameters, "retries": [3] * 50}
            plan = explain(backlog, statement, parameters)

        assert pages(plan) < PLENTY, name
        assert set() == reads(plan, "planton_pending") | reads(plan, "planton_ended")


@pytest.mark.parametrize(
    ("instructions", "index"),
    ((None, "planton_ended_failed"), (["7", "50"], "planton_ended_task")),
)
def test_a_retry_looks_up_what_it_puts_back(backlog, instructions, index):
    """What failed, or what is named; it does not read the history of what succeeded."""
    parameters = {"task_name": "task", "instructions": instructions}
    with backlog.transaction(force_rollback=True):
        plan = explain(backlog, OPERATE["ended"], parameters)

    assert index in {node.get("Index Name") for node in nodes(plan)}
    assert pages(plan) < 15 * PLENTY


def test_a_prune_reads_what_is_old(backlog):
    """Not the whole of the history."""
    parameters = {"older_than": 0.0, "limit": 100}
    with backlog.transaction(force_rollback=True):
        plan = explain(backlog, OPERATE["prune"], parameters)

    assert pages(plan) < PLENTY
