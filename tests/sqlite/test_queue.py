"""What is special about SQLite's queue, its history and its plans."""

import sqlite3
from contextlib import closing

import pytest
import sqlite_utils
import trio

from planton import InstructionEvent, InvalidArgumentError, Planton
from planton.testing import EventCollector
from planton.testing.conformance._base import claim, enqueue, names, receipts
from planton_sqlite import SQLiteStorage, _history
from planton_sqlite._sources import to_glob
from planton_sqlite._statements import CLAIM, OPERATE


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


async def test_old_history_is_pruned_along_with_reports(path, rows, monkeypatch):
    """A portion at a time, and then not for a while."""
    monkeypatch.setattr(_history, "PORTION", 2)
    monkeypatch.setattr(_history, "INTERVAL", 0.0)
    async with SQLiteStorage(path, retention=100) as storage:
        await storage.migrate()
        await enqueue(storage, "send", *"abc")
        await storage.complete(receipts(await claim(storage.queue_task("send", concurrency=3))))
        rows("UPDATE planton_ended SET ended_at = ended_at - 101")
        left = []
        for _ in range(2):
            await storage.complete([])
            left.append(len(await storage.find()))

        assert [1, 0] == left
        monkeypatch.setattr(_history, "INTERVAL", 60.0)
        await storage.complete([])
        await enqueue(storage, "other", "d")
        await storage.complete(receipts(await claim(storage.queue_task("other"))))
        rows("UPDATE planton_ended SET ended_at = ended_at - 101")
        await storage.complete([])

        assert 1 == len(await storage.find())


@pytest.mark.parametrize("retention", (-1, True, "7", None, float("nan")))
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


@pytest.mark.parametrize(
    ("statement", "index"),
    (
        ("due", "planton_pending_due"),
        ("next_run", "planton_pending_run_at"),
        ("state", "planton_pending_run_at"),
        ("state", "planton_active_lease"),
        ("take_over", "planton_active_lease"),
        ("active", "sqlite_autoindex_planton_active"),
    ),
)
@pytest.mark.parametrize("is_analysed", (False, True))
async def test_a_long_backlog_is_read_through_an_index(
    storage, rows, statement, index, is_analysed
):
    """Whether or not the planner has seen how the rows are spread; nothing is sorted."""
    rows(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000) "
        "INSERT INTO planton_pending (task_name, instruction) SELECT 'send', n FROM n"
    )
    rows("ANALYZE" if is_analysed else "SELECT 1")
    parameters = {"task_name": "send", "now": 9e9, "key": "*", "tags": "[]", "limit": 1, "lease": 1}
    parameters |= {"cron": None, "claimed_by": "me"}
    with closing(sqlite3.connect(storage.path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {CLAIM[statement]}", parameters).fetchall()
    steps = [step for *_, step in plan]

    assert any(index in step for step in steps), steps
    assert not any("SCAN pl" in step or "TEMP B-TREE FOR ORDER" in step for step in steps), steps


async def test_a_time_table_reads_no_more_of_the_history_than_it_needs(storage):
    """A time may have been dispatched since it came: older ends are not read."""
    options = dict.fromkeys(("task_name", "now", "lease", "retries", "limit", "is_select"))
    parameters = {**options, "claimed_by": "me", "instructions": "[]", "since": 0}
    with closing(sqlite3.connect(storage.path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {CLAIM['record']}", parameters).fetchall()
    steps = [step for *_, step in plan]

    assert any("INDEX planton_ended_at (ended_at>?)" in step for step in steps), steps


async def test_a_retry_reads_no_more_of_the_history_than_it_needs(storage):
    """What failed is in an index of its own; what succeeded since then is read by its number."""
    steps = []
    with closing(sqlite3.connect(storage.path)) as connection:
        for statement in ("failed_ends", "succeeded_since"):
            parameters = {"task_name": "send", "instructions": "[]", "since": 0}
            plan = connection.execute(f"EXPLAIN QUERY PLAN {OPERATE[statement]}", parameters)
            steps += [step for *_, step in plan]

    assert any("INDEX planton_ended_failed (task_name=?" in step for step in steps), steps
    assert any("INTEGER PRIMARY KEY (rowid>?)" in step for step in steps), steps


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
