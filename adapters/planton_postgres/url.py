"""PostgreSQL databases named by a URL, for command lines and settings."""

from planton_postgres._storage import PostgresStorage


def from_url(url: str, *, create: bool = True) -> PostgresStorage:
    """Give the storage for `postgresql://user@host:5432/database`, or whatever libpq takes.

    Args:
        url: The connection string.
        create: Means nothing here: a database is made with `createdb`.

    Raises:
        InvalidArgumentError: If it is no connection string.
    """
    del create
    return PostgresStorage(url)
