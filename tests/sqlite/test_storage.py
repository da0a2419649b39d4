"""The strict claim on a real SQLite database."""

import math
import sqlite3
import threading

import pytest
import trio

from planton import (
    InstructionEvent,
    InvalidArgumentError,
    InvalidQueryError,
    InvalidTaskError,
    Planton,
    StorageError,
)
from planton.testing import EventCollector
from planton_sqlite import SQLiteStorage
from planton_sqlite._query import Query


def strict(storage, claim_sql, **options):
    return storage.claim_task("send", sql=claim_sql, **{"concurrency": 3, "delay": 0.01, **options})


async def attempt(storage, claim_sql, **options):
    """One attempt; the Planton, what was seen."""
    planton = Planton(tasks=[strict(storage, claim_sql, **options)])
    seen = EventCollector(planton)
    await planton.attempt("send")
    return planton, seen


async def test_rows_of_the_users_table_become_instructions(storage, claim_sql, rows):
    """Claimed by the user's SQL, recorded with a receipt and a lease."""
    _, seen = await attempt(storage, claim_sql)
    receipts = [event.receipt for event in seen.of(InstructionEvent)]

    assert ["1", "2", "3"] == seen.instructions
    assert ["1", "2", "3"] == await storage.get_active_instructions("send")
    assert 3 == len(set(receipts))
    assert [(3,)] == rows("SELECT count(*) FROM user_account WHERE email_sent_at IS NOT NULL")
    assert [(3, 60.0)] == rows("SELECT count(*), min(lease) FROM planton_active")


async def test_the_cap_is_kept_until_claims_end(storage, claim_sql):
    """Saturated attempts say so, and a freed slot is filled."""
    planton, seen = await attempt(storage, claim_sql)
    event = await planton.attempt("send")

    assert ("saturated", 3) == (event.outcome, event.active)
    first = seen.of(InstructionEvent)[0]
    done = await storage.complete(first.receipt)
    await planton.attempt("send")

    assert (first.receipt,) == done.applied
    assert ["1", "2", "3", "4"] == seen.instructions


async def test_ending_a_claim_moves_it_to_the_history(storage, claim_sql, rows):
    """The view shows all three tables with one status."""
    _, seen = await attempt(storage, claim_sql)
    events = seen.of(InstructionEvent)
    await storage.complete(events[0].receipt)
    await storage.release([events[1].receipt])

    assert [("1", "succeeded"), ("2", "queued"), ("3", "running")] == rows(
        "SELECT instruction, status FROM planton_instruction ORDER BY instruction"
    )


async def test_what_was_released_is_claimed_before_the_users_table(storage, claim_sql):
    """With its delivery counted."""
    planton, seen = await attempt(storage, claim_sql)
    await storage.release([event.receipt for event in seen.of(InstructionEvent)[:2]])
    await planton.attempt("send")
    again = seen.of(InstructionEvent)[3:]

    assert [("1", 2), ("2", 2)] == [(event.instruction, event.delivery) for event in again]


async def test_a_stale_receipt_changes_nothing(storage, claim_sql):
    """Of a claim that was ended, given back, or taken over."""
    planton, seen = await attempt(storage, claim_sql, lease=0.02, concurrency=1)
    await trio.sleep(0.03)
    await planton.attempt("send")
    first, second = seen.of(InstructionEvent)

    assert ("1", "1", 2) == (first.instruction, second.instruction, second.delivery)
    for late in (storage.complete, storage.release, storage.heartbeat):
        assert (first.receipt,) == (await late(first.receipt)).stale
    both = await storage.complete([first.receipt, second.receipt])

    assert ((second.receipt,), (first.receipt,)) == (both.applied, both.stale)


async def test_a_heartbeat_renews_the_lease(storage, claim_sql, rows):
    """By the number of seconds of its task."""
    _, seen = await attempt(storage, claim_sql, lease=100)
    rows("UPDATE planton_active SET lease_expires_at = 0")
    await storage.heartbeat([event.receipt for event in seen.of(InstructionEvent)])

    ((seconds,),) = rows(
        "SELECT min(lease_expires_at) - (julianday('now') - 2440587.5) * 86400.0 "
        "FROM planton_active"
    )

    assert 90 < seconds <= 100


