"""Receipts and their numbers, and what travels together: pairs, sequences, batches, lock orders."""

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import StorageError
from planton.storage import ClaimRequest, Report
from planton.testing.conformance._base import claim, enqueue, names, receipts, statuses
from planton_postgres import PostgresStorage, _database
from planton_postgres._driver import TrioConnection


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


# Pairs


async def test_a_stale_receipt_ends_nothing_beside_a_good_one(storage):
    """The claim that it names has the token of the good one by now."""
    await enqueue(storage, "task", "a", "b")
    task = storage.queue_task("task", concurrency=2, lease=0.05)
    (stale,) = await claim(task, 1)
    await trio.sleep(0.1)
    rescued, good = await claim(task)
    done = await storage.complete([stale.receipt, good.receipt])

    assert (pair(stale)[0], pair(good)[1]) == pair(rescued)
    assert ((good.receipt,), (stale.receipt,)) == (done.applied, done.stale)
    assert ["a"] == await storage.get_active_instructions("task")


@pytest.mark.parametrize(
    "report",
    (
        ("heartbeat", ()),
        ("complete", (None,)),
        ("fail", ("broken", 0.0, True, False, 0)),
        ("advance", ("1", 0)),
        ("postpone", ("1", 0, 0.0)),
        ("release", ()),
        ("give_back", ()),
        ("take_over", (None, 5)),
    ),
)
async def test_each_report_goes_by_pairs(storage, report):
    """One batch: the ids and the tokens of two claims, crossed."""
    await enqueue(storage, "task", "a")
    task = storage.queue_task("task", concurrency=2)
    first = pair((await claim(task))[0])
    await enqueue(storage, "task", "b")
    second = pair((await claim(task))[0])
    crossed = [(first[0], second[1]), (second[0], first[1])]
    kind, values = report
    (found,), _ = await storage._backend.exchange([Report(kind, crossed, values)], [])

    assert {} == found
    assert ["a", "b"] == await storage.get_active_instructions("task")


# The numbers of claims


async def test_a_claim_by_another_of_what_was_queued_early_is_counted(storage, other):
    """Its id in the queue is low, and it becomes due after the first has counted from above it."""
    later = [{"instruction": f"later {n}", "priority": 5, "run_at": None} for n in range(2)]
    await storage.enqueue_many("task", later)
    await storage._backend._database.use(_put_off)
    await storage.enqueue_many("task", map(str, range(9)))
    first, second = (each.queue_task("task", concurrency=2) for each in (storage, other))
    await storage.complete(receipts(await claim(first)))
    await claim(first, 1)
    await trio.sleep(0.3)
    (taken,) = names(await claim(second))

    assert taken.startswith("later")
    assert [] == await claim(first)
    assert 2 == len(await storage.get_active_instructions("task"))


async def _put_off(connection):
    await connection.execute("UPDATE planton_pending SET run_at = now() + interval '0.2 seconds'")


@pytest.mark.parametrize(
    "change",
    (
        "ALTER SEQUENCE planton_claim_id RESTART WITH 1",
        "TRUNCATE planton_active RESTART IDENTITY; ALTER SEQUENCE planton_claim_id RESTART 1",
        "SELECT setval('planton_claim_id', 1)",
        "ALTER TABLE planton_active ALTER id DROP DEFAULT; DROP SEQUENCE planton_claim_id;"
        "CREATE SEQUENCE planton_claim_id;"
        "ALTER TABLE planton_active ALTER id SET DEFAULT nextval('planton_claim_id')",
    ),
)
async def test_the_cap_holds_when_the_numbers_begin_anew(storage, other, observer, change):
    """By a restore into the same server, or by hand; one dispatcher remembers a high number."""
    await storage.enqueue_many("task", map(str, range(200)))
    first, second = (each.queue_task("task", concurrency=2) for each in (storage, other))
    for _ in range(10):
        await storage.complete(receipts(await claim(first)))
    await observer.execute(change)
    await claim(second)
    most = len(await storage.get_active_instructions("task"))
    for _ in range(20):
        await storage.complete(receipts(await claim(second, 1)))
        await claim(first)
        most = max(most, len(await storage.get_active_instructions("task")))

    assert 2 == most


