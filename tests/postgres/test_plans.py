"""The plans of hot statements, at a backlog: the planner has tempting ways to read all of it."""

import uuid

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from planton.storage import ClaimRequest, Rule
from planton_postgres import PostgresStorage
from planton_postgres._claim import Bounds, Claim
from planton_postgres._statements import Statements

SQL = Statements()
BACKLOG = """
INSERT INTO planton_pending (task_name, instruction, priority, run_at)
SELECT task_name, n, n % 5, now() - interval '1 hour' + n * interval '0.01 second'
FROM unnest(ARRAY['task', 'another']) AS task_name, generate_series(1, 150000) AS n
"""
# Those that come first, so that they are in the way.
DEAD = "DELETE FROM planton_pending WHERE task_name = 'task' AND instruction::integer % 50 = 4"
HISTORY = """
INSERT INTO planton_ended (id, task_name, instruction, delivery, status, created_at)
SELECT n, 'task', n, 1, CASE WHEN n % 50 = 0 THEN 'dead' ELSE 'succeeded' END, now()
FROM generate_series(1, 50000) AS n
"""
ACTIVE = """
INSERT INTO planton_active (
    token, task_name, instruction, delivery, created_at, claimed_at, lease, lease_expires_at
)
SELECT 1, 'task ' || n % 100, n, 1, now(), now(), 60, now() + interval '1 minute'
FROM generate_series(1, 2000) AS n
"""
SCANS = """
SELECT relname, seq_scan FROM pg_stat_xact_user_tables
WHERE schemaname = current_schema() AND relname = ANY (%s)
"""
PLENTY = 3000  # pages; reading the backlog once takes many more than what a claim of 100 needs
BIG = ("planton_pending", "planton_active", "planton_ended")


def claim_of(limit, task_name="task", **options):
    rule = Rule(task_name=task_name, claimed_by="me", lease=60.0, **options)
    request = ClaimRequest(rule, 10_000, limit)
    return Claim(request, Bounds(), lambda: 0.0).parameters(is_alone=True)


def warm(connection):
    """Use everything in a session as long as all tables are empty: the plans are kept."""
    for _ in range(12):
        with connection.transaction(force_rollback=True):
            connection.execute(SQL["claim"], claim_of(100), prepare=True)
            connection.execute(SQL["claim"], claim_of(9, "rows", statement=ROWS), prepare=True)
            connection.execute(SQL["claim"], claim_of(9, **OWNED), prepare=True)
            connection.execute(SQL["look"], {"asked": ASKED}, prepare=True)
            for kind, values in REPORTS.items():
                connection.execute(SQL[kind], reports([1], values), prepare=True)


@pytest.fixture(params=("analysed", "analysed and planned when it was empty"), scope="module")
def backlog(request, shared_dsn):
    """A connection; tables with 150,000 rows of two tasks each, some of them dead."""
    schema = f"plans_{uuid.uuid4().hex}"
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        dsn = make_conninfo(shared_dsn, options=f"-csearch_path={schema}")
        trio.run(migrate, dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (id bigint PRIMARY KEY)")
        connection.execute(
            "INSERT INTO planton_task (task_name) VALUES ('task'), ('another'), ('rows')"
        )
        for table in BIG:
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        connection.execute("ANALYZE planton_pending, planton_active, planton_ended")
        if request.param != "analysed":
            warm(connection)
        for statement in (BACKLOG, HISTORY, ACTIVE, DEAD):
            connection.execute(statement)
        connection.execute("INSERT INTO account SELECT generate_series(1, 5000)")
        connection.execute("SELECT brin_summarize_new_values('planton_ended_at')")  # as autovacuum
        if request.param == "analysed":
            connection.execute("ANALYZE planton_pending, planton_active, planton_ended")
        yield connection


async def migrate(dsn):
    async with PostgresStorage(dsn) as storage:
        await storage.migrate()


def explain(connection, name, parameters):
    """What a statement returns, reads in pages, and which big tables it reads in full; undone.

    What a function does is counted with the statement that calls it.
    """
    query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SQL[name].rstrip(';')}"
    with connection.transaction(force_rollback=True):
        before = dict(connection.execute(SCANS, [list(BIG)]).fetchall())
        plan = connection.execute(query, parameters).fetchone()[0][0]["Plan"]
        scans = connection.execute(SCANS, [list(BIG)]).fetchall()
        read = [table for table, count in scans if count > before.get(table, 0)]
    return plan["Actual Rows"], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], read


OWNED = {"task_name": "owned", "partition_concurrency": 2}
PARTITIONS = """
INSERT INTO planton_task (task_name) VALUES ('owned');
INSERT INTO planton_pending (task_name, instruction, partition, priority)
SELECT 'owned', n, 'p' || n % 500, n % 3 FROM generate_series(1, 20000) AS n
"""
ROWS = "SELECT id FROM account ORDER BY id LIMIT %(limit)s"
ASKED = '[{"place": 0, "task_name": "task", "key": "%", "tags": [], "cron": null}]'


def reports(receipts, values):
    """The parameters of reports of claims."""
    parameters = {"ids": receipts, "tokens": [1] * len(receipts), "keeps": True}
    return parameters | {f"v{n}": [value] * len(receipts) for n, value in enumerate(values)}


