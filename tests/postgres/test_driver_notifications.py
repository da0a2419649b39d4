"""Notifications: none is lost, and no flood of them keeps the loop or the memory."""

import psycopg
import pytest
import trio

from planton_postgres._driver import TrioConnection, _connection


async def notify(connection, *payloads):
    for payload in payloads:
        await connection.execute("SELECT pg_notify('news', %s)", (payload,))


async def hear(connection, count):
    """The payloads of the next ones."""
    heard = []
    with trio.fail_after(5):
        while len(heard) < count:
            heard += [each.payload for each in await connection.next_notifies()]
    return heard


async def test_notifications_come_in_order(connection, observer):
    """Each with its channel, payload and sender."""
    await connection.execute("LISTEN news")
    await notify(observer, "a", "b", "c")
    received = []
    while len(received) < 3:
        received += await connection.next_notifies()

    sender = observer.info.backend_pid
    assert [psycopg.Notify("news", payload, sender) for payload in "abc"] == received


async def test_it_waits_for_the_next_notification(connection, observer, nursery):
    """It wakes when one comes, and does not poll."""
    await connection.execute("LISTEN news")

    async def notify_later() -> None:
        await trio.sleep(0.05)
        await notify(observer, "late")

    nursery.start_soon(notify_later)

    assert ["late"] == await hear(connection, 1)


async def test_those_that_have_come_are_taken_together_without_waiting(connection, observer):
    """So that many may be merged into one wake-up."""
    await connection.execute("LISTEN news")
    await observer.execute(
        "SELECT pg_notify('news', payload) FROM (VALUES ('a'), ('b'), ('c')) t(payload)"
    )

    assert ["a", "b", "c"] == [each.payload for each in await connection.next_notifies()]


async def test_a_cancellation_loses_nothing(connection, observer):
    """Wherever it strikes, what has come is there for the next call."""
    await connection.execute("LISTEN news")
    sent = [str(i) for i in range(50)]
    received = []
    for payload in sent:
        await notify(observer, payload)
        with trio.move_on_after(0.0005):
            while True:
                received += [each.payload for each in await connection.next_notifies()]
    received += await hear(connection, len(sent) - len(received))

    assert sent == received


async def test_what_comes_with_the_answer_of_a_statement_is_kept(connection, observer):
    """The connection reads notifications whenever it reads."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    await notify(connection, "b")
    await connection.run_pipeline([("SELECT pg_notify('news', %s)", ("c",), None)])

    assert ["a", "b", "c"] == await hear(connection, 3)


async def test_what_was_read_together_with_something_else_is_not_waited_for(connection, observer):
    """libpq has it already: the socket has nothing more to say."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    await trio.lowlevel.wait_readable(connection.fileno())
    connection.pgconn.consume_input()

    assert ["a"] == await hear(connection, 1)


async def test_the_connection_is_free_between_two_notifications(connection, observer):
    """It is taken only while somebody waits for one."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    assert ["a"] == await hear(connection, 1)
    await notify(connection, "own")

    assert ["own"] == await hear(connection, 1)


FLOOD = 100_000


async def test_a_flood_is_read_in_small_parts_and_other_tasks_have_their_turn(
    connection, observer, nursery
):
    """Any role may send as many as it likes; of each part some kilobytes are in memory."""
    await connection.execute("LISTEN news")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(count_turns)
    # Their text differs: the server merges those of a transaction that do not.
    await observer.execute(
        "SELECT pg_notify('news', i::text) FROM generate_series(1, %s) i", (FLOOD,)
    )
    parts = []
    before = turns
    while sum(parts) < FLOOD:
        parts.append(len(await connection.next_notifies()))

    assert max(parts) < 3_000
    assert len(parts) // 2 <= turns - before


async def test_of_very_many_that_nobody_asks_for_the_latest_are_kept(
    schema_dsn, observer, monkeypatch
):
    """They come with the answers of statements as well."""
    monkeypatch.setattr(_connection, "_MOST_NOTIFIES", 10)
    async with await TrioConnection.connect(schema_dsn) as connection:
        await connection.execute("LISTEN news")
        await notify(observer, *map(str, range(15)))
        await connection.execute("SELECT 1")

        assert [str(i) for i in range(5, 15)] == await hear(connection, 10)


async def test_a_payload_that_is_no_text_does_no_harm(connection, observer):
    """In a database whose encoding is SQL_ASCII it may be any bytes."""
    await connection.execute("LISTEN news")
    await connection.execute("SET client_encoding = 'LATIN1'")
    await notify(observer, "ä")

    assert ["\N{REPLACEMENT CHARACTER}"] == await hear(connection, 1)


async def test_a_listener_that_the_server_ends_is_told_at_once(connection, observer, nursery):
    """Waiting for a wake-up that can never come would be the worst way to fail."""
    await connection.execute("LISTEN news")
    ended = trio.Event()

    async def listen() -> None:
        with pytest.raises(psycopg.OperationalError):
            await connection.next_notifies()
        ended.set()

    nursery.start_soon(listen)
    await trio.sleep(0.05)
    await observer.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    with trio.fail_after(1):
        await ended.wait()

    assert connection.closed


async def test_closing_the_connection_ends_the_waiting_of_another_task(connection, nursery):
    """Trap 2, where the task waits for notifications."""
    ended = trio.Event()

    async def listen() -> None:
        with pytest.raises(psycopg.OperationalError):
            await connection.next_notifies()
        ended.set()

    nursery.start_soon(listen)
    await trio.sleep(0.05)
    await connection.close()
    with trio.fail_after(1):
        await ended.wait()
