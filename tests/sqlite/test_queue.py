"""What is special about SQLite's queue, its history and its plans."""

import re
import sqlite3
from contextlib import closing

import pytest
import sqlite_utils
import trio

from planton import (
    InstructionEvent,
    InvalidArgumentError,
    InvalidQueryError,
    Planton,
    ScheduleRequest,
)
from planton.storage import _base
from planton.testing import EventCollector
from planton.testing.conformance._base import claim, enqueue, names, receipts
from planton_sqlite import SQLiteStorage
from planton_sqlite._claim import CLAIM, to_glob
from planton_sqlite._reports import REPORTS
from planton_sqlite._statements import SCRIPTS


async def test_a_database_of_sqlite_utils_is_a_connection(storage, path):
    """The instruction is committed with the caller's rows."""
    database = sqlite_utils.Database(str(path))
    with database.conn:
        database.execute("UPDATE user_account SET email_sent_at = 1")
        await storage.enqueue("send", "1", connection=database)

        assert [] == await storage.find()
    database.close()

    assert ["1"] == [record.instruction for record in await storage.find()]


async def test_what_is_no_connection_is_refused(storage):
    """By name."""
    with pytest.raises(InvalidArgumentError, match="sqlite_utils"):
        await storage.enqueue("send", "1", connection="app.db")


async def test_a_connection_to_another_file_is_refused(storage, path, tmp_path):
    """Whatever tables are there, the instruction would be lost; it names both files."""
    async with SQLiteStorage(tmp_path / "other.db") as other:
        await other.migrate()
        for file in (":memory:", str(tmp_path / "other.db")):
            with closing(sqlite3.connect(file)) as connection:
                with pytest.raises(InvalidArgumentError, match="connection") as caught:
                    await storage.enqueue("send", "1", connection=connection)

            assert str(path) in str(caught.value)
            assert file in str(caught.value)
        assert [] == await other.find()
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with closing(sqlite3.connect(link)) as connection:
        connection.row_factory = lambda cursor, row: dict(enumerate(row))
        assert await storage.enqueue("send", "1", connection=connection)


async def test_a_connection_that_is_closed_is_refused(storage, path):
    """It is the caller's, there is nothing to look for in the storage."""
    connection = sqlite3.connect(path)
    connection.close()
    with pytest.raises(InvalidArgumentError, match=r"connection.*closed"):
        await storage.enqueue("send", "1", connection=connection)


async def test_what_is_enqueued_wakes_its_task(storage):
    """In this process at once; other Plantons and tasks are not disturbed."""
    task = storage.queue_task("send", delay=3600)
    planton, other = (Planton(tasks=tasks, services=[storage.serve]) for tasks in ([task], []))
    seen = EventCollector(planton)
    with trio.fail_after(10):
        async with planton, other:
            await storage.enqueue("send", "1")
            await seen.wait_for(InstructionEvent)

    assert ["1"] == seen.instructions


async def test_a_thousand_are_claimed_and_ended_in_their_order(storage, rows):
    """Each with a receipt of its own, in a handful of statements."""
    rows(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1500) "
        "INSERT INTO planton_pending (task_name, instruction) SELECT 'send', n FROM n"
    )
    task = storage.queue_task("send", concurrency=1000)
    claimed = await claim(task)

    assert [str(number) for number in range(1, 1001)] == names(claimed)
    assert 1000 == len(set(receipts(claimed)))
    done = await storage.complete(receipts(claimed))
    assert tuple(receipts(claimed)) == done.applied
    assert 500 == len(await claim(task))


async def test_without_a_retention_time_no_history_is_kept(path, rows):
    """What succeeded, failed or died is gone."""
    async with SQLiteStorage(path, retention=0) as storage:
        await storage.migrate()
        await enqueue(storage, "send", "1", "2", "3")
        task = storage.queue_task("send", concurrency=3, lease=30, deliveries=1)
        first, second, _ = receipts(await claim(task))
        await storage.complete(first)
        await storage.fail(second, "broken")
        rows("UPDATE planton_active SET lease_expires_at = 0")
        await claim(task)

        assert [] == await storage.find()


