"""The storage in memory has the transactions of a real one, and the core keeps its word on it."""

import sqlite3
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio
import trio.testing

from planton import (
    AttemptEvent,
    Claim,
    ErrorEvent,
    InstructionEvent,
    InvalidArgumentError,
    Planton,
    ScheduleRequest,
    StorageError,
    Task,
)
from planton.storage import Acknowledged
from planton.storage._wakeups import Served
from planton.testing import EventCollector, MemoryStorage
from planton.testing.conformance._base import claim
from planton_sqlite import SQLiteStorage


def advisory(storage):
    """Claims what it is asked for, whatever is active."""
    strict = storage.queue_task("task").schedule

    async def schedule(request):
        return (await strict(attrs.evolve(request, concurrency=1000))).claims

    return schedule


async def test_a_write_waits_for_a_transaction_of_the_callers():
    """Like a lock: in trio's time, for ten seconds."""
    storage = MemoryStorage()
    storage.add("task", "a", "b")
    storage.connection.execute("BEGIN")
    storage.connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY)")

    async def commit():
        await trio.sleep(2.99)
        storage.connection.execute("COMMIT")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await storage.pause("task")

    assert 3 == trio.current_time()
    storage.connection.execute("BEGIN")
    with pytest.raises(StorageError, match="transaction on its connection is open"):
        await storage.resume("task")
    assert 13 == trio.current_time()


async def test_what_is_queued_within_a_transaction_of_the_callers_is_rolled_back_with_it():
    """As on a file, with the connection of the storage itself."""
    storage = MemoryStorage()
    storage.connection.execute("BEGIN")
    await storage.enqueue("task", "a", connection=storage.connection)
    storage.connection.execute("ROLLBACK")
    with pytest.raises(InvalidArgumentError, match=r"storage\.connection"):
        await storage.enqueue("task", "a", connection=sqlite3.connect(":memory:"))

    assert [] == await storage.find()


async def test_a_write_that_raises_leaves_nothing_behind():
    """Neither changes nor a lock."""
    storage = MemoryStorage()
    storage.connection.execute("CREATE TABLE item (id INTEGER)")
    storage.connection.execute("INSERT INTO item VALUES (1), (NULL)")
    sql = "UPDATE item SET id = id RETURNING id + 0 * :limit"
    task = storage.claim_task("task", sql=sql, concurrency=5)
    planton = Planton(tasks=[task])
    seen = EventCollector(planton)
    await planton.attempt("task")

    assert "NULL" in str(seen.errors[0])
    assert not storage.connection.in_transaction
    assert [] == await storage.find()


async def test_a_statement_that_takes_too_long_is_ended():
    """The event loop stands still meanwhile."""
    storage = MemoryStorage(timeout=0.05)
    endless = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) "
    task = storage.claim_task("task", sql=f"{endless} SELECT max(n) FROM n LIMIT :limit")
    planton = Planton(tasks=[task])
    seen = EventCollector(planton)
    await planton.attempt("task")

    assert "took too long" in str(seen.errors[0])


async def test_the_dates_of_sql_follow_the_clock_of_trio():
    """Of functions and of defaults."""
    storage = MemoryStorage(start=datetime(2030, 1, 1, tzinfo=UTC))
    await storage.find()
    storage.connection.execute("CREATE TABLE item (made_at TEXT DEFAULT CURRENT_TIMESTAMP)")
    storage.connection.execute("CREATE INDEX item_by_day ON item (date(made_at))")
    await trio.sleep(90)
    storage.connection.execute("INSERT INTO item DEFAULT VALUES")
    expressions = (
        "(SELECT made_at FROM item)",
        "datetime()",
        "datetime('now', '+1 day')",
        "CURRENT_DATE",
        "CURRENT_TIME",
        "strftime('%Y', 'now')",
        "strftime('%M')",
        "date('2020-02-28', '+1 day')",
    )

    assert [
        "2030-01-01 00:01:30",
        "2030-01-01 00:01:30",
        "2030-01-02 00:01:30",
        "2030-01-01",
        "00:01:30",
        "2030",
        "01",
        "2020-02-29",
    ] == [storage.connection.execute(f"SELECT {each}").fetchone()[0] for each in expressions]


