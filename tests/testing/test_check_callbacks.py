"""`check_callbacks` finds what callbacks promise: on good ones, and on good ones made bad."""

import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext

import attrs
import pytest
import trio

from planton import Batch, InvalidArgumentError, Task, UnexpectedInstructionsError
from planton.testing import MemoryStorage, check_callbacks
from planton_sqlite import file_lock

SCHEMA = """
    CREATE TABLE user_account (id INTEGER PRIMARY KEY, email_sent_at TEXT, claimed_until REAL);
    CREATE TABLE maintenance_task_execution (instruction TEXT, ended_at TEXT);
"""


class Npm:
    """The example of the npm README: counts what consumers recorded, claims user accounts."""

    cap = "advisory"

    def __init__(self, path):
        self.path = path
        self.connection = self.connect()
        self.connection.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    def connect(self):
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    @contextmanager
    def dispatcher(self):
        with closing(self.connect()) as connection:
            yield Task(
                name="send_user_email",
                schedule=lambda request: self.schedule(connection, request),
                get_active_instructions=lambda name: self.active(connection),
                cap=self.cap,
            )

    def active(self, connection):
        rows = connection.execute(
            "SELECT instruction FROM maintenance_task_execution WHERE ended_at IS NULL"
        )
        return [instruction for (instruction,) in rows]

    def schedule(self, connection, request):
        rows = connection.execute(
            """
            UPDATE user_account SET email_sent_at = datetime() WHERE id IN (
                SELECT id FROM user_account WHERE email_sent_at IS NULL LIMIT ?
            ) RETURNING id
            """,
            [request.limit],
        )
        return [str(account_id) for (account_id,) in rows]

    def write(self, sql, *parameters):
        self.connection.execute(sql, parameters)

    def insert(self, count):
        for _ in range(count):
            self.write("INSERT INTO user_account DEFAULT VALUES")

    def deliver(self, event):
        self.write(
            "INSERT INTO maintenance_task_execution (instruction) VALUES (?)", event.instruction
        )

    def end(self, event):
        self.write(
            "UPDATE maintenance_task_execution SET ended_at = datetime() WHERE instruction = ?",
            event.instruction,
        )


class Good(Npm):
    """Counts and claims in one transaction, with a lease."""

    cap = "strict"

    def active(self, connection):
        rows = connection.execute(
            "SELECT id FROM user_account WHERE claimed_until IS NOT NULL AND email_sent_at IS NULL"
        )
        return [str(account_id) for (account_id,) in rows]

    def schedule(self, connection, request):
        connection.execute("BEGIN IMMEDIATE")
        active = self.active(connection)
        expired = "claimed_until <= unixepoch()"
        (late,) = connection.execute(
            f"SELECT count(*) FROM user_account WHERE email_sent_at IS NULL AND {expired}"
        ).fetchone()
        rows = connection.execute(
            f"""
            UPDATE user_account SET claimed_until = unixepoch() + 60 WHERE id IN (
                SELECT id FROM user_account
                WHERE email_sent_at IS NULL AND (claimed_until IS NULL OR {expired}) LIMIT ?
            ) RETURNING id
            """,
            [max(0, min(request.limit, request.concurrency - len(active) + late))],
        ).fetchall()
        connection.execute("COMMIT")
        return Batch([str(account_id) for (account_id,) in rows], active=len(active))

    deliver = None

    def end(self, event):
        self.write(
            "UPDATE user_account SET email_sent_at = datetime() WHERE id = ?", event.instruction
        )

    def expire(self):
        self.write("UPDATE user_account SET claimed_until = 0 WHERE claimed_until IS NOT NULL")


class CountsBeforeItsTransaction(Good):
    def schedule(self, connection, request):
        room = request.concurrency - len(self.active(connection))
        request = attrs.evolve(request, limit=min(request.limit, room), concurrency=10**6)
        return super().schedule(connection, request)


class ChoosesBeforeItClaims(Good):
    def schedule(self, connection, request):
        active = self.active(connection)
        chosen = connection.execute(
            "SELECT id FROM user_account WHERE claimed_until IS NULL LIMIT ?",
            [max(0, min(request.limit, request.concurrency - len(active)))],
        ).fetchall()
        sql = "UPDATE user_account SET claimed_until = unixepoch() + 60 WHERE id = ?"
        connection.executemany(sql, chosen)
        return [str(account_id) for (account_id,) in chosen]


