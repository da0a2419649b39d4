"""What is special about the claim on PostgreSQL: fresh counts, locks of others, the user's SQL."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import InstructionEvent, InvalidArgumentError, Planton, StorageError
from planton.testing import EventCollector
from planton.testing.conformance._base import attempt, claim, enqueue, names, request
from planton_postgres import PostgresStorage

TABLE = "CREATE TABLE account (id bigint PRIMARY KEY, sent_at timestamptz)"
CLAIM_SQL = """
UPDATE account SET sent_at = %(now)s
WHERE id IN (SELECT id FROM account WHERE sent_at IS NULL ORDER BY id LIMIT %(limit)s)
RETURNING id
"""


@pytest.fixture
async def storage(schema_dsn, observer):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        await observer.execute(TABLE)
        await observer.execute("INSERT INTO account SELECT generate_series(1, 9)")
        yield storage


async def rows(connection, statement, parameters=None):
    return await (await connection.execute(statement, parameters)).fetchall()


async def blocked(observer, count=1):
    """Wait until so many others wait for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    while (await rows(observer, query))[0][0] < count:
        await trio.sleep(0.005)


# The lock of a task, and what is counted under it


WATCH = """
CREATE TABLE watched (active bigint);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO watched SELECT count(*) FROM planton_active;
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER INSERT ON planton_active
FOR EACH STATEMENT EXECUTE FUNCTION watch();
"""
ACTIVE = """
INSERT INTO planton_active (
    token, task_name, instruction, delivery, created_at, claimed_at, lease, lease_expires_at
)
SELECT 1, 'task', '{}', 1, now(), now(), 60, now() + interval '1 minute'
"""


