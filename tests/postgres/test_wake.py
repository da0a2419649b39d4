"""Wake-ups: what others change is attempted at once, and where nothing is heard it is polled."""

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import (
    AttemptEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    StorageError,
)
from planton.storage import _base
from planton.testing import EventCollector
from planton.testing.conformance._base import claim, enqueue
from planton_postgres import PostgresStorage, _wake
from planton_postgres._driver import TrioConnection

INSERT = "INSERT INTO planton_pending (task_name, instruction) VALUES (%s, %s)"
LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE query LIKE 'LISTEN%%' OR query LIKE 'SELECT pg_notify(%%["test"%%'
""".replace("%%", "%")
TERMINATE = "SELECT pg_terminate_backend(pid) FROM (" + LISTENERS + ") AS listeners"
END_ONE_BY_ONE = """
DO $$
DECLARE
    claim bigint;
BEGIN
    FOREACH claim IN ARRAY ARRAY(SELECT id FROM planton_active) LOOP
        DELETE FROM planton_active WHERE id = claim;
        COMMIT;
    END LOOP;
END $$
"""
CLAIM_SQL = """
UPDATE user_account SET sent = true WHERE id = ANY (ARRAY(
    SELECT id FROM user_account WHERE NOT sent ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)) RETURNING id
"""


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


@pytest.fixture
async def other(storage):
    """As another process has it."""
    async with PostgresStorage(storage.conninfo) as other:
        yield other


@pytest.fixture
def quick(monkeypatch):
    """A way that is dead is noticed soon."""
    monkeypatch.setattr(_wake, "SILENCE", 0.2)
    monkeypatch.setattr(_wake, "PATIENCE", 0.5)
    monkeypatch.setattr(_base, "_restart_delay", lambda failures: 0.1)
    monkeypatch.setattr(TrioConnection, "cancel_limit", 0.2)


def state(planton):
    return planton.status()[0].wake_ups


async def until(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def running(storage, *tasks, live=True):
    """Run the tasks; gives the Planton and its events, from when it would be woken."""
    planton = Planton(tasks=tasks, services=[storage.serve])
    seen = EventCollector(planton)
    async with planton:
        if live:
            await until(lambda: state(planton) == "live")
            await until(lambda: len(seen.of(AttemptEvent)) >= len(tasks))
        yield planton, seen


def instructions(seen):
    return [event.instruction for event in seen.of(InstructionEvent)]


def attempts(seen):
    return len(seen.of(AttemptEvent))


async def test_a_plain_insert_of_another_session_is_dispatched_at_once(storage, observer):
    """Though the next attempt would be in an hour."""
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        await observer.execute(INSERT, ("task", "a"))
        await until(lambda: instructions(seen))

    assert ["a"] == instructions(seen)


async def test_what_is_queued_in_a_transaction_of_the_users_is_dispatched_when_it_commits(
    storage, schema_dsn
):
    """Not before, and at once."""
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        with psycopg.connect(schema_dsn) as connection:
            await storage.enqueue("task", "a", connection=connection)
            before = attempts(seen)
            await trio.sleep(0.05)

            assert before == attempts(seen)
        await until(lambda: instructions(seen))


async def test_a_slot_that_is_freed_elsewhere_is_used_at_once(storage, other):
    """A consumer that is a process of its own has ended what was claimed here."""
    await enqueue(storage, "task", "a", "b", "c")
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        for count in (1, 2, 3):
            await until(lambda count=count: len(instructions(seen)) == count)
            await other.complete(seen.of(InstructionEvent)[-1].receipt)

    assert ["a", "b", "c"] == instructions(seen)


async def test_many_slots_that_are_freed_elsewhere_share_attempts(storage, observer):
    """A busy fleet does not attempt in every process for every end."""
    await enqueue(storage, "task", *map(str, range(200)))
    await claim(storage.queue_task("task", concurrency=100))
    task = storage.queue_task("task", concurrency=100, delay=3600)
    async with running(storage, task) as (_, seen):
        before = attempts(seen)
        await observer.execute(END_ONE_BY_ONE)
        await until(lambda: len(instructions(seen)) == 100)

        assert attempts(seen) - before < 50


async def test_settings_that_are_changed_elsewhere_are_heeded_at_once(storage, other):
    """A pause that ends, a cap that is raised."""
    await other.pause("task")
    await other.set_concurrency("task", 1)
    await enqueue(storage, "task", "a", "b")
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        assert [] == instructions(seen)
        await other.resume("task")
        await until(lambda: instructions(seen) == ["a"])
        await other.set_concurrency("task", 2)
        await until(lambda: instructions(seen) == ["a", "b"])


async def test_what_is_done_here_is_not_heard_a_second_time(storage):
    """The task was woken when it was done: an attempt for the enqueuing, one for the end."""
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        before = attempts(seen)
        await storage.enqueue("task", "a")
        await until(lambda: instructions(seen))
        await storage.complete(seen.of(InstructionEvent)[0].receipt)
        await trio.sleep(0.1)

        assert before + 2 == attempts(seen)


async def test_what_becomes_due_is_dispatched_then(storage, other):
    """Queued elsewhere for later, or retried after a while."""
    task = storage.queue_task("task", delay=3600)
    async with running(storage, task) as (_, seen):
        run_at = datetime.now(UTC) + timedelta(seconds=0.3)
        await other.enqueue("task", "a", run_at=run_at, retries=1)
        await until(lambda: instructions(seen) == ["a"], 5)

        assert datetime.now(UTC) >= run_at
        await other.fail(seen.of(InstructionEvent)[0].receipt, "broken", retry_in=0.3)
        await until(lambda: instructions(seen) == ["a", "a"], 5)


@pytest.mark.parametrize("delay", (3600, lambda _: 3600))
async def test_what_its_consumer_has_left_is_dispatched_when_its_lease_expires(
    storage, other, delay
):
    """Not an attempt later."""
    await enqueue(other, "task", "a")
    await claim(other.queue_task("task", lease=0.5))
    async with running(storage, storage.queue_task("task", delay=delay)) as (_, seen):
        await until(lambda: instructions(seen) == ["a"], 5)

    assert [2] == [event.delivery for event in seen.of(InstructionEvent)]


async def test_who_was_turned_away_comes_again_soon(storage, observer):
    """The other one may have left something, and nobody will say so."""
    await claim(storage.queue_task("other"))
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        async with observer.transaction():
            await observer.execute("SELECT FROM planton_task FOR UPDATE")
            async with await TrioConnection.connect(storage.conninfo) as connection:
                await connection.execute(INSERT, ("task", "a"))
            before = attempts(seen)
            await until(lambda: attempts(seen) > before + 1)
        await until(lambda: instructions(seen) == ["a"], 5)


async def test_many_names_wake_all_tasks(storage, observer):
    """A notification holds less than 8000 bytes."""
    tasks = [storage.queue_task(f"{number:0200}", delay=3600) for number in range(60)]
    async with running(storage, *tasks) as (_, seen):
        await observer.execute(
            "INSERT INTO planton_pending (task_name, instruction) SELECT unnest(%s::text[]), 'a'",
            [[task.name for task in tasks]],
        )
        await until(lambda: len(instructions(seen)) == 60)


async def test_a_notification_that_is_not_understood_wakes_nobody(storage, observer):
    """Anybody who may connect can send one; one for all tasks is understood."""
    strange = ["", "all", "5", '["later", null, 1]', '["due", 5]', '["due", [5]]', "[" * 5000]
    tasks = [storage.queue_task(name, delay=3600) for name in "ab"]
    async with running(storage, *tasks) as (_, seen):
        before = attempts(seen)
        for payload in (*strange, '["due", null]'):
            await observer.execute("SELECT pg_notify(planton_channel(), %s)", [payload])
        await until(lambda: attempts(seen) >= before + 2)
        await trio.sleep(0.1)

        assert before + 2 == attempts(seen)


async def test_notifications_can_be_turned_off(storage, observer):
    """For a load of many statements, or for a database without dispatchers that listen."""
    async with running(storage, storage.queue_task("task", delay=3600)) as (_, seen):
        before = attempts(seen)
        async with observer.transaction():
            await observer.execute("SET LOCAL planton.wake_ups = off")
            await observer.execute(INSERT, ("task", "a"))
            await observer.execute("DELETE FROM planton_active")
            await observer.execute("UPDATE planton_task SET concurrency = 5")
        await trio.sleep(0.1)

        assert before == attempts(seen)


async def test_idle_tasks_are_hardly_looked_for(postgres_server, postgres_dsn, monkeypatch):
    """A hundred of them, of the queue and of the calendar; however they were woken before."""
    monkeypatch.setattr(_base, "REST", 2.0)
    async with PostgresStorage(postgres_dsn) as storage:
        await storage.migrate()
        async with running(storage, *hundred(storage)):
            pass
    before = await transactions(postgres_server, postgres_dsn)
    async with PostgresStorage(postgres_dsn) as storage:
        async with running(storage, *hundred(storage)) as (planton, _):
            for number in range(0, 100, 10):
                planton.wake(f"task{number}")
                await trio.sleep(0.02)
            await trio.sleep(5)
    made = await transactions(postgres_server, postgres_dsn) - before

    # Two looks for all of them when it starts and when it listens, ten for those that were woken,
    # then two and a test of the channel every few seconds.
    assert made <= 80, "polled every 0.05 seconds it would be two hundred"


def hundred(storage):
    for number in range(100):
        if number % 2:
            yield storage.queue_task(f"task{number}", delay=0.05)
        else:
            yield storage.cron_task(f"task{number}", "0 0 1 1 *", delay=0.05)


async def transactions(server, dsn):
    """How many there have been; a backend that has gone has told all of them."""
    query = (
        "SELECT xact_commit + xact_rollback, numbackends FROM pg_stat_database WHERE datname = %s"
    )
    name = conninfo_to_dict(dsn)["dbname"]
    async with await TrioConnection.connect(server.uri) as elsewhere:
        with trio.fail_after(10):
            while True:
                count, backends = await (await elsewhere.execute(query, [name])).fetchone()
                if not backends:
                    return count
                await trio.sleep(0.05)


# The channel is lost, and comes back.


async def test_a_listener_whose_backend_is_ended_listens_again(storage, observer):
    """What was missed is found by one attempt of every task; the loss is one error."""
    async with running(storage, storage.queue_task("task", delay=3600)) as (planton, seen):
        async with observer.transaction():
            await observer.execute(TERMINATE)
            await until(lambda: state(planton) == "polling")
            await observer.execute(INSERT, ("task", "a"))
        await until(lambda: instructions(seen))
        await until(lambda: state(planton) == "live")

    (error,) = seen.errors
    assert isinstance(error, StorageError)
    assert "nothing wakes its tasks, which are polled until that is mended" in str(error)


async def test_a_way_that_is_dead_is_noticed_and_polling_takes_over(
    storage, proxy, observer, quick
):
    """Nothing is forwarded any more, and nobody hangs up; until it is."""
    async with PostgresStorage(storage.conninfo, listen_dsn=proxy.dsn) as storage:
        task = storage.queue_task("task", delay=0.1, concurrency=9)
        async with running(storage, task) as (planton, seen):
            proxy.block()
            await until(lambda: state(planton) == "polling")
            await observer.execute(INSERT, ("task", "a"))
            await until(lambda: instructions(seen) == ["a"])
            await trio.sleep(1)
            (error,) = seen.errors
            proxy.unblock()
            await until(lambda: state(planton) == "live")
            await observer.execute(INSERT, ("task", "b"))
            await until(lambda: instructions(seen) == ["a", "b"])

    assert "a test of the wake-ups was not answered" in str(error)


async def test_a_server_that_never_answers_keeps_nothing_from_being_polled(
    storage, silent_port, observer, quick
):
    """It accepts a connection, and that is all."""
    dsn = make_conninfo(storage.conninfo, host="127.0.0.1", port=silent_port)
    options = {"listen_dsn": dsn, "connect_timeout": 0.3}
    async with PostgresStorage(storage.conninfo, **options) as storage:
        task = storage.queue_task("task", delay=0.05)
        async with running(storage, task, live=False) as (planton, seen):
            await observer.execute(INSERT, ("task", "a"))
            await until(lambda: instructions(seen) and seen.errors)
            await trio.sleep(1)

            assert "polling" == state(planton)

    assert 1 == len(seen.errors), "told once, however often it is tried"


async def test_to_listen_elsewhere_than_the_changes_are_is_a_clear_error(
    storage, postgres_server, quick
):
    """Another database, or a pooler that shares connections: what is sent never arrives."""
    async with PostgresStorage(storage.conninfo, listen_dsn=postgres_server.uri) as storage:
        task = storage.queue_task("task", delay=0.05)
        async with running(storage, task, live=False) as (planton, seen):
            await until(lambda: seen.errors)

            assert "polling" == state(planton)

    assert "give listen_dsn=, or wake_ups=False" in str(seen.errors[0])


async def test_without_wake_ups_it_polls(schema_dsn, observer):
    """And has no connection that listens."""
    async with PostgresStorage(schema_dsn, wake_ups=False) as storage:
        await storage.migrate()
        task = storage.queue_task("task", delay=0.05)
        async with running(storage, task, live=False) as (planton, seen):
            await observer.execute(INSERT, ("task", "a"))
            await until(lambda: instructions(seen))

            assert "polling" == state(planton)
            assert [] == await (await observer.execute(LISTENERS)).fetchall()


async def test_tables_that_are_not_there_yet_are_waited_for(schema_dsn, quick):
    """The error says what to call."""
    async with PostgresStorage(schema_dsn) as storage:
        planton = Planton(services=[storage.serve], tasks=[storage.queue_task("task", delay=3600)])
        seen = EventCollector(planton)
        async with planton:
            await until(lambda: seen.errors)
            await storage.migrate()
            await until(lambda: state(planton) == "live")

    assert "await storage.migrate()" in str(seen.errors[0])


def test_a_listen_dsn_that_is_none_is_refused():
    """By name."""
    with pytest.raises(InvalidArgumentError, match="listen_dsn"):
        PostgresStorage("postgresql://localhost/app", listen_dsn="passwort=hunter2")


async def test_two_plantons_share_a_storage(storage, observer):
    """Each is woken for its own tasks."""
    tasks = [storage.queue_task(name, delay=3600) for name in "ab"]
    async with running(storage, tasks[0]) as (_, first), running(storage, tasks[1]) as (_, second):
        await observer.execute(INSERT, ("b", "1"))
        await observer.execute(INSERT, ("a", "2"))
        await observer.execute(INSERT, ("nobody's", "3"))
        await until(lambda: instructions(first) and instructions(second))

    assert (["2"], ["1"]) == (instructions(first), instructions(second))


async def test_pruning_that_fails_is_reported_and_tried_again(storage, monkeypatch):
    """Wake-ups go on meanwhile."""
    monkeypatch.setattr(_base, "LATEST", 0.05)
    async with running(storage, storage.queue_task("task", delay=3600)) as (planton, seen):
        with psycopg.connect(storage.conninfo, autocommit=True) as connection:
            connection.execute("ALTER TABLE planton_ended RENAME TO hidden")
            await until(lambda: seen.errors)
            connection.execute("ALTER TABLE hidden RENAME TO planton_ended")

        assert "live" == state(planton)


# Tables of the user's.


@pytest.fixture
async def accounts(storage, observer):
    await observer.execute("CREATE TABLE user_account (id bigint PRIMARY KEY, sent boolean)")
    return "user_account"


async def test_a_change_of_a_users_table_wakes_its_task(storage, accounts, observer):
    """A row that is inserted, and one that is updated; not a statement that changes none."""
    assert await storage.wake_on_change(accounts, "send")
    task = storage.claim_task("send", sql=CLAIM_SQL, concurrency=9, delay=3600)
    async with running(storage, task) as (_, seen):
        await observer.execute("INSERT INTO user_account VALUES (1, false), (2, true)")
        await until(lambda: instructions(seen) == ["1"])
        await observer.execute("UPDATE user_account SET sent = false WHERE id = 2")
        await until(lambda: instructions(seen) == ["1", "2"])
        before = attempts(seen)
        await observer.execute("UPDATE user_account SET sent = false WHERE id = 3")
        await trio.sleep(0.1)

        assert before == attempts(seen)


async def test_claims_of_two_tasks_of_one_table_do_not_wake_each_other(storage, accounts, observer):
    """They would never come to rest."""
    for name in ("one", "two"):
        await storage.wake_on_change(accounts, name)
    tasks = [
        storage.claim_task(name, sql=CLAIM_SQL, concurrency=9, delay=3600)
        for name in ("one", "two")
    ]
    async with PostgresStorage(storage.conninfo) as other:
        more = [other.claim_task("one", sql=CLAIM_SQL, concurrency=9, delay=3600)]
        async with running(storage, *tasks) as (_, seen), running(other, *more) as (_, others):
            await observer.execute("INSERT INTO user_account SELECT generate_series(1, 6), false")
            await until(lambda: len(instructions(seen) + instructions(others)) == 6)
            await trio.sleep(0.2)

            assert attempts(seen) + attempts(others) < 20


async def test_many_processes_ask_for_it_at_once(storage, accounts, observer):
    """At every start; it is made once."""
    made = []

    async def one():
        async with PostgresStorage(storage.conninfo) as other:
            made.append(await other.wake_on_change(accounts, "send"))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)

    assert [False] * 5 + [True] == sorted(made)
    assert [True, False] == [await storage.ignore_changes(accounts, "send") for _ in range(2)]
    rows = await observer.execute(
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass", [accounts]
    )
    assert [(0,)] == await rows.fetchall()


async def test_names_are_quoted(storage, observer):
    """Of tables and tasks, whatever is in them."""
    await observer.execute('CREATE SCHEMA IF NOT EXISTS "OHara"')
    await observer.execute('CREATE TABLE IF NOT EXISTS "OHara"."a ""table""" (id bigint)')
    table, name = '"OHara"."a ""table"""', 'it\'s %s {} \\ "1"'
    await storage.wake_on_change(table, name)
    async with running(storage, storage.queue_task(name, delay=3600)) as (_, seen):
        before = attempts(seen)
        await observer.execute(f"INSERT INTO {table} VALUES (1)")
        await until(lambda: attempts(seen) > before)
    await storage.ignore_changes(table, name)


