"""SQL files of a backend: named statements, numbered migrations, and their version."""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

from planton._errors import StorageError

_HEADER = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_statements(package: str, file_name: str) -> dict[str, LiteralString]:
    """Return the statements of a file of a package that has a `-- name: …` line before each."""
    text = files(package).joinpath(file_name).read_text(encoding="utf-8")
    _, *parts = _HEADER.split(text)
    # Literal as far as a type checker is concerned: written beside the code, nothing pasted in.
    return {
        name: cast(LiteralString, sql.strip())
        for name, sql in zip(parts[::2], parts[1::2], strict=True)
    }


@cache
def load_migrations(package: str) -> tuple[str, ...]:
    """Return the migrations of a package, in their order: the files of its folder migrations."""
    folder = files(package).joinpath("migrations")
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return tuple(folder.joinpath(name).read_text(encoding="utf-8") for name in found)


def check_version(database: str, version: int | None, known: int) -> None:
    """Check that tables are those that this code needs.

    Args:
        database: Its name, for the error.
        version: Of the tables; None if there are none.
        known: The version that this code makes.

    Raises:
        StorageError: If they are missing, older, or newer; it says what to do.
    """
    refuse_newer(database, version or 0, known)
    if (version or 0) < known:
        tables = f"its tables are of version {version}" if version else "it has no planton tables"
        remedy = "call `await storage.migrate()` first, or run `planton migrate URL`"
        raise StorageError(database, f"{tables}, this planton needs version {known}: {remedy}")


def refuse_newer(database: str, version: int, known: int) -> None:
    """Raise `StorageError` for tables that are newer than this code."""
    if version > known:
        problem = (
            f"its tables are of version {version}, this planton knows versions up to {known}: "
            "install a newer planton"
        )
        raise StorageError(database, problem)
