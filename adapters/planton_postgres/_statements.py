"""The statements of the .sql files beside this module, by name."""

import re
from importlib.resources import files
from typing import LiteralString, cast

_HEADER = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(file_name: str) -> dict[str, LiteralString]:
    """Give the statements of a file that has a `-- name: …` line before each."""
    text = files(__package__).joinpath(file_name).read_text(encoding="utf-8")
    _, *parts = _HEADER.split(text)
    # Literal as far as psycopg is concerned: written by us, nothing pasted in.
    return {
        name: cast(LiteralString, sql.strip())
        for name, sql in zip(parts[::2], parts[1::2], strict=True)
    }


SCHEMA = load("schema.sql")
CLAIM = load("claim.sql")
END = load("end.sql")
OPERATE = load("operate.sql")
WAKE = load("wake.sql")
