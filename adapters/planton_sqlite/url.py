"""SQLite databases named by a URL, for command lines and settings."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from planton import InvalidArgumentError, StorageError
from planton_sqlite._storage import SQLiteStorage


def from_url(url: str, *, create: bool = True) -> SQLiteStorage:
    """Give the storage for `sqlite:///relative.db` or `sqlite:////absolute/path.db`.

    Args:
        url: Percent escapes in it stand for characters of the path.
        create: Whether a file that is not there is made when the storage is opened.

    Raises:
        InvalidArgumentError: If the URL is not of that form.
        StorageError: If the file is not there and is not to be made.
    """
    parts = urlsplit(url)
    path = unquote(parts.path).removeprefix("/")
    if parts.scheme != "sqlite" or parts.netloc or not path:
        remedy = "write sqlite:///app.db, or sqlite:////srv/app.db for an absolute path"
        # Not as it was given: somebody may have written a password into it.
        raise InvalidArgumentError("url", f"{parts.scheme}:…", remedy)
    if not create and not Path(path).exists():
        raise StorageError(path, "there is no such file: `planton migrate URL` makes it")
    return SQLiteStorage(path, migrate=False)