class IgnoresTheLimit(Good):
    def schedule(self, connection, request):
        return super().schedule(connection, attrs.evolve(request, limit=request.limit + 1))


class ReturnsASet(Good):
    def schedule(self, connection, request):
        return set(super().schedule(connection, request).claims)


class CountsWhatHasEnded(Good):
    def active(self, connection):
        rows = connection.execute("SELECT id FROM user_account WHERE claimed_until IS NOT NULL")
        return [str(account_id) for (account_id,) in rows]


class ShowsNothing(Good):
    def dispatcher(self):
        @contextmanager
        def dispatcher():
            with Good.dispatcher(self) as task:
                yield attrs.evolve(task, get_active_instructions=lambda name: [])

        return dispatcher()


class KeepsClaimsForEver(Good):
    def expire(self):
        self.write("UPDATE user_account SET claimed_until = 10e9 WHERE claimed_until IS NOT NULL")


class LosesItsClaims(Npm):
    deliver = None


async def check(app, **options):
    with closing(app.connection):
        return await check_callbacks(
            app.dispatcher,
            insert=app.insert,
            end=app.end,
            deliver=app.deliver,
            expire=getattr(app, "expire", None),
            patience=0.05,
            **options,
        )


def outcomes(report):
    return {finding.guarantee: finding.outcome for finding in report}


async def test_the_example_of_the_npm_readme_breaks_its_cap(tmp_path):
    """Limit 1 runs 4 at once on 4 nodes; it keeps what it can."""
    report = await check(Npm(tmp_path / "app.db"))

    assert {
        "cap": "broken",
        "once": "kept",
        "limit": "kept",
        "shown": "kept",
        "ended": "kept",
        "cancellation": "not applicable",
        "crash": "broken",
    } == outcomes(report)
    assert "4 active with concurrency 1" in report["cap"].evidence
    assert "not by schedule" in report["shown"].evidence


async def test_a_cap_that_nothing_counts_is_broken_by_one_dispatcher(tmp_path):
    """As the example of the npm README does until a consumer has recorded what it got."""
    report = await check(LosesItsClaims(tmp_path / "app.db"))

    assert ("broken", "broken") == (report["shown"].outcome, report["cap"].outcome)
    assert "one attempt after the other" in report["cap"].evidence
    assert "not shown as active" in report["crash"].evidence


@pytest.mark.parametrize("concurrency", (1, 3))
async def test_good_callbacks_keep_everything(tmp_path, concurrency):
    """Plain sqlite3, counted and claimed in one transaction."""
    report = await check(Good(tmp_path / "app.db"), concurrency=concurrency)

    assert {"cancellation": "not applicable"} == {
        name: outcome for name, outcome in outcomes(report).items() if outcome != "kept"
    }
    report.raise_for()
    report.raise_for("cap", "crash")


@pytest.mark.parametrize(
    ("mutation", "broken", "evidence"),
    (
        (CountsBeforeItsTransaction, "cap", "held up at step"),
        (ChoosesBeforeItClaims, "once", "returned again while it is active"),
        (IgnoresTheLimit, "limit", "3 instructions, more than the limit of 2"),
        (ReturnsASet, "limit", "must return a list"),
        (CountsWhatHasEnded, "ended", "the slot is still taken"),
        (ShowsNothing, "shown", "not active afterwards"),
        (KeepsClaimsForEver, "crash", "shown as active for ever"),
    ),
)
async def test_good_callbacks_made_bad_are_found(tmp_path, mutation, broken, evidence):
    """Each finding can fail, and says how."""
    report = await check(mutation(tmp_path / "app.db"))
    finding = report[broken]

    assert "broken" == finding.outcome
    assert evidence in finding.evidence
    assert finding.remedy
    with pytest.raises(AssertionError, match=f"(?s)not kept: {broken}\n.*Remedy: "):
        report.raise_for(broken)


class Locked(Npm):
    """The example with a lock: what is claimed is recorded as active before the lock is left."""

    deliver = None
    make_lock = staticmethod(file_lock)

    @contextmanager
    def dispatcher(self):
        with super().dispatcher() as task:
            yield attrs.evolve(task, lock=self.make_lock(f"{self.path}.lock"))

    def schedule(self, connection, request):
        claimed = super().schedule(connection, request)
        for name in claimed:
            connection.execute("INSERT INTO maintenance_task_execution VALUES (?, NULL)", [name])
        return claimed