@pytest.mark.parametrize(("is_strict", "most"), ((True, 1), (False, 4)))
async def test_the_strict_cap_holds_over_four_dispatchers_and_the_advisory_does_not(
    is_strict, most
):
    """Limit 1 ran 4 at once: that is what count-then-claim does, here as on a database."""
    storage = MemoryStorage(latency=0.01)
    storage.add("task", *map(str, range(50)))
    running = highest = 0

    async def consume(event):
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await trio.sleep(0.1)
        running -= 1
        await storage.complete(event.receipt)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            if is_strict:
                task = storage.queue_task("task", delay=0.05)
            else:
                task = Task(name="task", schedule=advisory(storage), delay=0.05)
            planton = Planton(get_active_instructions=storage.get_active_instructions, tasks=[task])
            planton.on(InstructionEvent, lambda event: nursery.start_soon(consume, event))
            nursery.start_soon(planton.run)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()

    assert most == highest
    assert 50 == len(storage.instructions("task", "ended"))


async def test_an_expired_lease_is_delivered_again_and_the_late_write_refused():
    """At least once, and fenced."""
    storage = MemoryStorage()
    storage.add("task", "a", payload={"to": "x"})
    planton = Planton(tasks=[storage.queue_task("task", lease=10, delay=1)])
    seen = EventCollector(planton)
    async with planton:
        await trio.sleep(15)
        first, second = seen.of(InstructionEvent)
        late = await storage.complete(first.receipt)
        await storage.heartbeat(second.receipt)
        done = await storage.complete([second.receipt, "999.7"])

    assert (1, 2) == (first.delivery, second.delivery)
    assert {"to": "x"} == second.payload
    assert ((), (first.receipt,)) == (late.applied, late.stale)
    assert ((second.receipt,), ("999.7",)) == (done.applied, done.stale)
    assert ["a"] == storage.instructions("task", "ended")


async def test_a_heartbeat_keeps_the_lease():
    """For as long as the work lives."""
    storage = MemoryStorage()
    storage.add("task", "a")
    planton = Planton(tasks=[storage.queue_task("task", lease=10, delay=1)])
    seen = EventCollector(planton)
    async with planton:
        for _ in range(10):
            await trio.sleep(5)
            for event in seen.of(InstructionEvent):
                await storage.heartbeat(event.receipt)

    assert 1 == len(seen.instructions)


class Refusing:
    def __call__(self, event):
        raise OSError("no")


async def test_what_is_released_is_claimed_again():
    """The task's own release gives back what its listener refused."""
    storage = MemoryStorage()
    storage.add("task", "a")
    planton = Planton(tasks=[storage.queue_task("task", delay=1.0)])
    planton.on(InstructionEvent, (refuse := Refusing()))
    async with planton:
        await trio.sleep(1.5)
        planton.off(InstructionEvent, refuse)

        assert ["a"] == storage.instructions("task", "pending")
        seen = EventCollector(planton)
        await seen.wait_for(InstructionEvent)

    assert 2 == seen.of(InstructionEvent)[0].delivery


async def test_what_is_there_already_is_not_added_again():
    """Whatever has become of it."""
    storage = MemoryStorage()
    storage.add("task", "a", "b")
    storage.add("task", "b", "b", "c")

    assert ["a", "b", "c"] == storage.instructions("task", "pending")


async def test_it_is_used_like_any_other_storage():
    """Opened and migrated; tasks of other Plantons are not disturbed by a wake-up."""
    async with MemoryStorage() as storage:
        assert 0 == await storage.migrate()
        planton, other = (
            Planton(tasks=tasks, services=[storage.serve])
            for tasks in ([storage.queue_task("task", delay=3600)], [])
        )
        seen = EventCollector(planton)
        with trio.fail_after(60):
            async with planton, other:
                await storage.enqueue("task", "a")
                await seen.wait_for(InstructionEvent)


def test_its_tables_are_those_of_a_file():
    """What looks into them works on both."""
    assert SQLiteStorage("app.db").schema() == MemoryStorage().schema()