async def test_a_take_over_never_exceeds_the_limit(storage, claim_sql, rows):
    """Expired claims hold their slots already; the capacity is kept all the same."""
    await attempt(storage, claim_sql)
    rows("UPDATE planton_active SET lease_expires_at = 0")
    async with SQLiteStorage(storage.path) as other:
        task = strict(other, claim_sql, capacity=lambda: 2)
        second = Planton(tasks=[task])
        late = EventCollector(second)
        await second.attempt("send")

    assert 2 == len(late.instructions)
    assert 3 == len(await storage.get_active_instructions("send"))


async def test_a_plain_select_skips_what_is_active(storage, rows):
    """Its rows disappear only when the work is done; what is active is no obstacle."""
    sql = "SELECT id FROM user_account ORDER BY id LIMIT :limit"
    planton, seen = await attempt(storage, sql, concurrency=5)
    await storage.complete(seen.of(InstructionEvent)[4].receipt)
    await planton.attempt("send")

    assert ["1", "2", "3", "4", "5", "5"] == seen.instructions, "row 5 is there, and not active"


async def test_active_instructions_can_be_left_out_by_the_statement(storage):
    """`:active` is a JSON array."""
    sql = """
    SELECT id FROM user_account WHERE id NOT IN (SELECT value FROM json_each(:active))
    ORDER BY id LIMIT :limit
    """
    planton, seen = await attempt(storage, sql, concurrency=5, capacity=lambda: 2)
    await planton.attempt("send")

    assert ["1", "2", "3", "4"] == seen.instructions


async def test_a_statement_that_ignores_its_limit_is_undone(storage, rows):
    """More than the limit would break the cap: nothing is claimed, and the error says why."""
    sql = "UPDATE user_account SET email_sent_at = :limit RETURNING id"
    _, seen = await attempt(storage, sql)

    assert isinstance(seen.errors[0], InvalidQueryError)
    assert "gave 7 instructions" in str(seen.errors[0])
    assert [(0,)] == rows("SELECT count(*) FROM user_account WHERE email_sent_at IS NOT NULL")


async def test_rows_that_name_no_work_are_an_error_and_undone(storage, rows):
    """A NULL is no instruction."""
    sql = "UPDATE user_account SET email_sent_at = 1 WHERE id <= :limit RETURNING NULL"
    _, seen = await attempt(storage, sql)

    assert "NULL" in str(seen.errors[0])
    assert [(0,)] == rows("SELECT count(*) FROM user_account WHERE email_sent_at IS NOT NULL")


@pytest.mark.parametrize(
    ("value", "problem"),
    (
        ("''", "non-empty"),
        ("CAST(x'636166e9' AS TEXT)", "b'caf\\xe9'"),
        ("x'636166e9'", "b'caf\\xe9'"),
        ("'a' || char(0)", "NUL"),
        ("printf('%02001d', 7)", "at most 2000"),
        ("zeroblob(5000)", "at most 2000"),
    ),
)
async def test_what_is_no_instruction_is_an_error_and_undone(storage, rows, value, problem):
    """It could not be stored, or not be found again."""
    sql = f"UPDATE user_account SET email_sent_at = 1 WHERE id <= :limit RETURNING {value}"
    _, seen = await attempt(storage, sql)

    assert problem in str(seen.errors[0])
    assert isinstance(seen.errors[0], InvalidQueryError)
    assert [(0,)] == rows("SELECT count(*) FROM user_account WHERE email_sent_at IS NOT NULL")