async def test_a_bound_of_another_server_is_ignored(storage, ask):
    """After a failover its numbers lie elsewhere."""
    await storage.set_concurrency("task", 3)
    await storage.enqueue_many("task", map(str, range(9)))
    _, state = await ask(limit=3)
    bound = state["lowest"] + 100
    same, elsewhere = state["server"], "1796034415.3 " + state["server"].split()[1]
    ((_, ignored), (_, used)) = [await ask(lowest=bound, server=each) for each in (elsewhere, same)]

    assert (3, 3) == (ignored["active"], ignored["held"])
    assert 3 == used["active"], "higher than the sequence is: it cannot be"


async def test_numbers_that_lie_behind_are_loud_and_migrate_mends_them(storage, observer):
    """As after logical replication, which copies no sequences; nothing is claimed twice."""
    await storage.enqueue_many("task", map(str, range(9)))
    task = storage.queue_task("task", concurrency=9)
    await claim(task, 3)
    await observer.execute(
        "SELECT setval('planton_claim_id', 1), setval('planton_pending_id_seq', 3)"
    )
    with pytest.raises(StorageError, match=r"behind.*migrate"):
        await claim(task, 3)
    with pytest.raises(StorageError, match=r"behind.*migrate"):
        await storage.enqueue("task", "new")
    assert 0 == await storage.migrate()

    assert 3 == len(await claim(task, 3))
    assert await storage.enqueue("task", "new")
    assert 6 == len(set(await storage.get_active_instructions("task")))


# What travels together


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


async def test_a_report_that_somebodys_transaction_is_in_the_way_of_holds_up_no_other(
    storage, connection
):
    """It has queued what is to be queued again: that report is refused, and may be tried again."""
    await enqueue(storage, "task", *"abc")
    a, b, c = await claim(storage.queue_task("task", concurrency=3))
    answers = {}

    async def report(method, claimed):
        try:
            answers[claimed.instruction] = (await method(claimed.receipt)).applied
        except StorageError as error:
            answers[claimed.instruction] = str(error)

    async with connection.transaction():
        await connection.execute(
            "INSERT INTO planton_pending (task_name, instruction) VALUES ('task', 'a')"
        )
        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(report, storage.release, a)
                nursery.start_soon(report, storage.release, b)
                nursery.start_soon(report, storage.complete, c)

    assert ((b.receipt,), (c.receipt,)) == (answers["b"], answers["c"])
    assert "lock timeout" in answers["a"]
    assert (a.receipt,) == (await storage.release(a.receipt)).applied
    assert [("a", "queued"), ("b", "queued"), ("c", "succeeded")] == await statuses(storage)


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


@pytest.mark.usefixtures("_not_again")
async def test_enqueuing_in_other_orders_is_no_deadlock(storage, other, connection):
    """Nor of what is enqueued twice in a call."""
    wanted = [str(n * 7919 % 1000) for n in range(400)]
    added = []

    async def enqueue_all(each, order):
        added.append(await each.enqueue_many("task", order))

    with trio.fail_after(30):
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(enqueue_all, storage, [*wanted, wanted[0]])
                nursery.start_soon(enqueue_all, other, wanted[::-1])
            await connection.execute("DELETE FROM planton_pending")

    assert 5 * 400 == sum(added)


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


async def test_reports_that_come_together_share_a_commit(postgres_dsn, rows):
    """A hundred consumers that end at the same time do not commit a hundred times."""
    async with (
        PostgresStorage(postgres_dsn, migrate=True) as storage,
        await TrioConnection.connect(postgres_dsn) as observer,
    ):
        await enqueue(storage, "task", *map(str, range(100)))
        claims = await claim(storage.queue_task("task", concurrency=100))
        async with trio.open_nursery() as nursery:
            for number, each in enumerate(claims):
                nursery.start_soon(storage.complete, each.receipt, number)
        found = await storage.find(status="succeeded")
        query = "SELECT count(DISTINCT xmin::text) FROM planton_ended"
        ((commits,),) = await rows(observer, query)

    assert commits <= 3
    assert sorted((str(i), i) for i in range(100)) == sorted(
        (each.instruction, each.result) for each in found
    )


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