async def test_what_is_committed_while_a_claim_waits_is_counted(storage, connection, observer):
    """The count begins when the lock is held, and not when the claim was sent."""
    await enqueue(storage, "task", "y", "a", "b")
    task = storage.queue_task("task", concurrency=2)
    await claim(task, 1)  # so that it is expected to find more, and does not look before it claims
    found = []

    async def claim_meanwhile():
        found.append(await attempt(task))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute("LOCK TABLE planton_task IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(claim_meanwhile)
            await blocked(observer)
            await connection.execute(ACTIVE.format("x"))

    assert [([], 2)] == [(batch.claims, batch.active) for batch in found]


async def test_a_time_that_was_dispatched_meanwhile_is_not_dispatched_again(
    storage, connection, observer
):
    """By another dispatcher, after this one has looked and before it claims."""
    task = storage.cron_task("cron", "0 0 1 1 *")
    await claim(task)
    await observer.execute("UPDATE planton_cron SET next_fire_at = now() - interval '1 second'")
    found = []

    async def claim_meanwhile():
        found.append(await attempt(task))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute("LOCK TABLE planton_cron IN SHARE MODE")
            nursery.start_soon(claim_meanwhile)
            await blocked(observer)
            await connection.execute(
                "UPDATE planton_cron SET next_fire_at = now() + interval '1 hour'"
            )

    assert [[]] == [batch.claims for batch in found]


@pytest.mark.parametrize("isolation", ("read committed", "repeatable read", "serializable"))
async def test_a_cap_is_exact_whatever_the_default_isolation(schema_dsn, observer, isolation):
    """Of dispatchers that offer other keys, so that they do not meet at the same rows."""
    options = conninfo_to_dict(schema_dsn)["options"]
    setting = isolation.replace(" ", "\\ ")
    dsn = make_conninfo(schema_dsn, options=f"{options} -c default_transaction_isolation={setting}")
    async with PostgresStorage(dsn) as storage, PostgresStorage(dsn) as other:
        await storage.migrate()
        for key in "ab":
            await enqueue(storage, "task", *(f"{key}{n}" for n in range(60)))
        await observer.execute(WATCH)
        seen = []

        async def work(each, key):
            task = each.queue_task("task", key=f"{key}%", concurrency=1)
            while len(seen) < 60:
                claims = await claim(task)
                seen.extend(names(claims))
                await each.complete([str(claim.receipt) for claim in claims])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for each in (storage, other):
                    nursery.start_soon(work, each, "ab"[each is other])

    assert {"a", "b"} == {name[0] for name in seen}
    assert len(set(seen)) == len(seen)
    assert [(1,)] == await rows(observer, "SELECT max(active) FROM watched")


@pytest.mark.parametrize("isolation", ("REPEATABLE READ", "SERIALIZABLE"))
async def test_a_claim_of_a_program_of_another_isolation_is_refused(storage, connection, isolation):
    """It would count what is active in a snapshot that is too old."""
    await enqueue(storage, "task", "a")
    await claim(storage.queue_task("other"))
    with pytest.raises(psycopg.errors.ActiveSqlTransaction, match="needs READ COMMITTED"):
        async with connection.transaction():
            await connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            await connection.execute("SELECT planton_claim('task', '{}')")


async def test_an_idle_or_saturated_task_writes_nothing(storage, observer):
    """No lock, no transaction id: nothing to flush however often it polls."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task")
    await claim(task)
    idle = storage.queue_task("idle")
    for _ in range(2):  # where something was claimed, it is expected to go on
        await claim(task)
        await claim(idle)
    before = await rows(observer, "SELECT pg_current_xact_id()")
    for _ in range(10):
        await claim(task)
        await claim(idle)
    after = await rows(observer, "SELECT pg_current_xact_id()")

    assert 1 == int(after[0][0]) - int(before[0][0])


async def test_rows_that_somebody_has_locked_are_left_for_later(storage, connection):
    """Who has them may be about to delete them."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2)
    async with connection.transaction():
        await connection.execute("DELETE FROM planton_pending WHERE instruction = 'a'")

        assert ["b"] == names(await claim(task))
    assert [] == await claim(task)


async def test_no_more_are_delivered_again_than_may_run_beside_those_that_are_renewed(
    storage, connection, observer
):
    """The cap was lowered, all leases are over, and a consumer is just renewing some."""
    await enqueue(storage, "task", *"abcd")
    claims = await claim(storage.queue_task("task", concurrency=4, lease=60))
    await observer.execute("UPDATE planton_active SET lease_expires_at = now() - interval '1 s'")
    ids, tokens = zip(*(map(int, each.receipt.split(".")) for each in claims[2:]), strict=True)
    async with connection.transaction():
        await connection.execute("SELECT planton_heartbeat(%s, %s)", [list(ids), list(tokens)])

        assert [] == names(await claim(storage.queue_task("task", concurrency=2)))


async def test_a_request_without_a_mode_reads_and_one_with_another_mode_is_refused(
    storage, observer
):
    """A program of another language may call the function."""
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    marking = "UPDATE account SET sent_at = $3 WHERE id <= $1 RETURNING id"
    asked = {"limit": 2, "concurrency": 2, "lease": 60, "token": 1, "claimed_by": "me"}
    asked["statement"] = marking
    query = "SELECT instruction FROM planton_claim('task', %s::jsonb) WHERE kind = 'claimed'"

    assert [("1",), ("2",)] == await rows(observer, query, [json.dumps(asked)])
    with pytest.raises(psycopg.errors.NullValueNotAllowed, match="a mode"):
        await rows(observer, query, [json.dumps(asked | {"mode": "updates"})])


async def test_a_failure_that_does_not_say_whether_to_retry_is_kept(storage, observer):
    """Reported by hand, with a NULL: the claim ends, and somebody can look at it."""
    for name, retry, granted in (("a", None, 3), ("b", True, None)):
        await enqueue(storage, "task", name)
        (claimed,) = await claim(storage.queue_task("task"))
        await observer.execute(
            "SELECT planton_fail(ARRAY[%s::bigint], ARRAY[%s::bigint], '{broken}', '{0}',"
            " ARRAY[%s::boolean], '{false}', ARRAY[%s::integer], true)",
            [*claimed.receipt.split("."), retry, granted],
        )

    ended = await rows(observer, "SELECT instruction, error FROM planton_ended ORDER BY 1")
    assert [("a", "broken"), ("b", "broken")] == ended


# Blocked, timed out, cancelled, killed

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'not this one';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON planton_active
FOR EACH ROW WHEN (NEW.task_name = 'bad') EXECUTE FUNCTION refuse();
"""
TABLES = ("planton_task", "planton_active", "planton_pending", "planton_ended", "account")


async def fill(storage, observer):
    """One that is expired, one that is used up, one that is queued, and the user's rows."""
    await enqueue(storage, "task", "used up", "expired")
    await claim(storage.queue_task("first", lease=0.001))
    await observer.execute(
        "INSERT INTO planton_active (token, task_name, instruction, delivery, created_at,"
        " claimed_at, lease, lease_expires_at)"
        " SELECT 1, task_name, instruction,"
        " CASE instruction WHEN 'used up' THEN 5 ELSE 1 END, now(), now(), 1, now()"
        " FROM planton_pending"
    )
    await observer.execute("DELETE FROM planton_pending")
    await enqueue(storage, "task", "queued")
    await observer.execute("INSERT INTO planton_task (task_name) VALUES ('task')")
    return storage.claim_task("task", sql=CLAIM_SQL, concurrency=4, deliveries=5)


async def assert_nothing_changed(storage, observer):
    found = await rows(observer, "SELECT instruction, status FROM planton_instruction ORDER BY 1")

    assert [("expired", "running"), ("queued", "queued"), ("used up", "running")] == found
    assert [(0,)] == await rows(observer, "SELECT count(sent_at) FROM account")
    task = storage.claim_task("task 2", sql=CLAIM_SQL)
    assert ["1"] == names(await claim(task)), "the connections are usable"


async def assert_all_is_claimed(task, observer):
    claims = await claim(task)

    assert ["expired", "queued", "1", "2"] == names(claims)
    assert [("used up",)] == await rows(observer, "SELECT instruction FROM planton_ended")


@pytest.mark.parametrize("table", TABLES)
async def test_a_blocked_claim_goes_on_when_it_can(storage, connection, observer, table):
    """Each table that it reads or writes, locked by somebody's open transaction in turn."""
    task = await fill(storage, observer)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            nursery.start_soon(assert_all_is_claimed, task, observer)
            await blocked(observer)


@pytest.mark.parametrize("table", TABLES)
async def test_a_claim_that_is_blocked_for_too_long_is_undone(
    schema_dsn, storage, connection, observer, table
):
    """It says where to look; afterwards everything is as before."""
    task = await fill(storage, observer)
    async with PostgresStorage(schema_dsn, statement_timeout=0.15) as hasty:
        late = hasty.claim_task("task", sql=CLAIM_SQL, concurrency=4, deliveries=5)
        with trio.fail_after(10):
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StorageError, match="statement_timeout"):
                    await claim(late)
        await assert_nothing_changed(storage, observer)
    await observer.execute("UPDATE account SET sent_at = NULL")
    await assert_all_is_claimed(task, observer)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("function", ("pg_cancel_backend", "pg_terminate_backend"))
