"""SQLite databases named by a URL, for command lines and settings."""

from urllib.parse import unquote, urlsplit

from planton import InvalidArgumentError
from planton_sqlite._storage import SQLiteStorage


def from_url(url: str) -> SQLiteStorage:
    """Give the storage for `sqlite:///relative.db` or `sqlite:////absolute/path.db`.

    Raises:
        InvalidArgumentError: If the URL is not of that form.
    """
    parts = urlsplit(url)
    path = unquote(parts.path).removeprefix("/")
    if parts.scheme != "sqlite" or parts.netloc or not path:
        remedy = "write sqlite:///app.db, or sqlite:////srv/app.db for an absolute path"
        raise InvalidArgumentError("url", url, remedy)
    return SQLiteStorage(path)
