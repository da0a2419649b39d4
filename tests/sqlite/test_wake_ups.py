"""What wakes tasks: this process directly, others through the watch. Delays are of a minute."""

import os
import re
import sqlite3
import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trio

from planton import (
    AttemptEvent,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    ScheduleRequest,
    StorageError,
)
from planton.hosting import start_in_thread
from planton.storage import _base, _fleet
from planton.testing import EventCollector
from planton_sqlite import SQLiteStorage

SOON = 10
ENQUEUE = "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', 'a')"
END = "DELETE FROM planton_active"


@asynccontextmanager
async def running(storage, *tasks, **options):
    """Run tasks that would look again in a minute; what they do."""
    planton = Planton(tasks=tasks, services=[storage.serve], **options)
    seen = EventCollector(planton)
    async with planton:
        for task in tasks:
            planton.wake(task.name)
        await until(lambda: len({e.task_name for e in seen.of(AttemptEvent)}) == len(tasks))
        await until(lambda: all(task.state != "attempting" for task in planton.status()))
        yield planton, seen


async def until(condition):
    with trio.fail_after(SOON):
        while not condition():
            await trio.sleep(0.005)


async def until_quiet(seen):
    """Wait until no attempts are made any more."""
    count = -1
    with trio.fail_after(SOON):
        while count != len(seen.of(AttemptEvent)):
            count = len(seen.of(AttemptEvent))
            await trio.sleep(0.3)
    return count


def claim_rows(storage, claim_sql, **options):
    return storage.claim_task("task", sql=claim_sql, **{"delay": 60, "concurrency": 2, **options})


async def test_what_another_process_enqueues_wakes_its_task(storage, path):
    """By plain SQL, in any language."""
    async with running(storage, storage.queue_task("task", delay=60)) as (planton, seen):
        code = f"sqlite3.connect({str(path)!r}, isolation_level=None).execute({ENQUEUE!r})"
        await trio.run_process([sys.executable, "-c", f"import sqlite3; {code}"])
        await until(lambda: seen.instructions == ["a"])

        assert "live" == planton.status()[0].wake_ups


async def test_an_end_in_another_process_wakes_a_saturated_task(storage, rows):
    """The slot is free at once."""
    await storage.enqueue("task", "a")
    await storage.enqueue("task", "b")
    async with running(storage, storage.queue_task("task", delay=60)) as (_, seen):
        assert ["a"] == seen.instructions
        rows(END)
        await until(lambda: seen.instructions == ["a", "b"])


async def test_an_end_in_another_process_wakes_a_saturated_claim_task(storage, rows, claim_sql):
    """There may be more in the user's table."""
    async with running(storage, claim_rows(storage, claim_sql)) as (_, seen):
        assert ["1", "2"] == seen.instructions
        rows(END)
        await until(lambda: seen.instructions == ["1", "2", "3", "4"])


@pytest.mark.parametrize("source", ("queue", "table"))
@pytest.mark.parametrize("change", ("paused_at = NULL", "concurrency = 2"))
async def test_what_operators_change_in_another_process_wakes(
    storage, rows, claim_sql, source, change
):
    """The task was paused, or had one slot."""
    await storage.enqueue("task", "1")
    await storage.enqueue("task", "2")
    rows("UPDATE user_account SET email_sent_at = 1 WHERE id > 2")
    rows("INSERT INTO planton_task (task_name) VALUES ('task')")
    rows("UPDATE planton_task SET paused_at = 1" if "paused" in change else "SELECT 1")
    if source == "queue":
        task = storage.queue_task("task", delay=60)
    else:
        rows("DELETE FROM planton_pending")
        task = claim_rows(storage, claim_sql, concurrency=1)
    async with running(storage, task) as (_, seen):
        before = len(seen.instructions)
        await trio.sleep(0.1)
        rows(f"UPDATE planton_task SET {change}")
        await until(lambda: len(seen.instructions) == before + 1)


