"""Statements that travel together: one pipeline, one Sync, and all answers read before its end.

These are generators of the protocol, as psycopg's are. psycopg's own pipelines are not used: they
can be left before their answers were read, wait for the socket at each statement, and lose count
when the commit of the Sync fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple, TypeAlias

import psycopg
import psycopg.adapt
from psycopg.abc import Params, PQGen, Transformer
from psycopg.pq import ExecStatus

from . import _internals
from ._internals import Key, PostgresQuery, Prepare, PrepareManager

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

Rows: TypeAlias = list[tuple[Any, ...]]

_SYNC = ExecStatus.PIPELINE_SYNC
_COPYING = {ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH}


class Statement(NamedTuple):
    """One of the statements of `TrioConnection.run_pipeline`.

    Attributes:
        query: One statement, with `%s` or `%(name)s` where parameters go.
        parameters: Its parameters; None if it has none, then a `%` is just that.
        prepare: True prepares it at once, False never does; None when it was executed often enough,
            see `prepare_threshold`.
    """

    query: LiteralString | bytes
    parameters: Params | None = None
    prepare: bool | None = None


def running(
    connection: psycopg.AsyncConnection[Any], statements: Iterable[Statement]
) -> PQGen[list[PGresult]]:
    """Execute statements; the result of each."""
    transformer = psycopg.adapt.Transformer(connection)
    queries = [(_converted(transformer, each), each[2]) for each in statements]
    prepared = _internals.prepared_statements(connection)
    yield from prepared.maintain_gen(connection)
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    sent = [_send(pgconn, prepared, *query) for query in queries]
    try:
        answers = iter((yield from _synchronising(pgconn)))
    except psycopg.Error:
        # Which of them are prepared is not known, and some may never work again, as those whose
        # table was changed: all are deallocated before the next statement.
        prepared.clear()
        raise
    results = []
    for key, prepare, name in sent:
        if prepare is Prepare.SHOULD:
            next(answers)
        answer = next(answers)
        if key is not None:
            prepared.validate(key, prepare, name, answer)
        results += answer
    return results


def rows_of(connection: psycopg.AsyncConnection[Any], results: Iterable[PGresult]) -> list[Rows]:
    """Load the rows of results.

    Raises:
        psycopg.DataError: one cannot be loaded, for whatever reason.
    """
    transformer = psycopg.adapt.Transformer(connection)
    try:
        return [_rows(transformer, result) for result in results]
    except Exception as error:
        raise psycopg.DataError(f"{type(error).__name__}: {error}") from error


def describing(pgconn: PGconn, query: str, types: Sequence[int], encoding: str) -> PQGen[list[str]]:
    """Parse a statement; the names of its columns."""
    text = query.encode(encoding)
    if b"\0" in text:
        raise psycopg.DataError("a statement cannot contain NUL")  # libpq takes it for the end
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(b"", text, types)
    pgconn.send_describe_prepared(b"")
    _, (found,), _ = yield from _synchronising(pgconn)
    return [(found.fname(i) or b"").decode(encoding) for i in range(found.nfields)]


def _synchronising(pgconn: PGconn) -> PQGen[list[list[PGresult]]]:
    """Send what is queued and a Sync, read all answers, and leave pipeline mode.

    Raises:
        psycopg.Error: the first error, when all answers were read. Anything that keeps them from
            being read leaves the connection in pipeline mode, which closes it.
    """
    pgconn.pipeline_sync()
    yield from _internals.sending(pgconn)
    answers: list[list[PGresult]] = []
    try:
        while not answers or answers[-1][-1].status != _SYNC:
            answers.append((yield from _internals.fetching(pgconn)))
            if not answers[-1] or answers[-1][-1].status in _COPYING:
                raise psycopg.NotSupportedError("a COPY cannot be part of a pipeline")
    except psycopg.OperationalError as lost:
        # The last words of the server say why.
        raise _first_error(pgconn, answers) or lost from None
    pgconn.exit_pipeline_mode()
    if error := _first_error(pgconn, answers):
        raise error
    return answers


def _first_error(pgconn: PGconn, answers: list[list[PGresult]]) -> psycopg.Error | None:
    for answer in answers:
        for result in answer:
            if result.status == ExecStatus.FATAL_ERROR:
                return _internals.error_of(result, pgconn)
    return None


def _converted(transformer: Transformer, statement: Statement) -> PostgresQuery:
    query = PostgresQuery(transformer)
    query.convert(*statement[:2])
    return query


def _send(
    pgconn: PGconn, prepared: PrepareManager, query: PostgresQuery, wish: bool | None
) -> tuple[Key | None, Prepare, bytes]:
    """Queue a statement, and its preparation if it is time for that, as psycopg's cursors do."""
    prepare, name = prepared.get(query, wish)
    if prepare is Prepare.NO:
        pgconn.send_query_params(query.query, query.params, query.types, query.formats)
    else:
        if prepare is Prepare.SHOULD:
            pgconn.send_prepare(name, query.query, query.types)
        pgconn.send_query_prepared(name, query.params, query.formats)
    return prepared.maybe_add_to_cache(query, prepare, name), prepare, name


def _rows(transformer: Transformer, result: PGresult) -> Rows:
    if not result.ntuples:
        return []
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)