class RecordsWhenTheLockIsLeft(Locked):
    deliver = Npm.deliver
    schedule = Npm.schedule


class LetsAllIn(Locked):
    make_lock = staticmethod(lambda path: lambda name: nullcontext())


class WaitsForItsTurn(Locked):
    """With an async lock, that yields what claims are made with."""

    def __init__(self, path):
        super().__init__(path)
        self.turn = trio.Lock()

    def make_lock(self, path):
        @asynccontextmanager
        async def lock(task_name):
            async with self.turn:
                yield self.connection

        return lock

    def schedule(self, connection, request):
        return super().schedule(request.context, request)


class LeftInVain(WaitsForItsTurn):
    """What is claimed in a lock that was lost is not dispatched."""

    def make_lock(self, path):
        @contextmanager
        def lock(task_name):
            yield self.connection
            raise ConnectionError("the lock was lost")

        return lock


@pytest.mark.parametrize("kind", (Locked, WaitsForItsTurn))
async def test_a_lock_keeps_the_cap_of_the_example(tmp_path, kind):
    """One that turns others away as well as one that lets them wait."""
    report = await check(kind(tmp_path / "app.db"))

    report.raise_for("cap", "once", "limit", "shown", "ended")
    assert "4 dispatchers asked for the lock before any of them" in report["cap"].evidence


@pytest.mark.parametrize(
    ("mutation", "evidence"),
    (
        (RecordsWhenTheLockIsLeft, "had claimed and not yet delivered"),
        (LetsAllIn, "counted before any of them claimed: 4 active"),
    ),
)
async def test_a_lock_that_is_none_is_found(tmp_path, mutation, evidence):
    """Also if what was claimed is recorded only when the lock is left."""
    report = await check(mutation(tmp_path / "app.db"))

    assert "broken" == report["cap"].outcome
    assert evidence in report["cap"].evidence


async def test_nothing_is_dispatched_under_a_lock_that_is_always_lost(tmp_path):
    """Its error is that of the first attempt."""
    with pytest.raises(ConnectionError, match="the lock was lost"):
        await check(LeftInVain(tmp_path / "app.db"))


async def test_a_lock_is_left_with_the_error_of_what_is_in_it(tmp_path):
    """So that a transaction is rolled back; in a worker thread, if it is not async."""
    raised = []

    class Fails(Locked):
        def make_lock(self, path):
            @contextmanager
            def lock(task_name):
                try:
                    yield True
                except ZeroDivisionError as error:
                    raised.append(error)
                    raise

            return lock

        def schedule(self, connection, request):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await check(Fails(tmp_path / "app.db"))

    assert [caught.value] == raised


class Memory:
    """Callbacks that are async, on the storage in memory."""

    deliver = None

    def __init__(self, latency=0.01):
        self.storage = MemoryStorage(latency=latency)
        self.inserted = 0

    def dispatcher(self):
        return self.storage.queue_task("task", lease=60)

    async def insert(self, count):
        for _ in range(count):
            self.inserted += 1
            await self.storage.enqueue("task", str(self.inserted))

    async def end(self, event):
        await self.storage.complete(event.receipt)

    async def expire(self):
        await trio.sleep(61)


class Advisory(Memory):
    @asynccontextmanager
    async def dispatcher(self):
        strict = self.storage.queue_task("task", lease=1e8).schedule

        async def schedule(request):
            return (await strict(attrs.evolve(request, concurrency=1000))).claims

        yield Task(name="task", schedule=schedule)


class LosesWhatIsCancelled(Memory):
    def dispatcher(self):
        task = self.storage.queue_task("task")

        async def schedule(request):
            batch = await task.schedule(request)
            await trio.sleep(0.01)
            return batch

        return attrs.evolve(task, schedule=schedule)


class Deadlocks(Memory):
    """One that comes second fails."""

    busy = False

    def dispatcher(self):
        task = self.storage.queue_task("task")

        async def schedule(request):
            if self.busy:
                raise OSError("busy")
            self.busy = True
            try:
                return await task.schedule(request)
            finally:
                self.busy = False

        return attrs.evolve(task, schedule=schedule)


class HasManySteps(Memory):
    def dispatcher(self):
        task = self.storage.queue_task("task")

        async def schedule(request):
            for _ in range(200):
                await trio.sleep(0)
            return await task.schedule(request)

        return attrs.evolve(task, schedule=schedule)


