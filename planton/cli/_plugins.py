"""From the scheme of a URL to the storage that an adapter has for it, by entry points."""

import re
from importlib.metadata import entry_points
from typing import Any

from planton.cli._exits import Mistake

# Where the extra is not called as the scheme of the URL.
EXTRAS = {"postgresql": "postgres"}
URLS = "write sqlite:///app.db, or postgresql://user@host/database"


def storage_at(url: str, *, create: bool) -> Any:
    """Return the storage that a URL names, not yet opened.

    The rest of the URL may hold a password, and is not shown.
    """
    scheme, colon, _ = url.partition(":")
    for entry in entry_points(group="planton.storages", name=scheme):
        try:
            return entry.load()(url, create=create)
        except ModuleNotFoundError as error:
            remedy = f"pip install 'planton[{EXTRAS.get(scheme, scheme)}]'"
            raise Mistake(f"{error.name} is not installed: {remedy}") from error
    if not (colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme)):
        raise Mistake(f"that is no storage URL: {URLS}")
    raise Mistake(f"no storage is installed for {scheme}: {URLS}, pip install 'planton[all]'")