@pytest.mark.parametrize(
    ("table", "problem"),
    (
        ("nowhere", "it is not there"),
        ("planton_instruction", "it is no table"),
        ("planton_ended_at", "it is no table"),
        ("a b c", "give the name of a table"),
        ("a.b.c.d", "give the name of a table"),
        ("", "give the name of a table"),
        (5, "give the name of a table"),
    ),
)
async def test_what_is_no_table_is_a_clear_error(storage, table, problem):
    """By name."""
    for change in (storage.wake_on_change, storage.ignore_changes):
        with pytest.raises(InvalidArgumentError, match="table") as caught:
            await change(table, "task")

        assert problem in str(caught.value)


async def test_what_is_wrong_with_the_database_is_not_said_of_the_table(schema_dsn):
    """Here there are no tables of Planton's."""
    async with PostgresStorage(schema_dsn) as storage:
        with pytest.raises(StorageError, match=r"has no planton tables.*migrate"):
            await storage.wake_on_change("user_account", "send")


async def test_a_change_that_waits_for_a_writer_gives_up(storage, accounts, observer):
    """Its time limit says so; nothing was made."""
    async with PostgresStorage(storage.conninfo, statement_timeout=0.3) as other:
        async with observer.transaction():
            await observer.execute("INSERT INTO user_account VALUES (1)")
            with pytest.raises(StorageError, match="pg_stat_activity"):
                await other.wake_on_change(accounts, "send")

    assert await storage.wake_on_change(accounts, "send")