async def check_memory(app, **options):
    helpers = {name: getattr(app, name) for name in ("insert", "end", "deliver", "expire")}
    return await check_callbacks(
        **{
            "dispatcher": app.dispatcher,
            "get_active_instructions": app.storage.get_active_instructions,
            **helpers,
            **options,
        },
    )


async def test_the_storage_in_memory_keeps_everything(autojump_clock):
    """Async, strict, with leases."""
    report = await check_memory(Memory(), concurrency=2)

    assert {"kept"} == set(outcomes(report).values())
    assert "each of its 3 steps" in report["cancellation"].evidence


async def test_without_hooks_the_check_does_what_it_can(autojump_clock):
    """A strict task needs neither `end` nor `get_active_instructions`."""
    report = await check_memory(Memory(), end=None, expire=None, get_active_instructions=None)

    assert {"shown": "not applicable", "ended": "not applicable", "crash": "broken"} == {
        name: outcome for name, outcome in outcomes(report).items() if outcome != "kept"
    }
    assert "not shown as active" in report["crash"].evidence
    report.raise_for("cap", "once", "limit", "cancellation")
    with pytest.raises(AssertionError, match="not kept: shown"):
        report.raise_for("shown")


async def test_async_callbacks_that_count_first_break_their_cap(autojump_clock):
    """Nothing of the schedule needs to be held up for that."""
    report = await check_memory(Advisory(), dispatchers=3, concurrency=2)

    assert "6 active with concurrency 2" in report["cap"].evidence
    with pytest.raises(AssertionError, match="not kept: cap, crash"):
        report.raise_for()


async def test_a_checkpoint_after_the_commit_is_found(autojump_clock):
    """A cancellation there loses what was claimed."""
    report = await check_memory(LosesWhatIsCancelled())

    assert "1 of 1 claimed, not returned" in report["cancellation"].evidence


async def test_one_that_fails_beside_others_claims_nothing(autojump_clock):
    """A deadlock or a locked database is no broken promise."""
    report = await check_memory(Deadlocks())

    assert {"kept"} == set(outcomes(report).values())


async def test_a_callback_may_have_more_steps_than_are_played(autojump_clock):
    """A hundred are."""
    report = await check_memory(HasManySteps())

    assert "100 steps" in report["cancellation"].evidence
    assert "100 steps" in report["cap"].evidence


async def test_a_sync_function_may_return_an_awaitable():
    """As a lambda around an async function does; in real time, a thread waits."""
    app = Memory(latency=0)
    task = app.dispatcher()
    late = attrs.evolve(task, schedule=lambda request: task.schedule(request))
    options = {"dispatcher": lambda: late, "expire": None, "patience": 0.01}
    report = await check_memory(app, **options)

    report.raise_for("cap", "once", "limit", "shown")


@pytest.mark.parametrize(
    ("options", "argument"),
    (
        ({"dispatchers": 1}, "dispatchers"),
        ({"patience": -1}, "patience"),
        ({"concurrency": 0}, "concurrency"),
        ({"insert": lambda count: None}, "insert"),
    ),
)
async def test_what_cannot_be_used_is_refused(autojump_clock, options, argument):
    """An insert that makes nothing due would leave nothing to check."""
    with pytest.raises(InvalidArgumentError) as caught:
        await check_memory(Memory(), **options)

    assert argument == caught.value.argument


async def test_a_dispatcher_is_a_task(autojump_clock):
    """Or a context manager of one."""
    with pytest.raises(InvalidArgumentError, match=r"planton\.Task"):
        await check_callbacks(lambda: "task", insert=print)


async def test_the_report_is_a_table(autojump_clock):
    """A line or more for each guarantee, in words."""
    report = await check_memory(Memory())

    assert str(report).startswith("cap           kept            4 dispatchers counted")
    assert 1 == str(report).count("\ncrash         kept  ")
    with pytest.raises(InvalidArgumentError, match="cap, once, limit"):
        report.raise_for("speed")


async def test_a_schedule_that_returns_nothing_is_named():
    """It forgot its return: that `insert` made nothing due is not what is wrong."""

    async def forgets(request):
        pass

    task = Task(name="task", schedule=forgets)
    with pytest.raises(UnexpectedInstructionsError, match="None"):
        await check_callbacks(lambda: task, insert=print, get_active_instructions=lambda name: [])
