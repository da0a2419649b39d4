"""A statement of SQLAlchemy's as the SQL of a claim task."""

from typing import Any, Unpack

import sqlalchemy
from sqlalchemy.sql import visitors

from planton import InvalidArgumentError, InvalidQueryError, Task
from planton.storage import ClaimOptions, Storage

# What the storage binds at each claim, as the parameters of its SQL are written.
_PARAMETERS = ("limit", "active", "now", "full")
_STYLES = {"sqlite": ("sqlite", ":{}"), "postgresql": ("postgresql+psycopg", "%({})s")}


def claim_task(
    storage: Storage,
    name: str,
    *,
    statement: sqlalchemy.UpdateBase | sqlalchemy.Select[Any],
    **options: Unpack[ClaimOptions],
) -> Task:
    """Make a task that claims by a statement of SQLAlchemy's; see `Storage.claim_task`.

    Args:
        storage: Where claims are kept: on the same database as the tables of the statement.
        name: Name of the task.
        statement: `update(…).returning(…)` or `select(…)`, with one column, the instruction, or a
            second one, the partition. It has `bindparam("limit")`, and may have
            `bindparam("active")`, `bindparam("now")` and `bindparam("full")`; all other values of
            it become part of the SQL, once, written by SQLAlchemy.
        **options: Those of `Storage.claim_task`, and of `Task`.

    Raises:
        InvalidQueryError: If SQLAlchemy cannot write it as one statement, or it lacks the limit.
        InvalidTaskError: If an option cannot be used.
    """
    return storage.claim_task(name, sql=_to_sql(name, statement, storage.dialect), **options)


def _to_sql(name: str, statement: sqlalchemy.ClauseElement, dialect: str) -> str:
    if not isinstance(statement, sqlalchemy.ClauseElement):
        raise InvalidArgumentError(
            "statement", statement, "give update(…).returning(…) or select(…)"
        )
    driver, style = _STYLES[dialect]
    try:
        marked: Any = visitors.replacement_traverse(statement, {}, _mark)
        compiled = marked.compile(
            dialect=sqlalchemy.make_url(f"{driver}://").get_dialect()(),
            compile_kwargs={"literal_binds": True},
        )
    except sqlalchemy.exc.SQLAlchemyError as error:
        problem = f"cannot be written with its values in it: {error}"
        raise InvalidQueryError(name, str(statement), problem) from error
    sql = str(compiled)
    for parameter in _PARAMETERS:
        sql = sql.replace(_marker(parameter), style.format(parameter))
    return sql


def _mark(element: Any, **_: Any) -> Any:
    """Return what stands for a parameter: values are written out, it must not be."""
    if not isinstance(element, sqlalchemy.BindParameter):
        return None
    if element.key in _PARAMETERS:
        return sqlalchemy.literal_column(_marker(element.key), element.type)
    if element.required:
        known = ", ".join(_PARAMETERS)
        raise sqlalchemy.exc.ArgumentError(f"no value for {element.key!r}: only {known} get one")
    return None


def _marker(parameter: str) -> str:
    return f"planton_parameter_{parameter}"