@pytest.mark.parametrize("is_other", (False, True), ids=("the same storage", "another storage"))
@pytest.mark.parametrize(
    "action", ("enqueue", "complete", "fail", "release", "retry", "resume", "set_concurrency")
)
async def test_what_this_process_does_wakes_directly(path, action, is_other):
    """Without a watch, and from another storage on the same file, too."""
    async with (
        SQLiteStorage(path, wake_ups=False) as storage,
        SQLiteStorage(os.path.relpath(path), wake_ups=False) as second,
    ):
        await storage.migrate()
        await storage.enqueue("task", "a")
        if action == "retry":
            await end_as_failed(storage)
        if action == "resume":
            await storage.pause("task")
        elif action != "enqueue":
            await storage.enqueue("task", "b")
        async with running(storage, storage.queue_task("task", delay=60)) as (_, seen):
            other = second if is_other else storage
            receipts = [event.receipt for event in seen.of(InstructionEvent)]
            count = len(receipts)
            if action == "enqueue":
                await storage.complete(receipts)
                await other.enqueue("task", "c")
            elif action in ("complete", "release"):
                await getattr(other, action)(receipts)
            elif action == "fail":
                await other.fail(receipts, "no")
            elif action == "set_concurrency":
                await other.set_concurrency("task", 2)
            elif action == "retry":
                await other.complete(receipts)
                await other.retry("task")
            else:
                await other.resume("task")
            await until(lambda: len(seen.instructions) > count)


async def end_as_failed(storage):
    async with SQLiteStorage(storage.path) as other:
        planton = Planton(tasks=[other.queue_task("task")])
        seen = EventCollector(planton)
        await planton.attempt("task")
        await other.fail(seen.of(InstructionEvent)[0].receipt, "no")


async def test_a_planton_of_another_thread_is_woken(path):
    """Safely: by its own loop, with a storage of its own."""
    own = SQLiteStorage(path, wake_ups=False)

    async def serve(planton, *, task_status):
        async with own:
            await own.serve(planton, task_status=task_status)

    async with SQLiteStorage(path, wake_ups=False) as storage:
        planton = Planton(tasks=[own.queue_task("task", delay=60)], services=[serve])
        seen = EventCollector(planton)
        handle = await trio.to_thread.run_sync(start_in_thread, planton)
        try:
            await storage.enqueue("task", "a")
            await until(lambda: seen.instructions == ["a"])
            with pytest.raises(StorageError, match="another thread"):
                await own.enqueue("task", "b")
        finally:
            await trio.to_thread.run_sync(handle.terminate)
        await storage.enqueue("task", "b")  # nobody is left to wake


async def test_without_wake_ups_there_is_only_polling(path, rows):
    """No watch; `status` says so."""
    async with SQLiteStorage(path, wake_ups=False) as storage:
        await storage.migrate()
        async with running(storage, storage.queue_task("task", delay=0.5)) as (planton, seen):
            assert "polling" == planton.status()[0].wake_ups
            rows(ENQUEUE)
            await until(lambda: seen.instructions == ["a"])


async def test_a_wake_ups_that_is_no_bool_is_refused(path):
    """It is told what to give."""
    with pytest.raises(InvalidArgumentError, match="wake_ups"):
        SQLiteStorage(path, wake_ups="no")


async def test_what_is_enqueued_for_later_is_dispatched_then(storage, rows):
    """A task that rests is told that it must look sooner, by whoever enqueues it."""
    async with running(storage, storage.queue_task("task", delay=60)) as (_, seen):
        due = time.time() + 0.7
        columns = "task_name, instruction, run_at"
        rows(f"INSERT INTO planton_pending ({columns}) VALUES ('task', 'a', ?)", due)
        await until(lambda: seen.instructions == ["a"])

        assert due <= time.time() < due + 5


async def test_a_cron_time_is_kept_although_the_task_rests(storage):
    """To the second, with a delay of a minute."""
    async with running(
        storage, storage.cron_task("task", "* * * * * *", delay=60, concurrency=9)
    ) as (_, seen):
        await until(lambda: len(seen.instructions) >= 2)


async def test_an_expired_lease_is_noticed_although_the_task_rests(storage, rows):
    """The consumer died; the attempt is made when the lease ends."""
    await storage.enqueue("task", "a")
    task = storage.queue_task("task", delay=60, lease=1)
    async with running(storage, task) as (_, seen):
        assert ["a"] == seen.instructions
        await until(lambda: seen.instructions == ["a", "a"])

        assert [1, 2] == [event.delivery for event in seen.of(InstructionEvent)]