async def test_dates_follow_the_clock_of_trio_from_a_start_on():
    """A simulation begins when it is told to."""
    start = datetime(2030, 1, 1, tzinfo=UTC)
    storage = MemoryStorage(start=start)
    await trio.sleep(100)
    await storage.enqueue("task", "a")
    await trio.sleep(3600)
    await storage.enqueue("task", "b")
    a, b = await storage.find()

    assert (start, timedelta(hours=1)) == (a.created_at, b.created_at - a.created_at)
    (stats,) = await storage.stats()
    assert start == stats.oldest_due_at


def test_time_goes_on_in_the_next_run():
    """Whatever each clock of trio begins with."""
    storage = MemoryStorage(start=datetime(2030, 1, 1, tzinfo=UTC))
    storage.add("task", "a")
    clocks = [trio.testing.MockClock(autojump_threshold=0) for _ in range(2)]
    clocks[0].jump(1e6)
    for name, clock in zip("bc", clocks, strict=True):

        async def add(name=name):
            storage.add("task", name)
            await trio.sleep(10)
            await storage.pause("other")

        trio.run(add, clock=clock)
    times = storage.connection.execute("SELECT created_at FROM planton_pending ORDER BY id")
    first, *rest = (seconds for (seconds,) in times)

    assert datetime(2030, 1, 1, tzinfo=UTC).timestamp() == first
    assert [first, first + 10] == rest


@pytest.mark.parametrize("name", ("", 7))
def test_a_name_that_is_none_is_refused(name):
    """What is claimed is to name somebody."""
    with pytest.raises(InvalidArgumentError, match="name"):
        MemoryStorage(name=name)


def test_a_name_is_kept():
    """Of the storage, for what it claims."""
    assert "echo-1" == MemoryStorage(name="echo-1").name


async def test_a_report_that_the_database_refuses_is_the_error_of_its_caller():
    """Here a trigger of the user's; the claim stays as it is."""
    storage = MemoryStorage()
    refuse = "CREATE TRIGGER no BEFORE INSERT ON planton_ended BEGIN SELECT RAISE(ABORT, 'no'); END"
    storage.connection.execute(refuse)
    storage.add("task", "a")
    asked = ScheduleRequest(
        task_name="task", active_instructions=(), concurrency=1, limit=1, attempt_number=0
    )
    (claim,) = await advisory(storage)(asked)
    with pytest.raises(StorageError, match="no"):
        await storage.complete(claim.receipt)

    assert ["a"] == await storage.get_active_instructions("task")


