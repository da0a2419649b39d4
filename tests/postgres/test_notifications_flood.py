"""NOTIFY is open to any role: many and strange notifications are hints, and no more than that."""

import logging
import uuid

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from planton_postgres import PostgresStorage, _wake
from planton_postgres._wake import Hints

FLOOD = 60_000


class Watcher:
    """Notes what it is told."""

    def __init__(self):
        self.told = []
        self.live = False

    def is_live(self, *, is_live):
        self.live = is_live

    def changed(self, task_names):
        self.told.append(task_names)

    def requests(self):
        return []


@pytest.fixture
async def storage(schema_dsn):
    async with PostgresStorage(schema_dsn) as storage:
        await storage.migrate()
        yield storage


@pytest.fixture
async def watcher(storage, nursery):
    """It hears what is changed."""
    watcher = Watcher()
    await nursery.start(storage._backend.watch, watcher)
    return watcher


@pytest.fixture
async def stranger(storage, schema_dsn, observer):
    """A role that may do nothing but connect: `await stranger(payload, count)` notifies."""
    role = f"stranger_{uuid.uuid4().hex}"
    await observer.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    ((channel,),) = await storage._backend._database.rows("channel")

    def notify(payload, count):
        with psycopg.connect(make_conninfo(schema_dsn, user=role), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_notify(%s, replace(%s, '#', n::text)) FROM generate_series(1, %s) AS n",
                [channel, payload, count],
            )

    async def stranger(payload, count=1):
        await trio.to_thread.run_sync(notify, payload, count)

    yield stranger
    await observer.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


async def told(watcher, task_names):
    """Wait until it is told of these tasks."""
    with trio.fail_after(30):
        while task_names not in watcher.told:
            await trio.sleep(0.005)


async def test_a_flood_wakes_all_tasks_seldom_and_lets_others_run(watcher, stranger):
    """Tasks are woken at a pace of our own, and other trio tasks have turns while it is read."""
    turns = 0

    async def bystander():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bystander)
        await stranger('["due", ["task #"]]', FLOOD)
        await told(watcher, None)
        wakes = len(watcher.told)
        nursery.cancel_scope.cancel()

    # A reading has some hundred notifications at the most, and each leaves the others their turn.
    assert turns > FLOOD / 1000
    assert wakes < 20
    assert watcher.live


async def test_what_comes_after_a_flood_is_heard(watcher, stranger):
    """Nothing is read for minutes that came in seconds."""
    await stranger('["due", ["task #"]]', FLOOD)
    await told(watcher, None)
    with trio.fail_after(30):
        while {"after"} not in watcher.told:
            await stranger('["due", ["after"]]')
            await trio.sleep(0.2)

    assert watcher.live


STRANGE = [
    "[" * 7000,
    "[" * 3500 + "]" * 3500,
    "7" * 5000,
    "",
    "null",
    "{}",
    '["due"]',
    '["due", "send"]',
    '["due", {"send": 1}]',
    '["due", [1, null, ["send"]]]',
    '[["due"], ["send"]]',
    '["due", ["send"], 3]',
    '"\\ud800"',
]


async def test_strange_notifications_are_dropped_and_told_once(watcher, stranger, caplog):
    """They wake nobody and end nothing; the log has one line about all of them."""
    caplog.set_level(logging.WARNING, "planton")
    del watcher.told[:]
    for payload in STRANGE:
        await stranger(payload)
    await stranger('["due", ["good"]]')
    await told(watcher, {"good"})

    assert [{"good"}] == watcher.told
    assert watcher.live
    assert 1 == caplog.text.count("are not Planton's")


def test_strange_notifications_are_counted():
    """Each is one, and none of them names a task."""
    hints = Hints()
    hints.add(STRANGE)

    assert (set(), len(STRANGE), len(STRANGE)) == (hints.names, hints.count, hints.strange)


def test_a_flood_is_not_parsed():
    """Beyond a number notifications are counted: nothing of them is kept."""
    hints = Hints()
    hints.add(f'["due", ["{number}"]]' for number in range(_wake._MANY))
    assert _wake._MANY == len(hints.names)
    hints.add(["[" * 7000] * 1000)

    assert (None, _wake._MANY + 1000, 0) == (hints.names, hints.count, hints.strange)