async def test_old_history_is_pruned_while_it_is_served(path, rows, monkeypatch):
    """As fast as it grows; what failed stays until somebody has looked."""
    monkeypatch.setattr(_base, "PORTION", 2)
    monkeypatch.setattr(_base, "SOONEST", 0.01)
    monkeypatch.setattr(_base, "LATEST", 0.1)
    async with SQLiteStorage(path, retention=100) as storage:
        await enqueue(storage, "send", *"abcdefg")
        claimed = receipts(await claim(storage.queue_task("send", concurrency=7)))
        await storage.fail(claimed.pop(), "broken")
        await storage.complete(claimed)
        rows("UPDATE planton_ended SET ended_at = ended_at - 101")
        await enqueue(storage, "send", "late")
        await storage.complete(receipts(await claim(storage.queue_task("send"))))
        async with Planton(services=[storage.serve]):
            with trio.fail_after(10):
                while len(await storage.find()) > 2:
                    await trio.sleep(0.01)

        assert ["g", "late"] == [record.instruction for record in await storage.find()]


@pytest.mark.parametrize("retention", (-1, True, "7", float("nan")))
def test_a_retention_that_makes_no_sense_is_refused(retention):
    """Before anything is opened."""
    with pytest.raises(InvalidArgumentError, match="retention"):
        SQLiteStorage("app.db", retention=retention)


@pytest.mark.parametrize(
    ("like", "glob"),
    (("%", "*"), ("a_%", "a?*"), (r"a\_\%\\", "a_%\\"), ("a*?[b]", "a[*][?][[]b]"), ("", "")),
)
def test_patterns_for_like_become_patterns_for_glob(like, glob):
    """LIKE of SQLite ignores case, GLOB does not."""
    assert glob == to_glob(like)


OPERATE = {name: script[0] for name, script in SCRIPTS.items()}
PARAMETERS = dict.fromkeys(
    ("now", "level", "after", "room", "deliveries", "lease", "token", "claimed_by"), 1
)
PARAMETERS |= {"task_name": "send", "key": "*", "tags": "[]", "ids": "[]", "rows": "[]"}
PARAMETERS |= {"turn": "", "partition": "a", "taken": 0, "given": "[]", "marks": False}
PARAMETERS |= {"instructions": "[]", "keeps": True, "statuses": "[]", "older_than": 1, "limit": 1}


