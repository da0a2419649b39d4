"""What backends share: SQL files, the version of tables, instructions as one parameter."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, LiteralString, cast

import attrs

from planton._errors import StorageError
from planton.storage._backend import NewInstruction

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PART = re.compile(r"^-- part: (\w+)\n(.*?)\n\n", re.MULTILINE | re.DOTALL)


def load_sql(package: str, file_name: str) -> str:
    """Return a .sql file of a package. What follows `-- part: name` is `{name}` further on in it.

    A part ends with the next empty line.
    """
    text = files(package).joinpath(file_name).read_text(encoding="utf-8")
    while part := _PART.search(text):
        text = text[: part.start()] + text[part.end() :].replace(f"{{{part[1]}}}", part[2])
    return text


def load_statements(package: str, file_name: str) -> dict[str, LiteralString]:
    """Return the statements of a file of a package that has a `-- name: …` line before each."""
    _, *found = _NAME.split(load_sql(package, file_name))
    # Literal as far as a type checker is concerned: written beside the code, nothing pasted in.
    return {
        name: cast(LiteralString, sql.strip())
        for name, sql in zip(found[::2], found[1::2], strict=True)
    }


@cache
def load_migrations(package: str) -> tuple[str, ...]:
    """Return the migrations of a package, in their order: the files of its folder migrations."""
    folder = files(package).joinpath("migrations")
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return tuple(folder.joinpath(name).read_text(encoding="utf-8") for name in found)


def check_version(database: str, version: int | None, known: int) -> None:
    """Raise `StorageError` for tables that are missing, older or newer than this code's."""
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


def to_rows(new: Sequence[NewInstruction], to_time: Callable[[datetime], Any]) -> str:
    """Return instructions as a JSON array of objects, each with the columns of the queue."""
    rows = [attrs.asdict(each, recurse=False) for each in new]
    for row in rows:
        row["run_at"] = None if row["run_at"] is None else to_time(row["run_at"])
    return json.dumps(rows)


def are_new(new: Sequence[NewInstruction], added: Iterable[Sequence[Any]]) -> list[bool]:
    """Return whether each was queued, by the task and instruction of those that were.

    Of two equal ones of a call the first was.
    """
    left = Counter((task_name, instruction) for task_name, instruction in added)
    keys = [(each.task_name, each.instruction) for each in new]
    answers = []
    for key in keys:
        answers.append(left[key] > 0)
        left[key] -= 1
    return answers
