"""What travels together: a bad item, the commit, the order of locks, what is sent again."""

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import StorageError
from planton.storage import ClaimRequest, Report
from planton.testing.conformance._base import claim, enqueue, receipts
from planton_postgres import PostgresStorage, _database


def pair(claimed):
    row_id, token = claimed.receipt.split(".")
    return int(row_id), int(token)


def rule_of(storage, name):
    (rule,) = [
        terms.rule
        for schedule in storage._schedules
        for terms in schedule._terms.values()
        if terms.rule.task_name == name
    ]
    return rule


async def test_a_bad_report_undoes_only_itself(storage):
    """Those beside it, and the claims, are sent again one by one."""
    await enqueue(storage, "task", *"abc")
    task = storage.queue_task("task", concurrency=3)
    first, second = map(pair, await claim(task, 2))
    bad = Report("complete", [first], ("no JSON",))
    good = Report("complete", [second], ("1",))
    request = ClaimRequest(rule_of(storage, "task"), 3, 3, is_expected=True)
    (refused, done), (claimed,) = await storage._backend.exchange([bad, good], [request])

    assert isinstance(refused, StorageError)
    assert {second: "task"} == done
    assert ["c"] == [row.instruction for row in claimed.rows]
    assert ["a", "c"] == await storage.get_active_instructions("task")


async def test_a_claim_that_finds_nothing_leaves_the_commit_of_reports_durable(
    storage, observer, rows
):
    """Only alone it does not wait for the disk."""
    await observer.execute(
        "CREATE TABLE commits (how text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN"
        " INSERT INTO commits VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON planton_ended DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )
    await enqueue(storage, "task", "a")
    task = storage.queue_task("task", concurrency=2)
    (claimed,) = await claim(task)
    report = Report("complete", [pair(claimed)], (None,))
    request = ClaimRequest(rule_of(storage, "task"), 2, 2, is_expected=True)
    _, (answer,) = await storage._backend.exchange([report], [request])

    assert () == tuple(answer.rows)
    assert [("on",)] == await rows(observer, "SELECT how FROM commits")


async def test_a_statement_that_only_marks_is_durable(storage, observer, rows):
    """It has changed the user's rows, though nothing is claimed."""
    await observer.execute(
        "CREATE TABLE mark (how text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN"
        " UPDATE mark SET how = current_setting(''synchronous_commit'')"
        " WHERE how IS NULL; RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON mark DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )
    sql = """
    WITH skipped AS (INSERT INTO mark VALUES (NULL) RETURNING how)
    SELECT how FROM skipped WHERE false LIMIT %(limit)s
    """
    assert [] == await claim(storage.claim_task("task", sql=sql))

    assert [("on",)] == await rows(observer, "SELECT how FROM mark")


@pytest.fixture
def _not_again(monkeypatch):
    """A deadlock is an error, and not tried again."""
    monkeypatch.setattr(_database, "_UNDONE", ())


@pytest.mark.usefixtures("_not_again")
@pytest.mark.parametrize("method", ("heartbeat", "release"))
async def test_reports_in_other_orders_are_no_deadlock(storage, other, method):
    """Rows are locked in the order of their ids, and queued in that of their names."""
    await storage.enqueue_many("task", [f"{n * 7919 % 1000}" for n in range(300)])
    task = storage.queue_task("task", concurrency=300)
    held = receipts(await claim(task))
    rounds = 25 if method == "heartbeat" else 1

    async def report(each, order):
        for _ in range(rounds):
            await getattr(each, method)(order)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(report, storage, held)
            nursery.start_soon(report, other, held[::-1])


@pytest.mark.parametrize("level", ("repeatable read", "serializable"))
async def test_a_report_under_another_default_isolation_is_tried_again(
    storage, connection, blocked, level
):
    """Of a consumer that claims nothing: a heartbeat of somebody's was in the way."""
    await enqueue(storage, "task", "a")
    (claimed,) = await claim(storage.queue_task("task"))
    escaped = level.replace(" ", "\\ ")
    options = f"{conninfo_to_dict(storage.conninfo)['options']}"
    dsn = make_conninfo(
        storage.conninfo, options=f"{options} -cdefault_transaction_isolation={escaped}"
    )
    done = []

    async def complete(consumer):
        done.append(await consumer.complete(claimed.receipt))

    async with PostgresStorage(dsn) as consumer:
        await consumer.stats()
        async with trio.open_nursery() as nursery:
            async with connection.transaction():
                await connection.execute("UPDATE planton_active SET lease = lease + 1")
                nursery.start_soon(complete, consumer)
                await blocked()

    assert [(claimed.receipt,)] == [each.applied for each in done]


def test_errors_of_the_driver_itself_are_of_an_item():
    """A value that cannot be adapted was not sent: those beside it can."""
    from planton_postgres._exchange import _is_of_an_item

    errors = (
        psycopg.DataError("no such type"),
        psycopg.errors.DeadlockDetected(),
        psycopg.errors.LockNotAvailable(),
        psycopg.OperationalError("the connection is lost"),
        psycopg.errors.AdminShutdown(),
        None,
    )

    assert [True, True, True, False, False, False] == [_is_of_an_item(each) for each in errors]