REPORTS = {
    "heartbeat": (),
    "complete": (None,),
    "fail": ("broken", 0.0, True, False, 3),
    "release": (),
    "give_back": (),
    "advance": ("1", 3),
    "postpone": ("1", 3, 5.0),
    "take_over": (None, 2),
}


@pytest.mark.parametrize(
    "options", ({}, {"key": "1%"}, {"key": "no such %"}, {"tags": ("a", "b")}), ids=str
)
@pytest.mark.parametrize("limit", (1, 100))
def test_a_claim_reads_what_it_takes(backlog, limit, options):
    """Through the one index that has its order, however many rows there are."""
    is_in_vain = options.get("key") == "no such %"
    # The first one marks in the index what is dead.
    found = [explain(backlog, "claim", claim_of(limit, **options)) for _ in range(2)][1]

    assert (1 if is_in_vain else limit + 1) == found[0]
    assert [] == found[2]
    assert found[1] < PLENTY or is_in_vain


def test_a_claim_counts_what_is_active_of_its_own_task_above_its_bound(backlog):
    """Neither what is active of others, nor what is below: there are indexes that have all."""
    with backlog.transaction(force_rollback=True):
        backlog.execute("DELETE FROM planton_active WHERE task_name <> 'task 1'")
        backlog.execute("UPDATE planton_active SET task_name = 'rows'")
        backlog.execute(ACTIVE.replace("'task ' || n % 100, n", "'rows', 'more ' || n"))
        backlog.execute("DELETE FROM planton_active WHERE instruction LIKE 'more %'")
        query = "UPDATE planton_task SET ids_from = (SELECT last_value FROM planton_claim_id)"
        backlog.execute(f"{query} WHERE task_name = 'rows'")
        before = walked(backlog)
        backlog.execute(SQL["claim"], claim_of(1, "rows", statement="SELECT 1 WHERE %(limit)s < 0"))

        assert walked(backlog) - before < 500


def walked(connection):
    """How many entries of the indexes of planton_active this transaction has read so far."""
    query = """
    SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index
    WHERE indrelid = 'planton_active'::regclass
    """
    return connection.execute(query).fetchone()[0]


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_looks_its_receipts_up_by_their_index(backlog, kind):
    """The other one has ids, too, after the tasks: all of it would be read."""
    receipts = [id for (id,) in backlog.execute("SELECT id FROM planton_active LIMIT 50")]
    with backlog.transaction(force_rollback=True):
        before = walked(backlog)
        backlog.execute(SQL[kind], reports(receipts, REPORTS[kind]))

        assert walked(backlog) - before <= 150


def test_reports_search_no_list_for_each_row(backlog):
    """As a nested loop does that was planned while the tables were empty."""
    query = """
    SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
    AND 'enable_nestloop=off' = ANY (proconfig)
    """
    joining = {f"planton_{kind}" for kind in REPORTS} - {"planton_give_back"}

    assert joining <= {name for (name,) in backlog.execute(query)}


def test_a_look_reads_a_few_pages(backlog):
    """It is made again and again, mostly in vain."""
    _, pages, read = [explain(backlog, "look", {"asked": ASKED}) for _ in range(2)][1]

    assert [] == read
    assert pages < 100


def test_who_is_busy_is_found_from_name_to_name(backlog):
    """Through the indexes, a few pages for each name, whatever its backlog."""
    count, pages, read = explain(backlog, "busy", {"limit": 10_000})

    assert (102, []) == (count, read)
    assert pages < 1000


def test_a_plain_select_leaves_out_by_an_index_of_what_failed(backlog):
    """The history is looked into, not read."""
    parameters = claim_of(100, statement=ROWS)
    count, pages, read = [explain(backlog, "claim", parameters) for _ in range(2)][1]

    assert (101, []) == (count, read)
    assert pages < PLENTY


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_looks_up_its_receipts(backlog, kind):
    """And reads nothing of the queue nor of the history in full."""
    receipts = [id for (id,) in backlog.execute("SELECT id FROM planton_active LIMIT 50")]
    count, pages, read = explain(backlog, kind, reports(receipts, REPORTS[kind]))

    assert (50, []) == (count, read)
    assert pages < PLENTY


def test_the_failures_of_a_task_are_looked_up(backlog):
    """Not among all that succeeded."""
    count, _, read = explain(backlog, "failed_ends", {"task_name": "task"})

    assert (1000, []) == (count, read)


def test_a_prune_reads_what_is_old(backlog):
    """Not the whole of the history, of which nothing is old enough."""
    backlog.execute("ANALYZE planton_ended")  # as autovacuum does
    parameters = {"older_than": 3600.0, "statuses": ["succeeded"], "limit": 100}
    _, pages, read = explain(backlog, "prune", parameters)

    assert [] == read
    assert pages < 100


@pytest.mark.parametrize("limit", (1, 100, 700))
def test_a_claim_of_partitions_reads_what_it_takes(backlog, limit):
    """From one to the next through their index. The last one here: it leaves dead rows."""
    with backlog.transaction(force_rollback=True):
        backlog.execute(PARTITIONS)
        found = explain(backlog, "claim", claim_of(limit, **OWNED))

    assert (limit + 1, []) == (found[0], found[2])
    assert found[1] < PLENTY + limit * 80