@pytest.mark.parametrize("is_analysed", (False, True))
@pytest.mark.parametrize(
    ("statements", "statement", "index"),
    (
        (CLAIM, "next_level", "planton_pending_due (task_name=? AND priority<?)"),
        (CLAIM, "due", "planton_pending_due (task_name=? AND priority=? AND run_at<?)"),
        (CLAIM, "due", "planton_active_1 (task_name=? AND instruction=?)"),
        (CLAIM, "next_due", "planton_pending_due (task_name=? AND priority=? AND run_at>?"),
        (CLAIM, "ring", "planton_pending_partition (task_name=? AND partition>?)"),
        (CLAIM, "due_of_partition", "planton_pending_partition (task_name=? AND partition=?)"),
        (CLAIM, "due_of_none", "planton_pending_due (task_name=? AND priority=? AND run_at<?)"),
        (CLAIM, "count", "planton_active_lease (task_name=?)"),
        (CLAIM, "others", "planton_active_lease (task_name=? AND lease_expires_at>?)"),
        (CLAIM, "rescue", "planton_active_lease (task_name=? AND lease_expires_at<?)"),
        (CLAIM, "end_exhausted", "planton_active_lease (task_name=? AND lease_expires_at<?)"),
        (CLAIM, "record_due", "INTEGER PRIMARY KEY (rowid=?)"),
        (CLAIM, "drop_due", "INTEGER PRIMARY KEY (rowid=?)"),
        (CLAIM, "known", "planton_ended_failed (task_name=?"),
        (REPORTS, "heartbeat", "INTEGER PRIMARY KEY (rowid=?)"),
        (REPORTS, "complete", "INTEGER PRIMARY KEY (rowid=?)"),
        (REPORTS, "drop", "INTEGER PRIMARY KEY (rowid=?)"),
        (REPORTS, "supersede", "planton_ended_failed"),
        (REPORTS, "has_failed", "planton_ended_failed"),
        (OPERATE, "failed_ends", "planton_ended_failed (task_name=?"),
        (OPERATE, "prune", "planton_ended_at (ended_at<?)"),
    ),
)
async def test_long_tables_are_read_through_an_index(
    storage, rows, statements, statement, index, is_analysed
):
    """Whether or not the planner has seen how the rows are spread; none is read whole or sorted."""
    rows(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000) "
        "INSERT INTO planton_pending (task_name, instruction) SELECT 'send', n FROM n"
    )
    rows("ANALYZE" if is_analysed else "SELECT 1")
    with closing(sqlite3.connect(storage.path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statements[statement]}", PARAMETERS)
        steps = [step for *_, step in plan]

    assert any(index in step for step in steps), steps
    assert not any(re.match("SCAN (planton_|pending|active)(?!.*INDEX)", each) for each in steps)
    if statement in ("due", "next_due", "rescue"):  # the others sort what one batch has
        assert not any("TEMP B-TREE FOR ORDER" in step for step in steps), steps


async def test_the_last_end_of_an_instruction_counts(storage, rows):
    """Whatever came before: it failed and then succeeded, or the other way round."""
    task = storage.queue_task("send", concurrency=9)
    ends = {"a": ("fail", "complete"), "b": ("complete", "fail"), "c": ("fail", "fail")}
    for turn in (0, 1):
        for name in ends:
            await storage.enqueue("send", name)
        for each in await claim(task):
            if ends[each.instruction][turn] == "fail":
                await storage.fail(each.receipt, "broken")
            else:
                await storage.complete(each.receipt)

    assert 2 == await storage.retry("send")
    assert [("b",), ("c",)] == rows("SELECT instruction FROM planton_pending ORDER BY 1")
    assert 1 == await storage.retry("send", ["a"])


@pytest.mark.parametrize(
    ("columns", "partition"),
    (("id, 'ä'", "ä"), ("id, id", "1"), ("id, NULL", ""), ("id, ''", ""), ("id", "")),
)
async def test_the_second_column_is_the_partition(storage, rows, columns, partition):
    """Whatever its type; NULL is none, and so is no second column."""
    rows("CREATE TABLE thing (id INTEGER PRIMARY KEY)")
    rows("INSERT INTO thing VALUES (1)")
    task = storage.claim_task("t", sql=f"DELETE FROM thing WHERE id <= :limit RETURNING {columns}")

    assert [partition] == [each.partition for each in await claim(task)]


async def test_a_second_column_that_is_no_partition_is_refused(storage, rows):
    """And nothing of the statement is left."""
    rows("CREATE TABLE thing (id INTEGER PRIMARY KEY)")
    rows("INSERT INTO thing VALUES (1)")
    sql = "DELETE FROM thing WHERE id <= :limit RETURNING "

    with pytest.raises(InvalidQueryError, match="a second one, its partition; it gives 3"):
        storage.claim_task("t", sql=f"{sql} id, 'a', 'b'")
    task = storage.claim_task("t", sql=f"{sql} id, hex(zeroblob(300))")
    with pytest.raises(InvalidQueryError, match="is no partition"):
        await claim(task)
    assert [(1,)] == rows("SELECT id FROM thing")


async def test_a_statement_may_leave_out_full_partitions(storage, rows):
    """By a parameter; then nothing of theirs goes to the queue."""
    rows("CREATE TABLE thing (id INTEGER PRIMARY KEY, owner TEXT)")
    for number in range(1, 10):
        rows(f"INSERT INTO thing VALUES ({number}, 'big')")
    rows("INSERT INTO thing VALUES (10, 'small')")
    sql = """
    DELETE FROM thing WHERE id IN (
        SELECT id FROM thing WHERE owner NOT IN (SELECT value FROM json_each(:full))
        ORDER BY id LIMIT :limit
    ) RETURNING id, owner
    """
    task = storage.claim_task("t", sql=sql, concurrency=9, partition_concurrency=2)

    assert [["1", "2"], ["10"]] == [names(await claim(task, 2)) for _ in range(2)]
    assert [] == await storage.find(status="queued")


async def test_a_report_that_cannot_be_written_undoes_only_itself(storage):
    """What was sent with it is exchanged in halves, until it is alone."""
    for name in "abcde":
        await storage.enqueue("send", name)
    schedule = storage.queue_task("send", concurrency=5).schedule
    request = ScheduleRequest(
        task_name="send", active_instructions=(), concurrency=5, limit=5, attempt_number=0
    )
    receipts = [claim.receipt for claim in (await schedule(request)).claims]
    results = (None, object(), None, None, None)
    answers = await storage.report_many(
        [
            ("complete", [receipt], (result,))
            for receipt, result in zip(receipts, results, strict=True)
        ]
    )

    assert [False, True, False, False, False] == [isinstance(each, TypeError) for each in answers]
    assert [("b", "running")] == [
        (each.instruction, each.status)
        for each in await storage.find()
        if each.status != "succeeded"
    ]
