"""A way that hangs, a server that never answers, a full pool: errors and back-off, no silence."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from psycopg.conninfo import make_conninfo

from planton import (
    AttemptEvent,
    ErrorEvent,
    InstructionEvent,
    Planton,
    StorageError,
    delays,
    health,
)
from planton.testing import EventCollector
from planton.testing.conformance._base import claim, enqueue
from planton_executor import Executor
from planton_postgres import PostgresStorage
from planton_postgres._driver import TrioConnection

INSERT = "INSERT INTO planton_pending (task_name, instruction) VALUES (%s, %s)"
BRIEF = {"connect_timeout": 0.4, "statement_timeout": 0.4}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """What the driver grants a server that does not answer a cancellation."""
    monkeypatch.setattr(TrioConnection, "cancel_limit", 0.1)


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


@asynccontextmanager
async def running(storage, *tasks):
    planton = Planton(tasks=tasks, services=[storage.serve])
    seen = EventCollector(planton)
    async with planton:
        yield planton, seen


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def failed(seen):
    """The tasks of which an error was told."""
    return {event.task_name for event in seen.of(ErrorEvent)} - {None}


def instructions(seen):
    return sorted(event.instruction for event in seen.of(InstructionEvent))


@pytest.mark.parametrize("wake_ups", (True, False))
async def test_a_way_that_hangs_is_an_error_and_back_off_and_dispatch_goes_on_after_it(
    storage, proxy, observer, wake_ups
):
    """For every kind of task; nothing that was queued meanwhile is missing."""
    await observer.execute("CREATE TABLE job (id int)")
    async with PostgresStorage(proxy.dsn, wake_ups=wake_ups, **BRIEF) as hung:
        sql = "DELETE FROM job WHERE id = (SELECT min(id) FROM job LIMIT %(limit)s) RETURNING id"
        delay = delays.exponential(initial=0.01, maximum=0.3, jitter=None)
        # What the server is sent when the way is free again may claim, with nobody to hear of it:
        # that is delivered after its lease.
        options = {"concurrency": 9, "delay": delay, "lease": 1}
        tasks = [
            hung.queue_task("queue", **options),
            hung.claim_task("sql", sql=sql, **options),
            hung.cron_task("cron", "0 0 1 1 *", **options),
            hung.cron_task("cron too", "0 0 1 1 *", **options),
        ]
        async with running(hung, *tasks) as (planton, seen):
            await until(lambda: len(seen.of(AttemptEvent)) > 8)
            proxy.block()
            await until(lambda: len(failed(seen)) == 4)
            await until(lambda: all(each.consecutive_errors > 1 for each in planton.status()))
            found = health(planton)
            with trio.fail_after(5), pytest.raises(StorageError):
                await hung.complete("1.1")
            with trio.fail_after(5), pytest.raises(StorageError):
                await hung.enqueue("queue", "refused")
            await observer.execute(INSERT, ("queue", "a"))
            await observer.execute("INSERT INTO job VALUES (1)")
            proxy.unblock()
            await until(lambda: instructions(seen) == ["1", "a"])

    assert found.ok, "a new start would not mend the way"


@pytest.mark.parametrize("is_kept_open", (False, True))
async def test_a_way_that_hangs_does_not_keep_a_run_beyond_its_grace(
    storage, proxy, observer, is_kept_open
):
    """Nor handlers with ends to store; who keeps the storage open finds it as patient as before."""
    async with AsyncExitStack() as stack:
        hung = PostgresStorage(proxy.dsn)
        if is_kept_open:
            await stack.enter_async_context(hung)
        executor = Executor(hung, concurrency=3)
        executor.handler("task")(at_once)
        task = hung.queue_task("task", concurrency=3, delay=0.05)
        planton = Planton(tasks=[task], storages=[hung], consumers=[executor], grace=2)
        async with planton:
            await enqueue(storage, "task", "a")
            await until(lambda: planton.status()[0].last_attempt_at)
            proxy.block()
            await observer.execute(INSERT, ("task", "b"))
            await trio.sleep(0.3)
            began = trio.current_time()
        took = trio.current_time() - began
        proxy.unblock()

        assert took < 4
        if is_kept_open:
            assert await hung.enqueue("task", "c")


async def test_a_start_does_not_hurry_what_others_do(storage, schema_dsn, observer):
    """A storage that is used beside a Planton waits for a lock as long as it did before."""
    # Not the brief time limits of the other storages here: it waits for longer than a hurry.
    async with PostgresStorage(schema_dsn) as shared, trio.open_nursery() as nursery:
        queued = []

        async def enqueue_meanwhile():
            queued.append(await shared.enqueue("task", "a"))

        async with observer.transaction():
            await observer.execute("LOCK TABLE planton_pending")
            nursery.start_soon(enqueue_meanwhile)
            await trio.sleep(0.2)
            planton = Planton(services=[shared.serve])
            await nursery.start(planton.run)
            await trio.sleep(1.0)
        await until(lambda: queued == [True])
        planton.request_stop()


async def at_once(_):
    """Does nothing."""


async def test_what_was_read_only_for_a_time_is_written_to_again(storage, observer):
    """As after a failover to what was a replica: connections that were made then stay so."""
    name = (await (await observer.execute("SELECT current_database()")).fetchall())[0][0]
    task = storage.queue_task("task", delay=0.05)
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with running(storage, task) as (_, seen):
        await observer.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await observer.execute(others)
        await observer.execute(INSERT, ("task", "a"))
        await until(lambda: any("read-only" in str(error) for error in seen.errors))
        await observer.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')

        await until(lambda: instructions(seen) == ["a"])


async def test_a_server_that_never_answers_is_a_clear_error_at_the_start(schema_dsn, silent_port):
    """In the time that was given."""
    dsn = make_conninfo(schema_dsn, host="127.0.0.1", port=silent_port)
    with trio.fail_after(5), pytest.raises(StorageError, match="no answer"):
        async with PostgresStorage(dsn, **BRIEF):
            pass  # pragma: no cover


async def test_a_server_that_hangs_up_is_an_error_and_back_off(storage, proxy, observer):
    """And dispatch goes on when it is back."""
    async with PostgresStorage(proxy.dsn, **BRIEF) as away:
        async with running(away, away.queue_task("task", delay=0.05)) as (_, seen):
            await until(lambda: seen.of(AttemptEvent))
            proxy.refuse()
            await observer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await until(lambda: "task" in failed(seen))

            assert "error" == seen.of(AttemptEvent)[-1].outcome
            proxy.accept()
            await storage.enqueue("task", "a")
            await until(lambda: instructions(seen) == ["a"])


async def test_claims_that_wait_for_locks_leave_a_connection_for_what_consumers_report(
    storage, observer
):
    """The statements of the user's are cut off; the tasks behind them are told of, and go on."""
    await observer.execute("CREATE TABLE job (id int)")
    await observer.execute("INSERT INTO job VALUES (1)")
    await enqueue(storage, "done", "x")
    (done,) = await claim(storage.queue_task("done"))
    async with PostgresStorage(storage.conninfo, pool_size=3, **BRIEF) as full:
        sql = "SELECT id FROM job LIMIT %(limit)s FOR UPDATE"
        tasks = [full.claim_task(f"task{n}", sql=sql, delay=0.05) for n in range(12)]
        async with running(full, *tasks) as (_, seen):
            async with observer.transaction():
                await observer.execute("SELECT FROM job FOR UPDATE")
                await until(lambda: len(failed(seen)) == 12)

                assert (str(done.receipt),) == (await full.complete(str(done.receipt))).applied
            await until(lambda: instructions(seen))

    problems = " ".join(map(str, seen.errors))
    assert "all connections that statements of claim tasks may have are in use" in problems
    assert "pg_stat_activity" in problems


async def test_a_listener_of_errors_that_hangs_does_not_keep_wake_ups_from_coming_back(
    storage, proxy, observer, monkeypatch
):
    """It hears of the loss, and takes its time."""
    monkeypatch.setattr("planton_postgres._wake.SILENCE", 0.1)
    monkeypatch.setattr("planton_postgres._wake.PATIENCE", 0.3)
    async with PostgresStorage(storage.conninfo, listen_dsn=proxy.dsn) as storage:
        planton = Planton(
            tasks=[storage.queue_task("task", delay=3600)], services=[storage.serve], grace=0.5
        )
        told = []

        @planton.on(ErrorEvent)
        async def hang(event):
            told.append(event)
            await trio.sleep_forever()

        def state():
            return planton.status()[0].wake_ups

        async with planton:
            await until(lambda: state() == "live")
            proxy.block()
            await until(lambda: told)
            proxy.unblock()
            await until(lambda: state() == "live")
