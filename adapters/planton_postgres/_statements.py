"""The statements beside this module, with our names qualified by their schema.

Functions and statements must find our tables whatever the search_path of whoever calls them is: a
trigger runs in the session of the program that writes. A qualified name is found by all, and costs
nothing, where a SET clause of a function would also apply to the user's own statement.
"""

import re
from typing import LiteralString

from planton.storage import load_migrations, load_sql, load_statements

_FUNCTIONS = ("claim_steps.sql", "ask.sql", "claim.sql", "reports.sql", "enqueue.sql", "wake.sql")
_CREATED = re.compile(
    r"^CREATE [A-Z ]*?(?:FUNCTION|TABLE|VIEW|SEQUENCE) (planton_\w+)", re.MULTILINE
)
_OURS = {"planton_schema", "planton_pending_id_seq"}


def _sources() -> list[str]:
    functions = [load_sql(__package__, f"functions/{name}") for name in _FUNCTIONS]
    return [*load_migrations(__package__), *functions]


_NAMES = _OURS.union(*(_CREATED.findall(text) for text in _sources()))
_ALTERNATIVES = "|".join(sorted(_NAMES, key=len, reverse=True))
# A name of ours, or that of the index of the queue where it is quoted, as for regclass.
_NAME = re.compile(rf"('?)(?<![\w.])({_ALTERNATIVES}|(?<=')planton_pending_due)(?!\w)")


def qualified(sql: str, schema: str) -> LiteralString:
    """Return SQL with our names qualified.

    Args:
        sql: Of ours.
        schema: Quoted where that is needed, as `quote_ident` returns it.
    """
    within = schema.replace("'", "''")
    return _NAME.sub(lambda match: f"{match[1]}{within if match[1] else schema}.{match[2]}", sql)


def function_sources() -> list[str]:
    """Return the functions, not qualified; each `migrate` that changes anything makes them anew."""
    return _sources()[len(load_migrations(__package__)) :]


class Statements:
    """The statements of clients, by name.

    Args:
        schema: Of our tables, quoted; None leaves it to the search_path.
    """

    def __init__(self, schema: str | None = None) -> None:
        files_ = ("statements.sql", "fleet.sql", "schema.sql")
        found = {k: v for name in files_ for k, v in load_statements(__package__, name).items()}
        self._by_name: dict[str, LiteralString] = {
            name: sql if schema is None else qualified(sql, schema) for name, sql in found.items()
        }

    def __getitem__(self, name: str) -> LiteralString:
        return self._by_name[name]