async def test_a_claim_that_cannot_be_given_back_is_kept_and_told():
    """By the dispatcher, until it can be."""
    storage = MemoryStorage()
    storage.connection.execute(
        "CREATE TRIGGER no BEFORE DELETE ON planton_active BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    storage.add("task", "a")
    refuses = True

    def deliver(event):
        if refuses:
            raise OSError("the consumer is away")

    planton = Planton(tasks=[storage.queue_task("task", delay=1)], storages=[storage])
    planton.on(InstructionEvent, deliver)
    seen = EventCollector(planton, ErrorEvent, AttemptEvent)
    async with planton:
        await trio.sleep(1.5)
        refuses = False
        await trio.sleep(2)

    assert ["deliver", "release"] == [event.stage for event in seen.of(ErrorEvent)]
    assert [0, 1] == [event.claimed for event in seen.of(AttemptEvent)][:2]


async def test_what_a_full_disk_refuses_takes_nothing_back_that_was_committed_before():
    """Of what is exchanged in halves each half has its own answer."""
    storage = MemoryStorage()
    storage.connection.execute(
        "CREATE TRIGGER no BEFORE INSERT ON planton_ended WHEN new.instruction = 'b'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    storage.add("task", "a", "b", "c")
    claims = await claim(storage.queue_task("task", concurrency=3))
    ((pages,),) = storage.connection.execute("PRAGMA page_count").fetchall()
    storage.connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    results = (None, None, '"' + "c" * 100_000 + '"')
    answers = await storage.report_many(
        [
            ("complete", [each.receipt], (result,))
            for each, result in zip(claims, results, strict=True)
        ]
    )

    assert [True, False, False] == [isinstance(each, Acknowledged) for each in answers]
    for word, answer in zip((": no", "disk is full"), answers[1:], strict=True):
        assert word in str(answer)
    assert ["b", "c"] == await storage.get_active_instructions("task")


async def test_a_statement_that_finds_the_disk_full_is_not_to_blame():
    """The error is one of the database; nothing is claimed, and it is tried again."""
    storage = MemoryStorage()
    storage.connection.execute("CREATE TABLE item (id INTEGER, text TEXT)")
    storage.connection.execute("INSERT INTO item (id) VALUES (1)")
    ((pages,),) = storage.connection.execute("PRAGMA page_count").fetchall()
    storage.connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    sql = "UPDATE item SET text = hex(zeroblob(100000 * :limit)) RETURNING id"
    planton = Planton(tasks=[storage.claim_task("task", sql=sql)])
    seen = EventCollector(planton)
    await planton.attempt("task")

    assert ["StorageError"] == [type(error).__name__ for error in seen.errors]
    assert "make room on the disk" in str(seen.errors[0])
    assert [] == seen.instructions


async def test_of_two_that_retry_all_at_the_same_time_one_does():
    """The other finds nothing left."""
    storage = MemoryStorage(latency=1.0)
    storage.add("task", "a", "b")
    for each in await claim(storage.queue_task("task", concurrency=2)):
        await storage.fail(each.receipt, "no")
    counts = []

    async def retry():
        counts.append(await storage.retry("task"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(retry)
        nursery.start_soon(retry)

    assert (1.0, [2, 0]) == (storage.latency, counts)


async def test_the_tasks_of_very_many_claims_are_not_remembered_for_ever():
    """They are a hint: which task to wake when a claim ends."""
    storage = MemoryStorage()
    storage.remember([Claim(instruction="a", receipt=str(n)) for n in range(100_002)], "task")

    assert 100_000 == len(storage._held)


def test_a_planton_whose_run_is_over_is_not_woken():
    """By a storage on another thread, which hears of a change a moment too late."""

    async def token():
        return trio.lowlevel.current_trio_token()

    planton = Planton(tasks=[MemoryStorage().queue_task("task")])
    Served(planton, trio.run(token)).wake(["task"])

    assert not planton.is_running


class Steps(trio.abc.Instrument):
    """Counts what trio tasks do from one checkpoint to the next."""

    count = 0

    def before_task_step(self, task):
        self.count += 1


async def test_a_report_waits_for_no_claim_where_no_planton_runs():
    """An end is as quick as a report that frees nothing."""
    storage = MemoryStorage()
    storage.add("task", "a")
    batch = await storage.queue_task("task").schedule(
        ScheduleRequest(
            task_name="task", active_instructions=(), concurrency=1, limit=1, attempt_number=0
        )
    )
    (claim,) = batch.claims
    steps = []
    for report in (storage.heartbeat, storage.complete):
        counted = Steps()
        trio.lowlevel.add_instrument(counted)
        await report(claim.receipt)
        trio.lowlevel.remove_instrument(counted)
        steps.append(counted.count)

    assert steps[0] == steps[1]


async def test_reports_of_the_same_moment_share_a_commit():
    """The first of them lets those come that are about to."""
    storage = MemoryStorage()
    commits = []
    storage.observe(lambda reports, *_: commits.append(len(reports)))
    async with trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(storage.complete, f"{number}.1")

    assert [5] == commits


async def test_a_statement_is_not_run_before_the_report_that_frees_its_slot(autojump_clock):
    """Its claim cannot join that commit: at a cap of one each report would cost a claim more."""
    storage = MemoryStorage()
    storage.connection.execute("CREATE TABLE job AS SELECT value AS id FROM json_each('[1, 2, 3]')")
    sql = "DELETE FROM job WHERE id IN (SELECT id FROM job LIMIT :limit) RETURNING id"
    task = storage.claim_task("task", sql=sql, concurrency=1, delay=3600)
    planton = Planton(tasks=[task], storages=[storage])
    seen = EventCollector(planton)
    async with planton:
        for number in (1, 2, 3):
            events = await seen.wait_for(InstructionEvent, number)
            await storage.complete(events[-1].receipt)
        await trio.sleep(1)

    assert ["1", "2", "3"] == seen.instructions
    assert "saturated" not in seen.outcomes