@pytest.mark.parametrize("is_trigger", (False, True))
async def test_a_statement_that_rolls_back_undoes_its_own_claim_alone(storage, rows, is_trigger):
    """The transaction is over then, and nothing was claimed; the next one is as any."""
    sql = "INSERT OR ROLLBACK INTO user_account (id) SELECT 8 LIMIT :limit RETURNING id"
    if is_trigger:
        rows(
            "CREATE TRIGGER no AFTER INSERT ON user_account BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        )
    else:
        rows("INSERT INTO user_account (id) VALUES (8)")
    await storage.enqueue("send", "before")
    await storage.enqueue("other", "a")
    _, seen = await attempt(storage, sql)
    other = Planton(tasks=[storage.queue_task("other")])
    beside = EventCollector(other)
    await other.attempt("other")

    assert "undid the whole claim" in str(seen.errors[0])
    assert "OR ROLLBACK" in str(seen.errors[0])
    assert ([], ["a"]) == (seen.instructions, beside.instructions)
    assert ["before"] == [record.instruction for record in await storage.find(status="queued")]


async def test_a_blob_that_is_text_is_an_instruction(storage):
    """As some programs store names."""
    _, seen = await attempt(storage, "SELECT x'636166c3a9' LIMIT :limit")

    assert ["café"] == seen.instructions


async def test_a_table_that_gets_a_third_column_is_an_error_of_the_attempt(storage, rows):
    """The statement was right when the task was made."""
    rows("CREATE TABLE item (id INTEGER PRIMARY KEY)")
    rows("INSERT INTO item VALUES (1)")
    task = storage.claim_task("send", sql="SELECT * FROM item LIMIT :limit")
    rows("ALTER TABLE item ADD COLUMN owner TEXT")
    rows("ALTER TABLE item ADD COLUMN name TEXT")
    planton = Planton(tasks=[task])
    seen = EventCollector(planton)
    await planton.attempt("send")

    assert "it gives 3" in str(seen.errors[0])


@pytest.mark.parametrize(
    ("sql", "problem"),
    (
        ("SELECT id FROM user_account", "lacks the parameter :limit"),
        ("SELECT id FROM user_account -- LIMIT :limit", "lacks the parameter :limit"),
        ("SELECT ':limit' FROM user_account", "lacks the parameter :limit"),
        ("SELEC id FROM user_account LIMIT :limit", "syntax error"),
        ("SELECT id FROM user_acount LIMIT :limit", "no such table: user_acount"),
        ("SELECT id FROM user_account WHERE id > :least LIMIT :limit", ":least"),
        ("", "is empty"),
        (" -- nothing but a remark", "is empty"),
        ("SELECT id, 1, 2 FROM user_account LIMIT :limit", "it gives 3"),
        ("SELECT *, 1 FROM user_account ORDER BY email_sent_at LIMIT :limit", "it gives 3"),
        (
            "UPDATE user_account SET email_sent_at = 1 WHERE id <= :limit RETURNING *, 1",
            "it gives 3",
        ),
        ("UPDATE user_account SET email_sent_at = 1 WHERE id <= :limit", "needs RETURNING"),
        ("ATTACH printf('%d.db', :limit) AS other", "may not attach a database"),
        ("DETACH printf('%d', :limit)", "may not detach a database"),
        ("SELECT id FROM user_account LIMIT :limit; COMMIT", "one statement at a time"),
    ),
)
async def test_sql_that_cannot_be_used_is_refused_when_the_task_is_made(storage, sql, problem):
    """It names the task and the remedy, and changes nothing."""
    with pytest.raises(InvalidQueryError, match="send") as caught:
        storage.claim_task("send", sql=sql)

    assert problem in str(caught.value)
    storage.claim_task("send", sql="SELECT id FROM user_account LIMIT :limit")


@pytest.mark.parametrize("lease", (0, -1, math.nan, math.inf, True, "60", None))
async def test_a_lease_that_makes_no_sense_is_refused(storage, claim_sql, lease):
    """It names the value."""
    with pytest.raises(InvalidArgumentError, match="lease"):
        storage.claim_task("send", sql=claim_sql, lease=lease)


async def test_an_option_that_the_task_refuses_leaves_the_name_free(storage, claim_sql):
    """Before anything is changed."""
    with pytest.raises(InvalidTaskError, match="concurrency"):
        storage.claim_task("send", sql=claim_sql, concurrency=0)
    with pytest.raises(InvalidTaskError, match="concurrency"):
        storage.queue_task("send", concurrency=0)

    assert storage.queue_task("send").schedule is storage.queue_task("beside").schedule


@pytest.mark.parametrize(
    "receipt", ("", "abc", "1.-5", "1", "1.", ".5", "1.5.6", "٣.5", f"{2**63}.5")
)
async def test_a_malformed_receipt_is_an_error(storage, receipt):
    """It cannot be one of ours."""
    with pytest.raises(InvalidArgumentError, match="receipt"):
        await storage.complete(receipt)


async def test_a_paused_task_claims_nothing(storage, claim_sql, rows):
    """The pause is in the database, for all to see."""
    rows("INSERT INTO planton_task (task_name, paused_at) VALUES ('send', 1)")
    _, seen = await attempt(storage, claim_sql)

    assert ["paused"] == seen.outcomes


@pytest.mark.parametrize(("override", "expected"), ((1, 1), (5, 3)))
async def test_the_concurrency_in_the_database_takes_precedence(
    storage, claim_sql, rows, override, expected
):
    """Within what the code asks for in one attempt."""
    rows("INSERT INTO planton_task (task_name, concurrency) VALUES ('send', ?)", override)
    _, seen = await attempt(storage, claim_sql)

    assert expected == len(seen.instructions)


async def test_many_tasks_are_claimed_in_one_transaction(storage, claim_sql):
    """One statement that fails does not undo the others."""
    tasks = [storage.claim_task(f"t{i}", sql=claim_sql, delay=0.01) for i in range(3)]
    bad = storage.claim_task("bad", sql="SELECT NULL FROM user_account LIMIT :limit", delay=0.01)
    planton = Planton(tasks=[*tasks, bad])
    seen = EventCollector(planton)
    async with planton:
        await seen.wait_for(InstructionEvent, 3)

    assert ["1", "2", "3"] == sorted(seen.instructions)[:3]
    assert all(isinstance(error, InvalidQueryError) for error in seen.errors)


async def test_a_completed_claim_wakes_its_task_at_once(storage, claim_sql):
    """A freed slot does not wait for the next poll."""
    planton = Planton(
        tasks=[strict(storage, claim_sql, concurrency=1, delay=3600)], services=[storage.serve]
    )
    seen = EventCollector(planton)
    with trio.fail_after(5):
        async with planton:
            planton.wake()
            for number in range(7):
                events = await seen.wait_for(InstructionEvent, number + 1)
                await storage.complete(events[number].receipt)

    assert list("1234567") == seen.instructions


async def test_a_cancelled_write_is_committed_and_heard_or_neither(storage, claim_sql):
    """There is no moment at which a claim is committed and its receipts are lost."""
    seen = []
    for number in range(40):
        task = storage.claim_task(f"t{number}", sql=claim_sql)
        planton = Planton(tasks=[task])
        planton.on(InstructionEvent, lambda event: seen.append(event.receipt))
        with trio.move_on_after(number * 0.0001):
            await planton.attempt(f"t{number}")
    active = [await storage.get_active_instructions(f"t{number}") for number in range(40)]

    assert len(seen) == sum(map(len, active))


# Opening


async def test_a_database_that_cannot_be_opened_is_a_clear_error(tmp_path):
    """It names the file and the remedy."""
    with pytest.raises(StorageError, match="does not exist") as caught:
        async with SQLiteStorage(tmp_path / "nowhere" / "app.db"):
            pass  # pragma: no cover

    assert str(tmp_path / "nowhere" / "app.db") == caught.value.database


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    """Nothing is written to it."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 100)
    with pytest.raises(StorageError, match="not a database"):
        async with SQLiteStorage(path):
            pass  # pragma: no cover

    assert path.read_text().startswith("Dear reader")


async def test_a_folder_is_no_database(tmp_path):
    """Whatever the operating system says of it."""
    with pytest.raises(StorageError, match="folder"):
        async with SQLiteStorage(tmp_path):
            pass  # pragma: no cover


@pytest.mark.parametrize("path", (5, None, b"app.db", "a\0b"))
def test_what_is_no_path_is_refused(path):
    """By name."""
    with pytest.raises(InvalidArgumentError, match="path"):
        SQLiteStorage(path)


@pytest.mark.parametrize("path", ("sqlite:///app.db", "postgresql://joe:hunter2@host/app"))
def test_a_url_is_no_path(path):
    """A folder of that name would be meant; it may have a password in it, which is not shown."""
    with pytest.raises(InvalidArgumentError, match="not a URL") as caught:
        SQLiteStorage(path)

    assert path.split("//")[0] in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", (":memory:", "", "file:app.db?mode=ro"))
def test_a_path_that_is_no_file_is_refused(path):
    """Other processes could not see it."""
    with pytest.raises(InvalidArgumentError, match="path"):
        SQLiteStorage(path)
    with pytest.raises(InvalidArgumentError, match="synchronous"):
        SQLiteStorage("app.db", synchronous="OFF")


async def test_migrating_twice_changes_nothing(storage):
    """It tells how many were applied."""
    assert 0 == await storage.migrate()


async def test_a_storage_that_is_not_open_says_so(path):
    """Before its block, and after it; nothing hangs."""
    storage = SQLiteStorage(path)
    with trio.fail_after(5):
        with pytest.raises(StorageError, match="async with storage"):
            await storage.migrate()
        async with storage:
            await storage.migrate()
        with pytest.raises(StorageError, match="async with storage"):
            await storage.get_active_instructions("send")


async def test_a_storage_can_be_opened_again_but_not_twice(path):
    """One thread after the other."""
    storage = SQLiteStorage(path)
    for _ in range(2):
        async with storage:
            await storage.migrate()
            with pytest.raises(StorageError, match="open already"):
                await storage.__aenter__()


async def test_a_task_may_be_made_before_the_database_is_there(tmp_path, claim_sql):
    """What needs no database is checked at once, the rest with the first attempt."""
    storage = SQLiteStorage(tmp_path / "app.db")
    with pytest.raises(InvalidQueryError, match=":limit"):
        storage.claim_task("send", sql="SELECT 1")
    planton = Planton(tasks=[storage.claim_task("send", sql=claim_sql)])
    seen = EventCollector(planton)
    assert not (tmp_path / "app.db").exists()
    async with storage:
        await planton.attempt("send")

    assert "no such table: user_account" in str(seen.errors[0])


async def test_a_database_that_cannot_be_opened_says_so_when_a_task_is_made(tmp_path, claim_sql):
    """Whatever is there is no database."""
    with pytest.raises(StorageError, match="folder"):
        SQLiteStorage(tmp_path).claim_task("send", sql=claim_sql)


async def test_what_a_storage_of_a_name_claims_bears_it(path):
    """So that people see who has it."""
    async with SQLiteStorage(path, name="echo-1") as storage:
        await storage.migrate()
        await storage.enqueue("resize", "7")
        planton = Planton(tasks=[storage.queue_task("resize")])
        EventCollector(planton)
        await planton.attempt("resize")
        (record,) = await storage.find(task_name="resize")

    assert "echo-1" == record.claimed_by


async def test_a_writer_that_does_not_finish_is_waited_for(storage, claim_sql, path):
    """A lock of somebody else is no error at once."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    planton = Planton(tasks=[strict(storage, claim_sql)])
    seen = EventCollector(planton)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(planton.attempt, "send")
        await trio.sleep(0.05)

        assert [] == seen.events
        other.execute("COMMIT")
    other.close()

    assert 3 == len(seen.instructions)


async def test_a_writer_that_never_finishes_is_a_clear_error(storage, claim_sql, path, monkeypatch):
    """And nothing was claimed."""
    monkeypatch.setattr("planton_sqlite._open.BUSY_TIMEOUT", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    _, seen = await attempt(storage, claim_sql)
    other.close()

    assert "another process has been writing" in str(seen.errors[0])


class Watched(sqlite3.Connection):
    """Counts the authorizers that are set and removed."""

    count = 0

    def set_authorizer(self, authorizer):
        self.count += 1
        super().set_authorizer(authorizer)


def test_a_claim_does_not_ask_again_whether_its_statement_writes():
    """An authorizer makes SQLite prepare all statements of the connection anew."""
    connection = sqlite3.connect(":memory:", factory=Watched)
    query = Query("send", "SELECT 'asked once' LIMIT :limit")
    answers = [query.is_marking(connection) for _ in range(3)]
    connection.close()

    assert [False, False, False] == answers
    assert 2 == connection.count


async def test_a_report_that_waits_when_the_storage_is_closed_is_refused(path):
    """The one that was sent is answered; the other is told, and does not wait for ever."""
    storage, answers = SQLiteStorage(path), []
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    async def report():
        try:
            answers.append((await storage.complete("1.1")).stale)
        except StorageError as error:
            answers.append(str(error))

    async with trio.open_nursery() as nursery, storage:
        other.execute("BEGIN IMMEDIATE")  # the first waits for that
        for _ in range(2):
            nursery.start_soon(report)
            await trio.testing.wait_all_tasks_blocked()
        threading.Timer(0.1, other.execute, ["COMMIT"]).start()
    other.close()

    assert [("1.1",), f"{path}: the storage is not open"] == answers
