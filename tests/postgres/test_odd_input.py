"""Rows that any role may write: refused by the table, or harmful to themselves alone."""

import json
import logging

import psycopg
import psycopg.sql
import pytest

from planton import InvalidArgumentError
from planton.storage import _arguments as limits
from planton.testing.conformance._base import claim, names
from planton_postgres import PostgresStorage

MOST = 1_000_000_000


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


# The limits of Python are those of the tables


REFUSED = [
    ("task_name", "n" * (limits.NAME_LENGTH + 1)),
    ("instruction", "n" * (limits.INSTRUCTION_LENGTH + 1)),
    ("instruction", ""),
    ("payload", nested(limits.DEPTH + 1)),
    ("payload", nested(2000)),
    ("payload", nested(100_000)),
    ("payload", '{"a": ' * 201 + "1" + "}" * 201),
    ("payload", nested(1, "7" * (limits.DIGITS + 1))),
    ("payload", nested(1, '"a\\"", ' + nested(limits.DEPTH))),
    ("retries", -1),
    ("timeout", -1),
    ("timeout", 0),
    ("timeout", "NaN"),
    ("timeout", "Infinity"),
    ("timeout", limits.LONGEST),
    ("delivery", limits.MOST),
    ("delivery", -1),
    ("failures", limits.MOST),
    ("undelivered", limits.MOST),
    ("run_at", "-infinity"),
    ("tags", "{a,NULL}"),
]
TAKEN = [
    ("task_name", "n" * limits.NAME_LENGTH),
    ("instruction", "n" * limits.INSTRUCTION_LENGTH),
    ("payload", nested(limits.DEPTH)),
    ("payload", nested(1, ", ".join(["[[]]"] * 1000))),
    ("payload", nested(1, "7" * limits.DIGITS)),
    ("payload", json.dumps("7" * 10_000)),
    ("payload", json.dumps("[{" * 10_000 + '\\"')),
    ("payload", nested(1, '"\\ud800", ' + ", ".join(["[]"] * 300))),
    ("delivery", MOST),
    ("failures", MOST),
    ("undelivered", MOST),
    ("retries", limits.MOST),
    ("priority", -limits.MOST - 1),
    ("priority", limits.MOST),
    ("timeout", limits.LONGEST - 1),
    ("id", -5),
]


async def insert(connection, column, value):
    columns = {"task_name": "q", "instruction": "odd", column: value}
    statement = psycopg.sql.SQL("INSERT INTO planton_pending ({}) VALUES ({})").format(
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns)),
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Literal, columns.values())),
    )
    await connection.execute(statement)


async def test_the_table_refuses_what_no_claim_could_use(storage, connection):
    """A row over a limit of Python's is an error of whoever writes it."""
    for column, value in REFUSED:
        with pytest.raises(psycopg.Error):
            await insert(connection, column, value)

    assert [] == await storage.find()


async def test_what_the_table_takes_is_claimed_and_ends(storage, connection):
    """A row at a limit of Python's is given back, failed and completed as any other."""
    for column, value in TAKEN:
        await insert(connection, column, value)
        await connection.execute("UPDATE planton_pending SET retries = greatest(retries, 2)")
        task = storage.queue_task(value if column == "task_name" else "q")
        for _ in range(2):
            (first,) = await claim(task)
            assert (await storage.release(first.receipt)).applied, column
            (second,) = await claim(task)
            assert (await storage.fail(second.receipt, "odd", lower_priority=True)).applied, column
            await connection.execute("UPDATE planton_pending SET run_at = now() - interval '1 day'")
        (last,) = await claim(task)
        assert (await storage.complete(last.receipt)).applied, column

    assert ["succeeded"] * len(TAKEN) == [each.status for each in await storage.find()]


async def test_a_row_before_all_others_is_claimed(storage, connection):
    """No id and no time that can be written is passed over."""
    await connection.execute(
        "INSERT INTO planton_pending (id, task_name, instruction, run_at)"
        " VALUES (-9223372036854775808, 'q', 'first', '4713-01-01 BC')"
    )

    assert ["first"] == names(await claim(storage.queue_task("q")))


@pytest.mark.parametrize(
    ("payload", "remedy"),
    (
        (json.loads(nested(limits.DEPTH + 1)), "too deeply"),
        (json.loads(nested(900)), "too deeply"),
        ({"n": 10**limits.DIGITS}, "digits"),
    ),
)
async def test_enqueue_refuses_what_no_claim_can_read(storage, payload, remedy):
    """A payload that a consumer's Python could not read is refused where it is given."""
    with pytest.raises(InvalidArgumentError, match=remedy):
        await storage.enqueue("q", "1", payload=payload)


async def test_enqueue_refuses_long_numbers_also_where_python_was_told_to_write_them(
    storage, monkeypatch
):
    """The limit of digits is that of the readers, not of the process that writes."""
    monkeypatch.setattr(limits.json, "dumps", lambda *_, **__: "[%s]" % ("7" * 5000))

    with pytest.raises(InvalidArgumentError, match="4300 digits"):
        await storage.enqueue("q", "1", payload=[0])


# What the table could not refuse


@pytest.fixture
async def lenient(storage, connection):
    """A table without the CHECK of payloads, as a rewritten one may be."""
    await connection.execute(
        "ALTER TABLE planton_pending DROP CONSTRAINT planton_pending_payload_check"
    )


@pytest.mark.parametrize("payload", (nested(2000), '{"n": %s}' % ("7" * 5000)))
@pytest.mark.parametrize("retention", (3600, 0))
async def test_an_unreadable_payload_ends_alone(
    schema_dsn, connection, lenient, caplog, payload, retention
):
    """The others of its claim and of other tasks are delivered; it is told once, and ends."""
    caplog.set_level(logging.WARNING, "planton")
    async with PostgresStorage(schema_dsn, retention=retention) as storage:
        task, other = storage.queue_task("q", concurrency=5), storage.queue_task("other")
        await storage.enqueue("q", "before")
        await insert(connection, "payload", payload)
        await storage.enqueue("q", "after")
        await storage.enqueue("other", "good")

        found = [names(await claim(each)) for each in (task, other, task)]
        records = await storage.find(status="failed")

    assert [["before", "after"], ["good"], []] == found
    assert (["odd"] if retention else []) == [each.instruction for each in records]
    assert all("its payload cannot be read" in each.error for each in records)
    assert 1 == caplog.text.count("its payload cannot be read")