async def test_a_claim_whose_backend_is_ended_is_undone(
    storage, connection, observer, table, function
):
    """By an administrator; the next attempt has a connection again."""
    task = await fill(storage, observer)
    with trio.fail_after(10):
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_storage_error, task)
                await blocked(observer)
                await observer.execute(
                    f"SELECT {function}(pid) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
    await assert_nothing_changed(storage, observer)


async def expect_storage_error(task):
    with pytest.raises(StorageError):
        await claim(task)


async def test_a_cancelled_statement_of_the_users_is_undone_at_once(storage, connection, observer):
    """It may wait for the user's own locks; nobody waits for it longer than asked."""
    task = await fill(storage, observer)
    with trio.fail_after(10):
        async with connection.transaction():
            await connection.execute("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim, task)
                await blocked(observer)
                nursery.cancel_scope.cancel()
    await assert_nothing_changed(storage, observer)


async def test_one_that_fails_does_not_undo_what_shares_its_commit(storage, observer):
    """Each claim, and each report, is then sent by itself; the one that fails is told."""
    await enqueue(storage, "good", "a")
    await enqueue(storage, "bad", "b")
    await enqueue(storage, "done", "c")
    (done,) = await claim(storage.queue_task("done"))
    tasks = [storage.queue_task(name) for name in ("good", "bad")]
    await observer.execute(REFUSE)
    answers, ends = [], []

    async def claim_both():
        answers.extend(await tasks[0].schedule.many([request(task) for task in tasks]))

    async def end():
        ends.append(await storage.complete(str(done.receipt)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim_both)
        nursery.start_soon(end)

    assert ["a"] == names(answers[0].claims)
    assert isinstance(answers[1], StorageError)
    assert "not this one" in str(answers[1])
    assert [(done.receipt,)] == [end.applied for end in ends]
    assert [("b",)] == await rows(observer, "SELECT instruction FROM planton_pending")


async def test_reports_get_through_while_claims_are_blocked(schema_dsn, storage, connection):
    """One connection is left for them."""
    await enqueue(storage, "queue", "a")
    (claimed,) = await claim(storage.queue_task("queue"))
    async with PostgresStorage(schema_dsn, pool_size=2) as small:
        tasks = [small.claim_task(f"t{i}", sql=CLAIM_SQL) for i in range(3)]
        with trio.fail_after(5):
            async with connection.transaction():
                await connection.execute("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
                async with trio.open_nursery() as nursery:
                    for task in tasks:
                        nursery.start_soon(partial(claim, task))
                    done = await small.complete(claimed.receipt)
                    nursery.cancel_scope.cancel()

    assert (claimed.receipt,) == done.applied


# Very many tasks at once


async def attempt_many(storage, count, **options):
    """The answers for as many queue tasks, asked for in one call; by name."""
    tasks = [storage.queue_task(f"task {n}", concurrency=2, **options) for n in range(count)]
    answers = await tasks[0].schedule.many([request(task) for task in tasks])
    return {task.name: answer for task, answer in zip(tasks, answers, strict=True)}


async def test_very_many_tasks_get_what_each_of_them_has(schema_dsn, storage, observer):
    """Though it is first asked which of them have anything: due, expired, later, or active."""
    await enqueue(storage, "task 3", "due")
    await enqueue(storage, "task 5", "later", run_at=datetime.now(UTC) + timedelta(seconds=30))
    for number in (7, 9):
        await enqueue(storage, f"task {number}", "held")
        await claim(storage.queue_task(f"task {number}"))
    await observer.execute(
        "UPDATE planton_active SET lease_expires_at = now() WHERE task_name = 'task 9'"
    )
    async with PostgresStorage(schema_dsn) as dispatcher:
        answers = await attempt_many(dispatcher, 200, delay=50)

    claimed = {name: names(answer.claims) for name, answer in answers.items() if answer.claims}
    assert {"task 3": ["due"], "task 9": ["held"]} == claimed
    assert {0: 198, 1: 2} == Counter(answer.active for answer in answers.values())
    assert ["task 5"] == [
        name for name, answer in answers.items() if answer.due_in and answer.due_in <= 30
    ]


async def test_a_task_that_is_new_takes_nothing_from_those_beside_it(storage):
    """What is claimed for them in the same call is delivered."""
    old, new = [storage.queue_task(name) for name in ("old", "new")]
    assert [] == await claim(old)
    await enqueue(storage, "old", "a")
    answers = await old.schedule.many([request(task) for task in (old, new)])

    assert [["a"], []] == [names(answer.claims) for answer in answers]


async def test_a_task_whose_row_was_deleted_gets_it_anew(storage, observer):
    """Somebody has emptied the tables under a running dispatcher."""
    task = storage.queue_task("task")
    await claim(task)
    await observer.execute("TRUNCATE planton_task, planton_pending, planton_active")
    await enqueue(storage, "task", "a")

    assert [[], ["a"]] == [names(await claim(task)) for _ in range(2)]


async def test_other_tasks_do_not_hide_those_that_are_asked_for(schema_dsn, storage):
    """However many there are that another program has queued for."""
    for number in range(120):
        await enqueue(storage, f"other {number}", "a")
    await enqueue(storage, "task 3", "due")
    async with PostgresStorage(schema_dsn) as dispatcher:
        answers = await attempt_many(dispatcher, 100)

    assert ["task 3"] == [name for name, answer in answers.items() if answer.claims]


SELECT_SQL = "SELECT id FROM account ORDER BY id LIMIT %(limit)s"


# Reports


@pytest.mark.parametrize(
    "receipt", ("", "abc", "1", "1.", "1.2.3", "F55C8CA4-F970-48C1-9AD1-1B4919E87332")
)
async def test_a_malformed_receipt_is_an_error(storage, receipt):
    """It cannot be one of ours."""
    with pytest.raises(InvalidArgumentError, match="receipt"):
        await storage.complete(receipt)


async def test_reports_that_come_together_share_a_statement(storage, observer):
    """A hundred consumers that end at the same time do not commit a hundred times."""
    await enqueue(storage, "task", *map(str, range(100)))
    claims = await claim(storage.queue_task("task", concurrency=100))
    before = await rows(observer, "SELECT pg_current_xact_id()")
    async with trio.open_nursery() as nursery:
        for number, each in enumerate(claims):
            nursery.start_soon(storage.complete, each.receipt, number)
    after = await rows(observer, "SELECT pg_current_xact_id()")
    found = await storage.find(status="succeeded")

    assert int(after[0][0]) - int(before[0][0]) <= 4
    assert [(str(i), i) for i in range(100)] == sorted(
        ((each.instruction, each.result) for each in found), key=lambda pair: pair[1]
    )


async def test_retention_zero_keeps_no_history(schema_dsn):
    """Whatever the end."""
    async with PostgresStorage(schema_dsn, retention=0) as storage:
        await storage.migrate()
        await enqueue(storage, "task", "a", "b")
        a, b = await claim(storage.queue_task("task", concurrency=2))
        await storage.complete(a.receipt)
        await storage.fail(b.receipt, "broken")

        assert [] == await storage.find()


async def test_the_dispatcher_and_the_storage_together(storage):
    """Freed slots are filled at once."""
    task = storage.claim_task("send", sql=CLAIM_SQL, delay=3600)
    planton = Planton(tasks=[task], services=[storage.serve])
    seen = EventCollector(planton)
    with trio.fail_after(10):
        async with planton:
            planton.wake()
            for number in range(9):
                events = await seen.wait_for(InstructionEvent, number + 1)
                await storage.complete(events[number].receipt)

    assert list("123456789") == seen.instructions
