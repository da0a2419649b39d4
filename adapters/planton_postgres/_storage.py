"""Instructions claimed from a PostgreSQL database."""

from planton.storage import Storage, to_count, to_number
from planton_postgres import _schema
from planton_postgres._backend import LOCK_TIMEOUT, PostgresBackend
from planton_postgres._database import Database
from planton_postgres._errors import name_of

WEEK = 7 * 24 * 3600.0


class PostgresStorage(Storage):
    """Claims instructions from a PostgreSQL database, under a cap that is exact over all processes.

    See `planton.storage.Storage` for its methods. While the server is away each of them tries again
    for `connect_timeout`, and then raises `StorageError`; the next call tries again.

    There is no state in sessions, so it works through a pooler such as PgBouncer in transaction
    mode, with `prepare_threshold=None` where the pooler knows no prepared statements.

    Args:
        conninfo: A connection string or URI, as libpq takes it.
        pool_size: The most connections; with two or more, one is left for what consumers report
            while statements of claim tasks wait for locks.
        unlogged: `migrate` makes tables that are not written to the log: faster, and **empty after
            a crash of the server**. For work that can be found again.
        retention: Seconds that what succeeded is kept while `serve` runs; with 0 there is no
            history at all, with None it is kept for ever. What failed stays until
            `prune(status=…)`.
        connect_timeout: Seconds to wait for a connection.
        statement_timeout: Seconds that one transaction may take; it is rolled back then.
        prepare_threshold: Statements executed more often than this on a connection are prepared
            there; None for never.
        wake_ups: Whether `serve` listens, on a connection of its own, for what other processes
            change; without it that is found by polling.
        listen_dsn: Where it listens, if `conninfo` leads to a pooler: there it could not.
        name: Kept with what it claims, as `claimed_by`; the host and the process if None.
        migrate: Whether opening it brings its tables up to date; left to the deploy by default.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
        StorageError: On entering, if the database cannot be connected to.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        pool_size: int = 4,
        unlogged: bool = False,
        retention: float | None = WEEK,
        connect_timeout: float = 10.0,
        statement_timeout: float = 10.0,
        prepare_threshold: int | None = 5,
        wake_ups: bool = True,
        listen_dsn: str | None = None,
        name: str | None = None,
        migrate: bool = False,
    ) -> None:
        self.conninfo = conninfo
        database = Database(
            conninfo,
            pool_size=to_count("pool_size", pool_size, 1),
            connect_timeout=to_number("connect_timeout", connect_timeout, above=0),
            statement_timeout=to_number("statement_timeout", statement_timeout, above=0),
            prepare_threshold=prepare_threshold,
            check=_schema.check,
        )
        if listen_dsn is not None:
            name_of(listen_dsn, "listen_dsn")
        self._postgres = PostgresBackend(
            database, keeps=retention != 0, unlogged=unlogged, listen_dsn=listen_dsn
        )
        super().__init__(
            self._postgres, name=name, retention=retention, wake_ups=wake_ups, migrate=migrate
        )

    async def migrate(self, *, lock_timeout: float = LOCK_TIMEOUT) -> int:
        """Bring Planton's tables up to date; safe when many processes start at once.

        Tables that are up to date are only read: no right to create anything is needed.

        Args:
            lock_timeout: Seconds to wait for a lock on the tables.

        Returns:
            How many migrations were applied.

        Raises:
            StorageError: If the tables are newer than this code, or cannot be written; a setting of
                the server, the database or the role would change what they hold; or a lock was not
                to be had: the error names who holds it.
        """
        self._check_open()
        return await self._postgres.migrate(to_number("lock_timeout", lock_timeout, above=0))