async def test_the_end_of_a_lease_is_a_next_time(storage):
    """Sooner than the delay, and known exactly."""
    await storage.enqueue("task", "a")
    task = storage.queue_task("task", delay=60, lease=5)
    request = ScheduleRequest(
        task_name="task", active_instructions=(), concurrency=1, limit=1, attempt_number=0
    )

    assert 1 == len((await task.schedule(request)).claims)
    assert 0 < (await task.schedule(request)).due_in <= 5


async def test_with_nothing_to_do_a_hundred_tasks_rest_and_share_their_looks(path, monkeypatch):
    """All connections counted: only the dispatcher's beats are made until the next common look."""
    statements, seconds = [], _fleet.BEAT
    connect = sqlite3.connect

    def count(statement):
        # What tells whether anything was committed reads no table.
        control = "BEGIN|SAVEPOINT|RELEASE|COMMIT|PRAGMA data_version"
        if not re.match(control, statement):
            statements.append(statement)

    def counted(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_trace_callback(count)
        return connection

    def beats():
        return sum("UPDATE planton_dispatcher" in statement for statement in statements)

    monkeypatch.setattr(sqlite3, "connect", counted)
    monkeypatch.setattr(_fleet, "BEAT", 1.0)
    monkeypatch.setattr(_base, "REST", 3600.0)
    async with SQLiteStorage(path) as storage:
        await storage.migrate()
        tasks = [storage.queue_task(f"task{number}", delay=0.1) for number in range(100)]
        async with running(storage, *tasks) as (planton, seen):
            await until_quiet(seen)
            statements.clear()
            await until(lambda: beats() == 2)
            statements.clear()
            await until(lambda: beats() == 4)
            times = [task.next_attempt_at for task in planton.status()]

    assert [
        each for each in statements if re.search("planton_d(ispatcher|ecision)", each)
    ] == statements
    assert 4 * seconds >= len(statements), statements
    assert max(times) - min(times) < timedelta(seconds=0.5)


async def test_a_busy_file_does_not_wake_tasks_that_it_does_not_concern(storage, path, monkeypatch):
    """Neither what others queue and end, nor tables of the user's."""
    monkeypatch.setattr(_base, "REST", 1e9)  # none of them rests until just then
    tasks = [storage.queue_task(f"task{number}", delay=60) for number in range(100)]
    key = storage.queue_task("key", key="b%", delay=60)
    async with running(storage, *tasks, key) as (_, seen):
        before = await until_quiet(seen)
        connection = sqlite3.connect(path, isolation_level=None)
        for number in range(100):
            connection.execute("UPDATE user_account SET email_sent_at = ?", (number,))
            connection.execute(
                "INSERT INTO planton_pending (task_name, instruction) VALUES ('other', ?)",
                (number,),
            )
            connection.execute(
                "INSERT INTO planton_pending (task_name, instruction) VALUES ('key', ?)",
                (f"a{number}",),
            )
            await trio.sleep(0.002)
        connection.close()

        assert before == await until_quiet(seen)


async def test_a_saturated_task_whose_concurrency_is_a_function_is_polled(storage):
    """Nobody tells when the function would give more."""
    concurrency = 1
    for name in "ab":
        await storage.enqueue("task", name)
    task = storage.queue_task("task", concurrency=lambda: concurrency, delay=0.2)
    async with running(storage, task) as (_, seen):
        assert ["a"] == seen.instructions
        concurrency = 2
        await until(lambda: seen.instructions == ["a", "b"])


async def test_a_task_that_fails_waits_for_its_delay_however_busy_the_file(
    storage, rows, claim_sql
):
    """No error makes a hot loop."""
    task = claim_rows(storage, claim_sql)
    async with running(storage, storage.queue_task("task2", delay=60), task) as (_, seen):
        rows("ALTER TABLE user_account RENAME TO away")
        rows("DELETE FROM planton_active")
        await until(lambda: seen.of(ErrorEvent))
        count = await until_quiet(seen)
        for number in range(20):
            rows("INSERT INTO planton_pending (task_name, instruction) VALUES ('task', ?)", number)

        assert count == await until_quiet(seen)


# The user's own tables


async def test_a_change_of_a_table_wakes_the_task_that_asked_for_it(storage, rows, claim_sql):
    """Inserted or updated, by another process; before, and after `ignore_changes`, it does not."""
    rows("UPDATE user_account SET email_sent_at = 1")
    async with running(storage, claim_rows(storage, claim_sql, concurrency=9)) as (_, seen):
        rows("INSERT INTO user_account (id) VALUES (20)")
        await until_quiet(seen)
        assert [] == seen.instructions

        assert await storage.wake_on_change("User_Account", "task")
        await until_quiet(seen)
        rows("INSERT INTO user_account (id) VALUES (21)")
        await until(lambda: seen.instructions == ["20", "21"])
        rows("UPDATE user_account SET email_sent_at = NULL WHERE id = 3")
        await until(lambda: seen.instructions == ["20", "21", "3"])

        assert await storage.ignore_changes("user_account", "task")
        rows("INSERT INTO user_account (id) VALUES (22)")
        await until_quiet(seen)
        assert ["20", "21", "3"] == seen.instructions


async def test_what_a_claim_changes_does_not_wake_its_own_task(storage, rows, claim_sql):
    """It would look once more after each claim, for nothing."""
    await storage.wake_on_change("user_account", "task")
    async with running(storage, claim_rows(storage, claim_sql, concurrency=3)) as (_, seen):
        await until(lambda: seen.instructions == ["1", "2", "3"])

        assert [(1,)] == rows("SELECT changes FROM planton_task")


async def test_wake_on_change_is_made_once(storage, rows):
    """Every process may ask for it at its start; odd names do no harm."""
    odd = 'it\'s "odd" %s'
    rows('CREATE TABLE "o""d\'d" (a)')

    assert [True, False] == [await storage.wake_on_change("o\"d'd", odd) for _ in range(2)]
    assert [True, True] == [
        await storage.wake_on_change(n, "b") for n in ("o\"d'd", "user_account")
    ]
    rows('INSERT INTO "o""d\'d" VALUES (1), (2)')
    assert [("b", 3), (odd, 3)] == rows("SELECT task_name, changes FROM planton_task ORDER BY 1")
    assert [True, False] == [await storage.ignore_changes("o\"d'd", odd) for _ in range(2)]
    assert [(4,)] == rows("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")


@pytest.mark.parametrize("table", ("nowhere", "planton_instruction", "sqlite_master", None))
async def test_a_table_that_there_is_not_is_refused(storage, table):
    """Nor can a view wake anybody."""
    with pytest.raises(InvalidArgumentError, match="table"):
        await storage.wake_on_change(table, "task")
    with pytest.raises(InvalidArgumentError, match="table"):
        await storage.ignore_changes(table, "task")


# The watch itself


async def test_a_watch_that_dies_is_reported_and_started_again(storage, rows):
    """Meanwhile tasks are polled, and `status` says so."""
    async with running(storage, storage.queue_task("task", delay=60)) as (planton, seen):
        rows("ALTER TABLE planton_pending RENAME TO away")
        await until(lambda: planton.status()[0].wake_ups == "polling")
        await until(lambda: [e for e in seen.of(ErrorEvent) if e.stage == "service"])
        rows("ALTER TABLE away RENAME TO planton_pending")
        rows(ENQUEUE)
        await until(lambda: planton.status()[0].wake_ups == "live")
        await until(lambda: seen.instructions == ["a"])


async def test_a_database_that_is_not_migrated_is_reported(path):
    """The watch does not keep attempts from being made, and their errors from being told."""
    async with SQLiteStorage(path, migrate=False) as storage:
        planton = Planton(tasks=[storage.queue_task("task", delay=0.01)], services=[storage.serve])
        seen = EventCollector(planton)
        async with planton:
            await until(lambda: {"service", "schedule"} <= {e.stage for e in seen.of(ErrorEvent)})

        assert all("migrate()" in str(event.error) for event in seen.of(ErrorEvent))


async def test_a_commit_that_takes_long_is_noticed(storage, path):
    """Written to the file long before it can be seen: a big transaction, or a slow disk."""
    async with running(storage, storage.queue_task("task", delay=60)) as (_, seen):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 5")
        connection.execute("BEGIN")
        connection.execute(ENQUEUE)
        connection.execute("CREATE TABLE big AS SELECT zeroblob(1000000) AS a")
        await trio.sleep(0.5)
        connection.execute("COMMIT")
        connection.close()
        await until(lambda: seen.instructions == ["a"])
