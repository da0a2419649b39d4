"""Notifications: none is lost, whenever and however the loop over them ends."""

import contextlib

import psycopg
import pytest
import trio


async def notify(connection, *payloads):
    for payload in payloads:
        await connection.execute("SELECT pg_notify('news', %s)", (payload,))


async def test_notifications_come_in_order(connection, observer):
    """Each with its channel, payload and sender."""
    await connection.execute("LISTEN news")
    await notify(observer, "a", "b", "c")
    received = [notification async for notification in connection.notifies(stop_after=3)]

    sender = observer.info.backend_pid
    assert [psycopg.Notify("news", payload, sender) for payload in "abc"] == received


async def test_the_loop_waits_for_the_next_notification(connection, observer, nursery):
    """It wakes when one comes, and does not poll."""
    await connection.execute("LISTEN news")

    async def notify_later() -> None:
        await trio.sleep(0.05)
        await notify(observer, "late")

    nursery.start_soon(notify_later)
    with trio.fail_after(1):
        received = [n.payload async for n in connection.notifies(stop_after=1)]

    assert ["late"] == received


async def test_the_loop_ends_after_its_timeout(connection, observer):
    """So that its user can do something else from time to time, as a heartbeat."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    started = trio.current_time()
    received = [n.payload async for n in connection.notifies(timeout=0.1)]

    assert ["a"] == received
    assert 0.1 <= trio.current_time() - started < 0.5


async def test_a_timeout_of_zero_takes_what_is_there(connection, observer):
    """It looks at the socket once, and does not wait."""
    await connection.execute("LISTEN news")
    await observer.execute(
        "SELECT pg_notify('news', payload) FROM (VALUES ('a'), ('b')) t(payload)"
    )
    await trio.lowlevel.wait_readable(connection.fileno())
    received = [n.payload async for n in connection.notifies(timeout=0)]

    assert ["a", "b"] == received
    assert [] == [n async for n in connection.notifies(timeout=0)]


async def test_leaving_the_loop_early_loses_nothing(connection, observer):
    """The next loop goes on where the last one stopped, and nothing is left to be finalised."""
    await connection.execute("LISTEN news")
    await notify(observer, "a", "b")
    async for notification in connection.notifies():
        assert "a" == notification.payload
        break
    async with contextlib.aclosing(connection.notifies()) as notifications:
        async for notification in notifications:
            assert "b" == notification.payload
            break
    with pytest.raises(StopAsyncIteration):
        await anext(notifications)


async def test_a_cancelled_loop_loses_nothing(connection, observer):
    """Wherever the cancellation strikes, what has come is there for the next loop."""
    await connection.execute("LISTEN news")
    sent = [str(i) for i in range(50)]
    received = []
    for payload in sent:
        await notify(observer, payload)
        with trio.move_on_after(0.0005):
            async for notification in connection.notifies():
                received.append(notification.payload)
    received += [n.payload async for n in connection.notifies(timeout=0.2)]

    assert sent == received


async def test_what_comes_with_the_answer_of_a_statement_is_kept(connection, observer):
    """The connection reads notifications whenever it reads."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    await notify(connection, "b")

    assert ["a", "b"] == [n.payload async for n in connection.notifies(timeout=0)]


async def test_the_body_of_the_loop_may_use_the_connection(connection, observer):
    """The connection is taken only while the loop waits."""
    await connection.execute("LISTEN news")
    await notify(observer, "a")
    async for _ in connection.notifies():
        await notify(connection, "own")
        break

    assert ["own"] == [n.payload async for n in connection.notifies(timeout=0)]


async def test_a_listener_that_the_server_ends_is_told_at_once(connection, observer, nursery):
    """Waiting for a wake-up that can never come would be the worst way to fail."""
    await connection.execute("LISTEN news")
    ended = trio.Event()

    async def listen() -> None:
        with pytest.raises(psycopg.OperationalError):
            async for _ in connection.notifies():
                pass
        ended.set()

    nursery.start_soon(listen)
    await trio.sleep(0.05)
    await observer.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    with trio.fail_after(1):
        await ended.wait()

    assert connection.closed


async def test_closing_the_connection_ends_the_loop_of_another_task(connection, nursery):
    """Trap 2, where the task waits for notifications."""
    ended = trio.Event()

    async def listen() -> None:
        with pytest.raises(psycopg.OperationalError):
            await anext(connection.notifies())
        ended.set()

    nursery.start_soon(listen)
    await trio.sleep(0.05)
    await connection.close()
    with trio.fail_after(1):
        await ended.wait()
